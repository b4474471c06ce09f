/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

#include <sys/param.h>
#include <sys/fcntl.h>
#include <sys/mman.h>
#include <sys/errno.h>
#include <sys/time.h>
#include <machine/vmm.h>
#include <machine/vmm_dev.h>

#include "sys.h"
#include "vm.h"

/*
 * 16-bit real mode: load the word at GUEST_READS into EBX, store the id that
 * came in EAX at GUEST_WRITES, and report on port 0x80.
 */
const uint8_t guest_program[] = {
	0x66, 0x8b, 0x1e, 0x00, 0x20,	/* mov ebx, [0x2000] */
	0x66, 0xa3, 0x00, 0x30,		/* mov [0x3000], eax */
	0xe6, 0x80,			/* out 0x80, al */
	0xf4,				/* hlt */
};
const size_t guest_program_size = sizeof(guest_program);

/*
 * The control device's structures; dev/vmm/vmm_dev.h has them.  What is
 * "reserved" here begins with the flags of newer releases.
 */
struct vmmctl_vm {
	char	name[VM_MAX_NAMELEN + 1];
	int	reserved[16];
};
#define	VMMCTL_CREATE	_IOWR('V', 0, struct vmmctl_vm)
#define	VMMCTL_DESTROY	_IOWR('V', 1, struct vmmctl_vm)

static size_t
length(const char *s)
{
	size_t n;

	for (n = 0; s[n] != '\0'; n++)
		continue;
	return (n);
}

/* The numbers of a sysctl's name: every release has this way to them. */
static long
sysctl(const char *name, void *old, size_t *oldlen, const void *new,
    size_t newlen)
{
	static const int name2oid[2] = { 0, 3 };
	int mib[24];
	size_t miblen = sizeof(mib);
	long error;

	error = call6(CALL_SYSCTL, (long)name2oid, 2, (long)mib,
	    (long)&miblen, (long)name, (long)length(name));
	if (error != 0)
		return (error);
	return (call6(CALL_SYSCTL, (long)mib, (long)(miblen / sizeof(mib[0])),
	    (long)old, (long)oldlen, (long)new, (long)newlen));
}

/* By the control device, or before there was one by a sysctl. */
static long
control(unsigned long request, const char *sysctl_name, const struct guest *g)
{
	struct vmmctl_vm vm;
	long error, fd;

	fd = call3(CALL_OPEN, "/dev/vmmctl", O_RDWR, 0);
	if (fd == -ENOENT)
		return (sysctl(sysctl_name, NULL, NULL, g->name,
		    length(g->name)));
	if (fd < 0)
		return (fd);
	__builtin_memset(&vm, 0, sizeof(vm));
	__builtin_memcpy(vm.name, g->name, sizeof(g->name));
	error = call3(CALL_IOCTL, fd, request, &vm);
	call1(CALL_CLOSE, fd);
	return (error);
}

long
vm_create(struct guest *g, unsigned index)
{
	char path[32] = "/dev/vmm/";
	long error;
	unsigned i;

	__builtin_memset(g, 0, sizeof(*g));
	__builtin_memcpy(g->name, "vnodetest000", 13);
	for (i = 11; i > 8; i--, index /= 10)
		g->name[i] = (char)('0' + index % 10);
	g->fd = -1;

	error = control(VMMCTL_CREATE, "hw.vmm.create", g);
	if (error != 0)
		return (error);
	__builtin_memcpy(path + 9, g->name, sizeof(g->name));
	error = call3(CALL_OPEN, path, O_RDWR, 0);
	if (error < 0)
		return (error);
	g->fd = (int)error;
	return (0);
}

long
vm_destroy(const struct guest *g)
{

	return (control(VMMCTL_DESTROY, "hw.vmm.destroy", g));
}

long
vm_attach(const struct guest *g, int file, int64_t offset, uint64_t len)
{
	struct vm_vnode_attach a;

	__builtin_memset(&a, 0, sizeof(a));
	a.version = VM_VNODE_ABI;
	a.fd = file;
	a.offset = offset;
	a.len = len;
	return (call3(CALL_IOCTL, g->fd, VM_VNODE_ATTACH, &a));
}

