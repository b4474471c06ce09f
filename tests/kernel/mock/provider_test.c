/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * The module's own code and the hook's, on the mock kernel: every way to fail
 * gives back what it took, and attaching and detaching balance.
 */

#include "mock.h"

#include <sys/jail.h>

/* With its statics: the module event handler, the list, the sums. */
#include "vmm_vnode.c"

static long passed, failed;
static struct vm one, two;
static struct mock_file file;
static struct thread thread;

static void
check(bool ok, const char *name)
{

	mock_say(ok ? "PASS " : "FAIL ");
	mock_say(name);
	mock_say("\n");
	if (ok)
		passed++;
	else
		failed++;
}

/* Is everything as if nothing had ever been attached? */
static bool
clean(void)
{

	return (mock_allocated() == 0 && mock_locks_held() == 0 &&
	    file.object.ref_count == 0 && file.vnode.v_usecount == 1 &&
	    file.vnode.v_writecount == 0 && file.file.f_count == 1 &&
	    vv_nsegments == 0 && LIST_EMPTY(&vv_segments) &&
	    one.mem.mem_segs[0].object == NULL &&
	    one.mem.mem_segs[0].backing == NULL);
}

static void
reset(void)
{

	memset(&mock, 0, sizeof(mock));
	memset(&one, 0, sizeof(one));
	memset(&two, 0, sizeof(two));
	one.name = "one";
	two.name = "two";
	mock_file_init(&file, 8 * PAGE_SIZE);
}

static struct vm_vnode_attach
request(void)
{
	struct vm_vnode_attach a;

	memset(&a, 0, sizeof(a));
	a.version = VM_VNODE_ABI;
	a.fd = 3;
	a.offset = 2 * PAGE_SIZE;
	a.len = 4 * PAGE_SIZE;
	return (a);
}

static int
serve(struct vm *vm, u_long cmd, void *data)
{
	int error;

	mock_memsegs_lock(vm);
	error = vmm_backing_ioctl(vm, cmd, data, 0, &thread);
	mock_memsegs_unlock(vm);
	return (error);
}

static int
attach(struct vm *vm, struct vm_vnode_attach a)
{

	return (serve(vm, VM_VNODE_ATTACH, &a));
}

static void
refused(int error, const char *name)
{

	check(attach(&one, request()) == error && clean(), name);
	reset();
}

static void
test_refusals(void)
{
	struct vm_vnode_attach a;

	reset();
	mock.fget = EBADF;
	refused(EBADF, "no such descriptor");
	file.file.f_type = DTYPE_PIPE;
	refused(ENODEV, "a pipe");
	file.vnode.v_type = VDIR;
	refused(ENODEV, "a directory");
	mock.lock = ENOENT;
	refused(ENOENT, "a vnode that was reclaimed");
	file.vnode.v_object = NULL;
	refused(ENODEV, "a file system without a page cache");
	file.mount.mnt_flag = 0;
	refused(EOPNOTSUPP, "a file system of another host");
	mock.getattr = EIO;
	refused(EIO, "attributes cannot be read");
	file.vnode.v_data = (void *)(uintptr_t)(6 * PAGE_SIZE - 1);
	refused(ERANGE, "a file that is one byte short");
	mock.exec = mock.admin = EACCES;
	refused(EACCES, "no right to the file");
	one.iommu = true;
	refused(EBUSY, "a machine with passthrough");

	file.vnode.v_writecount = 1;
	check(attach(&one, request()) == ETXTBSY &&
	    file.vnode.v_writecount == 1, "a file with a writer");
	file.vnode.v_writecount = 0;
	check(clean(), "and nothing is left of it");

	a = request();
	a.segid = VM_MAXSYSMEM;
	check(attach(&one, a) == EINVAL && clean(), "a device's segment");
	a = request();
	a.len = (uint64_t)OFF_MAX;
	check(attach(&one, a) == EINVAL && clean(), "a length that wraps");

	mock.fget = 0;
	mock.close_meanwhile = true;
	file.vnode.v_data = NULL;
	check(attach(&one, request()) == ERANGE &&
	    file.vnode.v_usecount == 0 && file.file.f_count == 0,
	    "the last reference to the file goes here, on failure");
	reset();
}

static uint64_t
total(enum vv_total what)
{

	mock_sysctl = 0;
	if (vv_sysctl_total(NULL, NULL, what, NULL) != 0)
		return (~(uint64_t)0);
	return (mock_sysctl);
}

