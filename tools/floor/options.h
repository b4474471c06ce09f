/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the floor is asked to do.
 */
#ifndef FLOOR_OPTIONS_H
#define FLOOR_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

#define HOLD_UNTIL_STDIN_CLOSES	(-1)
#define SMALL_SLOT_MIB		2

struct options {
	unsigned	guests;
	unsigned	concurrency;	/* guests in the making at once, at most */
	size_t		memory_mib;
	bool		small;		/* one slot of SMALL_SLOT_MIB instead of all memory */
	int		hold_s;		/* seconds, or HOLD_UNTIL_STDIN_CLOSES */
	bool		json;
	const char	*dir;
	const char	*checkpoint;	/* DIR/NAME of a Linux to restore, or NULL */
};

/* Reads the command line; ends the process with 2 and a message if it is wrong. */
struct options	options_read(int argc, char **argv);

#endif
