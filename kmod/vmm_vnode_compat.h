/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * Every difference between the FreeBSD releases that vmm_vnode.c builds for:
 * 12.1, 14.x and 15.x.  vmm_vnode.c itself asks for no version.
 */

#ifndef _VMM_VNODE_COMPAT_H_
#define	_VMM_VNODE_COMPAT_H_

/* __diagused came after 12.1. */
#ifndef __diagused
#define	__diagused	__unused
#endif

/*
 * vm_object_shadow() took the credential that pays for swap, and "shared",
 * in 13.0.  No credential: vmm(4) does not charge for guest memory either.
 */
static inline void
vv_object_shadow(vm_object_t *object, vm_ooffset_t *offset, vm_size_t len)
{
#if __FreeBSD_version >= 1300000
	vm_object_shadow(object, offset, len, NULL, false);
#else
	vm_object_shadow(object, offset, len);
#endif
}

/* VOP_UNLOCK() lost its flags argument in 13.0. */
static inline void
vv_vnode_unlock(struct vnode *vp)
{
#if __FreeBSD_version >= 1300000
	VOP_UNLOCK(vp);
#else
	VOP_UNLOCK(vp, 0);
#endif
}

/*
 * The text mark.  Newer kernels count marks in v_writecount and check for
 * writers inside VOP_SET_TEXT(); a shared vnode lock is enough, and each mark
 * is taken back by one VOP_UNSET_TEXT().  Kernels with VV_TEXT keep one flag:
 * the caller checks for writers under the exclusive lock, and the flag is
 * cleared by the kernel itself when the last reference to the vnode's object
 * goes (vm_object_vndeallocate()), so there is nothing to take back.
 */
#ifdef VV_TEXT
#define	VV_TEXT_LOCK	LK_EXCLUSIVE
#else
#define	VV_TEXT_LOCK	LK_SHARED
#endif

static inline int
vv_text_set(struct vnode *vp)
{
#ifdef VV_TEXT
	int error, writers;

	error = VOP_GET_WRITECOUNT(vp, &writers);
	if (error != 0)
		return (error);
	if (writers != 0)
		return (ETXTBSY);
	return (VOP_SET_TEXT(vp));
#else
	return (VOP_SET_TEXT(vp));
#endif
}

/* Takes and drops the vnode lock; the vnode may have been doomed meanwhile. */
static inline void
vv_text_unset(struct vnode *vp)
{
#ifdef VV_TEXT
	(void)vp;
#else
	int error __diagused;

	vn_lock(vp, LK_SHARED | LK_RETRY);
	error = VOP_UNSET_TEXT(vp);
	KASSERT(error == 0, ("%s: VOP_UNSET_TEXT: %d", __func__, error));
	vv_vnode_unlock(vp);
#endif
}

/*
 * Does vm_fault() remove the page that it copied from other address spaces?
 * 13.2 and 12.4 were the first releases made after it began to.
 */
#if __FreeBSD_version >= 1302000 ||					\
    (__FreeBSD_version >= 1204000 && __FreeBSD_version < 1300000)
#define	VV_COHERENT	1
#else
#define	VV_COHERENT	0
#endif

/*
 * Pages of an object that are in swap.  swap_pager_swapped_pages() is new in
 * 14.0, and so is OBJ_SWAP for every object that can have them.
 */
#if __FreeBSD_version >= 1400000
#define	VV_COUNTS_SWAPPED	1
#else
#define	VV_COUNTS_SWAPPED	0
#endif

static inline uint64_t
vv_object_swapped(vm_object_t object)
{
	VM_OBJECT_ASSERT_LOCKED(object);
#if VV_COUNTS_SWAPPED
	if ((object->flags & OBJ_SWAP) != 0)
		return (swap_pager_swapped_pages(object));
#else
	(void)object;
#endif
	return (0);
}

#endif /* !_VMM_VNODE_COMPAT_H_ */
