/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * vmm_vnode: guest memory backed copy-on-write by a checkpoint file.
 *
 * A memory segment of vmm(4) is one VM object.  The guest's address space and
 * the mapping that bhyve(8) makes of /dev/vmm/NAME both hold that object.
 * Stock vmm makes it anonymous and empty; this module makes it an anonymous
 * *shadow* of the checkpoint vnode's object:
 *
 *	guest vmspace ---+
 *	                 +--> shadow (anonymous) --> vnode's object (the file)
 *	bhyve's mmap ----+    private pages           shared pages
 *
 * Why a write never reaches the file, nor another guest:
 *
 * - The guest.  A fault is answered from the first object of the chain that
 *   has the page.  When that is not the first object, vm_fault() maps it
 *   without write permission for a read, and for a write copies it into the
 *   first object, the shadow, and maps the copy (vm_fault_cow(); the test is
 *   "object != first_object", the map entry needs no copy-on-write flag).
 *   A nested page fault reaches vm_fault() from vmm's paging exit handler.
 *   pmap_emulate_accessed_dirty() does not make a page writable whose entry
 *   was made read-only; it fails and vm_fault() runs.
 * - bhyve's own mapping.  vmmdev_mmap_single() hands out this same shadow, so
 *   a write of a device model takes the same path.  That guest and bhyve see
 *   each other's writes depends on one thing more: both may have the file's
 *   page mapped when one of them copies it, and vm_fault_cow() removes it from
 *   all other address spaces (pmap_remove_all()), but only if the shadow does
 *   not have OBJ_ONEMAPPING; see "Unmapping" for why it never has.  Older
 *   kernels do not remove it at all (FreeBSD-SA-22:11.vm, VV_COHERENT).  The
 *   other guests lose their mapping of that page, too, and take a soft fault
 *   when they next read it.
 * - vm_gpa_hold(), read(2) and write(2) of the device, and the instruction
 *   emulation in the kernel go through vm_fault_quick_hold_pages(), which
 *   takes a page for writing only if it is mapped writable, else vm_fault().
 * - Prefault and superpages.  vm_fault_prefault() and pmap_enter_object() map
 *   pages that nobody wrote read-only.
 * - Wired guest memory is refused (the hook in vm_mmap_memseg()): it would be
 *   correct, but wiring a writable mapping takes a write fault on every page
 *   and so copies the whole checkpoint into each guest.
 * - Passthrough is refused: a device's DMA does not fault.  The IOMMU only
 *   maps wired segments (vm_iommu_map()), and a virtual machine that has an
 *   IOMMU domain already cannot attach (vmm_backing_attach()).
 * - Swap.  Private pages belong to the shadow and are paged by the swap
 *   pager; a fault looks for the page in the shadow's swap before it goes on
 *   to the file (vm_fault_getpages()).  Shared pages are clean file pages,
 *   and reclaiming one drops it.
 * - Collapse.  vm_object_collapse() merges or bypasses a backing object only
 *   if that is anonymous itself (before OBJ_ANON: has no handle and may be
 *   split).  A vnode's object and a tmpfs node's object never are, so the
 *   chain keeps its two links while the segment lives, and the shadow keeps
 *   its reference on the file's object.
 * - Unmapping.  On an anonymous object with OBJ_ONEMAPPING and more than one
 *   reference, vm_map_entry_delete() throws pages away with their mapping,
 *   and VM_MUNMAP_MEMSEG would lose what the guest wrote.  The kernel sets the
 *   flag when an object is made and whenever a reference goes and one is left
 *   (vm_object_deallocate()), and clears it when a mapping is made of an
 *   object with more than one (vm_map_insert()).  This module keeps a
 *   reference of its own beside the segment's for as long as the segment
 *   lives, so that no mapping is ever made with the flag left on.
 *
 * Why nobody else's write reaches the guests: while a segment lives the vnode
 * is marked as text, as the file of a running program is.  open(2) for
 * writing, truncate(2) and a writable shared mapping get ETXTBSY, and a file
 * that somebody has open for writing cannot be attached.  File systems whose
 * contents change behind the vnode (not MNT_LOCAL) are refused.  The mark
 * ends with the segment: a process that keeps its mapping of guest memory
 * beyond the virtual machine's end has what a private mapping of the file
 * would give it, no more.
 *
 * What can still happen to the file.  A forced unmount takes it away under the
 * segments, text mark or not.  On UFS and ZFS the vnode's object then turns
 * into OBJT_DEAD, and since segments refer to it, it stays, without pages:
 * its pager fails, vm_fault() finds nothing down the chain, and the shadow gets
 * a page of zeros.  vv_count() notices, VM_VNODE_STATS and hw.vmm.vnode say so,
 * and whoever runs the machine has to end it.  (On tmpfs the object is where
 * the contents are, and they stay.)  A rollback or a forced receive of ZFS
 * exchanges the contents behind a vnode that lives; nothing notices that.
 *
 * Locks, in the order in which they are taken.  No function here takes an
 * earlier one while it holds a later one.
 *
 *	1. the virtual machine's memory segments lock (sx, vmm's): exclusive
 *	   in vv_attach() and vv_detach(), shared in vv_stats()
 *	2. the vCPUs, frozen by vmm, in vv_attach()
 *	3. the vnode lock: vv_attach(), vv_text_unset()
 *	4. vv_lock (sx): the list of segments
 *	5. a VM object's lock: leaf
 *
 * vv_lock is never held together with a vnode lock.
 *
 * Unloading: vmm holds a reference on the provider for each live segment and
 * each request that is being served, so vmm_backing_unregister() says EBUSY
 * until there are none, and after it succeeds no code of this module runs.
 */

