/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/* Cases of vnode_cases, and what they share. */

#ifndef CASES_H
#define	CASES_H

#include <stdbool.h>
#include <stdint.h>

#include "vm.h"

#define	MANY		64		/* guests of the largest case */
#define	PATTERN(page)	(0x5eed0000u + (uint32_t)(page))
#define	CASE_ID(i)	(0xc0de0000u + (i))

/* One word of guest memory, as the host's mapping has it. */
#define	WORD(g, page)							\
	(*(volatile uint32_t *)((g)->memory + (page) * PAGE))

extern struct guest guests[MANY];
extern uint32_t page_buffer[PAGE / sizeof(uint32_t)];

/* From the command line. */
extern const char *module;		/* what kldload(2) is given */
extern const char *unmountable;		/* a mount point to unmount by force */

/* cases.c: the checkpoint file "name", in the directory that was given. */
int	checkpoint_open(const char *name, int flags);
int	checkpoint_make(const char *name, unsigned pages);
void	checkpoint_remove(int fd, const char *name);
long	checkpoint_differs(int fd, unsigned pages);	/* the page, or -1 */
const char *checkpoint_path(const char *name);
void	page_fill(uint32_t *page, unsigned n);
bool	page_same(const volatile uint32_t *page, unsigned n);
bool	page_read(const struct guest *g, unsigned n);	/* and page_same() */

/* A guest that is created, attached and mapped, or the test ends. */
void	guest_ready(struct guest *g, unsigned i, int fd);
long	guest_private(const struct guest *g);
void	guest_gone(struct guest *g);
long	unload_module(void);

/* cases_memory.c */
void	case_device(void);
void	case_remap(void);
void	case_onemap(void);
void	case_offset(void);
void	case_unlink(void);
void	case_holes(void);
void	case_list(void);
void	case_fork(void);
/* cases_many.c */
void	case_many(void);
void	case_leak(void);
void	case_race(void);
void	case_unload(void);
void	case_super(void);
/* cases_host.c */
void	case_force(void);
void	case_lost(void);
void	case_swap(void);

#endif /* !CASES_H */
