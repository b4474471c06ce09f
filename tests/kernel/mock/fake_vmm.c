/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * Answers the system calls of vnode_test and of some cases of vnode_cases on
 * Linux as a kernel with vmm and
 * vmm_vnode would, so that the test itself is tested: it must pass, and with
 * FAKE_FAULT, a kernel that does one thing wrong, it must not.
 *
 * A machine's memory is a private Linux mapping of the checkpoint.  The test
 * only writes what was not there, so its private pages are those that differ.
 */

#include <sys/param.h>
#include <sys/errno.h>
#include <sys/fcntl.h>
#include <machine/vmm.h>
#include <machine/vmm_dev.h>

#include "sys.h"
#include "vm.h"

enum fault {
	NONE, WRITE_THROUGH, NO_TEXT, UNLOADS, MISCOUNTS, STALE, SHARES,
	NO_CHECKS, WIRES, LEAKS, ONEMAPPING, LOSES, FAULTS
};
#ifndef FAKE_FAULT
#define	FAKE_FAULT	NONE
#endif

#define	FILE_FD		10	/* ... and the next, by open(2) */
#define	VM_FD		200	/* ... and the next, by machine */
#define	MACHINES	16

static struct machine {
	bool		exists, attached, mapped;
	bool		host_mapped;		/* by a process, once */
	char		name[16];
	uint8_t		*memory;
	int64_t		offset, segoff;
	uint64_t	rax, rbx;
} machines[MACHINES];

#define	FILE_SIZE	(2 * MEMORY)

static uint8_t *file;			/* the one checkpoint, shared */
static long memfd = -1, written, position;
static int next_fd = FILE_FD, flags_of[100];
static int writers, segments;
static bool loaded = true;

static long
linux6(long n, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall" : "=a" (result)
	    : "0" (n), "D" (a), "S" (b), "d" (c), "r" (r10), "r" (r8), "r" (r9)
	    : "rcx", "r11", "memory");
	return (result);
}

static bool
same(const char *a, const char *b)
{

	while (*a != '\0' && *a == *b)
		a++, b++;
	return (*a == *b);
}

static bool
is_file(long fd)
{

	return (fd >= FILE_FD && fd < 100 && flags_of[fd] >= 0);
}

static bool
text(void)
{

	return (segments > 0 && FAKE_FAULT != NO_TEXT);
}

static long
private_pages(const struct machine *m)
{
	long n = 0;
	unsigned i, k;

	for (i = 0; i < PAGES; i++) {
		for (k = 0; k < PAGE && m->memory[i * PAGE + k] ==
		    file[(size_t)m->offset + i * PAGE + k]; k++)
			continue;
		n += k < PAGE;
	}
	return (n + (FAKE_FAULT == MISCOUNTS));
}

static struct machine *
find(const char *name)
{

	for (int i = 0; i < MACHINES; i++) {
		if (machines[i].exists && same(machines[i].name, name))
			return (&machines[i]);
	}
	return (NULL);
}

static long
create(const char *name)
{
	struct machine *m = machines;

	while (m->exists)
		m++;
	__builtin_memset(m, 0, sizeof(*m));
	m->exists = true;
	for (int i = 0; i < 15 && name[i] != '\0'; i++)
		m->name[i] = name[i];
	return (0);
}

static long
destroy(const char *name)
{
	struct machine *m = find(name);

	if (m == NULL)
		return (-EINVAL);
	if (m->attached && FAKE_FAULT != LEAKS)
		segments--;
	m->exists = false;
	return (0);
}

/* What is private starts anew. */
static void
map_file(struct machine *m)
{
	long flags = FAKE_FAULT == SHARES || FAKE_FAULT == WRITE_THROUGH ?
	    1 : 2;				/* MAP_SHARED, MAP_PRIVATE */

	m->memory = (uint8_t *)linux6(9, 0, MEMORY, 3, flags, memfd,
	    m->offset);
}

static long
attach(struct machine *m, const struct vm_vnode_attach *a)
{

	if (FAKE_FAULT != NO_CHECKS) {
		if (a->version != VM_VNODE_ABI)
			return (-EOPNOTSUPP);
		if (a->flags != 0 || (a->reserved[0] | a->reserved[1] |
		    a->reserved[2] | a->reserved[3]) != 0 || a->len == 0 ||
		    a->len % PAGE != 0 || a->offset < 0 ||
		    a->offset % (int64_t)PAGE != 0 || a->len >> 62 != 0)
			return (-EINVAL);
	}
	if (a->fd == 300 || a->fd == 301 || a->fd == 303)
		return (-ENODEV);
	if (!is_file(a->fd) || (flags_of[a->fd] & O_ACCMODE) == O_WRONLY)
		return (-EBADF);
	if ((uint64_t)a->offset + a->len > (uint64_t)written)
		return (-ERANGE);
	if (writers > 0)
		return (-ETXTBSY);
	if (a->segid != 0)
		return (-EINVAL);
	if (m->attached)
		return (-EEXIST);
	m->attached = true;
	segments++;
	/* Without checks, what it is asked for may not be mappable. */
	m->offset = a->offset < 0 ? 0 : rounddown2(a->offset, (int64_t)PAGE);
	map_file(m);
	return (0);
}

