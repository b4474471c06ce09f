/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A library for LD_PRELOAD that fails one call of a process.
 *
 * FAULT_KINDS  which calls: "fsync" stands for fsync and fdatasync
 * FAULT_PATH   of files with this in their path
 * FAULT_AT     the how-manieth such call of the process, from 1
 * FAULT_ERRNO  the error that it fails with
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static atomic_int calls;

static int number(const char *name)
{
	const char *text = getenv(name);
	return text ? atoi(text) : 0;
}

/* The error to fail with, or 0. */
static int fault(int fd)
{
	const char *kinds = getenv("FAULT_KINDS"), *part = getenv("FAULT_PATH");
	char link[64], path[PATH_MAX];
	ssize_t length;

	if (!kinds || !part || !strstr(kinds, "fsync"))
		return 0;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof path - 1);
	if (length < 0)
		return 0;
	path[length] = 0;
	if (!strstr(path, part))
		return 0;
	return ++calls == number("FAULT_AT") ? number("FAULT_ERRNO") : 0;
}

#define SHIM(name)                                                     \
	int name(int fd)                                               \
	{                                                              \
		static int (*real)(int);                               \
		int error = fault(fd);                                 \
		if (error) {                                           \
			errno = error;                                 \
			return -1;                                     \
		}                                                      \
		if (!real)                                             \
			real = (int (*)(int))dlsym(RTLD_NEXT, #name);  \
		return real(fd);                                       \
	}

SHIM(fsync)
SHIM(fdatasync)
