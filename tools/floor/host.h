/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the host's kernel says of memory and pids.
 */
#ifndef FLOOR_HOST_H
#define FLOOR_HOST_H

#include <stdbool.h>

/* /proc/meminfo as far as guests move it, in KiB; see proc_meminfo(5). */
enum memory_kind {
	AVAILABLE,	/* MemAvailable and the free pages that wait in the lists of each core */
	PAGE_TABLES,
	KERNEL_STACK,
	SLAB,
	VMALLOC,
	SECONDARY_PAGE_TABLES,
	PERCPU,
	ANONYMOUS,
	MEMORY_KINDS
};

struct memory {
	long	kib[MEMORY_KINDS];
};

/* The name of a kind in what is printed. */
extern const char *const memory_names[MEMORY_KINDS];

/* Seconds since any fixed moment. */
double	host_now(void);

/* Reads it; a line that this kernel does not have counts as 0. Exits if there is no meminfo. */
struct memory	host_memory(void);

enum settled { SETTLED, UNSETTLED, INTERRUPTED };

/*
 * Waits until AVAILABLE has moved by no more than 0.5 MiB + 0.02 % within a second, or
 * `seconds` have passed (UNSETTLED), or a signal is in the signalfd `signals` (INTERRUPTED). The
 * rule is the one that brood's density measurement has. What was read last goes to *memory.
 */
enum settled	host_settle(double seconds, int signals, struct memory *memory);

/* Whether so many guests fit into pids and memory; prints why they do not. */
bool	host_fits(unsigned guests, unsigned long slot_mib);

#endif
