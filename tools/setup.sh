# shellcheck shell=sh
# What both tools/demo and tools/test need on a fresh machine. Sourced, not run.

say() { printf '\n== %s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf '  hint: %s\n' "$2" >&2
    exit 1
}

# install PACKAGE COMMAND: has Debian's package manager bring a command that is missing.
install() {
    command -v "$2" >/dev/null 2>&1 && return 0
    if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
        say "installing $1"
        apt-get install -y -q "$1" >/dev/null 2>&1 ||
            { apt-get update -q >/dev/null && apt-get install -y -q "$1" >/dev/null; }
    fi
    command -v "$2" >/dev/null 2>&1
}

# The version of typos that _typos.toml is for.
# shellcheck disable=SC2034 # for those that source this
TYPOS_VERSION=1.52.0

# from_pypi PROGRAM VERSION: has PyPI bring a program that is missing, into a folder of its own, and
# puts that in front of all others.
from_pypi() {
    command -v "$1" >/dev/null 2>&1 && return 0
    venv=${CARGO_TARGET_DIR:-target}/pypi/$1-$2
    if [ ! -x "$venv/bin/$1" ]; then
        python3 -m venv "$venv" >/dev/null 2>&1 &&
            "$venv/bin/pip" install -q "$1==$2" >/dev/null 2>&1 || return 1
    fi
    PATH=$(cd "$venv/bin" && pwd):$PATH
}

toolchain() {
    # shellcheck disable=SC1091
    [ ! -f "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"
    command -v cargo >/dev/null 2>&1 ||
        fail "no Rust toolchain" "install Rust 1.95 or later with rustup (https://rustup.rs)"
    # SQLite, which brood carries, is C.
    install gcc cc || fail "no C compiler" "install one: apt-get install gcc"
}
