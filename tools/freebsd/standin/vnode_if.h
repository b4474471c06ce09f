/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * Stand-in for the check on Linux only: the vnode operations that vmm_vnode
 * calls.  A FreeBSD build generates vnode_if.h from the kernel sources.
 */

#ifndef STANDIN_VNODE_IF_H
#define	STANDIN_VNODE_IF_H

struct thread;
struct ucred;
struct vattr;
struct vnode;

int	VOP_ACCESS(struct vnode *, accmode_t, struct ucred *, struct thread *);
int	VOP_GETATTR(struct vnode *, struct vattr *, struct ucred *);
int	VOP_GETLOWVNODE(struct vnode *, struct vnode **, int);
int	VOP_GET_WRITECOUNT(struct vnode *, int *);
int	VOP_SET_TEXT(struct vnode *);
int	VOP_UNLOCK(struct vnode *);
int	VOP_UNSET_TEXT(struct vnode *);

#endif
