/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * Drives vmm and vmm_vnode from user space: GUESTS virtual machines on one
 * checkpoint file.  Runs as an ordinary program of root, with the path of a
 * file that it may create, or as /sbin/init, on a tmpfs that it mounts.
 *
 *	vnode_test [path [module]]
 *
 * The module is what kldload(2) is given; a file that is not in
 * kern.module_path cannot be loaded by name.
 */

#include <sys/param.h>
#include <sys/errno.h>
#include <sys/fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <machine/vmm_dev.h>

#include "report.h"
#include "sys.h"
#include "vm.h"

#define	GUESTS		8
#define	ID(i)		(0xc0de0000u + (i))
#define	PATTERN(page)	(0x5eed0000u + (uint32_t)(page))
#define	INDIRECT	16		/* pages of one indirect block of UFS */
#define	HOST_PAGE	7		/* the host writes here ... */
#define	HOST_WORD(i)	(0xb00b0000u + (i))

static struct guest guests[GUESTS];
static uint32_t page[PAGE / sizeof(uint32_t)];
static const char *path = "/tmp/vnode_test.ckp", *module = "vmm_vnode";
static int file;
static bool coherent;			/* VM_VNODE_F_COHERENT */

/* A page of the checkpoint: its number all over, and the guest's program. */
static void
fill(unsigned n)
{
	unsigned i;

	for (i = 0; i < nitems(page); i++)
		page[i] = PATTERN(n);
	if (n == GUEST_CODE / PAGE)
		__builtin_memcpy(page, guest_program, guest_program_size);
}

/* Of a page in memory: the first word that differs, or -1. */
static long
differs(const void *memory, unsigned n)
{
	const uint32_t *word = memory;
	unsigned i;

	fill(n);
	for (i = 0; i < nitems(page); i++) {
		if (word[i] != page[i])
			return (i);
	}
	return (-1);
}

static int
open_file(int flags)
{

	return ((int)call3(CALL_OPEN, path, flags, 0600));
}

static void
make_checkpoint(void)
{
	long fd, n;
	unsigned i;

	fd = open_file(O_RDWR | O_CREAT | O_TRUNC);
	if (fd < 0)
		fatal("create the checkpoint file", fd);
	for (i = 0; i < PAGES; i++) {
		fill(i);
		n = call3(CALL_WRITE, fd, page, PAGE);
		if (n != (long)PAGE)
			fatal("write the checkpoint file", n);
	}
	call1(CALL_CLOSE, fd);
	file = open_file(O_RDONLY);
	if (file < 0)
		fatal("open the checkpoint file", file);
}

static long
file_differs(void)
{
	static uint32_t got[PAGE / sizeof(uint32_t)];
	unsigned i;

	for (i = 0; i < PAGES; i++) {
		if (call4(CALL_PREAD, file, got, PAGE, i * PAGE) != (long)PAGE)
			return (i);
		if (differs(got, i) >= 0)
			return (i);
	}
	return (-1);
}

static long
private_pages(const struct guest *g)
{
	struct vm_vnode_stats st;
	long error;

	error = vm_stats(g, 0, &st);
	return (error != 0 ? error :
	    (long)(st.private_resident + st.private_swapped));
}

static void
share(void)
{
	struct vm_vnode_stats st;
	struct guest *g;
	long worst = -1, copied = 0, resident;
	unsigned i, n;

	for (i = 0; i < GUESTS; i++) {
		g = &guests[i];
		g->id = ID(i);
		check_equal(vm_attach(g, file, 0, MEMORY), 0, "attach");
		if (i == 0) {
			check_equal(vm_attach(g, file, 0, MEMORY), -EEXIST,
			    "a segment that is in use");
			check_equal(vm_map(g, VM_MEMMAP_F_WIRED), -EOPNOTSUPP,
			    "wired memory");
		}
		check_equal(vm_map(g, 0), 0, "map into the guest");
		check_equal(vm_mmap(g), 0, "map into the host");
		for (n = 0; n < PAGES; n++) {
			if (differs(g->memory + n * PAGE, n) >= 0)
				worst = n;
		}
		copied += private_pages(g);
	}
	check_equal(worst, -1, "all guests read the checkpoint");
	check_equal(copied, 0, "reading copied nothing");
	check_equal(vm_stats(&guests[0], 0, &st), 0, "books of a segment");
	check_equal((long)st.pages, PAGES, "books: length");
	check((long)st.file_resident >= (long)PAGES &&
	    (long)st.file_resident <= (long)PAGES + INDIRECT,
	    "books: shared pages", (long)st.file_resident);
	check_equal(sysctl_number("hw.vmm.vnode.segments"), GUESTS,
	    "sysctl: segments");
	check_equal(sysctl_number("hw.vmm.vnode.pages"), GUESTS * PAGES,
	    "sysctl: pages");
	resident = sysctl_number("hw.vmm.vnode.file_resident");
	check(resident >= (long)PAGES && resident <= (long)PAGES + INDIRECT,
	    "sysctl: the file is counted once", resident);
	check_equal((long)st.state, 0, "books: the file is there");
	check_equal(sysctl_number("hw.vmm.vnode.file_lost"), 0,
	    "sysctl: no file is lost");
}

