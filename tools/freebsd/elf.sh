# shellcheck shell=sh
# SPDX-License-Identifier: BSD-2-Clause
#
# What a built file is, read from the file itself.  For ". elf.sh".

# elf_is_hardened FILE: position-independent, so that its text is at another
# address in each process; all symbols bound at the start, and what the linker
# relocated read-only from then on.
elf_is_hardened() {
	elf_missing=
	readelf -h "$1" | grep -q 'Type:.*DYN' ||
	    elf_missing="$elf_missing position-independent (-pie),"
	readelf -d "$1" | grep -q 'NOW' ||
	    elf_missing="$elf_missing bound at the start (-znow),"
	readelf -l "$1" | grep -q 'GNU_RELRO' ||
	    elf_missing="$elf_missing read-only after relocation (-zrelro),"
	[ -n "$elf_missing" ] || return 0
	echo "$1 lacks its hardening; it is not${elf_missing%,}" >&2
	return 1
}

# elf_has_probes FILE: the DTrace probes of a module are there.
elf_has_probes() {
	nm "$1" | grep -q 'sdt_vmm_vnode_' && return 0
	echo "$1 has no DTrace probes: it was built without KDTRACE_HOOKS" >&2
	return 1
}
