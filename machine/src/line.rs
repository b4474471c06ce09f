//! Line of a network card: frames over a stream, each behind its length, as passt has it.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::EventFd,
        socket::{MsgFlags, recv, send},
    },
};

use crate::{bus::Bus, virtio::net::Wire};

/// Length of a frame's length, which is big-endian.
const LENGTH: usize = 4;
/// Longest frame of a line: of a packet of 64 KiB. The card takes shorter ones only.
const LONGEST: usize = (64 << 10) + 64;
/// Bytes that are read at a time.
const PART: usize = 16 * 1024;

/// What goes out: shared with the card, whose frames come from the threads of the processors.
#[derive(Debug, Default)]
struct Output {
    stream: Option<Arc<UnixStream>>,
    /// The rest of a frame that the stream did not take as a whole.
    rest: Vec<u8>,
}

impl Output {
    /// Writes the rest of a frame; whether nothing is left of it.
    fn flush(&mut self) -> bool {
        let Some(stream) = &self.stream else {
            return true;
        };
        let sent = send_some(stream, &self.rest);
        self.rest.drain(..sent);
        self.rest.is_empty()
    }
}

/// How much of this a stream takes at once. One that fails is found out by who reads from it.
fn send_some(stream: &UnixStream, bytes: &[u8]) -> usize {
    if bytes.is_empty() {
        return 0;
    }
    // A process may be kept from changing how its descriptors behave: each call says it.
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    send(stream.as_raw_fd(), bytes, flags).unwrap_or(0)
}

/// A line, which leads nowhere until it is connected.
#[derive(Debug, Default)]
pub struct Line {
    output: Arc<Mutex<Output>>,
    stream: Option<Arc<UnixStream>>,
    /// What was read and is not a whole frame yet.
    input: Vec<u8>,
}

/// The card's end of a line.
struct CardEnd(Arc<Mutex<Output>>);

fn lock(output: &Mutex<Output>) -> MutexGuard<'_, Output> {
    output.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wire for CardEnd {
    fn send(&mut self, frame: &[u8]) {
        let mut output = lock(&self.0);
        let (true, Some(stream)) = (output.flush(), output.stream.clone()) else {
            return;
        };
        let mut bytes = u32::try_from(frame.len())
            .unwrap_or(0)
            .to_be_bytes()
            .to_vec();
        bytes.extend(frame);
        let sent = send_some(&stream, &bytes);
        // Of a frame that has begun the rest must follow.
        if sent > 0 {
            output.rest = bytes.split_off(sent);
        }
    }
}

impl Line {
    /// The end that the card has.
    #[must_use]
    pub fn card_end(&self) -> Box<dyn Wire> {
        Box::new(CardEnd(Arc::clone(&self.output)))
    }

    /// Connects the line to this stream.
    pub fn connect(&mut self, stream: UnixStream) {
        let stream = Arc::new(stream);
        lock(&self.output).stream = Some(Arc::clone(&stream));
        self.stream = Some(stream);
    }

    /// What to wait for; none when it leads nowhere.
    pub fn poll_fd(&self, bus: &Bus) -> Option<PollFd<'_>> {
        let stream = self.stream.as_ref()?;
        let has_room = bus.net().is_some_and(|mut net| net.device().has_room());
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, has_room);
        events.set(PollFlags::POLLOUT, !lock(&self.output).rest.is_empty());
        Some(PollFd::new(stream.as_fd(), events))
    }

    /// Carries what there is, both ways. `seen` is what the wait has seen. The line leads nowhere any
    /// more when the other end is closed, or sends what is no frame.
    pub fn carry(&mut self, bus: &Bus, seen: PollFlags) {
        let _ = lock(&self.output).flush();
        let goes_on = if seen.contains(PollFlags::POLLIN) {
            self.read(bus).is_ok()
        } else {
            !seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)
        };
        if !goes_on {
            self.stream = None;
            *lock(&self.output) = Output::default();
        }
    }

    fn read(&mut self, bus: &Bus) -> io::Result<()> {
        let Some(stream) = &self.stream else {
            return Ok(());
        };
        let mut bytes = [0; PART];
        match recv(stream.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => self.input.extend(&bytes[..length]),
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
        let Some(mut net) = bus.net() else {
            return Ok(());
        };
        let mut left = &self.input[..];
        while let Some((frame, rest)) = first_frame(left)? {
            net.device().receive(frame);
            left = rest;
        }
        let read = self.input.len() - left.len();
        self.input.drain(..read);
        net.serve();
        Ok(())
    }
}

/// The first frame, and what is behind it; none when it is not whole.
fn first_frame(bytes: &[u8]) -> io::Result<Option<(&[u8], &[u8])>> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(rest.split_at_checked(length))
}

/// Carries frames both ways until the other end is closed. `wake` is what the card calls when there
/// is room again.
///
/// # Errors
/// When nothing can be waited for.
pub fn carry(bus: &Bus, mut line: Line, wake: &EventFd) -> io::Result<()> {
    loop {
        let Some(fd) = line.poll_fd(bus) else {
            return Ok(());
        };
        let mut fds = [fd, PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let [seen, woken] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if !woken.is_empty() {
            let _ = wake.read();
        }
        line.carry(bus, seen);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn frames_are_told_apart_and_what_is_none_is_refused() {
        let two = [0, 0, 0, 2, 7, 8, 0, 0, 0, 0, 0, 0];
        let (frame, rest) = first_frame(&two).unwrap().unwrap();
        assert_eq!(frame, [7, 8]);
        let (empty, rest) = first_frame(rest).unwrap().unwrap();
        assert_eq!((empty, rest), (&[][..], &[0, 0][..]));
        assert!(first_frame(rest).unwrap().is_none());
        assert!(first_frame(&[0, 1, 0, 0x41]).is_err());
        assert!(first_frame(&[0, 1, 0, 0x40]).unwrap().is_none());
    }

    #[test]
    fn a_frame_is_sent_as_a_whole_or_not_at_all() {
        let mut line = Line::default();
        let mut end = line.card_end();
        end.send(&[9; 60]);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        line.connect(ours);
        let frame = |n: u16| vec![n.to_le_bytes()[0]; usize::from(n % 1400) + 60];
        for n in 0..2000 {
            end.send(&frame(n));
        }
        // What is left of the last frame that has begun comes when there is room.
        theirs.set_nonblocking(true).unwrap();
        let (mut heard, mut part) = (Vec::new(), [0; 4096]);
        loop {
            match theirs.read(&mut part) {
                Ok(length) => heard.extend(&part[..length]),
                Err(_) if lock(&line.output).rest.is_empty() => break,
                Err(_) => {
                    let _ = lock(&line.output).flush();
                }
            }
        }
        let (mut left, mut n) = (&heard[..], 0);
        while let Some((heard, rest)) = first_frame(left).unwrap() {
            // Frames in between may be lost, those that come are whole.
            while frame(n) != heard {
                n += 1;
                assert!(n < 2000, "a frame that nobody sent");
            }
            (left, n) = (rest, n + 1);
        }
        assert!(left.is_empty() && n > 10, "{n} {}", left.len());
        theirs.write_all(&[0; 3]).unwrap();
    }
}
