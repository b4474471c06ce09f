# shellcheck shell=sh
# Sourced by what builds programs for others: names for the folders of this machine, which compilers
# write into programs (panic messages, assertions), so that these are the same wherever they are built.

# folders OPTION: a compiler's option for each such folder. The workspace's own files have names
# relative to it already, but for what build scripts write.
folders() {
    printf '%s=%s=target ' "$1" "${CARGO_TARGET_DIR:-$PWD/target}"
    printf '%s=%s=. ' "$1" "$PWD"
    printf '%s=%s=registry' "$1" "${CARGO_HOME:-$HOME/.cargo}/registry/src"
}

rust_paths() { folders --remap-path-prefix; }
c_paths() { folders -ffile-prefix-map; }
