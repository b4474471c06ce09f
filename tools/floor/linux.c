/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One Linux guest of the floor: what guest.c does, and the state of a checkpoint that brood made of
 * an ordinary Linux: its interrupt controllers, its processor, its clock. Then it runs; nobody
 * serves its devices, so it is one that sleeps. A manager's clone costs this much before it has
 * become a guest of its own.
 *
 * The state is the JSON that brood writes: each structure of KVM is an array of its bytes, and a
 * list of them an array of arrays.
 */
#define _GNU_SOURCE
#include "linux.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHIPS		3
#define CPUID_MAX	256
#define MSRS_MAX	256
#define TSS		0xfffbd000UL
#define IDENTITY_MAP	0xfffbc000UL
#define LOW_MEMORY_MAX	(3UL << 30)

static struct {
	struct kvm_irqchip	chips[CHIPS];
	struct kvm_clock_data	clock;
	struct kvm_mp_state	mp;
	struct kvm_regs		regs;
	struct kvm_sregs	sregs;
	struct kvm_xcrs		xcrs;
	struct kvm_xsave	xsave;
	struct kvm_debugregs	debug;
	struct kvm_lapic_state	lapic;
	struct kvm_vcpu_events	events;
	struct {
		struct kvm_cpuid2	head;
		struct kvm_cpuid_entry2	entries[CPUID_MAX];
	} cpuid;
	struct msrs {
		struct kvm_msrs		head;
		struct kvm_msr_entry	entries[MSRS_MAX];
	} msrs, timer;
} state;

/* Reads all numbers of the array that a key has, nested or not; how many, or -1. */
static long
numbers(const char *json, const char *key, unsigned long long *to, long most)
{
	char wanted[32];
	const char *at;
	long count = 0;
	int depth = 0;

	snprintf(wanted, sizeof(wanted), "\"%s\":[", key);
	at = strstr(json, wanted);
	if (at == NULL)
		return (-1);
	for (at += strlen(wanted) - 1; *at != '\0'; at++) {
		if (*at == '[')
			depth++;
		else if (*at == ']' && --depth == 0)
			return (count);
		else if (*at >= '0' && *at <= '9') {
			char *end;

			if (count == most)
				return (-1);
			to[count++] = strtoull(at, &end, 10);
			at = end - 1;
		}
	}
	return (-1);
}

#define NUMBERS_MAX	(CPUID_MAX * sizeof(struct kvm_cpuid_entry2))
static unsigned long long found[NUMBERS_MAX];

/* Reads an array of bytes into a structure; how many bytes, or -1. */
static long
bytes(const char *json, const char *key, void *to, size_t size)
{
	long count = numbers(json, key, found, (long)NUMBERS_MAX);

	if (count < 0 || (size_t)count > size) {
		fprintf(stderr, "floor: the state's %s is not of this kernel\n", key);
		return (-1);
	}
	for (long i = 0; i < count; i++)
		((uint8_t *)to)[i] = (uint8_t)found[i];
	return (count);
}

static int
read_msrs(const char *json, const char *key, struct msrs *to)
{
	long count = numbers(json, key, found, (long)NUMBERS_MAX);

	if (count < 0 || count % 2 != 0 || count / 2 > MSRS_MAX) {
		fprintf(stderr, "floor: the state's %s are none\n", key);
		return (-1);
	}
	to->head.nmsrs = (uint32_t)(count / 2);
	for (long i = 0; i < count / 2; i++) {
		to->entries[i].index = (uint32_t)found[2 * i];
		to->entries[i].data = found[2 * i + 1];
	}
	return (0);
}

static int
read_chips(const char *json)
{
	const long each = 1 + (long)sizeof(state.chips[0].chip);

	if (numbers(json, "irqchip", found, (long)NUMBERS_MAX) != CHIPS * each) {
		fprintf(stderr, "floor: the state's interrupt controllers are none\n");
		return (-1);
	}
	for (long chip = 0; chip < CHIPS; chip++) {
		const unsigned long long *one = found + chip * each;

		state.chips[chip].chip_id = (uint32_t)one[0];
		for (long i = 1; i < each; i++)
			((uint8_t *)&state.chips[chip].chip)[i - 1] = (uint8_t)one[i];
	}
	return (0);
}

static int
read_state(const char *json)
{
	static const char clock[] = "\"clock_ns\":";
	const char *at = strstr(json, clock);
	long cpuid;

	if (at == NULL || strstr(json, "\"brood-linux-machine\"") == NULL) {
		fprintf(stderr, "floor: the checkpoint is of no Linux guest of the KVM engine\n");
		return (-1);
	}
	state.clock.clock = strtoull(at + strlen(clock), NULL, 10);
	at = strstr(json, "\"mp_state\":");
	if (at != NULL && strstr(at + 1, "\"mp_state\":") != NULL) {
		fprintf(stderr, "floor: the guest has several processors\n");
		return (-1);
	}
	cpuid = bytes(json, "cpuid", state.cpuid.entries, sizeof(state.cpuid.entries));
	if (cpuid < 0)
		return (-1);
	state.cpuid.head.nent = (uint32_t)((size_t)cpuid / sizeof(state.cpuid.entries[0]));
	if (bytes(json, "mp_state", &state.mp, sizeof(state.mp)) < 0 ||
	    bytes(json, "regs", &state.regs, sizeof(state.regs)) < 0 ||
	    bytes(json, "sregs", &state.sregs, sizeof(state.sregs)) < 0 ||
	    bytes(json, "xsave", &state.xsave, sizeof(state.xsave)) < 0 ||
	    bytes(json, "xcrs", &state.xcrs, sizeof(state.xcrs)) < 0 ||
	    bytes(json, "debug_regs", &state.debug, sizeof(state.debug)) < 0 ||
	    bytes(json, "lapic", &state.lapic, sizeof(state.lapic)) < 0 ||
	    bytes(json, "events", &state.events, sizeof(state.events)) < 0 ||
	    read_msrs(json, "msrs", &state.msrs) != 0 ||
	    read_msrs(json, "timer", &state.timer) != 0)
		return (-1);
	return (read_chips(json));
}

