/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * Stand-in for the check on Linux only: what vnode_restore.c uses of
 * bhyve's messages.
 */

#ifndef STANDIN_DEBUG_H
#define	STANDIN_DEBUG_H

#include <stdio.h>

#define	EPRINTLN(fmt, ...)	fprintf(stderr, fmt "\n", ##__VA_ARGS__)

#endif
