/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

#include <sys/param.h>
#include <sys/errno.h>
#include <sys/fcntl.h>

#include "cases.h"
#include "report.h"
#include "sys.h"

/*
 * What vnode_test does not try: the device's read and write, remapping, reset,
 * fork, several processes at once, an unlinked file, offsets, holes,
 * superpages, many guests; and what not every host can be asked for: a forced
 * unmount, and swapping.
 *
 *	vnode_cases directory module mountpoint [case ...]
 *
 * The directory is for checkpoint files; the module is what kldload(2) is
 * given; the mount point, or "-", is for the case "lost".  Without a case, all
 * run that do the host no harm.
 */

struct guest guests[MANY];
uint32_t page_buffer[PAGE / sizeof(uint32_t)];
const char *module, *unmountable;
static const char *directory;

static const struct {
	const char	*name;
	void		(*run)(void);
	bool		harmless;
} cases[] = {
	{ "device", case_device, true },
	{ "onemap", case_onemap, true },
	{ "remap", case_remap, true },
	{ "offset", case_offset, true },
	{ "unlink", case_unlink, true },
	{ "holes", case_holes, true },
	{ "list", case_list, true },
	{ "fork", case_fork, true },
	{ "many", case_many, true },
	{ "super", case_super, true },
	{ "leak", case_leak, true },
	{ "race", case_race, true },
	{ "unload", case_unload, true },
	{ "force", case_force, false },
	{ "lost", case_lost, false },
	{ "swap", case_swap, false },
};

static bool
same(const char *a, const char *b)
{

	while (*a != '\0' && *a == *b)
		a++, b++;
	return (*a == *b);
}

const char *
checkpoint_path(const char *name)
{
	static char path[256];
	size_t n = 0;

	for (const char *p = directory; *p != '\0' && n < 200; p++)
		path[n++] = *p;
	path[n++] = '/';
	for (; *name != '\0' && n < sizeof(path) - 1; name++)
		path[n++] = *name;
	path[n] = '\0';
	return (path);
}

int
checkpoint_open(const char *name, int flags)
{
	long fd;

	fd = call3(CALL_OPEN, checkpoint_path(name), flags, 0600);
	if (fd < 0)
		fatal(checkpoint_path(name), fd);
	return ((int)fd);
}

void
page_fill(uint32_t *page, unsigned n)
{
	unsigned i;

	for (i = 0; i < PAGE / sizeof(*page); i++)
		page[i] = PATTERN(n);
	if (n == GUEST_CODE / PAGE)
		__builtin_memcpy(page, guest_program, guest_program_size);
}

bool
page_same(const volatile uint32_t *page, unsigned n)
{
	static uint32_t wanted[PAGE / sizeof(uint32_t)];
	unsigned i;

	page_fill(wanted, n);
	for (i = 0; i < nitems(wanted); i++) {
		if (page[i] != wanted[i])
			return (false);
	}
	return (true);
}

bool
page_read(const struct guest *g, unsigned n)
{

	return (call4(CALL_PREAD, g->fd, page_buffer, PAGE, n * PAGE) ==
	    (long)PAGE && page_same(page_buffer, n));
}

int
checkpoint_make(const char *name, unsigned pages)
{
	long n;
	unsigned i;
	int fd;

	fd = checkpoint_open(name, O_RDWR | O_CREAT | O_TRUNC);
	for (i = 0; i < pages; i++) {
		page_fill(page_buffer, i);
		n = call3(CALL_WRITE, fd, page_buffer, PAGE);
		if (n != (long)PAGE)
			fatal("write the checkpoint file", n);
	}
	call1(CALL_CLOSE, fd);
	return (checkpoint_open(name, O_RDONLY));
}

void
checkpoint_remove(int fd, const char *name)
{

	call1(CALL_CLOSE, fd);
	call1(CALL_UNLINK, checkpoint_path(name));
}

long
checkpoint_differs(int fd, unsigned pages)
{
	unsigned i;

	for (i = 0; i < pages; i++) {
		if (call4(CALL_PREAD, fd, page_buffer, PAGE, i * PAGE) !=
		    (long)PAGE || !page_same(page_buffer, i))
			return (i);
	}
	return (-1);
}

void
guest_ready(struct guest *g, unsigned i, int fd)
{
	long error;

	error = vm_create(g, i);
	if (error != 0)
		fatal("create a virtual machine", error);
	g->id = CASE_ID(i);
	error = vm_attach(g, fd, 0, MEMORY);
	if (error != 0)
		fatal("attach", error);
	error = vm_map(g, 0);
	if (error != 0)
		fatal("map into the guest", error);
}

long
guest_private(const struct guest *g)
{
	struct vm_vnode_stats st;
	long error;

	error = vm_stats(g, 0, &st);
	return (error != 0 ? error :
	    (long)(st.private_resident + st.private_swapped));
}

void
guest_gone(struct guest *g)
{
	long error;

	if (g->memory != NULL)
		vm_munmap(g);
	call1(CALL_CLOSE, g->fd);
	error = vm_destroy(g);
	if (error != 0)
		check_equal(error, 0, "destroy");
	g->fd = -1;
}

long
unload_module(void)
{
	long id;

	id = call1(CALL_KLDFIND, "vmm_vnode.ko");
	return (id < 0 ? id : call1(CALL_KLDUNLOAD, id));
}

static bool
run_case(const char *name)
{
	unsigned i;

	for (i = 0; i < nitems(cases); i++) {
		if (same(cases[i].name, name)) {
			cases[i].run();
			return (true);
		}
	}
	return (false);
}

void	start(long *args) __attribute__((noreturn, used));

/* The kernel passes the address of argc. */
void
start(long *args)
{
	char *const *argv = (char *const *)(args + 1);
	long error, i, n = args[0];
	unsigned k;

	if (n < 4) {
		say("usage: vnode_cases directory module mountpoint "
		    "[case ...]\n");
		quit(2);
	}
	directory = argv[1];
	module = argv[2];
	unmountable = argv[3];
	if (call1(CALL_KLDFIND, "vmm_vnode.ko") < 0) {
		error = call1(CALL_KLDLOAD, module);
		check(error >= 0, "load vmm_vnode", error);
	}
	/* A limit that 15.0 does not have, and later ones do. */
	if (sysctl_number("hw.vmm.maxvmms") >= 0 &&
	    sysctl_number("hw.vmm.maxvmms") < 2 * MANY)
		sysctl_set("hw.vmm.maxvmms", 2 * MANY);
	for (i = 4; i < n; i++) {
		if (!run_case(argv[i]))
			fatal(argv[i], -EINVAL);
	}
	for (k = 0; n == 4 && k < nitems(cases); k++) {
		if (cases[k].harmless)
			cases[k].run();
	}
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
