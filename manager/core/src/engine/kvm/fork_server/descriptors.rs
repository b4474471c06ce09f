//! Descriptors of a nursery: those that the manager sends, and those that no guest keeps.

use std::{
    io::{self, IoSliceMut},
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::socket::{ControlMessageOwned, MsgFlags, RecvMsg, recvmsg},
};

use crate::checkpoint::DELTAS_MAX;

/// The descriptor on which a nursery finds the socket to its manager.
pub(crate) const SOCKET: RawFd = 3;

/// The first descriptor that is the nursery's own: spares have those from here on until they become
/// guests. Low enough for the table of descriptors that is part of a process's own structure (64).
const OWN: RawFd = 48;
// Below it: standard input and output, the socket, what the manager sent, and what is opened, which
// memory files are once more.
const _: () = assert!(SOCKET as usize + 6 + DELTAS_MAX + 1 + 16 < OWN as usize);

/// Moves a descriptor to where no guest keeps it.
pub(crate) fn own(fd: OwnedFd) -> nix::Result<OwnedFd> {
    let moved = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(OWN))?;
    drop(fd);
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

/// Closes the nursery's own descriptors in a process that becomes a guest: through them a guest
/// could harm its siblings.
pub(crate) fn close_own() {
    // SAFETY: closes descriptors of values that the caller, which never returns to the nursery's
    // code, neither uses nor drops.
    unsafe { libc::close_range(OWN.unsigned_abs(), libc::c_uint::MAX, 0) };
}

/// The descriptors that the manager sends: orders, `.kern`, run folder, session lock, files that
/// guests of this kind read, and the memory files, the full checkpoint's first. They are numbered in this order.
pub(super) fn receive() -> io::Result<Vec<OwnedFd>> {
    let mut byte = [0_u8; 1];
    let mut space = nix::cmsg_space!([RawFd; 6 + DELTAS_MAX]);
    let mut data = [IoSliceMut::new(&mut byte)];
    let message: RecvMsg<()> = recvmsg(
        SOCKET,
        &mut data,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just made these descriptors for this process alone.
            let owned = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
            return Ok(fds.into_iter().map(owned).collect());
        }
    }
    Err(io::Error::from(io::ErrorKind::UnexpectedEof))
}