#include <sys/param.h>
#include <sys/systm.h>
#include <sys/capsicum.h>
#include <sys/fcntl.h>
#include <sys/file.h>
#include <sys/jail.h>
#include <sys/kernel.h>
#include <sys/limits.h>
#include <sys/lock.h>
#include <sys/malloc.h>
#include <sys/mman.h>
#include <sys/module.h>
#include <sys/mount.h>
#include <sys/priv.h>
#include <sys/proc.h>
#include <sys/queue.h>
#include <sys/rwlock.h>
#include <sys/sbuf.h>
#include <sys/sdt.h>
#include <sys/sx.h>
#include <sys/sysctl.h>
#include <sys/ucred.h>
#include <sys/vnode.h>

#include <machine/vmm.h>

#include <vm/vm.h>
#include <vm/vm_param.h>
#include <vm/vm_object.h>
#include <vm/vm_page.h>
#include <vm/swap_pager.h>

#include <security/mac/mac_framework.h>

#include <dev/vmm/vmm_backing.h>

#include "vmm_vnode.h"
#include "vmm_vnode_compat.h"

SDT_PROVIDER_DEFINE(vmm_vnode);
SDT_PROBE_DEFINE4(vmm_vnode, , , attach, "const char *", "int", "off_t",
    "size_t");
SDT_PROBE_DEFINE3(vmm_vnode, , , refuse, "const char *", "int", "int");
SDT_PROBE_DEFINE4(vmm_vnode, , , detach, "const char *", "int", "uint64_t",
    "uint64_t");

MALLOC_DEFINE(M_VMMVNODE, "vmm_vnode", "vmm(4) segments backed by a vnode");

/* One memory segment; vmm's cookie for it. */
struct vv_segment {
	LIST_ENTRY(vv_segment) link;	/* (4) */
	struct vm	*vm;		/* outlives the segment */
	int		segid;
	struct vnode	*vp;		/* referenced and marked as text */
	vm_object_t	shadow;		/* referenced; vmm has another */
	vm_object_t	file;		/* lives by the shadow's reference */
	vm_ooffset_t	offset;
	size_t		len;
};

static LIST_HEAD(, vv_segment) vv_segments =
    LIST_HEAD_INITIALIZER(vv_segments);
static u_int vv_nsegments;		/* (4) */
static uint64_t vv_attached;		/* (4) segments ever attached */
static uint64_t vv_refused;		/* (4) requests refused */
static struct sx vv_lock;
SX_SYSINIT(vv_lock, &vv_lock, "vmm_vnode segments");

/* The books of a segment, in pages. */
struct vv_books {
	uint64_t	resident;	/* private, in memory */
	uint64_t	swapped;	/* private, in swap only */
	uint64_t	file;		/* the file's, in memory */
	bool		lost;		/* the file is gone */
};

