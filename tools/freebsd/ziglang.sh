# shellcheck shell=sh
# SPDX-License-Identifier: BSD-2-Clause
#
# The ziglang wheel of PyPI: the headers that FreeBSD 15 installs, and a C
# compiler and linker that make programs for it.  Sourced, not run.

ziglang_version=0.17.1

# ziglang DIR: sees to it that the wheel is unpacked in DIR, without what it
# has for other systems.  Needs python3 with pip; says what went wrong.
ziglang() {
	[ ! -e "$1/complete" ] || return 0
	rm -rf "$1"
	mkdir -p "$1"
	python3 -m pip download --quiet --no-deps --dest "$1" \
	    "ziglang==$ziglang_version" || return 1
	python3 - "$1" <<'PY' || return 1
import pathlib, sys, zipfile
to = pathlib.Path(sys.argv[1])
(wheel,) = to.glob("ziglang-*.whl")
other = ("lib/libc/mingw/", "lib/libc/musl/", "lib/libc/wasi/")
headers = "lib/libc/include/"
with zipfile.ZipFile(wheel) as z:
    for name in z.namelist():
        rest = name.removeprefix("ziglang/")
        if rest == name or name.endswith("/") or rest.startswith(other):
            continue
        if rest.startswith(headers) and rest.split("/")[3] not in (
            "x86_64-freebsd-none", "generic-freebsd"
        ):
            continue
        out = to / rest
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(z.read(name))
(to / "zig").chmod(0o755)
wheel.unlink()
PY
	touch "$1/complete"
}
