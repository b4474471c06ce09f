/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * Stand-in for the check on Linux only: what vnode_restore.c uses of
 * bhyve's checkpoint state.
 */

#ifndef STANDIN_SNAPSHOT_H
#define	STANDIN_SNAPSHOT_H

#include <sys/types.h>

struct restore_state {
	int	vmmem_fd;
	size_t	vmmem_len;
};

#endif