/* Object locks are taken and dropped. */
static void
vv_count(const struct vv_segment *seg, struct vv_books *books)
{

	VM_OBJECT_RLOCK(seg->shadow);
	books->resident = seg->shadow->resident_page_count;
	books->swapped = vv_object_swapped(seg->shadow);
	VM_OBJECT_RUNLOCK(seg->shadow);

	VM_OBJECT_RLOCK(seg->file);
	books->file = seg->file->resident_page_count;
	books->lost = seg->file->type == OBJT_DEAD;
	VM_OBJECT_RUNLOCK(seg->file);
}

/*
 * May this vnode back guest memory?  Called and returns with vp locked.  The
 * right that is asked for is the one by which a program could mark the file
 * as text anyway, by running it, or else the right to administer it: with
 * read permission alone a user could keep others from writing to any file.
 */
static int
vv_vnode_check(struct vnode *vp, const struct vm_vnode_attach *req,
    struct thread *td)
{
	struct vattr va;
	int error;

	if (vp->v_mount == NULL || (vp->v_mount->mnt_flag & MNT_LOCAL) == 0)
		return (EOPNOTSUPP);

	error = VOP_GETATTR(vp, &va, td->td_ucred);
	if (error != 0)
		return (error);
	if ((uint64_t)req->offset + req->len > va.va_size)
		return (ERANGE);

	error = VOP_ACCESS(vp, VEXEC, td->td_ucred, td);
	if (error != 0)
		error = VOP_ACCESS(vp, VADMIN, td->td_ucred, td);
	if (error != 0)
		return (error);

#ifdef MAC
	error = mac_vnode_check_mmap(td->td_ucred, vp, PROT_READ, MAP_PRIVATE);
#endif
	return (error);
}

/*
 * The vnode behind a descriptor that owns the page cache: a stacked file
 * system (nullfs) lends its upper vnode the object of the lower one, and it
 * is the lower one that must be marked as text, so that the mark can be taken
 * back when the upper one is gone.  On success the vnode is referenced and
 * locked, and has an object.
 */
static int
vv_vnode_get(struct file *fp, struct vnode **vpp)
{
	struct vnode *vp, *owner;
	int error;

	if (fp->f_type != DTYPE_VNODE || fp->f_vnode->v_type != VREG)
		return (ENODEV);

	error = vv_vnode_lowest(fp->f_vnode, &vp);
	if (error != 0)
		return (error);
	error = vn_lock(vp, VV_TEXT_LOCK);
	if (error != 0)
		goto out;
	if (vp->v_object != NULL && vp->v_object->type == OBJT_VNODE &&
	    vp->v_object->handle != vp) {
		owner = vp->v_object->handle;
		vref(owner);
		vv_vnode_unlock(vp);
		vrele(vp);
		vp = owner;
		error = vn_lock(vp, VV_TEXT_LOCK);
		if (error != 0)
			goto out;
	}
	if (vp->v_object == NULL) {
		/* A file system without a page cache. */
		vv_vnode_unlock(vp);
		error = ENODEV;
		goto out;
	}
	*vpp = vp;
	return (0);

out:
	vrele(vp);
	return (error);
}

static int
vv_attach_check(const struct vm_vnode_attach *req)
{

	if (req->version != VM_VNODE_ABI)
		return (EOPNOTSUPP);
	if (req->flags != 0)
		return (EINVAL);
	for (u_int i = 0; i < nitems(req->reserved); i++) {
		if (req->reserved[i] != 0)
			return (EINVAL);
	}
	if (req->len == 0 || (req->len & PAGE_MASK) != 0 ||
	    req->offset < 0 || (req->offset & PAGE_MASK) != 0 ||
	    req->len > (uint64_t)(OFF_MAX - req->offset))
		return (EINVAL);
	return (0);
}