/* The content of a file, with a null after it; to be freed. */
static char *
content(const char *path)
{
	struct stat facts;
	char *text = NULL;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd >= 0 && fstat(fd, &facts) == 0 && facts.st_size < 64 << 20)
		text = calloc(1, (size_t)facts.st_size + 1);
	if (text != NULL && read(fd, text, (size_t)facts.st_size) != facts.st_size) {
		free(text);
		text = NULL;
	}
	if (fd >= 0)
		close(fd);
	return (text);
}

int
linux_open(struct guest_parts *parts, const char *checkpoint)
{
	char path[4096];
	struct stat facts;
	char *json;
	int length, read;

	length = snprintf(path, sizeof(path), "%s.ckp.kern", checkpoint);
	if (length < 0 || (size_t)length >= sizeof(path))
		return (-1);
	json = content(path);
	if (json == NULL) {
		fprintf(stderr, "floor: cannot read %s\n", path);
		return (-1);
	}
	read = read_state(json);
	free(json);
	if (read != 0)
		return (-1);
	path[length - (int)strlen(".kern")] = '\0';
	parts->memory = open(path, O_RDONLY | O_CLOEXEC);
	if (parts->memory < 0 || fstat(parts->memory, &facts) != 0) {
		fprintf(stderr, "floor: cannot open %s: %s\n", path, strerror(errno));
		return (-1);
	}
	parts->memory_bytes = (size_t)facts.st_size;
	parts->slot_bytes = parts->memory_bytes;
	if (parts->memory_bytes > LOW_MEMORY_MAX) {
		fprintf(stderr, "floor: the guest has memory above 4 GiB\n");
		return (-1);
	}
	return (0);
}

void
linux_run(const struct guest_parts *parts, uint32_t guest, int reports)
{
	struct kvm_userspace_memory_region slot = { .memory_size = parts->slot_bytes };
	uint64_t identity_map = IDENTITY_MAP;
	struct kvm_run *run;
	void *memory;
	int vm, vcpu;

#define MUST(call, name) do {						\
	if ((call) < 0)							\
		guest_report(guest, reports, errno, name);		\
} while (0)
	memory = mmap(NULL, parts->memory_bytes, PROT_READ | PROT_WRITE,
	    MAP_PRIVATE | MAP_NORESERVE, parts->memory, 0);
	if (memory == MAP_FAILED)
		guest_report(guest, reports, errno, "mmap of guest memory");
	MUST(vm = ioctl(parts->kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	MUST(ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map), "KVM_SET_IDENTITY_MAP");
	MUST(ioctl(vm, KVM_SET_TSS_ADDR, TSS), "KVM_SET_TSS_ADDR");
	MUST(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
	slot.userspace_addr = (uintptr_t)memory;
	MUST(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY");
	MUST(vcpu = ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	run = mmap(NULL, parts->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		guest_report(guest, reports, errno, "mmap of the run page");

	for (int chip = 0; chip < CHIPS; chip++)
		MUST(ioctl(vm, KVM_SET_IRQCHIP, &state.chips[chip]), "KVM_SET_IRQCHIP");
	MUST(ioctl(vcpu, KVM_SET_CPUID2, &state.cpuid), "KVM_SET_CPUID2");
	MUST(ioctl(vcpu, KVM_SET_MP_STATE, &state.mp), "KVM_SET_MP_STATE");
	MUST(ioctl(vcpu, KVM_SET_REGS, &state.regs), "KVM_SET_REGS");
	MUST(ioctl(vcpu, KVM_SET_SREGS, &state.sregs), "KVM_SET_SREGS");
	MUST(ioctl(vcpu, KVM_SET_XCRS, &state.xcrs), "KVM_SET_XCRS");
	MUST(ioctl(vcpu, KVM_SET_XSAVE, &state.xsave), "KVM_SET_XSAVE");
	MUST(ioctl(vcpu, KVM_SET_DEBUGREGS, &state.debug), "KVM_SET_DEBUGREGS");
	MUST(ioctl(vcpu, KVM_SET_LAPIC, &state.lapic), "KVM_SET_LAPIC");
	MUST(ioctl(vcpu, KVM_SET_MSRS, &state.msrs), "KVM_SET_MSRS");
	MUST(ioctl(vcpu, KVM_SET_VCPU_EVENTS, &state.events), "KVM_SET_VCPU_EVENTS");
	MUST(ioctl(vcpu, KVM_SET_MSRS, &state.timer), "KVM_SET_MSRS of time");
	MUST(ioctl(vm, KVM_SET_CLOCK, &state.clock), "KVM_SET_CLOCK");
	guest_tell(guest, reports, 0, "");
	for (;;) {
		MUST(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
		/* Nobody serves its devices: what it reads is nought, and what it writes is lost. */
		if (run->exit_reason == KVM_EXIT_MMIO)
			memset(run->mmio.data, 0, sizeof(run->mmio.data));
		else if (run->exit_reason != KVM_EXIT_IO)
			guest_report(guest, reports, EPROTO, "the guest's exit");
	}
#undef MUST
}