static void
test_attach(void)
{
	struct vm_vnode_stats st;
	struct vm_object *shadow;

	reset();
	mock.exec = EACCES;
	check(attach(&one, request()) == 0, "attach with the owner's right");
	shadow = one.mem.mem_segs[0].object;
	check(shadow->backing_object == &file.object &&
	    shadow->backing_object_offset == 2 * PAGE_SIZE &&
	    shadow->size == 4, "the chain and its offset");
	check(shadow->ref_count == 2, "the shadow has two references");
	check(file.object.ref_count == 1 && file.vnode.v_usecount == 2 &&
	    file.vnode.v_writecount == -1 && file.file.f_count == 1,
	    "one reference on the object, one on the vnode, one text mark");
	check(one.mem.mem_segs[0].sysmem &&
	    one.mem.mem_segs[0].len == 4 * PAGE_SIZE, "the segment");

	check(attach(&one, request()) == EEXIST &&
	    file.object.ref_count == 1 && file.vnode.v_usecount == 2 &&
	    file.vnode.v_writecount == -1 && shadow->ref_count == 2,
	    "a segment that is in use is refused without a trace");

	shadow->resident_page_count = 5;
	memset(&st, 0, sizeof(st));
	st.version = VM_VNODE_ABI;
	check(serve(&one, VM_VNODE_STATS, &st) == 0 && st.pages == 4 &&
	    st.private_resident == 5 && st.file_resident == 3 &&
	    st.offset == 2 * PAGE_SIZE, "the books");
	check(serve(&two, VM_VNODE_STATS, &st) == ENOENT,
	    "no books of another machine");
	st.state = VM_VNODE_STATE_FILE_LOST;
	check(serve(&one, VM_VNODE_STATS, &st) == EINVAL,
	    "the state is not for the caller to set");
	check(vv_modevent(NULL, MOD_QUIESCE, NULL) == EBUSY &&
	    vv_modevent(NULL, MOD_UNLOAD, NULL) == EBUSY,
	    "unload is refused");

	check(attach(&two, request()) == 0 && file.vnode.v_writecount == -2 &&
	    vv_nsegments == 2, "a second machine");
	check(total(VV_TOTAL_PAGES) == 8 &&
	    total(VV_TOTAL_PRIVATE_RESIDENT) == 5 &&
	    total(VV_TOTAL_FILE_RESIDENT) == 3,
	    "the sums, with the file counted once");
	mock.lock = ENOENT;	/* forced unmount: detaching still works */
	mock_free_memseg(&one, 0);
	check(file.vnode.v_writecount == -1 && file.object.ref_count == 1 &&
	    vv_nsegments == 1, "the first goes, the second stays");
	mock_free_memseg(&two, 0);
	check(clean(), "both gone, nothing left");
	check(vv_refused != 0 && vv_attached == 2, "the counters");
	reset();
}

/* Pages in swap count once, whether or not they came back to memory. */
static void
test_swapped(void)
{
	struct vm_vnode_stats st;

	reset();
	check(attach(&one, request()) == 0, "attach");
	one.mem.mem_segs[0].object->resident_page_count = 2;
	mock.in_memory = 0x6;
	mock.in_swap = 0xb;	/* page 1 is in both */
	memset(&st, 0, sizeof(st));
	st.version = VM_VNODE_ABI;
	check(serve(&one, VM_VNODE_STATS, &st) == 0 &&
	    st.private_resident == 2 && st.private_swapped == 2 &&
	    total(VV_TOTAL_PRIVATE_SWAPPED) == 2,
	    "a page that is in memory and in swap counts once");
	mock.in_swap = 0;
	memset(&st, 0, sizeof(st));
	st.version = VM_VNODE_ABI;
	check(serve(&one, VM_VNODE_STATS, &st) == 0 &&
	    st.private_swapped == 0, "nothing in swap");
	mock_free_memseg(&one, 0);
	check(clean(), "nothing left");
}

/* A forced unmount turns the file's object into a dead one. */
static void
test_lost(void)
{
	struct vm_vnode_stats st;

	reset();
	check(attach(&one, request()) == 0 && attach(&two, request()) == 0,
	    "attach two");
	memset(&st, 0, sizeof(st));
	st.version = VM_VNODE_ABI;
	check(serve(&one, VM_VNODE_STATS, &st) == 0 && st.state == 0 &&
	    total(VV_TOTAL_FILE_LOST) == 0, "the file is there");
	file.object.type = OBJT_DEAD;
	file.object.handle = NULL;
	file.object.resident_page_count = 0;
	check(serve(&one, VM_VNODE_STATS, &st) == 0 &&
	    st.state == VM_VNODE_STATE_FILE_LOST &&
	    total(VV_TOTAL_FILE_LOST) == 2, "the file is lost, and it is said");
	mock_free_memseg(&one, 0);
	mock_free_memseg(&two, 0);
	check(clean(), "nothing left");
	reset();
}

/* Superpages of the file begin at its index 0, as for mmap(2). */
static void
test_colour(void)
{

	reset();
	check(attach(&one, request()) == 0 &&
	    (file.object.flags & OBJ_COLORED) != 0 &&
	    file.object.pg_color == 0, "the file's object gets a colour");
	mock_free_memseg(&one, 0);
	file.object.pg_color = 5;
	check(attach(&one, request()) == 0 && file.object.pg_color == 5,
	    "and keeps one that it has");
	mock_free_memseg(&one, 0);
	check(clean(), "nothing left");
}

