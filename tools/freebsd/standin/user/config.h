/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * Stand-in for the check on Linux only: what vnode_restore.c uses of
 * bhyve's configuration tree.
 */

#ifndef STANDIN_CONFIG_H
#define	STANDIN_CONFIG_H

#include <stdbool.h>

bool	get_config_bool_default(const char *, bool);
const char *get_config_value(const char *);

#endif
