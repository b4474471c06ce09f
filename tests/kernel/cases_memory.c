/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/* Cases of one guest's memory. */

#include <sys/param.h>
#include <sys/fcntl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <machine/vmm.h>
#include <machine/vmm_dev.h>

#include "cases.h"
#include "report.h"
#include "sys.h"

#define	DEVICE_GUESTS	4
#define	DEVICE_WORD(i)	(0xabc00000u + (i))

/* read(2) and write(2) of the device: vm_gpa_hold_global(). */
void
case_device(void)
{
	struct guest *g;
	long bad = -1, right;
	uint32_t word;
	unsigned i, k, n;
	int fd;

	fd = checkpoint_make("device.ckp", PAGES);
	for (i = 0; i < DEVICE_GUESTS; i++) {
		guest_ready(&guests[i], i, fd);
		for (n = 0; n < PAGES; n++) {
			if (!page_read(&guests[i], n))
				bad = n;
		}
	}
	check_equal(bad, -1, "device: read(2) gives the checkpoint");
	for (i = 0; i < DEVICE_GUESTS; i++)
		check_equal(guest_private(&guests[i]), 0,
		    "device: reading copied nothing");
	for (i = 0; i < DEVICE_GUESTS; i++) {
		g = &guests[i];
		word = DEVICE_WORD(i);
		check_equal(call4(CALL_PWRITE, g->fd, &word, 4, 5 * PAGE + 8),
		    4, "device: write(2)");
		check_equal(guest_private(g), 1, "device: one page copied");
		for (k = 0, right = 0; k < DEVICE_GUESTS; k++) {
			call4(CALL_PREAD, guests[k].fd, page_buffer, PAGE,
			    5 * PAGE);
			right += page_buffer[1] == PATTERN(5) &&
			    page_buffer[2] == (k <= i ? DEVICE_WORD(k) :
			    PATTERN(5));
		}
		check_equal(right, DEVICE_GUESTS, "device: who sees it");
	}
	check_equal(checkpoint_differs(fd, PAGES), -1,
	    "device: the file is what it was");
	for (i = 0; i < DEVICE_GUESTS; i++)
		guest_gone(&guests[i]);
	checkpoint_remove(fd, "device.ckp");
}

/*
 * Guest memory that no process has mapped: unmapping it from the guest must
 * not throw away what was written.  This needs the module's own reference on
 * the shadow ("Unmapping" in vmm_vnode.c): a mapping by a process would clear
 * OBJ_ONEMAPPING, too, and so hide that the reference is missing.
 */
void
case_onemap(void)
{
	struct guest *g = &guests[0];
	uint32_t word;
	unsigned turn;
	int fd;

	fd = checkpoint_make("onemap.ckp", PAGES);
	guest_ready(g, 0, fd);
	for (turn = 0; turn < 3; turn++) {
		word = 0xfeed0000u + turn;
		call4(CALL_PWRITE, g->fd, &word, 4, (40 + turn) * PAGE);
		check_equal(guest_private(g), turn + 1,
		    "onemap: private pages");
		check_equal(vm_unmap(g), 0, "onemap: unmap from the guest");
		check_equal(guest_private(g), turn + 1,
		    "onemap: private pages afterwards");
		check_equal(vm_map(g, 0), 0, "onemap: map again");
		call4(CALL_PREAD, g->fd, page_buffer, PAGE, 40 * PAGE);
		check(page_buffer[0] == 0xfeed0000u, "onemap: what was written",
		    (long)page_buffer[0]);
	}
	guest_gone(g);
	checkpoint_remove(fd, "onemap.ckp");
}

static void
reset(struct guest *g)
{
	struct vm_suspend suspend = { .how = VM_SUSPEND_RESET };
	uint32_t loaded, stored;

	note("remap: VM_SUSPEND", call3(CALL_IOCTL, g->fd, VM_SUSPEND,
	    &suspend));
	/* The vCPU has to notice. */
	(void)vm_run_guest(g, false, &loaded, &stored);
	note("remap: VM_REINIT", call3(CALL_IOCTL, g->fd, VM_REINIT, 0));
}