long
vm_map(const struct guest *g, int flags)
{
	struct vm_memmap mm;

	__builtin_memset(&mm, 0, sizeof(mm));
	mm.len = MEMORY;
	mm.prot = PROT_READ | PROT_WRITE | PROT_EXEC;
	mm.flags = flags;
	return (call3(CALL_IOCTL, g->fd, VM_MMAP_MEMSEG, &mm));
}

long
vm_unmap(const struct guest *g)
{
	struct vm_munmap mu;

	__builtin_memset(&mu, 0, sizeof(mu));
	mu.len = MEMORY;
	return (call3(CALL_IOCTL, g->fd, VM_MUNMAP_MEMSEG, &mu));
}

long
vm_mmap(struct guest *g)
{
	long p;

	p = call6(CALL_MMAP, 0, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED,
	    g->fd, 0);
	if (p < 0 && p > -4096)
		return (p);
	g->memory = (uint8_t *)p;
	return (0);
}

long
vm_munmap(struct guest *g)
{
	long error;

	error = call2(CALL_MUNMAP, g->memory, MEMORY);
	g->memory = NULL;
	return (error);
}

long
vm_stats(const struct guest *g, int segid, struct vm_vnode_stats *st)
{

	__builtin_memset(st, 0, sizeof(*st));
	st->version = VM_VNODE_ABI;
	st->segid = segid;
	return (call3(CALL_IOCTL, g->fd, VM_VNODE_STATS, st));
}

static long
set_register(const struct guest *g, int reg, uint64_t value)
{
	struct vm_register r;

	__builtin_memset(&r, 0, sizeof(r));
	r.regnum = reg;
	r.regval = value;
	return (call3(CALL_IOCTL, g->fd, VM_SET_REGISTER, &r));
}

static long
set_segment(const struct guest *g, int reg, uint32_t limit, uint32_t access)
{
	struct vm_seg_desc d;

	__builtin_memset(&d, 0, sizeof(d));
	d.regnum = reg;
	d.desc.limit = limit;
	d.desc.access = access;
	return (call3(CALL_IOCTL, g->fd, VM_SET_SEGMENT_DESCRIPTOR, &d));
}

/* Real mode, everything flat at 0. */
static long
set_up_vcpu(const struct guest *g)
{
	static const struct {
		int		reg;
		uint32_t	limit, access;
	} segments[] = {
		{ VM_REG_GUEST_CS, 0xffff, 0x9b },
		{ VM_REG_GUEST_DS, 0xffff, 0x93 },
		{ VM_REG_GUEST_ES, 0xffff, 0x93 },
		{ VM_REG_GUEST_FS, 0xffff, 0x93 },
		{ VM_REG_GUEST_GS, 0xffff, 0x93 },
		{ VM_REG_GUEST_SS, 0xffff, 0x93 },
		{ VM_REG_GUEST_GDTR, 0xffff, 0 },
		{ VM_REG_GUEST_IDTR, 0xffff, 0 },
		{ VM_REG_GUEST_LDTR, 0xffff, 0x82 },
		{ VM_REG_GUEST_TR, 0xffff, 0x8b },
	};
	const struct {
		int		reg;
		uint64_t	value;
	} registers[] = {
		{ VM_REG_GUEST_CR0, 0x20 },	/* NE */
		{ VM_REG_GUEST_CR3, 0 },
		{ VM_REG_GUEST_CR4, 0 },
		{ VM_REG_GUEST_RFLAGS, 0x2 },
		{ VM_REG_GUEST_CS, 0 }, { VM_REG_GUEST_DS, 0 },
		{ VM_REG_GUEST_ES, 0 }, { VM_REG_GUEST_FS, 0 },
		{ VM_REG_GUEST_GS, 0 }, { VM_REG_GUEST_SS, 0 },
		{ VM_REG_GUEST_TR, 0 }, { VM_REG_GUEST_LDTR, 0 },
		{ VM_REG_GUEST_RAX, g->id },
		{ VM_REG_GUEST_RIP, GUEST_CODE },
	};
	struct vm_capability cap;
	struct vm_activate_cpu activate;
	long error;
	unsigned i;

	__builtin_memset(&cap, 0, sizeof(cap));
	cap.captype = VM_CAP_UNRESTRICTED_GUEST;
	cap.capval = 1;
	/* AMD processors need no such capability and say so. */
	(void)call3(CALL_IOCTL, g->fd, VM_SET_CAPABILITY, &cap);

	for (i = 0; i < nitems(segments); i++) {
		error = set_segment(g, segments[i].reg, segments[i].limit,
		    segments[i].access);
		if (error != 0)
			return (error);
	}
	for (i = 0; i < nitems(registers); i++) {
		error = set_register(g, registers[i].reg, registers[i].value);
		if (error != 0)
			return (error);
	}
	__builtin_memset(&activate, 0, sizeof(activate));
	error = call3(CALL_IOCTL, g->fd, VM_ACTIVATE_CPU, &activate);
	return (error == -EBUSY ? 0 : error);	/* active from before */
}

