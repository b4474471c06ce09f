/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The brood authors
 */

#include <sys/param.h>
#include <sys/errno.h>
#include <sys/fcntl.h>

#include "report.h"
#include "sys.h"
#include "vm.h"

/* Every way to be told no, on a virtual machine that has no memory yet. */
void
refusals(const struct guest *g, const char *path, int file)
{
	struct vm_vnode_attach a;
	struct vm_vnode_stats st;
	int pipe[2];
	long fd;
	unsigned i;

	check_equal(vm_attach(g, -1, 0, MEMORY), -EBADF, "no descriptor");
	fd = call3(CALL_OPEN, "/", O_RDONLY, 0);
	check_equal(vm_attach(g, (int)fd, 0, MEMORY), -ENODEV, "a directory");
	call1(CALL_CLOSE, fd);
	fd = call3(CALL_OPEN, "/dev/null", O_RDONLY, 0);
	check_equal(vm_attach(g, (int)fd, 0, MEMORY), -ENODEV, "a device");
	call1(CALL_CLOSE, fd);
	if (call2(CALL_PIPE2, pipe, 0) == 0) {
		check_equal(vm_attach(g, pipe[0], 0, MEMORY), -ENODEV,
		    "a pipe");
		call1(CALL_CLOSE, pipe[0]);
		call1(CALL_CLOSE, pipe[1]);
	}
	fd = call3(CALL_OPEN, path, O_WRONLY, 0);
	check_equal(vm_attach(g, (int)fd, 0, MEMORY), -EBADF,
	    "a descriptor that cannot read");
	check_equal(vm_attach(g, file, 0, MEMORY), -ETXTBSY,
	    "a file that is open for writing");
	call1(CALL_CLOSE, fd);

	check_equal(vm_attach(g, file, 512, PAGE), -EINVAL,
	    "an offset within a page");
	check_equal(vm_attach(g, file, -(int64_t)PAGE, PAGE), -EINVAL,
	    "a negative offset");
	check_equal(vm_attach(g, file, 0, PAGE + 1), -EINVAL,
	    "a length of part of a page");
	check_equal(vm_attach(g, file, 0, 0), -EINVAL, "no length");
	check_equal(vm_attach(g, file, PAGE, ~(uint64_t)0 - PAGE + 1),
	    -EINVAL, "a range past the largest offset");
	check_equal(vm_attach(g, file, 0, MEMORY + PAGE), -ERANGE,
	    "a file that is too short");
	check_equal(vm_attach(g, file, PAGE, MEMORY), -ERANGE,
	    "a file that is too short from there");

	__builtin_memset(&a, 0, sizeof(a));
	a.version = VM_VNODE_ABI + 1;
	a.fd = file;
	a.len = MEMORY;
	check_equal(call3(CALL_IOCTL, g->fd, VM_VNODE_ATTACH, &a),
	    -EOPNOTSUPP, "another ABI version");
	a.version = VM_VNODE_ABI;
	a.flags = 1;
	check_equal(call3(CALL_IOCTL, g->fd, VM_VNODE_ATTACH, &a), -EINVAL,
	    "a flag");
	a.flags = 0;
	for (i = 0; i < nitems(a.reserved); i++) {
		a.reserved[i] = 1;
		check_equal(call3(CALL_IOCTL, g->fd, VM_VNODE_ATTACH, &a),
		    -EINVAL, "a reserved member that is not zero");
		a.reserved[i] = 0;
	}
	a.segid = -1;
	check_equal(call3(CALL_IOCTL, g->fd, VM_VNODE_ATTACH, &a), -EINVAL,
	    "a negative segment");
	a.segid = 1000;
	check_equal(call3(CALL_IOCTL, g->fd, VM_VNODE_ATTACH, &a), -EINVAL,
	    "a segment that cannot be");
	check_equal(call3(CALL_IOCTL, g->fd,
	    _IOW('v', 120, struct vm_vnode_caps[2]), &a), -ENOTTY,
	    "a structure of another size");
	check_equal(vm_stats(g, 0, &st), -ENOENT, "books of no segment");
	st.state = VM_VNODE_STATE_FILE_LOST;
	check_equal(call3(CALL_IOCTL, g->fd, VM_VNODE_STATS, &st), -EINVAL,
	    "books with a state");
	check_equal(vm_stats(g, -1, &st), -ENOENT,
	    "books of a negative segment");
	check_equal(sysctl_number("hw.vmm.vnode.segments"), 0,
	    "no refused request left a segment");
	fd = call3(CALL_OPEN, path, O_RDWR, 0);
	check(fd >= 0, "no refused request left a text mark", fd);
	call1(CALL_CLOSE, fd);
}
