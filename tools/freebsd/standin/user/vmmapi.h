/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * Stand-in for the check on Linux only: what vnode_restore.c uses of
 * libvmmapi's header.
 */

#ifndef STANDIN_VMMAPI_H
#define	STANDIN_VMMAPI_H

#include <sys/types.h>

#define	VM_MEM_F_WIRED	2

struct vmctx;

const char *vm_get_name(struct vmctx *);
size_t	vm_get_lowmem_size(struct vmctx *);
vm_paddr_t vm_get_highmem_base(struct vmctx *);

#endif
