/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

#include "mock.h"

#include <sys/capsicum.h>
#include <sys/jail.h>
#include <sys/lock.h>
#include <sys/malloc.h>
#include <sys/mutex.h>
#include <sys/priv.h>
#include <sys/rwlock.h>
#include <sys/sx.h>
#include <sys/sysctl.h>
#include <vm/vm_page.h>
#include <vm/swap_pager.h>
#include <dev/vmm/vmm_backing.h>

struct mock_answers mock;

/* Locks, by the ranks that vmm_vnode.c gives them; a mutex is the last. */
enum rank { MEMSEGS = 1, VNODE = 3, SX = 4, OBJECT = 5, MUTEX = 6, RANKS };
static int held[RANKS];

static long allocated;
static struct file *opened;

static long
linux_call(long number, long a, long b, long c)
{
	long result;

	__asm__ volatile("syscall" : "=a" (result)
	    : "0" (number), "D" (a), "S" (b), "d" (c)
	    : "rcx", "r11", "memory");
	return (result);
}

void
mock_say(const char *text)
{

	linux_call(1, 1, (long)text, (long)strlen(text));
}

void
mock_exit(int status)
{

	for (;;)
		linux_call(231, status, 0, 0);
}

void
panic(const char *what, ...)
{

	mock_say("FAIL panic: ");
	mock_say(what);
	mock_say("\n");
	mock_exit(1);
}

static void
lock(enum rank rank)
{

	for (int r = rank; r < RANKS; r++) {
		if (held[r] != 0)
			panic("a lock is taken out of order");
	}
	held[rank]++;
}

static void
unlock(enum rank rank)
{

	if (held[rank] == 0)
		panic("a lock is dropped that is not held");
	held[rank]--;
}

int
mock_locks_held(void)
{
	int n = 0;

	for (int r = 0; r < RANKS; r++)
		n += held[r];
	return (n);
}

int
_sx_xlock(struct sx *sx __unused, int opts __unused, const char *f __unused,
    int l __unused)
{

	lock(SX);
	return (0);
}

void
_sx_xunlock(struct sx *sx __unused, const char *f __unused, int l __unused)
{

	unlock(SX);
}

int
_sx_slock(struct sx *sx, int opts, const char *f, int l)
{

	return (_sx_xlock(sx, opts, f, l));
}

void
_sx_sunlock(struct sx *sx, const char *f, int l)
{

	_sx_xunlock(sx, f, l);
}

void
__rw_rlock(volatile uintptr_t *c __unused, const char *f __unused,
    int l __unused)
{

	lock(OBJECT);
}

void
_rw_runlock_cookie(volatile uintptr_t *c __unused, const char *f __unused,
    int l __unused)
{

	unlock(OBJECT);
}

void
_rw_wlock_cookie(volatile uintptr_t *c __unused, const char *f __unused,
    int l __unused)
{

	lock(OBJECT);
}

void
_rw_wunlock_cookie(volatile uintptr_t *c __unused, const char *f __unused,
    int l __unused)
{

	unlock(OBJECT);
}

void
__rw_assert(const volatile uintptr_t *c __unused, int what __unused,
    const char *f __unused, int l __unused)
{

	if (held[OBJECT] == 0)
		panic("an object is not locked");
}

void
__mtx_lock_flags(volatile uintptr_t *c __unused, int o __unused,
    const char *f __unused, int l __unused)
{

	lock(MUTEX);
}

void
__mtx_unlock_flags(volatile uintptr_t *c __unused, int o __unused,
    const char *f __unused, int l __unused)
{

	unlock(MUTEX);
}

/* Memory: a pool that is never reused, so that a stale pointer is stale. */
static char pool[1 << 16] __aligned(16);
static size_t pool_used;

void *
(malloc)(size_t size, struct malloc_type *type __unused, int flags __unused)
{
	void *p = pool + pool_used;

	pool_used += roundup2(size, 16);
	if (pool_used > sizeof(pool))
		panic("the pool is used up");
	memset(p, 0, size);
	allocated++;
	return (p);
}

