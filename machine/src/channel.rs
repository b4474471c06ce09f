//! Channel: joins the console's port to a stream of the host.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::EventFd,
};

use crate::{bus::Bus, virtio::console::WAITING_MAX};

/// Bytes that are carried at a time.
const PART: usize = 16 * 1024;

/// Carries bytes both ways until the stream's other end is closed. `wake` is what the console calls
/// when there is something to read.
///
/// # Errors
/// When the stream fails.
pub fn carry(bus: &Bus, mut stream: &UnixStream, wake: &EventFd) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let mut bytes = vec![0; PART];
    loop {
        let (room, waits) = {
            let mut console = bus.console();
            let device = console.device();
            (device.room(), !device.output().is_empty())
        };
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, room > 0);
        events.set(PollFlags::POLLOUT, waits);
        let mut fds = [
            PollFd::new(stream.as_fd(), events),
            PollFd::new(wake.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut fds, PollTimeout::NONE)?;
        let ready = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
        let (of_stream, woken) = (ready(&fds[0]), !ready(&fds[1]).is_empty());
        if woken {
            let _ = wake.read();
        }
        if of_stream.contains(PollFlags::POLLIN) {
            let part = room.min(PART);
            match stream.read(&mut bytes[..part]) {
                Ok(0) => return Ok(()),
                Ok(length) => {
                    let mut console = bus.console();
                    console.device().send(&bytes[..length]);
                    console.serve();
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        } else if of_stream.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
            return Ok(());
        }
        send_on(bus, stream)?;
    }
}

/// Writes what the guest has said, as far as the stream takes it.
fn send_on(bus: &Bus, mut stream: &UnixStream) -> io::Result<()> {
    let mut console = bus.console();
    loop {
        let output = console.device().output();
        let was_full = output.len() >= WAITING_MAX;
        let (part, _) = output.as_slices();
        if part.is_empty() {
            return Ok(());
        }
        match stream.write(part) {
            Ok(length) => {
                output.drain(..length);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if was_full {
            // Buffers that the guest has been waiting for.
            console.serve();
        }
    }
}