/*
 * Both sides have the file's page mapped when the host writes: the guest must
 * not go on reading the file.  The other way round is part of isolate(), where
 * the host has read all pages before the guest writes.
 */
static long
see_each_other(void)
{
	struct guest *g;
	uint32_t loaded, stored;
	long error;
	unsigned i;

	if (!coherent) {
		say("SKIP what the guest mapped before the host wrote: "
		    "this kernel leaves stale mappings\n");
		return (0);
	}
	for (i = 0; i < GUESTS; i += 2) {
		g = &guests[i];
		*(volatile uint32_t *)(g->memory + GUEST_READS) = HOST_WORD(i);
		error = vm_run_guest(g, false, &loaded, &stored);
		check_equal(error, 0, "the guest runs again");
		check(loaded == HOST_WORD(i),
		    "it sees what the host wrote to a page it had", loaded);
	}
	return (GUESTS / 2);
}

static void
isolate(void)
{
	struct guest *g, *h;
	uint32_t loaded, stored;
	long error, more, seen;
	unsigned i, k;

	for (i = 0; i < GUESTS; i++) {
		g = &guests[i];
		/* Odd guests see what the host wrote, even ones the file. */
		if (i % 2 != 0)
			*(volatile uint32_t *)(g->memory + GUEST_READS) =
			    HOST_WORD(i);
		error = vm_run_guest(g, !coherent, &loaded, &stored);
		check_equal(error, 0, "the guest runs");
		check(stored == g->id, "its write is seen by the host",
		    stored);
		check(loaded == (i % 2 != 0 ? HOST_WORD(i) :
		    PATTERN(GUEST_READS / PAGE)), "what the guest read",
		    loaded);
		check_equal(private_pages(g), i % 2 != 0 ? 2 : 1,
		    "books: pages that this guest has for itself");
		for (k = i + 1; k < GUESTS; k++) {
			h = &guests[k];
			seen = differs(h->memory + GUEST_WRITES,
			    GUEST_WRITES / PAGE);
			if (seen >= 0)
				break;
		}
		check(k == GUESTS, "no other guest sees it", k);
	}
	more = see_each_other();
	for (i = 0; i < GUESTS; i++)
		*(volatile uint32_t *)(guests[i].memory + HOST_PAGE * PAGE) =
		    HOST_WORD(i);
	for (i = 0; i < GUESTS; i++) {
		seen = *(volatile uint32_t *)(guests[i].memory +
		    HOST_PAGE * PAGE);
		check(seen == HOST_WORD(i), "the host's write stays with its "
		    "guest", seen);
	}
	check_equal(sysctl_number("hw.vmm.vnode.private_resident") +
	    sysctl_number("hw.vmm.vnode.private_swapped"),
	    GUESTS + GUESTS / 2 + more + GUESTS, "sysctl: private pages");
	check_equal(file_differs(), -1, "the file is what it was");
}

static void
protect(void)
{

	check_equal(open_file(O_RDWR), -ETXTBSY, "open for writing");
	check_equal(open_file(O_WRONLY | O_TRUNC), -ETXTBSY,
	    "open and truncate");
	check_equal(call2(CALL_TRUNCATE, path, PAGE), -ETXTBSY, "truncate");
	check_equal(file_differs(), -1, "the file is still what it was");
}

static long
unload(void)
{
	long id;

	id = call1(CALL_KLDFIND, "vmm_vnode.ko");
	return (id < 0 ? id : call1(CALL_KLDUNLOAD, id));
}

/* Even guests first to last, then odd ones last to first. */
static void
destroy(void)
{
	struct guest *g;
	long error, left = GUESTS;
	unsigned i, k, n;

	for (n = 0; n < GUESTS; n++) {
		i = n < GUESTS / 2 ? 2 * n : 2 * (GUESTS - n) - 1;
		g = &guests[i];
		/* All four orders of unmapping, closing and destroying. */
		if (n % 4 == 0 || n % 4 == 1)
			check_equal(vm_munmap(g), 0, "unmap");
		if (n % 2 == 0)
			call1(CALL_CLOSE, g->fd);
		error = vm_destroy(g);
		check_equal(error, 0, "destroy");
		if (n % 2 != 0)
			call1(CALL_CLOSE, g->fd);
		if (g->memory != NULL) {
			check(*(volatile uint32_t *)(g->memory +
			    GUEST_WRITES) == ID(i), "a mapping that is left "
			    "keeps what the guest wrote", i);
			check_equal(vm_munmap(g), 0, "unmap");
		}
		g->fd = -1;
		left--;
		check_equal(sysctl_number("hw.vmm.vnode.segments"), left,
		    "one segment less");
		for (k = 0; k < GUESTS; k++) {
			if (guests[k].fd >= 0 &&
			    *(volatile uint32_t *)(guests[k].memory +
			    GUEST_WRITES) != ID(k))
				break;
		}
		check(k == GUESTS, "the others keep their memory", k);
		if (left > 0) {
			check_equal(open_file(O_RDWR), -ETXTBSY,
			    "the file is still protected");
			check_equal(unload(), -EBUSY, "unload is refused");
		}
	}
}