static long
run(struct machine *m, const struct vm_run *r)
{

	__builtin_memset(r->vm_exit, 0, sizeof(*r->vm_exit));
	m->rbx = *(uint32_t *)(m->memory + GUEST_READS);
	if (FAKE_FAULT == STALE)
		m->rbx = *(uint32_t *)(file + GUEST_READS);
	*(uint32_t *)(m->memory + GUEST_WRITES) = (uint32_t)m->rax;
	r->vm_exit->exitcode = VM_EXITCODE_INOUT;
	r->vm_exit->u.inout.port = 0x80;
	return (0);
}

static long
vm_ioctl(struct machine *m, unsigned long cmd, void *data)
{
	struct vm_vnode_stats *st = data;
	struct vm_vnode_caps *caps = data;
	struct vm_register *reg = data;
	struct vm_memmap *mm = data;

	switch (cmd) {
	case VM_VNODE_CAPS:
	case VM_VNODE_STATS:
	case VM_VNODE_ATTACH:
		if (!loaded)
			return (-ENOTTY);
		break;
	}
	switch (cmd) {
	case VM_VNODE_CAPS:
		__builtin_memset(caps, 0, sizeof(*caps));
		caps->version = VM_VNODE_ABI;
		caps->features = VM_VNODE_F_COHERENT;
		caps->page_size = PAGE;
		return (0);
	case VM_VNODE_ATTACH:
		return (attach(m, data));
	case VM_VNODE_STATS:
		if (st->state != 0 && FAKE_FAULT != NO_CHECKS)
			return (-EINVAL);
		if (st->segid != 0 || !m->attached)
			return (-ENOENT);
		st->offset = m->offset;
		st->state = FAKE_FAULT == LOSES ? VM_VNODE_STATE_FILE_LOST : 0;
		st->pages = st->file_resident = PAGES;
		st->private_resident = (uint64_t)private_pages(m);
		return (0);
	case VM_MMAP_MEMSEG:
		if (mm->flags != 0 && FAKE_FAULT != WIRES)
			return (-EOPNOTSUPP);
		m->mapped = true;
		m->segoff = mm->segoff;
		return (0);
	case VM_MUNMAP_MEMSEG:
		m->mapped = false;
		/* vm_map_entry_delete() of an object with OBJ_ONEMAPPING. */
		if (FAKE_FAULT == ONEMAPPING && !m->host_mapped)
			map_file(m);
		return (0);
	case VM_SET_REGISTER:
		if (reg->regnum == VM_REG_GUEST_RAX)
			m->rax = reg->regval;
		return (0);
	case VM_GET_REGISTER:
		reg->regval = m->rbx;
		return (0);
	case VM_RUN:
		return (m->mapped ? run(m, data) : -EINVAL);
	case VM_SET_CAPABILITY:
	case VM_SET_SEGMENT_DESCRIPTOR:
	case VM_ACTIVATE_CPU:
		return (0);
	}
	return (-ENOTTY);
}

static long
sysctl_value(const char *name)
{
	long sum = 0;

	if (same(name, "hw.vmm.vnode.segments"))
		return (segments);
	if (same(name, "hw.vmm.vnode.pages"))
		return (segments * (long)PAGES);
	if (same(name, "hw.vmm.vnode.file_resident"))
		return (segments > 0 ? (long)PAGES : 0);
	if (same(name, "hw.vmm.vnode.private_resident")) {
		for (int i = 0; i < MACHINES; i++) {
			if (machines[i].exists && machines[i].attached)
				sum += private_pages(&machines[i]);
		}
	}
	return (sum);
}

static long
open_file(const char *name, long flags)
{
	const char *vm = "/dev/vmm/";
	int i;

	if (same(name, "/"))
		return (300);
	if (same(name, "/dev/null"))
		return (301);
	if (same(name, "/dev/vmmctl"))
		return (302);
	for (i = 0; vm[i] != '\0' && name[i] == vm[i]; i++)
		continue;
	if (vm[i] == '\0') {
		struct machine *m = find(name + i);

		return (m == NULL ? -ENOENT : VM_FD + (m - machines));
	}
	if ((flags & O_ACCMODE) != O_RDONLY) {
		if (text())
			return (-ETXTBSY);
		writers++;
	}
	if (memfd < 0) {
		memfd = linux6(319, (long)"ckp", 0, 0, 0, 0, 0);
		linux6(77, memfd, FILE_SIZE, 0, 0, 0, 0);
		file = (uint8_t *)linux6(9, 0, FILE_SIZE, 3, 1, memfd, 0);
	}
	position = 0;
	if ((flags & O_TRUNC) != 0) {
		written = 0;
		__builtin_memset(file, 0, FILE_SIZE);
	}
	flags_of[next_fd] = (int)flags;
	return (next_fd++);
}

