/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * As much of a FreeBSD kernel as vmm_vnode.c and vmm_backing.c call, in one
 * thread of a Linux process: it counts references, knows which locks are
 * held, and panics on a lock taken out of order, a reference too many, and a
 * file that is closed under its vnode's lock.
 */

#ifndef MOCK_H
#define	MOCK_H

#include <sys/param.h>
#include <sys/systm.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/proc.h>
#include <sys/vnode.h>
#include <vm/vm.h>
#include <vm/vm_object.h>
#include <machine/vmm.h>
#include <dev/vmm/vmm_mem.h>

struct vm {
	struct vm_mem	mem;
	const char	*name;
	bool		iommu;
};

/* The vnode operations' answers, for the test to set. */
struct mock_answers {
	int	fget, lock, getattr, exec, admin, priv;
	bool	close_meanwhile;	/* another thread closes the file */
	struct vnode *upper, *lower;	/* a stack of two file systems */
	uint32_t in_swap, in_memory;	/* pages of any object, by bit */
};
extern struct mock_answers mock;

/* A regular file of "size" bytes, open once. */
struct mock_file {
	struct file	file;
	struct vnode	vnode;
	struct vm_object object;
	struct mount	mount;
	off_t		size;
};
void	mock_file_init(struct mock_file *f, off_t size);
void	mock_open(struct file *fp);	/* what any descriptor refers to */

extern uint64_t mock_sysctl;		/* the last number that was shown */

/* What is out: must be zero when nothing is attached. */
long	mock_allocated(void);
int	mock_locks_held(void);

/* The mappings that vmm would make, and the end of a machine. */
void	mock_memsegs_lock(struct vm *vm);
void	mock_memsegs_unlock(struct vm *vm);
void	mock_free_memseg(struct vm *vm, int segid);

void	mock_say(const char *text);
void	mock_exit(int status) __attribute__((noreturn));

#endif /* !MOCK_H */