/* One VM_RUN; before 14.0 the exit came back in the request itself. */
static long
run(const struct guest *g, struct vm_exit *vme)
{
	struct vm_run r;
#if __FreeBSD_version >= 1400000
	cpuset_t cpus;

	__builtin_memset(&r, 0, sizeof(r));
	r.vm_exit = vme;
	r.cpuset = &cpus;
	r.cpusetsize = sizeof(cpus);
	return (call3(CALL_IOCTL, g->fd, VM_RUN, &r));
#else
	long error;

	__builtin_memset(&r, 0, sizeof(r));
	error = call3(CALL_IOCTL, g->fd, VM_RUN, &r);
	*vme = r.vm_exit;
	return (error);
#endif
}

/* Until port 0x80; an exit that asks for nothing is run again. */
static long
run_until_report(const struct guest *g)
{
	struct vm_exit vme;
	long error;
	int tries;

	__builtin_memset(&vme, 0, sizeof(vme));
	for (tries = 0; tries < 5000; tries++) {
		error = run(g, &vme);
		if (error != 0 || vme.exitcode != VM_EXITCODE_BOGUS)
			break;
	}
	if (error != 0)
		return (error);
	if (vme.exitcode != VM_EXITCODE_INOUT || vme.u.inout.in ||
	    vme.u.inout.port != 0x80)
		return (-1000 - (long)vme.exitcode);
	return (0);
}

static long
get_register(const struct guest *g, int reg, uint32_t *value)
{
	struct vm_register r;
	long error;

	__builtin_memset(&r, 0, sizeof(r));
	r.regnum = reg;
	error = call3(CALL_IOCTL, g->fd, VM_GET_REGISTER, &r);
	*value = (uint32_t)r.regval;
	return (error);
}

long
vm_run_guest(struct guest *g, bool remap, uint32_t *loaded, uint32_t *stored)
{
	long error;

	error = set_up_vcpu(g);
	if (error != 0)
		return (error);
	error = run_until_report(g);
	if (error != 0)
		return (error);
	error = get_register(g, VM_REG_GUEST_RBX, loaded);
	if (error != 0)
		return (error);
	if (remap && ((error = vm_munmap(g)) != 0 || (error = vm_mmap(g)) != 0))
		return (error);
	*stored = *(volatile uint32_t *)(g->memory + GUEST_WRITES);
	return (0);
}

long
vm_run_from(const struct guest *g, uint64_t rip, uint32_t *edi)
{
	long error;

	error = set_up_vcpu(g);
	if (error == 0)
		error = set_segment(g, VM_REG_GUEST_DS, 0xffffffff, 0x8093);
	if (error == 0)
		error = set_register(g, VM_REG_GUEST_RIP, rip);
	if (error == 0)
		error = run_until_report(g);
	return (error != 0 ? error : get_register(g, VM_REG_GUEST_RDI, edi));
}

/* A number of 4 or 8 bytes; an error number negated. */
long
sysctl_number(const char *name)
{
	uint64_t value = 0;
	size_t size = sizeof(value);
	long error;

	error = sysctl(name, &value, &size, NULL, 0);
	if (error != 0)
		return (error);
	return (size == 4 ? (long)(uint32_t)value : (long)value);
}

/* The length of the text, which ends with a null; an error number negated. */
long
sysctl_text(const char *name, char *text, size_t size)
{
	size_t used = size - 1;
	long error;

	error = sysctl(name, text, &used, NULL, 0);
	if (error != 0)
		return (error);
	text[used] = '\0';
	return ((long)used);
}

long
sysctl_set(const char *name, unsigned value)
{

	return (sysctl(name, NULL, NULL, &value, sizeof(value)));
}
