/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * Stand-in for the check on Linux only: what is left in this header on main
 * of what vmm_backing.c uses.
 */

#ifndef STANDIN_MACHINE_VMM_H
#define	STANDIN_MACHINE_VMM_H

struct vm;
struct vmspace;

struct vmspace *vm_vmspace(struct vm *);
void	*vm_iommu_domain(struct vm *);

#endif
