/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/* Cases of many guests: what they cost, leaks, races, superpages. */

#include <sys/param.h>
#include <sys/errno.h>
#include <sys/fcntl.h>
#include <sys/mman.h>
#include <machine/vmm.h>
#include <machine/vmm_dev.h>

#include "cases.h"
#include "report.h"
#include "sys.h"

#define	LEAK_GUESTS	16
#define	LEAK_ROUNDS	24
#define	LEAK_SETTLED	8		/* rounds until caches are full */
#define	RACERS		12
#define	RACE_ROUNDS	12
#define	SUPER_GUESTS	4
#define	SUPER_PAGE	700		/* in the middle of the second 2 MiB */

static long
free_pages(void)
{

	return (sysctl_number("vm.stats.vm.v_free_count"));
}

/* Each guest runs and writes one page; what the host paid. */
void
case_many(void)
{
	long bad = 0, before, made, ran;
	uint32_t loaded, stored;
	unsigned i;
	int fd;

	fd = checkpoint_make("many.ckp", PAGES);
	before = free_pages();
	for (i = 0; i < MANY; i++)
		guest_ready(&guests[i], i, fd);
	made = free_pages();
	for (i = 0; i < MANY; i++) {
		vm_mmap(&guests[i]);
		if (vm_run_guest(&guests[i], false, &loaded, &stored) != 0 ||
		    loaded != PATTERN(GUEST_READS / PAGE) ||
		    stored != guests[i].id)
			bad++;
	}
	ran = free_pages();
	check_equal(bad, 0, "many: every guest ran and wrote");
	check_equal(sysctl_number("hw.vmm.vnode.private_resident") +
	    sysctl_number("hw.vmm.vnode.private_swapped"), MANY,
	    "many: a private page each");
	note("many: guests", MANY);
	note("many: host pages for making them", before - made);
	note("many: host pages for running them", made - ran);
	for (i = 0; i < MANY; i++)
		guest_gone(&guests[i]);
	note("many: host pages that did not come back", before - free_pages());
	check_equal(sysctl_number("hw.vmm.vnode.segments"), 0,
	    "many: no segment is left");
	check_equal(checkpoint_differs(fd, PAGES), -1,
	    "many: the file is what it was");
	checkpoint_remove(fd, "many.ckp");
}

/*
 * Rounds of making, running and destroying guests.  A leak of a page for each
 * guest would be 256 pages from the eighth round on; other activity of the
 * host is allowed for.
 */
void
case_leak(void)
{
	long bad = 0, lost, settled = 0;
	uint32_t loaded, stored;
	unsigned i, round;
	int fd;

	fd = checkpoint_make("leak.ckp", PAGES);
	for (round = 0; round < LEAK_ROUNDS; round++) {
		for (i = 0; i < LEAK_GUESTS; i++) {
			guest_ready(&guests[i], i, fd);
			vm_mmap(&guests[i]);
			bad += vm_run_guest(&guests[i], false, &loaded,
			    &stored) != 0;
		}
		for (i = 0; i < LEAK_GUESTS; i++)
			guest_gone(&guests[i]);
		if (round == LEAK_SETTLED - 1)
			settled = free_pages();
	}
	lost = settled - free_pages();
	check_equal(bad, 0, "leak: every guest ran");
	/* The ARC takes pages when it pleases. */
	if (sysctl_number("kstat.zfs.misc.arcstats.size") >= 0)
		note("leak: pages less (with ZFS, so others' too)", lost);
	else
		check(lost < (LEAK_ROUNDS - LEAK_SETTLED) * LEAK_GUESTS,
		    "leak: no page for each guest is lost", lost);
	checkpoint_remove(fd, "leak.ckp");
}

