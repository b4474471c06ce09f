/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One guest of the floor: the least that is still a guest.
 */
#ifndef FLOOR_GUEST_H
#define FLOOR_GUEST_H

#include <stddef.h>
#include <stdint.h>

/* What a guest is made of; opened once by the parent and inherited by every child. */
struct guest_parts {
	int	kvm;		/* /dev/kvm */
	int	memory;		/* the file that every guest maps privately */
	size_t	memory_bytes;
	size_t	slot_bytes;	/* how much of it the guest sees, from address 0 */
	size_t	run_bytes;	/* of a vCPU's run page, as KVM says */
};

/* What a child tells its parent, in one write that a pipe keeps whole. */
struct guest_words {
	uint32_t	guest;
	int32_t		error;		/* errno of what failed, or 0 */
	char		step[24];	/* what failed, or "" */
};

/* Opens /dev/kvm; prints why it cannot and returns -1. */
int	guest_open_kvm(struct guest_parts *parts);

/* Makes and fills the memory file in the folder dir; prints why it cannot and returns -1. */
int	guest_make_memory(struct guest_parts *parts, const char *dir);

/*
 * In a fresh child: makes guest number `guest`, runs it to its first port write, reports to the
 * pipe `reports` and waits to be killed. Never returns.
 */
_Noreturn void	guest_run(const struct guest_parts *parts, uint32_t guest, int reports);

/* Tells the parent; after a failure, ends. */
void	guest_tell(uint32_t guest, int reports, int error, const char *step);

/* Tells the parent and waits for its signal; after a failure, ends. */
_Noreturn void	guest_report(uint32_t guest, int reports, int error, const char *step);

#endif
