/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * Stand-in for the check on Linux only: what vnode_restore.c uses of
 * vmm's memory segment numbers.
 */

#ifndef STANDIN_USER_VMM_MEM_H
#define	STANDIN_USER_VMM_MEM_H

enum {
	VM_SYSMEM = 0
};

#endif