/* The limit depends on the processors and may be less than this test needs. */
static void
allow_guests(void)
{
	static const char name[] = "hw.vmm.maxvmms";
	long now;

	now = sysctl_number(name);
	if (now >= 0 && now < 2 * GUESTS)
		sysctl_set(name, 2 * GUESTS);
}

static void
set_up_init(void)
{
	static char tmpfs[] = "tmpfs", fstype[] = "fstype";
	static char fspath[] = "fspath", tmp[] = "/tmp";
	struct iovec iov[4] = {
		{ fstype, sizeof(fstype) }, { tmpfs, sizeof(tmpfs) },
		{ fspath, sizeof(fspath) }, { tmp, sizeof(tmp) },
	};
	long fd;

	fd = call3(CALL_OPEN, "/dev/console", O_RDWR, 0);
	call2(CALL_DUP2, fd, 0);
	call2(CALL_DUP2, fd, 1);
	call3(CALL_NMOUNT, iov, 4, 0);
}

void	start(long *args) __attribute__((noreturn, used));

/* The kernel passes the address of argc. */
void
start(long *args)
{
	struct vm_vnode_caps caps;
	long error, fd, wired;
	unsigned i;

	if (call0(CALL_GETPID) == 1)
		set_up_init();
	else if (args[0] > 1)
		path = (const char *)args[2];
	if (args[0] > 2)
		module = (const char *)args[3];

	if (call1(CALL_KLDFIND, "vmm_vnode.ko") < 0) {
		error = call1(CALL_KLDLOAD, module);
		check(error >= 0, "load vmm_vnode", error);
	}
	make_checkpoint();
	allow_guests();
	wired = sysctl_number("vm.stats.vm.v_wire_count");

	for (i = 0; i < GUESTS; i++) {
		error = vm_create(&guests[i], i);
		if (error != 0)
			fatal("create a virtual machine", error);
	}
	error = call3(CALL_IOCTL, guests[0].fd, VM_VNODE_CAPS, &caps);
	if (error != 0)
		fatal("VM_VNODE_CAPS: is vmm_vnode loaded?", error);
	check_equal(caps.version, VM_VNODE_ABI, "ABI version");
	check_equal((long)caps.page_size, PAGE, "page size");
	coherent = (caps.features & VM_VNODE_F_COHERENT) != 0;

	refusals(&guests[0], path, file);
	share();
	isolate();
	protect();
	destroy();

	check_equal(sysctl_number("hw.vmm.vnode.private_resident"), 0,
	    "no private page is left");
	fd = open_file(O_RDWR);
	check(fd >= 0, "the file may be written again", fd);
	call1(CALL_CLOSE, fd);
	check_equal(file_differs(), -1, "the file was never written");
	wired = sysctl_number("vm.stats.vm.v_wire_count") - wired;
	/* The ARC of ZFS is wired, too, and grows when it pleases. */
	if (sysctl_number("kstat.zfs.misc.arcstats.size") >= 0)
		note("wired pages more (with ZFS, so its own, too)", wired);
	else
		check(wired < (long)PAGES / 2, "wired memory is back", wired);

	check_equal(unload(), 0, "unload");
	if (vm_create(&guests[0], 0) == 0) {
		check_equal(call3(CALL_IOCTL, guests[0].fd, VM_VNODE_CAPS,
		    &caps), -ENOTTY, "no provider, no request");
		call1(CALL_CLOSE, guests[0].fd);
		check_equal(vm_destroy(&guests[0]), 0,
		    "vmm goes on without the provider");
	}
	error = call1(CALL_KLDLOAD, module);
	check(error >= 0, "load again", error);
	call1(CALL_UNLINK, path);
	quit(report());
}

/* The stack is not aligned for C at the first instruction. */
__asm__(".globl _start\n"
    "_start:\n"
#ifdef FAKE_VMM
    "	mov %rsp, %rdi\n"		/* where Linux has argc */
#endif
    "	xor %ebp, %ebp\n"
    "	and $-16, %rsp\n"
    "	call start\n"
    "	ud2\n");
