//! Leases of files for reading (fcntl(2), `F_SETLEASE`).
//!
//! The kernel grants one only while no process has the file open for writing, or mapped so: a
//! mapping keeps the opening that it was made by. Whoever opens the file for writing, or cuts it
//! short, waits until the lease is given back, and the holder is sent a signal; after
//! `fs.lease-break-time` seconds the kernel takes the lease away. A lease belongs to an opening of a
//! file (open(2)), and is shared by all descriptors and processes that have this one. Only the
//! file's owner and root with `CAP_LEASE` can have one, and not on every file system.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::{errno::Errno, sys::signal::Signal};

/// What somebody who asked for a lease has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    /// The lease.
    Granted,
    /// None: a process has the file open for writing, or mapped so.
    Written,
    /// None: the file system has no leases, or the file is another user's.
    Unavailable,
}

/// <asm-generic/fcntl.h>
const F_SETSIG: libc::c_int = 10;

fn call(file: &impl AsFd, command: libc::c_int, argument: libc::c_int) -> libc::c_int {
    // SAFETY: the commands used here take a number and touch no memory; the descriptor is open.
    unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, argument) }
}

/// Asks for a lease. When somebody wants to write to the file, this process gets the signal.
pub(crate) fn take(file: &impl AsFd, signal: Signal) -> Grant {
    if call(file, F_SETSIG, signal as libc::c_int) < 0 {
        return Grant::Unavailable;
    }
    if call(file, libc::F_SETLEASE, libc::F_RDLCK) == 0 {
        Grant::Granted
    } else if Errno::last() == Errno::EAGAIN {
        Grant::Written
    } else {
        Grant::Unavailable
    }
}

/// Gives a lease back: whoever waits for it may write.
pub(crate) fn give_back(file: &impl AsFd) {
    call(file, libc::F_SETLEASE, libc::F_UNLCK);
}

/// Whether the opening has a lease, and nobody waits to write.
pub(crate) fn is_held(file: &impl AsFd) -> bool {
    call(file, libc::F_GETLEASE, 0) == libc::F_RDLCK
}

/// Opens an open file once more, for reading: an opening of its own, which can have a lease of its own.
pub(crate) fn reopen(file: &impl AsFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    File::open(path).map(OwnedFd::from)
}