/* In a child: one guest after the other; the exit status says what failed. */
static void
race_guests(unsigned who, int fd)
{
	struct guest *g = &guests[who];
	struct vm_vnode_stats st;
	uint32_t loaded, stored;
	unsigned round;

	for (round = 0; round < RACE_ROUNDS; round++) {
		if (vm_create(g, who) != 0)
			call1(CALL_EXIT, 10);
		g->id = CASE_ID(who);
		if (vm_attach(g, fd, 0, MEMORY) != 0)
			call1(CALL_EXIT, 11);
		if (vm_map(g, 0) != 0 || vm_mmap(g) != 0)
			call1(CALL_EXIT, 12);
		if (WORD(g, 77) != PATTERN(77))
			call1(CALL_EXIT, 13);
		WORD(g, 77) = who;
		if (vm_run_guest(g, false, &loaded, &stored) != 0 ||
		    stored != g->id || loaded != PATTERN(GUEST_READS / PAGE))
			call1(CALL_EXIT, 14);
		if (vm_stats(g, 0, &st) != 0 ||
		    st.private_resident + st.private_swapped != 2)
			call1(CALL_EXIT, 15);
		if (round % 2 == 0)
			vm_munmap(g);
		call1(CALL_CLOSE, g->fd);
		if (vm_destroy(g) != 0)
			call1(CALL_EXIT, 16);
		if (round % 2 != 0) {
			if (WORD(g, 77) != who)
				call1(CALL_EXIT, 17);
			vm_munmap(g);
		}
	}
	call1(CALL_EXIT, 0);
}

/* In a child: the sums, and a writer that may or may not come in. */
static void
race_writer(void)
{
	unsigned round;
	long fd;

	for (round = 0; round < RACE_ROUNDS; round++) {
		(void)sysctl_number("hw.vmm.vnode.private_resident");
		(void)sysctl_number("hw.vmm.vnode.file_resident");
		fd = call3(CALL_OPEN, checkpoint_path("race.ckp"), O_RDWR, 0);
		if (fd >= 0)
			call1(CALL_CLOSE, fd);
		else if (fd != -ETXTBSY)
			call1(CALL_EXIT, 20);
	}
	call1(CALL_EXIT, 0);
}

/* In a child: the module goes, if it can, and comes again. */
static void
race_unloader(void)
{
	unsigned round;
	long error;

	for (round = 0; round < RACE_ROUNDS; round++) {
		error = unload_module();
		if (error == 0) {
			error = call1(CALL_KLDLOAD, module);
			if (error < 0 && error != -EEXIST)
				call1(CALL_EXIT, 21);
		} else if (error != -EBUSY && error != -ENOENT)
			call1(CALL_EXIT, 22);
	}
	call1(CALL_EXIT, 0);
}

/* A writer keeps attachers out, and so does a module that is away. */
#define	REFUSED		(11 << 8)

static void
race(void (*other)(void), const char *name)
{
	long pids[RACERS];
	unsigned i;
	int fd, status;

	fd = checkpoint_make("race.ckp", PAGES);
	for (i = 0; i < RACERS; i++) {
		pids[i] = call0(CALL_FORK);
		if (pids[i] == 0) {
			if (i % 6 == 5)
				other();
			race_guests(i, fd);
		}
	}
	for (i = 0; i < RACERS; i++) {
		status = -1;
		call4(CALL_WAIT4, pids[i], &status, 0, 0);
		check(status == 0 || status == REFUSED, name, status >> 8);
		if (status == REFUSED)
			note("an attach was refused meanwhile, of process", i);
	}
	if (call1(CALL_KLDFIND, "vmm_vnode.ko") < 0)
		call1(CALL_KLDLOAD, module);
	/* Those that gave up left their machines, which vm_create() names. */
	for (i = 0; i < RACERS; i++) {
		if (vm_create(&guests[i], i) == 0)
			call1(CALL_CLOSE, guests[i].fd);
		(void)vm_destroy(&guests[i]);
	}
	check_equal(sysctl_number("hw.vmm.vnode.segments"), 0,
	    "race: no segment is left");
	check_equal(checkpoint_differs(fd, PAGES), -1,
	    "race: the file is what it was");
	checkpoint_remove(fd, "race.ckp");
}

void
case_race(void)
{

	race(race_writer, "race: with a writer");
}

void
case_unload(void)
{

	race(race_unloader, "unload: with guests that come and go");
}

/*
 * 16-bit code with a data segment of 4 GiB: reads a word of each page of guest
 * memory, adds them up in EDI, and reports on port 0x80.
 */
static const uint8_t walk_program[] = {
	0x66, 0x31, 0xf6,				/* xor esi, esi */
	0x66, 0x31, 0xff,				/* xor edi, edi */
	0x67, 0x66, 0x03, 0x7e, 0x10,			/* add edi, [esi+16] */
	0x66, 0x81, 0xc6, 0x00, 0x10, 0x00, 0x00,	/* add esi, 4096 */
	0x66, 0x81, 0xfe, 0x00, 0x00, 0x40, 0x00,	/* cmp esi, 4 MiB */
	0x72, 0xeb,					/* jb */
	0xe6, 0x80,					/* out 0x80, al */
	0xf4,						/* hlt */
};
#define	WALK_PAGE	8			/* where it lies */