void
(free)(void *p, struct malloc_type *type __unused)
{

	if (p == NULL)
		panic("free(NULL)");
	allocated--;
}

long
mock_allocated(void)
{

	return (allocated);
}

/* VM objects. */
void
vm_object_reference(vm_object_t object)
{

	if (object->ref_count == 0 && object->type != OBJT_VNODE)
		panic("a dead object is referenced");
	object->ref_count++;
}

void
vm_object_shadow(vm_object_t *object, vm_ooffset_t *offset, vm_size_t length,
    struct ucred *cred __unused, bool shared __unused)
{
	vm_object_t result;

	result = (malloc)(sizeof(*result), NULL, 0);
	result->ref_count = 1;
	result->type = OBJT_SWAP;
	result->flags = OBJ_ANON | OBJ_ONEMAPPING | OBJ_SWAP;
	result->size = atop(length);
	result->backing_object = *object;
	result->backing_object_offset = *offset;
	*object = result;
	*offset = 0;
}

void
vm_object_deallocate(vm_object_t object)
{

	if (held[OBJECT] != 0 || held[SX] != 0)
		panic("an object is released under a lock");
	if (object->ref_count == 0)
		panic("an object is released too often");
	object->ref_count--;
	if ((object->flags & OBJ_ANON) == 0)
		return;
	if (object->ref_count == 1) {
		object->flags |= OBJ_ONEMAPPING;
	} else if (object->ref_count == 0) {
		vm_object_deallocate(object->backing_object);
		(free)(object, NULL);
	}
}

/* Bits of mock.in_swap and mock.in_memory; stops at pages of either kind. */
vm_pindex_t
swap_pager_seek_data(vm_object_t object, vm_pindex_t pindex)
{

	while (pindex < object->size &&
	    ((mock.in_swap | mock.in_memory) >> pindex & 1) == 0)
		pindex++;
	return (pindex);
}

u_long
swap_pager_swapped_pages(vm_object_t object __unused)
{

	return ((u_long)__builtin_popcount(mock.in_swap));
}

vm_page_t
vm_page_lookup(vm_object_t object __unused, vm_pindex_t pindex)
{
	static char page[256] __aligned(16);

	return ((mock.in_memory >> pindex & 1) != 0 ? (vm_page_t)page : NULL);
}

/* Vnodes. v_usecount counts vref(); v_writecount writers or text marks. */
void
vref(struct vnode *vp)
{

	vp->v_usecount++;
}

void
vrele(struct vnode *vp)
{

	if (held[VNODE] != 0)
		panic("vrele under a vnode lock");
	if (vp->v_usecount == 0)
		panic("a vnode is released too often");
	vp->v_usecount--;
}

int
_vn_lock(struct vnode *vp, int flags, const char *f __unused, int l __unused)
{

	if (vp->v_usecount == 0)
		panic("a vnode is locked without a reference");
	if (mock.lock != 0 && (flags & LK_RETRY) == 0)
		return (mock.lock);
	lock(VNODE);
	return (0);
}

int
VOP_UNLOCK(struct vnode *vp __unused)
{

	unlock(VNODE);
	return (0);
}

static void
need_vnode_lock(void)
{

	if (held[VNODE] == 0)
		panic("a vnode operation without the lock");
}

int
VOP_GETATTR(struct vnode *vp, struct vattr *va, struct ucred *cr __unused)
{

	need_vnode_lock();
	if (mock.close_meanwhile)
		opened->f_count--;
	va->va_size = (u_quad_t)(uintptr_t)vp->v_data;
	return (mock.getattr);
}

int
VOP_ACCESS(struct vnode *vp __unused, accmode_t mode,
    struct ucred *cr __unused, struct thread *td __unused)
{

	need_vnode_lock();
	return (mode == VEXEC ? mock.exec : mock.admin);
}

/* Called without the lock, as nullfs takes it. */
int
VOP_GETLOWVNODE(struct vnode *vp, struct vnode **lower, int flags __unused)
{

	if (held[VNODE] != 0)
		panic("VOP_GETLOWVNODE under a vnode lock");
	if (vp == mock.upper)
		vp = mock.lower;
	vref(vp);
	*lower = vp;
	return (0);
}

