/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/* One PASS or FAIL line per check, and the count at the end. */

#ifndef REPORT_H
#define	REPORT_H

#include <stdbool.h>

void	say(const char *text);
void	say_number(long n);

/* "name" holds if "ok"; "seen" is printed when it does not. */
void	check(bool ok, const char *name, long seen);
void	check_equal(long seen, long wanted, const char *name);

/* A figure that is neither right nor wrong. */
void	note(const char *what, long n);

/* Prints "N passed, N failed" and returns the number of failures. */
int	report(void);

/* For what the rest cannot do without. */
void	fatal(const char *what, long error) __attribute__((noreturn));
void	quit(int status) __attribute__((noreturn));

#endif /* !REPORT_H */