/* Names of machines are not for everybody. */
static void
test_list(void)
{
	static struct ucred cred;
	struct sysctl_req req;

	reset();
	memset(&req, 0, sizeof(req));
	req.td = &thread;
	thread.td_ucred = &cred;
	check(vv_sysctl_list(NULL, NULL, 0, &req) == EPERM,
	    "the list is not for a jail");
	cred.cr_prison = &prison0;
	mock.priv = EPERM;
	check(vv_sysctl_list(NULL, NULL, 0, &req) == EPERM,
	    "the list is not for an unprivileged user");
	reset();
}

/* A host process maps guest memory beyond the machine's end. */
static void
test_mapping_stays(void)
{
	struct vm_object *shadow;

	reset();
	check(attach(&one, request()) == 0, "attach");
	shadow = one.mem.mem_segs[0].object;
	vm_object_reference(shadow);
	mock_free_memseg(&one, 0);
	check(shadow->ref_count == 1 && file.object.ref_count == 1 &&
	    file.vnode.v_writecount == 0 && file.vnode.v_usecount == 1,
	    "the mapping keeps the chain, and no text mark");
	vm_object_deallocate(shadow);
	check(clean(), "and then nothing is left");
}

/* nullfs: the upper vnode has the lower one's object. */
static void
test_stacked(void)
{
	static struct mock_file upper;

	reset();
	mock_file_init(&upper, 8 * PAGE_SIZE);
	upper.vnode.v_object = &file.object;
	check(attach(&one, request()) == 0 &&
	    file.vnode.v_writecount == -1 && upper.vnode.v_writecount == 0 &&
	    file.vnode.v_usecount == 2 && upper.vnode.v_usecount == 1,
	    "the lower vnode is marked and held, the upper is not");
	mock_free_memseg(&one, 0);
	check(clean() && upper.file.f_count == 1, "and let go");

	/* Over tmpfs the object does not know its vnode. */
	reset();
	file.object.type = OBJT_SWAP;
	file.object.handle = NULL;
	file.object.ref_count = 1;	/* the file system's own */
	mock_file_init(&upper, 8 * PAGE_SIZE);
	upper.vnode.v_object = &file.object;
	mock.upper = &upper.vnode;
	mock.lower = &file.vnode;
	check(attach(&one, request()) == 0 &&
	    file.vnode.v_writecount == -1 && upper.vnode.v_writecount == 0 &&
	    file.vnode.v_usecount == 2 && upper.vnode.v_usecount == 1,
	    "over tmpfs, too, it is the lower vnode");
	mock_free_memseg(&one, 0);
	check(file.object.ref_count-- == 1 && clean(), "and let go");
	reset();
}

static void
test_registry(void)
{
	struct vmm_backing_ops other = { .kpi = VMM_BACKING_KPI + 1 };
	struct vm_vnode_caps caps;

	reset();
	check(vmm_backing_register(&other) == EOPNOTSUPP, "another KPI");
	check(vv_modevent(NULL, MOD_LOAD, NULL) == EEXIST,
	    "one provider at a time");
	check(serve(&one, VM_VNODE_CAPS, &caps) == 0 &&
	    caps.version == VM_VNODE_ABI &&
	    (caps.features & VM_VNODE_F_COHERENT) != 0 &&
	    (caps.features & VM_VNODE_F_STATE) != 0, "capabilities");
	check(vmm_backing_lookup(VM_VNODE_ATTACH) !=
	    vmm_backing_lookup(VM_VNODE_STATS) &&
	    vmm_backing_owns(vmm_backing_lookup(VM_VNODE_STATS)),
	    "two groups of requests");
	check(vmm_backing_lookup(_IO('v', 119)) == NULL &&
	    vmm_backing_lookup(_IO('v', 128)) == NULL &&
	    vmm_backing_lookup(_IO('w', 120)) == NULL,
	    "no other request is taken");
	check(vv_modevent(NULL, MOD_QUIESCE, NULL) == 0 &&
	    vv_modevent(NULL, MOD_UNLOAD, NULL) == 0, "unload");
	check(serve(&one, VM_VNODE_CAPS, &caps) == ENOTTY,
	    "no provider, no request");
}

static void
say_number(long n)
{
	char c[2] = { 0, 0 };

	if (n >= 10)
		say_number(n / 10);
	c[0] = (char)('0' + n % 10);
	mock_say(c);
}

void	_start(void) __attribute__((noreturn, force_align_arg_pointer));

void
_start(void)
{

	check(vv_modevent(NULL, MOD_LOAD, NULL) == 0, "load");
	test_refusals();
	test_attach();
	test_swapped();
	test_lost();
	test_colour();
	test_list();
	test_mapping_stays();
	test_stacked();
	test_registry();
	say_number(passed);
	mock_say(" passed, ");
	say_number(failed);
	mock_say(" failed\n");
	mock_exit(failed != 0);
}
