//! Channel: joins the console's port to a stream of the host.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixStream,
    },
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::EventFd,
        socket::{MsgFlags, recv, send},
    },
};

use crate::{bus::Bus, virtio::console::WAITING_MAX};

/// Bytes that are carried at a time.
const PART: usize = 16 * 1024;

/// One end of the channel: a stream whose other end a host has.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    bytes: Vec<u8>,
}

impl Channel {
    /// Joins the console's port to this stream.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            bytes: vec![0; PART],
        }
    }

    /// What to wait for.
    pub fn poll_fd(&self, bus: &Bus) -> PollFd<'_> {
        let (room, waits) = {
            let mut console = bus.console();
            let device = console.device();
            (device.room(), !device.output().is_empty())
        };
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, room > 0);
        events.set(PollFlags::POLLOUT, waits);
        PollFd::new(self.stream.as_fd(), events)
    }

    /// Whether the other end is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        // POLLHUP comes unasked.
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO) == Ok(0)
    }

    /// Carries what there is, both ways. `seen` is what the wait has seen. `false` when the other end
    /// is closed.
    ///
    /// # Errors
    /// When the stream fails.
    pub fn carry(&mut self, bus: &Bus, seen: PollFlags) -> io::Result<bool> {
        if seen.contains(PollFlags::POLLIN) {
            let part = bus.console().device().room().min(PART);
            // A process may be kept from changing how its descriptors behave: each call says it.
            let flags = MsgFlags::MSG_DONTWAIT;
            match recv(self.stream.as_raw_fd(), &mut self.bytes[..part], flags) {
                Ok(0) => return Ok(false),
                Ok(length) => {
                    let mut console = bus.console();
                    console.device().send(&self.bytes[..length]);
                    console.serve();
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        } else if seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
            return Ok(false);
        }
        send_on(bus, &self.stream)?;
        Ok(true)
    }
}

/// Carries bytes both ways until the stream's other end is closed. `wake` is what the console calls
/// when there is something to read.
///
/// # Errors
/// When the stream fails.
pub fn carry(bus: &Bus, stream: UnixStream, wake: &EventFd) -> io::Result<()> {
    let mut channel = Channel::new(stream);
    loop {
        let mut fds = [
            channel.poll_fd(bus),
            PollFd::new(wake.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut fds, PollTimeout::NONE)?;
        let [seen, woken] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if !woken.is_empty() {
            let _ = wake.read();
        }
        if !channel.carry(bus, seen)? {
            return Ok(());
        }
    }
}

/// Writes what the guest has said, as far as the stream takes it.
fn send_on(bus: &Bus, stream: &UnixStream) -> io::Result<()> {
    let mut console = bus.console();
    loop {
        let output = console.device().output();
        let was_full = output.len() >= WAITING_MAX;
        let (part, _) = output.as_slices();
        if part.is_empty() {
            return Ok(());
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(stream.as_raw_fd(), part, flags) {
            Ok(length) => {
                output.drain(..length);
            }
            Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        if was_full {
            // Buffers that the guest has been waiting for.
            console.serve();
        }
    }
}
