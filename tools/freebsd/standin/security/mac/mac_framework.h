/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * Stand-in for the check on Linux only: the one function of the MAC framework
 * that vmm_vnode calls.
 */

#ifndef STANDIN_MAC_FRAMEWORK_H
#define	STANDIN_MAC_FRAMEWORK_H

struct ucred;
struct vnode;

int	mac_vnode_check_mmap(struct ucred *, struct vnode *, int, int);

#endif