int
VOP_SET_TEXT(struct vnode *vp)
{

	need_vnode_lock();
	if (vp->v_writecount > 0)
		return (ETXTBSY);
	vp->v_writecount--;
	return (0);
}

int
VOP_UNSET_TEXT(struct vnode *vp)
{

	need_vnode_lock();
	if (vp->v_writecount >= 0)
		panic("a text mark is taken back that is not there");
	vp->v_writecount++;
	return (0);
}

/* Files. */
void
mock_open(struct file *fp)
{

	opened = fp;
}

int
fget_read(struct thread *td __unused, int fd __unused,
    const cap_rights_t *rights __unused, struct file **fpp)
{

	if (mock.fget != 0)
		return (mock.fget);
	opened->f_count++;
	*fpp = opened;
	return (0);
}

int
_fdrop(struct file *fp, struct thread *td __unused)
{

	if (held[VNODE] != 0)
		panic("a file is closed under its vnode's lock");
	vrele(fp->f_vnode);
	return (0);
}

cap_rights_t *
__cap_rights_init(int version __unused, cap_rights_t *rights, ...)
{

	return (rights);
}

void
mock_file_init(struct mock_file *f, off_t size)
{

	memset(f, 0, sizeof(*f));
	f->mount.mnt_flag = MNT_LOCAL;
	f->object.type = OBJT_VNODE;
	f->object.handle = &f->vnode;
	f->object.resident_page_count = 3;
	f->vnode.v_type = VREG;
	f->vnode.v_mount = &f->mount;
	f->vnode.v_object = &f->object;
	f->vnode.v_usecount = 1;
	f->vnode.v_data = (void *)(uintptr_t)size;
	f->file.f_type = DTYPE_VNODE;
	f->file.f_vnode = &f->vnode;
	f->file.f_count = 1;
	mock_open(&f->file);
}

struct prison prison0;

int
priv_check(struct thread *td __unused, int priv __unused)
{

	return (mock.priv);
}

uint64_t mock_sysctl;

int
sysctl_handle_64(SYSCTL_HANDLER_ARGS)
{

	(void)oidp;
	(void)arg2;
	(void)req;
	mock_sysctl = *(uint64_t *)arg1;
	return (0);
}

/* vmm. */
const char *
vm_name(struct vm *vm)
{

	return (vm->name);
}

struct vm_mem *
vm_mem(struct vm *vm)
{

	return (&vm->mem);
}

void *
vm_iommu_domain(struct vm *vm)
{

	return (vm->iommu ? vm : NULL);
}

struct vmspace *
vm_vmspace(struct vm *vm __unused)
{
	static char vmspace[8192] __aligned(64);

	return ((struct vmspace *)vmspace);
}

void
vm_assert_memseg_locked(struct vm *vm __unused)
{

	if (held[MEMSEGS] == 0)
		panic("the memory segments are not locked");
}

void
vm_assert_memseg_xlocked(struct vm *vm)
{

	vm_assert_memseg_locked(vm);
}

void
mock_memsegs_lock(struct vm *vm __unused)
{

	lock(MEMSEGS);
}

void
mock_memsegs_unlock(struct vm *vm __unused)
{

	unlock(MEMSEGS);
}

/* vm_free_memseg() with the hook's line in it. */
void
mock_free_memseg(struct vm *vm, int segid)
{
	struct vm_mem_seg *seg = &vm->mem.mem_segs[segid];

	lock(MEMSEGS);
	if (seg->object != NULL) {
		vmm_backing_detach(vm, segid);
		vm_object_deallocate(seg->object);
		memset(seg, 0, sizeof(*seg));
	}
	unlock(MEMSEGS);
}

/*
 * The compiler may call these.  What the module needs besides and this test
 * does not run, such as module registration, is left unresolved.
 */
void *
(memset)(void *to, int c, size_t n)
{
	unsigned char *p = to;

	while (n-- > 0)
		*p++ = (unsigned char)c;
	return (to);
}

size_t
(strlen)(const char *s)
{
	size_t n = 0;

	while (s[n] != '\0')
		n++;
	return (n);
}
