/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One guest of the floor: a private mapping of the memory file, a VM, one memory slot, one vCPU,
 * and seven bytes of real-mode code that write to a port. Nothing here is saved or restored and
 * there is nothing to talk to, so no manager on the same host can be cheaper with the same slot.
 */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define CODE_ADDRESS	0x1000

static const uint8_t code[] = {
	0xba, 0x10, 0x00,	/* mov dx, 0x10 */
	0xb0, 0x41,		/* mov al, 'A' */
	0xee,			/* out dx, al */
	0xf4,			/* hlt */
};

int
guest_open_kvm(struct guest_parts *parts)
{
	int bytes;

	parts->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (parts->kvm < 0) {
		fprintf(stderr, "floor: cannot open /dev/kvm: %s\n", strerror(errno));
		return (-1);
	}
	bytes = ioctl(parts->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (bytes <= 0) {
		fprintf(stderr, "floor: KVM_GET_VCPU_MMAP_SIZE: %s\n", strerror(errno));
		return (-1);
	}
	parts->run_bytes = (size_t)bytes;
	return (0);
}

/* Writes all of it or returns -1. */
static int
write_at(int fd, const void *bytes, size_t count, off_t at)
{
	while (count > 0) {
		ssize_t done = pwrite(fd, bytes, count, at);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return (-1);
		bytes = (const uint8_t *)bytes + done;
		count -= (size_t)done;
		at += done;
	}
	return (0);
}

int
guest_make_memory(struct guest_parts *parts, const char *dir)
{
	const size_t block_bytes = 1 << 20;
	uint64_t word = 0x9e3779b97f4a7c15, *block;
	char path[4096];
	int fd, length;

	length = snprintf(path, sizeof(path), "%s/floor.XXXXXX", dir);
	if (length < 0 || (size_t)length >= sizeof(path)) {
		fprintf(stderr, "floor: the name of the folder is too long: %s\n", dir);
		return (-1);
	}
	fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0) {
		fprintf(stderr, "floor: cannot make a memory file in %s: %s\n", dir,
		    strerror(errno));
		return (-1);
	}
	unlink(path);
	/* Given back before the first fork, which would copy what maps it. */
	block = malloc(block_bytes);
	if (block == NULL)
		goto failed;

	/* Every page is there and differs from every other: nothing can be shared but the file. */
	for (size_t at = 0; at < parts->memory_bytes; at += block_bytes) {
		for (size_t i = 0; i < block_bytes / sizeof(block[0]); i++) {
			word ^= word << 13;
			word ^= word >> 7;
			word ^= word << 17;
			block[i] = word;
		}
		if (write_at(fd, block, block_bytes, (off_t)at) != 0)
			goto failed;
	}
	/* On disk before anything is measured: writing back meanwhile would disturb it. */
	if (write_at(fd, code, sizeof(code), CODE_ADDRESS) != 0 || fdatasync(fd) != 0)
		goto failed;
	free(block);
	parts->memory = fd;
	return (0);
failed:
	fprintf(stderr, "floor: cannot fill a memory file of %zu MiB in %s: %s\n",
	    parts->memory_bytes >> 20, dir, strerror(errno));
	free(block);
	close(fd);
	return (-1);
}

void
guest_tell(uint32_t guest, int reports, int error, const char *step)
{
	struct guest_words words = { .guest = guest, .error = error };

	snprintf(words.step, sizeof(words.step), "%s", step);
	if (write(reports, &words, sizeof(words)) != (ssize_t)sizeof(words) || error != 0)
		_exit(1);
}

void
guest_report(uint32_t guest, int reports, int error, const char *step)
{
	guest_tell(guest, reports, error, step);
	for (;;)
		pause();
}

void
guest_run(const struct guest_parts *parts, uint32_t guest, int reports)
{
	struct kvm_userspace_memory_region slot = { .memory_size = parts->slot_bytes };
	struct kvm_regs regs = { .rip = CODE_ADDRESS, .rflags = 2 };
	struct kvm_sregs sregs;
	struct kvm_run *run;
	void *memory;
	int vm, vcpu;

	memory = mmap(NULL, parts->memory_bytes, PROT_READ | PROT_WRITE,
	    MAP_PRIVATE | MAP_NORESERVE, parts->memory, 0);
	if (memory == MAP_FAILED)
		guest_report(guest, reports, errno, "mmap of guest memory");
	vm = ioctl(parts->kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		guest_report(guest, reports, errno, "KVM_CREATE_VM");
	slot.userspace_addr = (uintptr_t)memory;
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) != 0)
		guest_report(guest, reports, errno, "KVM_SET_USER_MEMORY");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		guest_report(guest, reports, errno, "KVM_CREATE_VCPU");
	run = mmap(NULL, parts->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		guest_report(guest, reports, errno, "mmap of the run page");

	/* Out of reset a vCPU runs at the top of 4 GiB: start at CODE_ADDRESS instead. */
	if (ioctl(vcpu, KVM_GET_SREGS, &sregs) != 0)
		guest_report(guest, reports, errno, "KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) != 0)
		guest_report(guest, reports, errno, "KVM_SET_SREGS");
	if (ioctl(vcpu, KVM_SET_REGS, &regs) != 0)
		guest_report(guest, reports, errno, "KVM_SET_REGS");

	if (ioctl(vcpu, KVM_RUN, 0) != 0)
		guest_report(guest, reports, errno, "KVM_RUN");
	if (run->exit_reason != KVM_EXIT_IO ||
	    *((const uint8_t *)run + run->io.data_offset) != 'A')
		guest_report(guest, reports, EPROTO, "the guest's port write");
	guest_report(guest, reports, 0, "");
}
