/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * The ABI of vmm_vnode(4): guest memory segments of vmm(4) that are backed
 * copy-on-write by a checkpoint file.  The requests go to the descriptor of
 * the virtual machine, /dev/vmm/NAME.
 *
 * Rules of this ABI, so that old programs and new modules (and the reverse)
 * refuse each other instead of misreading each other:
 *
 * - every structure starts with the version it was written for; another
 *   version is EOPNOTSUPP;
 * - the size of a structure is part of its request number (_IOC), so a
 *   structure of another size is an unknown request, ENOTTY;
 * - reserved members and flags must be zero; anything else is EINVAL;
 * - a reserved member of an answer may get a meaning without a new version,
 *   with a feature that says so: a module without it answers zero;
 * - all members have fixed widths and natural alignment without padding.
 */

#ifndef _VMM_VNODE_H_
#define	_VMM_VNODE_H_

#include <sys/types.h>
#include <sys/ioccom.h>

#define	VM_VNODE_ABI		1

/* Features, reported by VM_VNODE_CAPS. */
#define	VM_VNODE_F_ATTACH	0x00000001u	/* VM_VNODE_ATTACH */
#define	VM_VNODE_F_STATS	0x00000002u	/* VM_VNODE_STATS */
#define	VM_VNODE_F_SWAPPED	0x00000004u	/* private_swapped is counted */
#define	VM_VNODE_F_COHERENT	0x00000008u	/* no stale mappings, see below */
#define	VM_VNODE_F_STATE	0x00000010u	/* "state" of VM_VNODE_STATS */

/*
 * When one address space copies a page on write, the kernel must remove the
 * page that was copied from the others, so that the guest and bhyve(8) see
 * each other's writes.  Kernels without the fix of FreeBSD-SA-22:11.vm do not.
 * On one of them VM_VNODE_F_COHERENT is missing, and guest memory must not be
 * backed by a file but for tests that know.
 */

/*
 * What the module can do.  "version" is filled in by the module, so that a
 * program learns the version without knowing it first.
 */
struct vm_vnode_caps {
	uint32_t	version;	/* out: VM_VNODE_ABI of the module */
	uint32_t	features;	/* out: VM_VNODE_F_* */
	uint64_t	page_size;	/* out: unit of offset, len and counts */
	uint64_t	reserved[6];	/* out: zero */
};

/*
 * Create system memory segment "segid" of the virtual machine, "len" bytes
 * long, whose byte N reads as byte offset + N of the file until the guest or
 * its device models write to that page.
 */
struct vm_vnode_attach {
	uint32_t	version;	/* in: VM_VNODE_ABI */
	uint32_t	flags;		/* in: zero */
	int32_t		segid;		/* in: system memory segment */
	int32_t		fd;		/* in: the file, open for reading */
	int64_t		offset;		/* in: in the file, page-aligned */
	uint64_t	len;		/* in: bytes, page-aligned */
	uint64_t	reserved[4];	/* in: zero */
};

/*
 * The books of one segment; counts are pages of page_size bytes.
 *
 * private_resident	pages that this segment has for itself, in memory:
 *			written by the guest, by a device model or by the
 *			kernel, or read where the file has a hole that its
 *			file system (tmpfs) keeps no page for.
 * private_swapped	the same, in swap and not in memory as well.  So the sum
 *			of the two is the number of private pages, each once.
 * file_resident	pages of the file's VM object.  On UFS the object holds
 *			the file's indirect blocks, too, so this may be a few
 *			pages more than the file has.
 * guest_mapped		pages in the guest's page tables, private and shared,
 *			and the pages of these tables themselves.
 */
struct vm_vnode_stats {
	uint32_t	version;	/* in: VM_VNODE_ABI */
	int32_t		segid;		/* in: system memory segment */
	int64_t		offset;		/* out: as attached */
	uint64_t	pages;		/* out: length of the segment */
	uint64_t	private_resident; /* out: private, in memory */
	uint64_t	private_swapped; /* out: private, in swap only */
	uint64_t	file_resident;	/* out: the whole file, in page cache */
	uint64_t	guest_mapped;	/* out: in the guest's page tables */
	uint64_t	state;		/* in: zero, out: VM_VNODE_STATE_* */
	uint64_t	reserved[3];	/* in: zero, out: zero */
};

/*
 * The file's pages are gone: its file system was unmounted by force.  What the
 * segment has for itself stays; every other page reads as zeros from now on,
 * and no error says so.  A machine with this state must not go on.
 */
#define	VM_VNODE_STATE_FILE_LOST	0x00000001u

/*
 * Numbers 120 to 123 run with the memory segments locked exclusively and all
 * vCPUs frozen, 124 to 127 with the memory segments locked shared.
 */
#define	VM_VNODE_ATTACH	_IOW('v', 120, struct vm_vnode_attach)
#define	VM_VNODE_CAPS	_IOR('v', 124, struct vm_vnode_caps)
#define	VM_VNODE_STATS	_IOWR('v', 125, struct vm_vnode_stats)

#ifndef __cplusplus
_Static_assert(sizeof(struct vm_vnode_caps) == 64, "vm_vnode_caps ABI");
_Static_assert(__offsetof(struct vm_vnode_caps, features) == 4, "ABI");
_Static_assert(__offsetof(struct vm_vnode_caps, page_size) == 8, "ABI");
_Static_assert(__offsetof(struct vm_vnode_caps, reserved) == 16, "ABI");

_Static_assert(sizeof(struct vm_vnode_attach) == 64, "vm_vnode_attach ABI");
_Static_assert(__offsetof(struct vm_vnode_attach, flags) == 4, "ABI");
_Static_assert(__offsetof(struct vm_vnode_attach, segid) == 8, "ABI");
_Static_assert(__offsetof(struct vm_vnode_attach, fd) == 12, "ABI");
_Static_assert(__offsetof(struct vm_vnode_attach, offset) == 16, "ABI");
_Static_assert(__offsetof(struct vm_vnode_attach, len) == 24, "ABI");
_Static_assert(__offsetof(struct vm_vnode_attach, reserved) == 32, "ABI");

_Static_assert(sizeof(struct vm_vnode_stats) == 88, "vm_vnode_stats ABI");
_Static_assert(__offsetof(struct vm_vnode_stats, segid) == 4, "ABI");
_Static_assert(__offsetof(struct vm_vnode_stats, offset) == 8, "ABI");
_Static_assert(__offsetof(struct vm_vnode_stats, pages) == 16, "ABI");
_Static_assert(__offsetof(struct vm_vnode_stats, private_resident) == 24,
    "ABI");
_Static_assert(__offsetof(struct vm_vnode_stats, private_swapped) == 32,
    "ABI");
_Static_assert(__offsetof(struct vm_vnode_stats, file_resident) == 40, "ABI");
_Static_assert(__offsetof(struct vm_vnode_stats, guest_mapped) == 48, "ABI");
_Static_assert(__offsetof(struct vm_vnode_stats, state) == 56, "ABI");
_Static_assert(__offsetof(struct vm_vnode_stats, reserved) == 64, "ABI");

_Static_assert(VM_VNODE_ATTACH == 0x80407678, "VM_VNODE_ATTACH number");
_Static_assert(VM_VNODE_CAPS == 0x4040767c, "VM_VNODE_CAPS number");
_Static_assert(VM_VNODE_STATS == 0xc058767d, "VM_VNODE_STATS number");
#endif

#endif /* !_VMM_VNODE_H_ */