/* The file has its size before its contents, and a mapping's colour. */
static int
super_checkpoint(uint32_t *sum)
{
	long map;
	unsigned n;
	int fd;

	fd = checkpoint_open("super.ckp", O_RDWR | O_CREAT | O_TRUNC);
	call2(CALL_FTRUNCATE, fd, MEMORY);
	map = call6(CALL_MMAP, 0, MEMORY, PROT_READ, MAP_SHARED, fd, 0);
	*sum = 0;
	for (n = 0; n < PAGES; n++) {
		page_fill(page_buffer, n);
		if (n == WALK_PAGE)
			__builtin_memcpy(page_buffer, walk_program,
			    sizeof(walk_program));
		*sum += page_buffer[4];
		call3(CALL_WRITE, fd, page_buffer, PAGE);
	}
	call2(CALL_MUNMAP, map, MEMORY);
	call1(CALL_CLOSE, fd);
	return (checkpoint_open("super.ckp", O_RDONLY));
}

/* What the guest itself reads, all pages. */
static void
super_walk(const struct guest *g, uint32_t wanted, const char *name)
{
	uint32_t sum = 0;
	long error;

	error = vm_run_from(g, WALK_PAGE * PAGE, &sum);
	check(error == 0 && sum == wanted, name, error != 0 ? error :
	    (long)sum);
}

static long
super_mappings(const struct guest *g)
{
	struct vm_gpa_pte pte;
	long large = 0;
	unsigned n;

	for (n = 0; n < PAGES; n += 512) {
		__builtin_memset(&pte, 0, sizeof(pte));
		pte.gpa = n * PAGE;
		call3(CALL_IOCTL, g->fd, VM_GET_GPA_PMAP, &pte);
		large += pte.ptenum > 0 && pte.ptenum < 4 &&
		    (pte.pte[pte.ptenum - 1] & 0x80) != 0;
	}
	return (large);
}

/* Copy-on-write out of a superpage, if the host makes superpages of a file. */
void
case_super(void)
{
	struct guest *g;
	long large = 0, right = 0;
	uint32_t sum, word;
	unsigned i, k, n;
	int fd;

	fd = super_checkpoint(&sum);
	for (i = 0; i < SUPER_GUESTS; i++) {
		g = &guests[i];
		guest_ready(g, i, fd);
		for (n = 0; n < PAGES; n++)
			right += page_read(g, n) || n == WALK_PAGE;
		super_walk(g, sum, "super: what the guest reads");
		super_walk(g, sum, "super: and reads again");
		large += super_mappings(g);
	}
	check_equal(right, SUPER_GUESTS * (long)PAGES, "super: contents");
	note("super: mappings of 2 MiB in the guests", large);
	for (i = 0, right = 0; i < SUPER_GUESTS; i++) {
		g = &guests[i];
		word = 0xabc00000u + i;
		call4(CALL_PWRITE, g->fd, &word, 4, SUPER_PAGE * PAGE);
		for (k = 0; k < SUPER_GUESTS; k++) {
			call4(CALL_PREAD, guests[k].fd, page_buffer, PAGE,
			    SUPER_PAGE * PAGE);
			right += page_buffer[1] == PATTERN(SUPER_PAGE) &&
			    page_buffer[0] == (k <= i ? 0xabc00000u + k :
			    PATTERN(SUPER_PAGE));
		}
		check_equal(guest_private(g), 1, "super: one page copied");
		super_walk(g, sum, "super: the guest still reads all pages");
	}
	check_equal(right, SUPER_GUESTS * SUPER_GUESTS, "super: who sees what");
	for (i = 0, right = 0; i < SUPER_GUESTS; i++) {
		for (n = 0; n < PAGES; n++)
			right += page_read(&guests[i], n) || n == WALK_PAGE ||
			    n == SUPER_PAGE;
		guest_gone(&guests[i]);
	}
	check_equal(right, SUPER_GUESTS * (long)PAGES,
	    "super: all other pages are the checkpoint's");
	checkpoint_remove(fd, "super.ckp");
}
