/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * Stand-in for the check on Linux only: what vmm_backing.c uses of the private
 * header of the same name, with the member that the series adds.
 */

#ifndef STANDIN_VMM_MEM_H
#define	STANDIN_VMM_MEM_H

#define	VM_SYSMEM	0
#define	VM_MAXSYSMEM	8
#define	VM_MAX_MEMSEGS	11

struct vm;
struct vm_object;

struct vm_mem_seg {
	size_t	len;
	bool	sysmem;
	struct vm_object *object;
	void	*backing;
};

struct vm_mem {
	struct vm_mem_seg mem_segs[VM_MAX_MEMSEGS];
};

void	vm_assert_memseg_locked(struct vm *);
void	vm_assert_memseg_xlocked(struct vm *);

#endif
