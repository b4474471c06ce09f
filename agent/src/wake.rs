//! Wakers: a pipe that ends a `poll(2)` of another thread.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::{
    fcntl::OFlag,
    unistd::{pipe2, read, write},
};

#[derive(Debug)]
pub(crate) struct Waker {
    read: OwnedFd,
    write: OwnedFd,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Waker> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok(Waker { read, write })
    }

    /// Makes [`Waker::fd`] readable. A full pipe is readable already.
    pub(crate) fn wake(&self) {
        let _ = write(&self.write, &[1]);
    }

    /// Makes [`Waker::fd`] not readable until the next [`Waker::wake`].
    pub(crate) fn clear(&self) {
        let mut bytes = [0; 64];
        while read(&self.read, &mut bytes).is_ok_and(|length| length == bytes.len()) {}
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}