/* Unmap from the host and from the guest, and map again; advice; reset. */
void
case_remap(void)
{
	struct guest *g = &guests[0];
	uint32_t loaded, stored;
	long right = 0;
	unsigned i;
	int fd;

	fd = checkpoint_make("remap.ckp", PAGES);
	guest_ready(g, 0, fd);
	check_equal(vm_mmap(g), 0, "remap: map into the host");
	check_equal(vm_run_guest(g, false, &loaded, &stored), 0,
	    "remap: the guest runs");
	for (i = 16; i < 32; i++)
		WORD(g, i) = 0xfeed0000u + i;
	check_equal(guest_private(g), 17, "remap: private pages");
	vm_munmap(g);
	check_equal(guest_private(g), 17, "remap: after the host's unmap");
	check_equal(vm_unmap(g), 0, "remap: unmap from the guest");
	check_equal(guest_private(g), 17, "remap: after the guest's unmap");
	check_equal(vm_map(g, 0), 0, "remap: map into the guest again");
	check_equal(vm_mmap(g), 0, "remap: and into the host");
	for (i = 16; i < 32; i++)
		right += WORD(g, i) == 0xfeed0000u + i;
	check_equal(right, 16, "remap: what the host wrote");
	check(WORD(g, GUEST_WRITES / PAGE) == g->id,
	    "remap: what the guest wrote", WORD(g, GUEST_WRITES / PAGE));
	/* Advice must not throw private pages away. */
	call3(CALL_MADVISE, g->memory, MEMORY, MADV_FREE);
	call3(CALL_MADVISE, g->memory, MEMORY, MADV_DONTNEED);
	call3(CALL_MSYNC, g->memory, MEMORY, MS_SYNC | MS_INVALIDATE);
	check_equal(guest_private(g), 17, "remap: after advice");
	check(WORD(g, 20) == 0xfeed0014u, "remap: and its contents",
	    WORD(g, 20));
	reset(g);
	check_equal(guest_private(g), 17, "remap: after a reset");
	check_equal(checkpoint_differs(fd, PAGES), -1,
	    "remap: the file is what it was");
	guest_gone(g);
	checkpoint_remove(fd, "remap.ckp");
}

/* A segment that starts within the file, and is mapped in part. */
void
case_offset(void)
{
	struct guest *g = &guests[0];
	struct vm_vnode_stats st;
	struct vm_memmap mm;
	long bad = -1;
	uint32_t word = 77;
	unsigned n;
	int fd;

	fd = checkpoint_make("offset.ckp", 2 * PAGES);
	if (vm_create(g, 0) != 0)
		fatal("create a virtual machine", -1);
	check_equal(vm_attach(g, fd, 513 * (int64_t)PAGE, MEMORY), 0,
	    "offset: attach");
	__builtin_memset(&mm, 0, sizeof(mm));
	mm.segoff = 2 * PAGE;
	mm.len = MEMORY / 2;
	mm.prot = PROT_READ | PROT_WRITE | PROT_EXEC;
	check_equal(call3(CALL_IOCTL, g->fd, VM_MMAP_MEMSEG, &mm), 0,
	    "offset: map a part");
	for (n = 0; n < PAGES / 2; n++) {
		if (call4(CALL_PREAD, g->fd, page_buffer, PAGE, n * PAGE) !=
		    (long)PAGE || !page_same(page_buffer, n + 515))
			bad = n;
	}
	check_equal(bad, -1, "offset: the right pages");
	check_equal(vm_stats(g, 0, &st), 0, "offset: books");
	check_equal(st.offset, 513 * (long)PAGE, "offset: as attached");
	call4(CALL_PWRITE, g->fd, &word, 4, 3 * PAGE);
	check_equal(guest_private(g), 1, "offset: one page copied");
	check_equal(checkpoint_differs(fd, 2 * PAGES), -1,
	    "offset: the file is what it was");
	guest_gone(g);
	checkpoint_remove(fd, "offset.ckp");
}

/* The file loses its name while a guest runs from it. */
void
case_unlink(void)
{
	struct guest *g = &guests[0];
	uint32_t loaded, stored;
	long bad = -1;
	unsigned n;
	int fd;

	fd = checkpoint_make("unlink.ckp", PAGES);
	guest_ready(g, 0, fd);
	checkpoint_remove(fd, "unlink.ckp");
	vm_mmap(g);
	check_equal(vm_run_guest(g, false, &loaded, &stored), 0,
	    "unlink: the guest runs");
	for (n = 0; n < PAGES; n++) {
		if (n != GUEST_WRITES / PAGE && !page_same(&WORD(g, n), n))
			bad = n;
	}
	check_equal(bad, -1, "unlink: all pages are there");
	guest_gone(g);
	check_equal(sysctl_number("hw.vmm.vnode.segments"), 0,
	    "unlink: no segment is left");
}

