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

toolchain() {
    # shellcheck disable=SC1091
    [ ! -f "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"
    command -v cargo >/dev/null 2>&1 ||
        fail "no Rust toolchain" "install Rust 1.95 or later with rustup (https://rustup.rs)"
    # SQLite, which brood carries, is C.
    install gcc cc || fail "no C compiler" "install one: apt-get install gcc"
}