/* VM_VNODE_ATTACH.  Locks 1 and 2 are held by vmm. */
static int
vv_attach(struct vm *vm, const struct vm_vnode_attach *req, struct thread *td)
{
	struct vv_segment *seg;
	struct file *fp;
	cap_rights_t rights;
	vm_ooffset_t shadow_offset;
	int error;

	error = vv_attach_check(req);
	if (error != 0)
		return (error);

	seg = malloc(sizeof(*seg), M_VMMVNODE, M_WAITOK | M_ZERO);
	seg->vm = vm;
	seg->segid = req->segid;
	seg->offset = req->offset;
	seg->len = req->len;

	/*
	 * The file is released last, and never under the vnode lock: its last
	 * reference takes that lock to close it.
	 */
	error = fget_read(td, req->fd, cap_rights_init(&rights, CAP_MMAP_R),
	    &fp);
	if (error != 0)
		goto fail_segment;

	/* The vnode is locked (3) from here ... */
	error = vv_vnode_get(fp, &seg->vp);
	if (error != 0)
		goto fail_file;
	error = vv_vnode_check(seg->vp, req, td);
	if (error == 0)
		error = vv_text_set(seg->vp);
	if (error != 0) {
		vv_vnode_unlock(seg->vp);
		goto fail_vnode;
	}

	/*
	 * The vnode lock and the reference on the vnode keep v_object; the
	 * reference taken here is the one that the shadow inherits.
	 */
	seg->file = seg->vp->v_object;
	vm_object_reference(seg->file);
	vv_vnode_unlock(seg->vp);
	/* ... to here. */
	vv_object_color(seg->file);

	seg->shadow = seg->file;
	shadow_offset = req->offset;
	vv_object_shadow(&seg->shadow, &shadow_offset, req->len);
	KASSERT(seg->shadow != seg->file, ("%s: file object not shadowed",
	    __func__));
	KASSERT(shadow_offset == 0, ("%s: shadow starts at %jd", __func__,
	    (intmax_t)shadow_offset));

	/* One reference is ours, the other becomes the segment's. */
	vm_object_reference(seg->shadow);
	error = vmm_backing_attach(vm, req->segid, req->len, seg->shadow, seg);
	if (error != 0)
		goto fail_shadow;

	/* Lock 1 keeps vv_detach() away until the segment is on the list. */
	sx_xlock(&vv_lock);
	LIST_INSERT_HEAD(&vv_segments, seg, link);
	vv_nsegments++;
	vv_attached++;
	sx_xunlock(&vv_lock);
	SDT_PROBE4(vmm_vnode, , , attach, vmm_backing_name(vm), seg->segid,
	    seg->offset, seg->len);
	fdrop(fp, td);
	return (0);

fail_shadow:
	vm_object_deallocate(seg->shadow);
	vm_object_deallocate(seg->shadow);	/* drops the file's, too */
	vv_text_unset(seg->vp);
fail_vnode:
	vrele(seg->vp);
fail_file:
	fdrop(fp, td);
fail_segment:
	free(seg, M_VMMVNODE);
	return (error);
}

/*
 * The segment is about to be freed: the guest has no mapping of it any more,
 * and vmm drops its reference on the shadow when this returns.  Lock 1 is
 * held by vmm.
 */
static void
vv_detach(struct vm *vm __unused, int segid __unused, void *cookie)
{
	struct vv_segment *seg = cookie;
	struct vv_books books;

	KASSERT(seg->vm == vm && seg->segid == segid,
	    ("%s: segment %d of %s detached as %d of %s", __func__,
	    seg->segid, vmm_backing_name(seg->vm), segid,
	    vmm_backing_name(vm)));

	/* Once off the list, nobody else looks at the segment. */
	sx_xlock(&vv_lock);
	LIST_REMOVE(seg, link);
	vv_nsegments--;
	sx_xunlock(&vv_lock);

	vv_count(seg, &books);
	SDT_PROBE4(vmm_vnode, , , detach, vmm_backing_name(vm), segid,
	    books.resident, books.swapped);

	/* vmm has a reference still, so this is not the last one. */
	vm_object_deallocate(seg->shadow);
	vv_text_unset(seg->vp);
	vrele(seg->vp);
	free(seg, M_VMMVNODE);
}

/* VM_VNODE_STATS.  Lock 1, shared, keeps the segment. */
static int
vv_stats(struct vm *vm, struct vm_vnode_stats *st)
{
	const struct vv_segment *seg;
	struct vv_books books;

	if (st->version != VM_VNODE_ABI)
		return (EOPNOTSUPP);
	if (st->state != 0)
		return (EINVAL);
	for (u_int i = 0; i < nitems(st->reserved); i++) {
		if (st->reserved[i] != 0)
			return (EINVAL);
	}
	seg = vmm_backing_cookie(vm, st->segid);
	if (seg == NULL)
		return (ENOENT);

	st->offset = seg->offset;
	st->pages = atop(seg->len);
	vv_count(seg, &books);
	st->private_resident = books.resident;
	st->private_swapped = books.swapped;
	st->file_resident = books.file;
	st->guest_mapped = vmm_backing_mapped(vm);
	if (books.lost)
		st->state |= VM_VNODE_STATE_FILE_LOST;
	return (0);
}

