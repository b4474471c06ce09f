/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * Stand-in for the check on Linux only: what vmm_backing.c uses of the header
 * of the same name, which main has and 15.0 has not.  There the virtual
 * machine is no longer opaque, and these functions are inline.
 */

#ifndef STANDIN_VMM_VM_H
#define	STANDIN_VMM_VM_H

#include <dev/vmm/vmm_mem.h>

struct vm {
	struct vm_mem	mem;
	char		name[8];
};

static inline const char *
vm_name(struct vm *vm)
{
	return (vm->name);
}

static inline struct vm_mem *
vm_mem(struct vm *vm)
{
	return (&vm->mem);
}

#endif
