/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * Stand-in for the check on Linux only: what vmm_backing.c uses of this
 * header of 14.2 when the private headers are those of vmm-headers.patch.
 */

#ifndef STANDIN_MACHINE_VMM_H
#define	STANDIN_MACHINE_VMM_H

struct vm;
struct vmspace;

const char *vm_name(struct vm *);
struct vmspace *vm_get_vmspace(struct vm *);
void	*vm_iommu_domain(struct vm *);

#endif