static void
vv_caps(struct vm_vnode_caps *caps)
{

	memset(caps, 0, sizeof(*caps));
	caps->version = VM_VNODE_ABI;
	caps->features = VM_VNODE_F_ATTACH | VM_VNODE_F_STATS |
	    VM_VNODE_F_STATE;
	if (VV_COHERENT)
		caps->features |= VM_VNODE_F_COHERENT;
	if (VV_COUNTS_SWAPPED)
		caps->features |= VM_VNODE_F_SWAPPED;
	caps->page_size = PAGE_SIZE;
}

/* The lock that vmm holds follows from the request's number. */
static int
vv_ioctl(struct vm *vm, u_long cmd, caddr_t data, int fflag __unused,
    struct thread *td)
{
	const struct vm_vnode_attach *req;
	int error;

	switch (cmd) {
	case VM_VNODE_ATTACH:
		req = (const struct vm_vnode_attach *)data;
		error = vv_attach(vm, req, td);
		if (error != 0) {
			sx_xlock(&vv_lock);
			vv_refused++;
			sx_xunlock(&vv_lock);
			SDT_PROBE3(vmm_vnode, , , refuse, vmm_backing_name(vm),
			    req->segid, error);
		}
		return (error);
	case VM_VNODE_CAPS:
		vv_caps((struct vm_vnode_caps *)data);
		return (0);
	case VM_VNODE_STATS:
		return (vv_stats(vm, (struct vm_vnode_stats *)data));
	default:
		return (ENOTTY);
	}
}

static const struct vmm_backing_ops vv_ops = {
	.kpi =		VMM_BACKING_KPI,
	.name =		"vmm_vnode",
	.ioctl =	vv_ioctl,
	.detach =	vv_detach,
};

SYSCTL_DECL(_hw_vmm);
SYSCTL_NODE(_hw_vmm, OID_AUTO, vnode, CTLFLAG_RW | CTLFLAG_MPSAFE, NULL,
    "Guest memory backed by checkpoint files");

SYSCTL_INT(_hw_vmm_vnode, OID_AUTO, abi, CTLFLAG_RD | CTLFLAG_MPSAFE,
    SYSCTL_NULL_INT_PTR, VM_VNODE_ABI, "Version of the ABI");
SYSCTL_UINT(_hw_vmm_vnode, OID_AUTO, segments, CTLFLAG_RD | CTLFLAG_MPSAFE,
    &vv_nsegments, 0, "Segments that live now");
SYSCTL_U64(_hw_vmm_vnode, OID_AUTO, attached, CTLFLAG_RD | CTLFLAG_MPSAFE,
    &vv_attached, 0, "Segments attached since the module was loaded");
SYSCTL_U64(_hw_vmm_vnode, OID_AUTO, refused, CTLFLAG_RD | CTLFLAG_MPSAFE,
    &vv_refused, 0, "Requests to attach that were refused");

enum vv_total {
	VV_TOTAL_PAGES,
	VV_TOTAL_PRIVATE_RESIDENT,
	VV_TOTAL_PRIVATE_SWAPPED,
	VV_TOTAL_FILE_RESIDENT,
	VV_TOTAL_FILE_LOST,
};

/* A sum over the segments; a file that backs many is counted once. */
static int
vv_sysctl_total(SYSCTL_HANDLER_ARGS)
{
	const struct vv_segment *seg, *other;
	struct vv_books books;
	uint64_t total;

	(void)arg1;
	total = 0;
	sx_slock(&vv_lock);
	LIST_FOREACH(seg, &vv_segments, link) {
		vv_count(seg, &books);
		switch (arg2) {
		case VV_TOTAL_PAGES:
			total += atop(seg->len);
			break;
		case VV_TOTAL_PRIVATE_RESIDENT:
			total += books.resident;
			break;
		case VV_TOTAL_PRIVATE_SWAPPED:
			total += books.swapped;
			break;
		case VV_TOTAL_FILE_RESIDENT:
			LIST_FOREACH(other, &vv_segments, link) {
				if (other->file == seg->file)
					break;
			}
			if (other == seg)
				total += books.file;
			break;
		case VV_TOTAL_FILE_LOST:
			total += books.lost;
			break;
		}
	}
	sx_sunlock(&vv_lock);
	return (sysctl_handle_64(oidp, &total, 0, req));
}
#define	VV_SYSCTL_TOTAL(name, what, descr)				\
	SYSCTL_PROC(_hw_vmm_vnode, OID_AUTO, name,			\
	    CTLTYPE_U64 | CTLFLAG_RD | CTLFLAG_MPSAFE, NULL, what,	\
	    vv_sysctl_total, "QU", descr)
