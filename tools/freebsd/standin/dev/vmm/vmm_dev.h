/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * Stand-in for the check on Linux only: what vmm_backing.c uses of the private
 * header of the same name, written from its use.
 */

#ifndef STANDIN_VMM_DEV_H
#define	STANDIN_VMM_DEV_H

struct vmmdev_ioctl {
	unsigned long	cmd;
	int		flags;
};
#define	VMMDEV_IOCTL(_cmd, _flags)	{ .cmd = (_cmd), .flags = (_flags) }
#define	VMMDEV_IOCTL_SLOCK_MEMSEGS	1
#define	VMMDEV_IOCTL_XLOCK_MEMSEGS	2
#define	VMMDEV_IOCTL_LOCK_ALL_VCPUS	8

#endif
