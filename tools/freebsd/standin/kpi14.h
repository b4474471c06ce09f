/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * Stand-in for the check on Linux only: what 14.x declares and 15.0 does not,
 * so that the code for 14.x is at least compiled.
 */

#ifndef STANDIN_KPI14_H
#define	STANDIN_KPI14_H

#include <sys/param.h>
#include <sys/systm.h>
#include <sys/lock.h>
#include <sys/rwlock.h>
#include <vm/vm.h>
#include <vm/vm_object.h>

vm_pindex_t swap_pager_find_least(vm_object_t, vm_pindex_t);

#endif
