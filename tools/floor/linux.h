/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One Linux guest of the floor: the least that restores a checkpoint's state.
 */
#ifndef FLOOR_LINUX_H
#define FLOOR_LINUX_H

#include "guest.h"

/*
 * Reads the machine's state from a checkpoint's DIR/NAME.ckp.kern, and opens its memory file,
 * DIR/NAME.ckp; prints why it cannot and returns -1. Machines of one processor with all memory
 * below 4 GiB only.
 */
int	linux_open(struct guest_parts *parts, const char *checkpoint);

/*
 * In a fresh child: makes guest number `guest` in that state, reports to the pipe `reports` and
 * runs it until the process is killed. Never returns.
 */
_Noreturn void	linux_run(const struct guest_parts *parts, uint32_t guest, int reports);

#endif