/* read(2) and write(2) of a machine's device, at a guest's address. */
static long
guest_access(struct machine *m, void *data, long size, long gpa, bool writes)
{
	uint8_t *memory = m->memory + m->segoff + gpa;

	if (!m->mapped)
		return (-EFAULT);
	if (writes)
		__builtin_memcpy(memory, data, (size_t)size);
	else
		__builtin_memcpy(data, memory, (size_t)size);
	return (size);
}

static struct machine *
machine_of(long fd)
{

	return (fd >= VM_FD && fd < VM_FD + MACHINES &&
	    machines[fd - VM_FD].exists ? &machines[fd - VM_FD] : NULL);
}

/* A line for each segment. */
static size_t
list(char *text)
{
	size_t n = 0;

	for (int i = 0; i < MACHINES; i++) {
		if (!machines[i].exists || !machines[i].attached)
			continue;
		for (const char *p = machines[i].name; *p != '\0'; p++)
			text[n++] = *p;
		text[n++] = '\n';
	}
	return (n);
}

static long
any_ioctl(long fd, unsigned long cmd, void *data)
{

	if (fd == 302)
		return ((cmd & 0xff) == 0 ? create(data) : destroy(data));
	if (machine_of(fd) != NULL)
		return (vm_ioctl(machine_of(fd), cmd, data));
	return (-EBADF);
}

long
call6(long number, long a, long b, long c, long d, long e, long f)
{
	static const char *asked;
	long value;

	switch (number) {
	case CALL_EXIT:
		linux6(231, a, 0, 0, 0, 0, 0);
		break;
	case CALL_WRITE:
		if (!is_file(a))
			return (linux6(1, a, b, c, 0, 0, 0));
		__builtin_memcpy(file + position, (const void *)b, (size_t)c);
		position += c;
		if (written < position)
			written = position;
		return (c);
	case CALL_FTRUNCATE:
		written = b;
		return (0);
	case CALL_PWRITE:
	case CALL_PREAD:
		if (machine_of(a) != NULL)
			return (guest_access(machine_of(a), (void *)b, c, d,
			    number == CALL_PWRITE));
		__builtin_memcpy((void *)b, file + d, (size_t)c);
		return (c);
	case CALL_OPEN:
		return (open_file((const char *)a, b));
	case CALL_CLOSE:
		if (is_file(a)) {
			writers -= (flags_of[a] & O_ACCMODE) != O_RDONLY;
			flags_of[a] = -1;
		}
		return (0);
	case CALL_GETPID:
		return (2);
	case CALL_IOCTL:
		return (any_ioctl(a, (unsigned long)b, (void *)c));
	case CALL_MUNMAP:
		return (0);
	case CALL_MMAP:
		machines[e - VM_FD].host_mapped = true;
		return ((long)machines[e - VM_FD].memory);
	case CALL_TRUNCATE:
		return (text() ? -ETXTBSY : 0);
	case CALL_PIPE2:
		((int *)a)[0] = ((int *)a)[1] = 303;
		return (0);
	case CALL_KLDFIND:
		return (loaded ? 1 : -ENOENT);
	case CALL_KLDLOAD:
		/* Of --modules: not in kern.module_path. */
		if (((const char *)a)[0] != '/')
			return (-ENOENT);
		loaded = true;
		return (1);
	case CALL_KLDUNLOAD:
		if (segments > 0 && FAKE_FAULT != UNLOADS)
			return (-EBUSY);
		loaded = FAKE_FAULT == UNLOADS;
		return (0);
	case CALL_UNLINK:
		return (0);
	case CALL_SYSCTL:
		if (b == 2 && ((const int *)a)[0] == 0) {
			asked = (const char *)e;	/* a name's numbers */
			if (asked[0] == 'k')		/* of ZFS */
				return (-ENOENT);
			*(size_t *)d = 3 * sizeof(int);
			((int *)c)[0] = 1;
			return (0);
		}
		if (c != 0 && same(asked, "hw.vmm.vnode.list")) {
			*(size_t *)d = list((char *)c);
			return (0);
		}
		if (c != 0) {
			value = sysctl_value(asked);
			*(uint64_t *)c = (uint64_t)value;
			*(size_t *)d = sizeof(uint64_t);
		}
		return (0);
	}
	(void)f;
	return (-ENOSYS);
}
