/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * The control device's part of the ABI and the memory segment numbers.  In
 * FreeBSD they are in dev/vmm/vmm_dev.h and dev/vmm/vmm_mem.h, which are in
 * the source tree but are not among the headers of a host; these declarations
 * are written from their contents.
 */

#ifndef VMMCTL_H
#define	VMMCTL_H

/* Destroy the virtual machine when the descriptor that created it closes. */
#define	VMMCTL_CREATE_DESTROY_ON_CLOSE	0x1

/*
 * "flags" came with FreeBSD's commit bd16bac27e7e.  Kernels without it have 16
 * reserved members, which must be zero: there a flag is EINVAL.  The size, so
 * the request, is the same.
 */
struct vmmctl_vm_create {
	char		name[VM_MAX_NAMELEN + 1];
	uint32_t	flags;
	int		reserved[15];
};

struct vmmctl_vm_destroy {
	char		name[VM_MAX_NAMELEN + 1];
	int		reserved[16];
};

#define	VMMCTL_VM_CREATE	_IOWR('V', 0, struct vmmctl_vm_create)
#define	VMMCTL_VM_DESTROY	_IOWR('V', 1, struct vmmctl_vm_destroy)

/* One segment of system memory per NUMA domain of the guest, then devices. */
#define	VM_MAXSYSMEM	8
enum {
	VM_SYSMEM = 0,
	VM_BOOTROM = VM_MAXSYSMEM,
	VM_FRAMEBUFFER,
	VM_PCIROM
};

#endif
