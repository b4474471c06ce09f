/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

#include "report.h"
#include "sys.h"

static long passed, failed;

/* The compiler may call these four, whatever the flags. */
void *
memset(void *to, int c, size_t n)
{
	unsigned char *p = to;

	while (n-- > 0)
		*p++ = (unsigned char)c;
	return (to);
}

void *
memcpy(void *restrict to, const void *restrict from, size_t n)
{
	unsigned char *p = to;
	const unsigned char *q = from;

	while (n-- > 0)
		*p++ = *q++;
	return (to);
}

void
say(const char *text)
{
	size_t n;

	for (n = 0; text[n] != '\0'; n++)
		continue;
	call3(CALL_WRITE, 1, text, n);
}

void
say_number(long n)
{
	char digits[24], *p = digits + sizeof(digits) - 1;
	unsigned long u = n < 0 ? -(unsigned long)n : (unsigned long)n;

	*p = '\0';
	do {
		*--p = (char)('0' + u % 10);
		u /= 10;
	} while (u != 0);
	if (n < 0)
		*--p = '-';
	say(p);
}

void
check(bool ok, const char *name, long seen)
{

	say(ok ? "PASS " : "FAIL ");
	say(name);
	if (ok) {
		passed++;
	} else {
		failed++;
		say(" (saw ");
		say_number(seen);
		say(")");
	}
	say("\n");
}

void
check_equal(long seen, long wanted, const char *name)
{

	check(seen == wanted, name, seen);
}

void
note(const char *what, long n)
{

	say("NOTE ");
	say(what);
	say(": ");
	say_number(n);
	say("\n");
}

int
report(void)
{

	say_number(passed);
	say(" passed, ");
	say_number(failed);
	say(" failed\n");
	return (failed != 0);
}

void
quit(int status)
{

#define	RB_POWEROFF	0x4000
	if (call0(CALL_GETPID) == 1)
		call1(CALL_REBOOT, RB_POWEROFF);
	for (;;)
		call1(CALL_EXIT, status);
}

void
fatal(const char *what, long error)
{

	check(false, what, error);
	report();
	quit(1);
}
