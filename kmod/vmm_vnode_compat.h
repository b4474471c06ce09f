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

/*
 * The least index from "pindex" on that has a block in swap.  15.0 has a
 * function that also stops at pages in memory, so the caller looks at each.
 */
#if VV_COUNTS_SWAPPED
static inline vm_pindex_t
vv_next_swapped(vm_object_t object, vm_pindex_t pindex)
{
#if __FreeBSD_version >= 1500000
	return (swap_pager_seek_data(object, pindex));
#else
	return (swap_pager_find_least(object, pindex));
#endif
}
#endif

/*
 * Pages of an object that are in swap only.  A page that came back from swap
 * keeps its block there until it is written again; it is in memory, and is not
 * counted here.  The walk happens only if the object has a block in swap.
 */
static inline uint64_t
vv_object_swapped(vm_object_t object)
{
	uint64_t n;
#if VV_COUNTS_SWAPPED
	vm_pindex_t i;
#endif

	VM_OBJECT_ASSERT_LOCKED(object);
	n = 0;
#if VV_COUNTS_SWAPPED
	if ((object->flags & OBJ_SWAP) == 0 ||
	    swap_pager_swapped_pages(object) == 0)
		return (0);
	for (i = vv_next_swapped(object, 0); i < object->size;
	    i = vv_next_swapped(object, i + 1)) {
		if (vm_page_lookup(object, i) == NULL)
			n++;
	}
#else
	(void)object;
#endif
	return (n);
}

/*
 * The vnode of the lowest file system of a stack, referenced.  vp is not
 * locked.  VOP_GETLOWVNODE() is in 14.2, and was not looked for in 14.0 and
 * 14.1; without it the caller finds the owner of a VM object of a vnode, but
 * not of one of tmpfs.
 */
static inline int
vv_vnode_lowest(struct vnode *vp, struct vnode **lowest)
{
#if __FreeBSD_version >= 1402000
	*lowest = NULL;
	if (VOP_GETLOWVNODE(vp, lowest, FREAD) != 0 || *lowest == NULL)
		return (ENOENT);
#else
	vref(vp);
	*lowest = vp;
#endif
	return (0);
}

/*
 * Gives the file's object the colour that mmap(2) and execve(2) give it: index
 * 0 is where a superpage may begin.  Otherwise the first fault chooses one by
 * its own address, which for bhyve's mapping need not suit the guest's, and no
 * page of the file is ever mapped as part of a superpage.  Pages that are in
 * memory already stay where they are.
 */
static inline void
vv_object_color(vm_object_t object)
{
#if VM_NRESERVLEVEL > 0
	if ((object->flags & OBJ_COLORED) == 0) {
		VM_OBJECT_WLOCK(object);
		vm_object_color(object, 0);
		VM_OBJECT_WUNLOCK(object);
	}
#else
	(void)object;
#endif
}

#endif /* !_VMM_VNODE_COMPAT_H_ */