/*
 * Holes read as zeros, and stay apart.  Whether reading one costs a private
 * page depends on the file system: it does on tmpfs, not on UFS and ZFS.
 */
void
case_holes(void)
{
	struct guest *g = &guests[0], *h = &guests[1];
	long bad = 0;
	unsigned n;
	int fd;

	fd = checkpoint_open("holes.ckp", O_RDWR | O_CREAT | O_TRUNC);
	call2(CALL_FTRUNCATE, fd, MEMORY);
	for (n = 0; n < 4; n++) {
		page_fill(page_buffer, n);
		call3(CALL_WRITE, fd, page_buffer, PAGE);
	}
	call1(CALL_CLOSE, fd);
	fd = checkpoint_open("holes.ckp", O_RDONLY);
	guest_ready(g, 0, fd);
	guest_ready(h, 1, fd);
	vm_mmap(g);
	vm_mmap(h);
	for (n = 4; n < 104; n++)
		bad += WORD(g, n) != 0 || WORD(h, n) != 0;
	check_equal(bad, 0, "holes: read as zeros");
	check_equal(guest_private(h), guest_private(g),
	    "holes: cost both guests the same");
	note("holes: private pages after 100 pages of a hole",
	    guest_private(g));
	WORD(g, 50) = 5;
	check(WORD(h, 50) == 0, "holes: a write stays with its guest",
	    WORD(h, 50));
	guest_gone(g);
	guest_gone(h);
	checkpoint_remove(fd, "holes.ckp");
}

/* The books as text: one line for each of three guests. */
void
case_list(void)
{
	static char text[4096];
	long lines = 0, size;
	unsigned i;
	int fd;

	fd = checkpoint_make("list.ckp", PAGES);
	for (i = 0; i < 3; i++)
		guest_ready(&guests[i], i, fd);
	size = sysctl_text("hw.vmm.vnode.list", text, sizeof(text));
	check(size > 0, "list: can be read", size);
	for (i = 0; text[i] != '\0'; i++)
		lines += text[i] == '\n';
	check_equal(lines, 3, "list: a line for each segment");
	say(text);
	for (i = 0; i < 3; i++)
		guest_gone(&guests[i]);
	checkpoint_remove(fd, "list.ckp");
}

/* In the child: the mapping of a machine that is gone meanwhile. */
static void
fork_child(struct guest *g)
{
	struct timespec ts = { 0, 300000000 };

	call2(CALL_NANOSLEEP, &ts, 0);
	if (WORD(g, 9) != 1 || WORD(g, 11) != PATTERN(11))
		call1(CALL_EXIT, 3);
	WORD(g, 11) = 3;
	call1(CALL_EXIT, WORD(g, 11) == 3 ? 0 : 4);
}

/* A process that maps guest memory forks; parent and child go on. */
void
case_fork(void)
{
	struct guest *g = &guests[0];
	long pid;
	int fd, status = 0;

	fd = checkpoint_make("fork.ckp", PAGES);
	guest_ready(g, 0, fd);
	vm_mmap(g);
	WORD(g, 9) = 1;
	pid = call0(CALL_FORK);
	if (pid == 0) {
		WORD(g, 10) = 2;
		vm_munmap(g);
		call1(CALL_EXIT, 0);
	}
	call4(CALL_WAIT4, pid, &status, 0, 0);
	check_equal(guest_private(g), 2, "fork: the child's write is the "
	    "guest's");
	check(WORD(g, 9) == 1 && WORD(g, 10) == 2, "fork: the parent sees both",
	    WORD(g, 10));
	pid = call0(CALL_FORK);
	if (pid == 0)
		fork_child(g);
	vm_munmap(g);
	call1(CALL_CLOSE, g->fd);
	note("fork: destroy while a child has the device open and mapped",
	    vm_destroy(g));
	call4(CALL_WAIT4, pid, &status, 0, 0);
	check_equal(status, 0, "fork: a child's mapping outlives the machine");
	check_equal(sysctl_number("hw.vmm.vnode.segments"), 0,
	    "fork: no segment is left");
	check_equal(checkpoint_differs(fd, PAGES), -1,
	    "fork: the file is what it was");
	checkpoint_remove(fd, "fork.ckp");
}