VV_SYSCTL_TOTAL(pages, VV_TOTAL_PAGES, "Pages of guest memory in segments");
VV_SYSCTL_TOTAL(private_resident, VV_TOTAL_PRIVATE_RESIDENT,
    "Pages that guests wrote, in memory");
VV_SYSCTL_TOTAL(private_swapped, VV_TOTAL_PRIVATE_SWAPPED,
    "Pages that guests wrote, in swap and not in memory");
VV_SYSCTL_TOTAL(file_resident, VV_TOTAL_FILE_RESIDENT,
    "Pages of the checkpoint files in memory, shared by all guests");
VV_SYSCTL_TOTAL(file_lost, VV_TOTAL_FILE_LOST,
    "Segments whose file is gone, by a forced unmount: they read zeros");

/*
 * One line per segment.  It has the names of all machines, so it is for those
 * only who could look at them in any case, and for nobody in a jail.
 */
static int
vv_sysctl_list(SYSCTL_HANDLER_ARGS)
{
	const struct vv_segment *seg;
	struct vv_books books;
	struct sbuf sb;
	int error;

	(void)oidp;
	(void)arg1;
	(void)arg2;
	if (jailed(req->td->td_ucred))
		return (EPERM);
	error = priv_check(req->td, PRIV_DRIVER);
	if (error != 0)
		return (error);
	error = sysctl_wire_old_buffer(req, 0);
	if (error != 0)
		return (error);
	sbuf_new_for_sysctl(&sb, NULL, 256, req);
	sx_slock(&vv_lock);
	LIST_FOREACH(seg, &vv_segments, link) {
		vv_count(seg, &books);
		sbuf_printf(&sb, "%s segid=%d offset=%jd pages=%ju "
		    "private_resident=%ju private_swapped=%ju "
		    "file_resident=%ju file_lost=%d\n",
		    vmm_backing_name(seg->vm), seg->segid,
		    (intmax_t)seg->offset, (uintmax_t)atop(seg->len),
		    (uintmax_t)books.resident, (uintmax_t)books.swapped,
		    (uintmax_t)books.file, books.lost);
	}
	sx_sunlock(&vv_lock);
	error = sbuf_finish(&sb);
	sbuf_delete(&sb);
	return (error);
}
SYSCTL_PROC(_hw_vmm_vnode, OID_AUTO, list,
    CTLTYPE_STRING | CTLFLAG_RD | CTLFLAG_MPSAFE, NULL, 0, vv_sysctl_list,
    "A", "One line per segment");

static int
vv_modevent(module_t mod __unused, int what, void *arg __unused)
{

	switch (what) {
	case MOD_LOAD:
		if (!VV_COHERENT)
			printf("vmm_vnode: this kernel leaves stale mappings "
			    "(FreeBSD-SA-22:11.vm); for tests only\n");
		return (vmm_backing_register(&vv_ops));
	case MOD_QUIESCE:
		/* Say no early and without side effects; see MOD_UNLOAD. */
		return (vmm_backing_busy(&vv_ops) ? EBUSY : 0);
	case MOD_UNLOAD:
		return (vmm_backing_unregister(&vv_ops));
	default:
		return (EOPNOTSUPP);
	}
}

static moduledata_t vv_mod = {
	"vmm_vnode",
	vv_modevent,
	NULL
};

/* Initialized after vmm, also when both are loaded at boot. */
DECLARE_MODULE(vmm_vnode, vv_mod, SI_SUB_LAST, SI_ORDER_ANY);
MODULE_VERSION(vmm_vnode, 1);
MODULE_DEPEND(vmm_vnode, vmm, 1, 1, 1);
/* A vmm without the hook has no such version, and kldload(8) says its name. */
MODULE_DEPEND(vmm_vnode, vmm_backing, VMM_BACKING_KPI, VMM_BACKING_KPI,
    VMM_BACKING_KPI);
