//! Line over a stream: frames, each behind its length, as passt has it.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv, send},
};

/// Length of a frame's length, which is big-endian.
const LENGTH: usize = 4;
/// Longest frame of a line: of a packet of 64 KiB. The card takes shorter ones only.
const LONGEST: usize = (64 << 10) + 64;
/// Bytes that are read at a time.
const PART: usize = 16 * 1024;

/// What goes out.
#[derive(Debug)]
pub(super) struct Output {
    stream: Arc<UnixStream>,
    /// The rest of a frame that the stream did not take as a whole.
    rest: Vec<u8>,
}

/// What comes in.
#[derive(Debug)]
pub(super) struct Input {
    stream: Arc<UnixStream>,
    /// What was read and is not a whole frame yet.
    bytes: Vec<u8>,
}

/// Both ends of a line over this stream.
pub(super) fn open(stream: UnixStream) -> (Output, Input) {
    let stream = Arc::new(stream);
    let output = Output {
        stream: Arc::clone(&stream),
        rest: Vec::new(),
    };
    let bytes = Vec::new();
    (output, Input { stream, bytes })
}

impl Output {
    /// Whether the rest of a frame waits.
    pub(super) fn waits(&self) -> bool {
        !self.rest.is_empty()
    }

    /// Writes the rest of a frame; whether nothing is left of it.
    pub(super) fn flush(&mut self) -> bool {
        let sent = send_some(&self.stream, &self.rest);
        self.rest.drain(..sent);
        self.rest.is_empty()
    }

    /// Sends a frame, or loses it.
    pub(super) fn send(&mut self, frame: &[u8]) {
        if !self.flush() {
            return;
        }
        let length = u32::try_from(frame.len()).unwrap_or(0);
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend(frame);
        let sent = send_some(&self.stream, &bytes);
        // Of a frame that has begun the rest must follow.
        if sent > 0 {
            self.rest = bytes.split_off(sent);
        }
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

impl Input {
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Reads what there is, and gives the frames that are whole.
    pub(super) fn read(&mut self, mut give: impl FnMut(&[u8])) -> io::Result<()> {
        let mut part = [0; PART];
        match recv(self.stream.as_raw_fd(), &mut part, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => self.bytes.extend(&part[..length]),
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
        let mut left = &self.bytes[..];
        while let Some((frame, rest)) = first_frame(left)? {
            give(frame);
            left = rest;
        }
        let read = self.bytes.len() - left.len();
        self.bytes.drain(..read);
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
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (mut end, _input) = open(ours);
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
                Err(_) if !end.waits() => break,
                Err(_) => {
                    let _ = end.flush();
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
