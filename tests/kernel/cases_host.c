/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/* Cases that a host must be meant for: forced unmounts, and swapping. */

#include <sys/param.h>
#include <sys/errno.h>
#include <sys/fcntl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/uio.h>

#include "cases.h"
#include "report.h"
#include "sys.h"

#define	WRITTEN(i, n)	(0xdead0000u + (i) * (uint32_t)PAGES + (n))
#define	SWAP_GUESTS	4
#define	SWAP_PAGES	((long)(PAGES - 4) / 2)	/* written by each */

static size_t
length(const char *s)
{
	size_t n;

	for (n = 0; s[n] != '\0'; n++)
		continue;
	return (n);
}

static long
mount_tmpfs(const char *on)
{
	static char fstype[] = "fstype", tmpfs[] = "tmpfs", fspath[] = "fspath";
	struct iovec iov[4] = {
		{ fstype, sizeof(fstype) }, { tmpfs, sizeof(tmpfs) },
		{ fspath, sizeof(fspath) },
		{ (void *)(uintptr_t)on, length(on) + 1 },
	};

	return (call3(CALL_NMOUNT, iov, 4, 0));
}

/* Two guests of "fd" on a file system that goes while they live. */
static void
force(const char *on, int fd)
{
	struct guest *g = &guests[0], *h = &guests[1];
	uint32_t loaded, stored;

	guest_ready(g, 0, fd);
	guest_ready(h, 1, fd);
	vm_mmap(g);
	vm_mmap(h);
	check_equal(vm_run_guest(g, false, &loaded, &stored), 0,
	    "force: the guest runs");
	check(page_same(&WORD(h, 100), 100), "force: a page of the file",
	    WORD(h, 100));
	call1(CALL_CLOSE, fd);
	check_equal(call2(CALL_UNMOUNT, on, 0), -EBUSY,
	    "force: a plain unmount is refused");
	check_equal(sysctl_number("hw.vmm.vnode.file_lost"), 0,
	    "force: no file is lost yet");
	check_equal(call2(CALL_UNMOUNT, on, MNT_FORCE), 0,
	    "force: a forced unmount");
	check(WORD(g, GUEST_WRITES / PAGE) == g->id,
	    "force: private pages stay", WORD(g, GUEST_WRITES / PAGE));
}

static void
forced(void)
{

	guest_gone(&guests[0]);
	guest_gone(&guests[1]);
	check_equal(sysctl_number("hw.vmm.vnode.segments"), 0,
	    "force: no segment is left");
	check_equal(sysctl_number("hw.vmm.vnode.file_lost"), 0,
	    "force: and no lost file");
}

/* A tmpfs that goes by force: its contents stay, by the segments. */
void
case_force(void)
{
	struct vm_vnode_stats st;
	const char *on = checkpoint_path("force");
	int fd;

	call2(CALL_MKDIR, on, 0755);
	check_equal(mount_tmpfs(on), 0, "force: mount a tmpfs");
	fd = checkpoint_make("force/ckp", PAGES);
	on = checkpoint_path("force");
	force(on, fd);
	check(page_same(&WORD(&guests[1], 900), 900),
	    "force: tmpfs keeps the contents", WORD(&guests[1], 900));
	check_equal(vm_stats(&guests[1], 0, &st), 0, "force: books");
	check_equal((long)st.state, 0, "force: so no file is lost");
	forced();
	call1(CALL_RMDIR, checkpoint_path("force"));
}

/*
 * The file system that the caller mounted for this, UFS or ZFS, goes by force:
 * what is not private reads as zeros, and the module says so.
 */
void
case_lost(void)
{
	struct vm_vnode_stats st;
	char path[256];
	size_t n;
	long fd;
	unsigned i;

	n = length(unmountable);
	if (unmountable[0] != '/' || n > sizeof(path) - 5)
		fatal("lost: needs a mount point", -EINVAL);
	__builtin_memcpy(path, unmountable, n);
	__builtin_memcpy(path + n, "/ckp", 5);
	fd = call3(CALL_OPEN, path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	for (i = 0; fd >= 0 && i < PAGES; i++) {
		page_fill(page_buffer, i);
		call3(CALL_WRITE, fd, page_buffer, PAGE);
	}
	call1(CALL_CLOSE, fd);
	fd = call3(CALL_OPEN, path, O_RDONLY, 0);
	if (fd < 0)
		fatal("lost: the checkpoint file", fd);
	force(unmountable, (int)fd);
	check_equal(vm_stats(&guests[1], 0, &st), 0, "lost: books");
	check_equal((long)st.state, VM_VNODE_STATE_FILE_LOST,
	    "lost: the state of the segment");
	check_equal((long)st.file_resident, 0, "lost: no page of the file");
	check_equal(sysctl_number("hw.vmm.vnode.file_lost"), 2,
	    "lost: sysctl: both segments");
	check_equal(WORD(&guests[1], 900), 0,
	    "lost: what the checkpoint had reads as zeros");
	forced();
}

/* In a child: takes all memory of the host, twice over if it lives. */
static void
hog(void)
{
	volatile uint8_t *memory;
	long i, pages;

	pages = sysctl_number("hw.physmem") / (long)PAGE;
	memory = (volatile uint8_t *)call6(CALL_MMAP, 0, pages * (long)PAGE,
	    PROT_READ | PROT_WRITE, MAP_ANON | MAP_PRIVATE, -1, 0);
	for (i = 0; i < pages; i++)
		memory[i * (long)PAGE] = 1;
	call1(CALL_EXIT, 0);
}

static void
swap_out(void)
{
	int status, turn;
	long pid;

	for (turn = 0; turn < 2; turn++) {
		pid = call0(CALL_FORK);
		if (pid == 0)
			hog();
		status = 0;
		call4(CALL_WAIT4, pid, &status, 0, 0);
		note("swap: status of what took all memory", status);
	}
}

/* Private pages go to swap and come back, and are counted once. */
void
case_swap(void)
{
	struct vm_vnode_stats st;
	struct guest *g;
	long bad = 0, swapped = 0;
	unsigned i, n;
	int fd;

	fd = checkpoint_make("swap.ckp", PAGES);
	for (i = 0; i < SWAP_GUESTS; i++) {
		g = &guests[i];
		guest_ready(g, i, fd);
		vm_mmap(g);
		for (n = 4; n < PAGES; n += 2)
			WORD(g, n) = WRITTEN(i, n);
		vm_munmap(g);
	}
	swap_out();
	for (i = 0; i < SWAP_GUESTS; i++) {
		vm_stats(&guests[i], 0, &st);
		swapped += (long)st.private_swapped;
		check_equal((long)(st.private_resident + st.private_swapped),
		    SWAP_PAGES, "swap: private pages, gone out");
	}
	check(swapped > 0, "swap: something went there", swapped);
	for (i = 0; i < SWAP_GUESTS; i++) {
		g = &guests[i];
		vm_mmap(g);
		for (n = 0; n < PAGES; n++) {
			if (n >= 4 && n % 2 == 0)
				bad += WORD(g, n) != WRITTEN(i, n);
			else
				bad += !page_same(&WORD(g, n), n);
		}
		check_equal(guest_private(g), SWAP_PAGES,
		    "swap: private pages, come back");
	}
	check_equal(bad, 0, "swap: everything came back");
	for (i = 0; i < SWAP_GUESTS; i++)
		guest_gone(&guests[i]);
	check_equal(checkpoint_differs(fd, PAGES), -1,
	    "swap: the file is what it was");
	checkpoint_remove(fd, "swap.ckp");
}
