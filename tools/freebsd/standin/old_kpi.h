/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * Stand-in for the check on Linux only: gives the 15.0 headers the interfaces
 * of 12.1 that vmm_vnode_compat.h guards, so that the guarded code is at
 * least compiled.
 */

#ifndef STANDIN_OLD_KPI_H
#define	STANDIN_OLD_KPI_H

#include <sys/param.h>
#include <sys/systm.h>
#include <sys/lock.h>
#include <sys/rwlock.h>
#include <sys/vnode.h>
#include <vm/vm.h>
#include <vm/vm_object.h>

void	old_vm_object_shadow(vm_object_t *, vm_ooffset_t *, vm_size_t);
#define	vm_object_shadow(object, offset, len)				\
	old_vm_object_shadow(object, offset, len)

int	old_VOP_UNLOCK(struct vnode *, int);
#define	VOP_UNLOCK(vp, flags)	old_VOP_UNLOCK(vp, flags)

#define	VV_TEXT		0x0020

#endif
