/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

/*
 * FreeBSD/amd64 system calls without a C library.  Each returns what the
 * kernel returned, or the error number negated.
 */

#ifndef SYS_H
#define	SYS_H

#include <sys/types.h>

#define	CALL_EXIT	1
#define	CALL_FORK	2
#define	CALL_READ	3
#define	CALL_WRITE	4
#define	CALL_OPEN	5
#define	CALL_CLOSE	6
#define	CALL_WAIT4	7
#define	CALL_UNLINK	10
#define	CALL_GETPID	20
#define	CALL_UNMOUNT	22
#define	CALL_IOCTL	54
#define	CALL_REBOOT	55
#define	CALL_MSYNC	65
#define	CALL_MUNMAP	73
#define	CALL_MADVISE	75
#define	CALL_DUP2	90
#define	CALL_MKDIR	136
#define	CALL_RMDIR	137
#define	CALL_SYSCTL	202
#define	CALL_NANOSLEEP	240
#define	CALL_KLDLOAD	304
#define	CALL_KLDUNLOAD	305
#define	CALL_KLDFIND	306
#define	CALL_NMOUNT	378
#define	CALL_PREAD	475
#define	CALL_PWRITE	476
#define	CALL_MMAP	477
#define	CALL_TRUNCATE	479
#define	CALL_FTRUNCATE	480
#define	CALL_PIPE2	542

#ifdef FAKE_VMM
/* mock/fake_vmm.c answers, on Linux. */
long	call6(long number, long a, long b, long c, long d, long e, long f);
#else
static inline long
call6(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;
	unsigned char failed;

	__asm__ volatile("syscall; setc %1"
	    : "=a" (result), "=q" (failed), "+r" (r10), "+r" (r8), "+r" (r9),
	    "+d" (c)
	    : "0" (number), "D" (a), "S" (b)
	    : "rcx", "r11", "memory", "cc");
	return (failed ? -result : result);
}
#endif

#define	call0(n)		call6(n, 0, 0, 0, 0, 0, 0)
#define	call1(n, a)		call6(n, (long)(a), 0, 0, 0, 0, 0)
#define	call2(n, a, b)		call6(n, (long)(a), (long)(b), 0, 0, 0, 0)
#define	call3(n, a, b, c)						\
	call6(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define	call4(n, a, b, c, d)						\
	call6(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)

#endif /* !SYS_H */
