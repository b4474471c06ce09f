/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the host's kernel says of memory and pids: measured, and asked before anything is started.
 */
#define _GNU_SOURCE
#include "host.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SAMPLE_MS	200
#define SAMPLES		6	/* one second, both ends counted */

const char *const memory_names[MEMORY_KINDS] = {
	[AVAILABLE] = "available",
	[PAGE_TABLES] = "page_tables",
	[KERNEL_STACK] = "kernel_stack",
	[SLAB] = "slab",
	[VMALLOC] = "vmalloc",
	[SECONDARY_PAGE_TABLES] = "secondary_page_tables",
	[PERCPU] = "percpu",
	[ANONYMOUS] = "anonymous",
};

static const char *const meminfo_keys[MEMORY_KINDS] = {
	[AVAILABLE] = "MemAvailable:",
	[PAGE_TABLES] = "PageTables:",
	[KERNEL_STACK] = "KernelStack:",
	[SLAB] = "Slab:",
	[VMALLOC] = "VmallocUsed:",
	[SECONDARY_PAGE_TABLES] = "SecPageTables:",
	[PERCPU] = "Percpu:",
	[ANONYMOUS] = "AnonPages:",
};

double
host_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return ((double)now.tv_sec + (double)now.tv_nsec / 1e9);
}

/*
 * Free pages that wait in the lists of a core for its next allocation, in KiB. The kernel counts
 * them as used, keeps hundreds of MiB there after many guests died, and lets go of them within a
 * minute or so: without them, a measurement taken meanwhile is wrong by as much. Each core has its
 * list in each zone of /proc/zoneinfo, as `count:`, in pages.
 */
static long
waiting_kib(void)
{
	FILE *file = fopen("/proc/zoneinfo", "re");
	long pages = 0, count;
	char line[256];

	if (file == NULL)
		return (0);
	while (fgets(line, sizeof(line), file) != NULL)
		if (sscanf(line, " count: %ld", &count) == 1)
			pages += count;
	fclose(file);
	return (pages * (sysconf(_SC_PAGESIZE) / 1024));
}

struct memory
host_memory(void)
{
	struct memory memory = { 0 };
	char line[256];
	FILE *file;

	file = fopen("/proc/meminfo", "re");
	if (file == NULL) {
		perror("floor: /proc/meminfo");
		exit(1);
	}
	while (fgets(line, sizeof(line), file) != NULL)
		for (int kind = 0; kind < MEMORY_KINDS; kind++) {
			size_t length = strlen(meminfo_keys[kind]);

			if (strncmp(line, meminfo_keys[kind], length) == 0)
				memory.kib[kind] = atol(line + length);
		}
	fclose(file);
	memory.kib[AVAILABLE] += waiting_kib();
	return (memory);
}

enum settled
host_settle(double seconds, int signals, struct memory *memory)
{
	struct pollfd wake = { .fd = signals, .events = POLLIN };
	double end = host_now() + seconds;
	long seen[SAMPLES];

	for (unsigned count = 0;;) {
		long least, most;

		*memory = host_memory();
		seen[count++ % SAMPLES] = memory->kib[AVAILABLE];
		if (count >= SAMPLES) {
			least = most = seen[0];
			for (int i = 1; i < SAMPLES; i++) {
				least = seen[i] < least ? seen[i] : least;
				most = seen[i] > most ? seen[i] : most;
			}
			if (most - least <= 512 + most / 5000)
				return (SETTLED);
		}
		if (host_now() >= end)
			return (UNSETTLED);
		if (poll(&wake, 1, SAMPLE_MS) > 0)
			return (INTERRUPTED);
	}
}

/* A number in a file of /proc, or -1. */
static long
number(const char *path, const char *format)
{
	FILE *file = fopen(path, "re");
	long value = -1;

	if (file == NULL)
		return (-1);
	if (fscanf(file, format, &value) != 1)
		value = -1;
	fclose(file);
	return (value);
}

bool
host_fits(unsigned guests, unsigned long slot_mib)
{
	/* Each VM also has a thread that the kernel makes: two pids for each guest. */
	long needed = 2L * guests;
	long most = number("/proc/sys/kernel/pid_max", "%ld");
	long used = number("/proc/loadavg", "%*f %*f %*f %*d/%ld");
	long reserve = most / 10 > 1000 ? most / 10 : 1000;
	/* KVM's arrays take about 2.6 KiB for each MiB of slot, all else 0.5 MiB; rounded up. */
	double mib = guests * (0.7 + 0.0035 * (double)slot_mib);
	double available = (double)host_memory().kib[AVAILABLE] / 1024;

	if (most < 0 || used < 0) {
		fprintf(stderr, "floor: cannot read how many pids there are: is /proc mounted?\n");
		return (false);
	}
	if (used + needed + reserve > most) {
		fprintf(stderr,
		    "floor: %u guests need %ld pids: %ld of %ld are in use and %ld stay in reserve;\n"
		    "floor: ask for %ld guests or raise it: sysctl kernel.pid_max=%ld\n",
		    guests, needed, used, most, reserve,
		    most - used - reserve > 0 ? (most - used - reserve) / 2 : 0,
		    (used + needed) * 10 / 9 + 1000);
		return (false);
	}
	if (mib > 0.9 * available) {
		fprintf(stderr,
		    "floor: %u guests need about %.0f MiB and the host has %.0f MiB available;\n"
		    "floor: ask for fewer or take --slot small\n",
		    guests, mib, available);
		return (false);
	}
	return (true);
}
