/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * Stand-in for the check on Linux only: what vnode_restore.c uses of
 * libvmmapi's header in 14.2.
 */

#ifndef STANDIN_VMMAPI_H
#define	STANDIN_VMMAPI_H

#include <sys/types.h>

#define	VM_MEM_F_WIRED	2

enum {
	VM_SYSMEM
};

struct vmctx;

const char *vm_get_name(struct vmctx *);
uint32_t vm_get_lowmem_limit(struct vmctx *);
size_t	vm_get_lowmem_size(struct vmctx *);

#endif
