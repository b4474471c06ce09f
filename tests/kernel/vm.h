/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/* Virtual machines of vmm(4), as the test needs them. */

#ifndef VM_H
#define	VM_H

#include <sys/types.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm_vnode.h"

#define	PAGE		4096UL
#define	PAGES		1024UL			/* 4 MiB of guest memory */
#define	MEMORY		(PAGES * PAGE)

#define	GUEST_CODE	0x1000			/* where the guest starts */
#define	GUEST_READS	0x2000			/* it loads this word ... */
#define	GUEST_WRITES	0x3000			/* ... and stores its id here */

struct guest {
	char		name[16];
	int		fd;
	uint32_t	id;
	uint8_t		*memory;		/* the host's mapping */
};

/* The program, for GUEST_CODE in the checkpoint. */
extern const uint8_t guest_program[];
extern const size_t guest_program_size;

/* All return 0 or an error number negated. */
long	vm_create(struct guest *g, unsigned index);
long	vm_destroy(const struct guest *g);
long	vm_attach(const struct guest *g, int file, int64_t offset,
	    uint64_t len);
long	vm_map(const struct guest *g, int flags);
long	vm_mmap(struct guest *g);
long	vm_munmap(struct guest *g);
long	vm_unmap(const struct guest *g);	/* from the guest */
long	vm_stats(const struct guest *g, int segid, struct vm_vnode_stats *st);

/*
 * Run the guest until it reports; what it loaded and what it stored, as the
 * host sees it, through a new mapping if "remap".
 */
long	vm_run_guest(struct guest *g, bool remap, uint32_t *loaded,
	    uint32_t *stored);

/* Run it from "rip", with a data segment of 4 GiB, until it reports. */
long	vm_run_from(const struct guest *g, uint64_t rip, uint32_t *edi);

long	sysctl_number(const char *name);
long	sysctl_text(const char *name, char *text, size_t size);
long	sysctl_set(const char *name, unsigned value);

/* refusals.c: every way to be told no, by a machine without memory yet. */
void	refusals(const struct guest *g, const char *path, int file);

#endif /* !VM_H */
