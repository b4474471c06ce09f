//! Frames: messages between two zero bytes, with a checksum.
//!
//! ```text
//! 00 │ stuffed( direction: u8 │ session: u64 │ request: u32 │ message … │ crc32: u32 ) │ 00
//! ```
//!
//! The stuffed bytes hold no zero ([`crate::cobs`]), so a zero is always the edge of a frame:
//! whatever came before, garbage or the half of a frame whose sender went away, the next whole
//! frame is found, and no message can hold bytes that look like one.

use std::{fmt, marker::PhantomData};

use crate::{
    cobs,
    limits::{MAX_BODY, MAX_DATA, VERSION},
    message::Message,
};

/// Bytes before a message: direction, session, request.
const HEAD: usize = 1 + 8 + 4;
const CHECKSUM: usize = 4;
const MAX_STUFFED: usize = cobs::max_stuffed(HEAD + MAX_BODY + CHECKSUM);

/// Which way a frame goes. An end drops frames of its own direction: a serial line may echo them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// From the host to the guest.
    ToGuest = b'h',
    /// From the guest to the host.
    ToHost = b'g',
}

/// A connection of a host, by a number that the host draws at random. 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId(pub u64);

impl SessionId {
    /// What frames carry that belong to no session.
    pub const NONE: SessionId = SessionId(0);
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A request of a session, by a number that the host gives once. 0 is the session itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u32);

impl RequestId {
    /// What frames carry that belong to no request.
    pub const NONE: RequestId = RequestId(0);
}

/// A message cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Its encoding is longer than a frame may be.
    #[error("a message of {0} bytes is longer than the {MAX_BODY} bytes of a frame")]
    TooLong(usize),
    /// A value in it cannot be encoded.
    #[error("a message cannot be encoded: {0}")]
    Codec(String),
}

/// The message of a frame cannot be decoded, though the frame's checksum is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its message is none that version {VERSION} of the protocol has, or is beyond a limit")]
pub struct Undecodable;

/// Appends the frame of this message to `out`.
///
/// # Errors
/// The message is too long; nothing is appended then.
pub fn encode<M: Message>(
    session: SessionId,
    request: RequestId,
    message: &M,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let mut plain = Vec::with_capacity(64);
    plain.push(M::DIRECTION as u8);
    plain.extend_from_slice(&session.0.to_le_bytes());
    plain.extend_from_slice(&request.0.to_le_bytes());
    let plain = postcard::to_extend(message, plain);
    let mut plain = plain.map_err(|e| EncodeError::Codec(e.to_string()))?;
    let body = plain.len() - HEAD;
    if body > MAX_BODY {
        return Err(EncodeError::TooLong(body));
    }
    let checksum = crc32fast::hash(&plain);
    plain.extend_from_slice(&checksum.to_le_bytes());
    out.push(0);
    cobs::stuff(&plain, out);
    out.push(0);
    Ok(())
}

/// A frame whose checksum is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received<M> {
    /// The session that it says it belongs to.
    pub session: SessionId,
    /// The request that it says it belongs to.
    pub request: RequestId,
    /// The message, if it is one that this version knows and it is within the limits.
    pub message: Result<M, Undecodable>,
}

/// What a [`Decoder`] passed over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Bytes between zeros that are no frame: garbage, or part of a frame.
    pub garbage: u64,
    /// Frames of the other direction: an echo.
    pub echoes: u64,
}

/// Bytes in, messages out, however the bytes are cut.
#[derive(Debug)]
pub struct Decoder<M> {
    /// What came since the last zero, unless `overlong`.
    stuffed: Vec<u8>,
    /// More has come since the last zero than a frame is long.
    overlong: bool,
    plain: Vec<u8>,
    dropped: Dropped,
    message: PhantomData<M>,
}

impl<M> Default for Decoder<M> {
    fn default() -> Decoder<M> {
        Decoder {
            stuffed: Vec::new(),
            overlong: false,
            plain: Vec::new(),
            dropped: Dropped::default(),
            message: PhantomData,
        }
    }
}

impl<M: Message> Decoder<M> {
    /// Takes bytes from the front of `input` up to the end of a frame, and returns that. Nothing when
    /// `input` is used up and has no more: the decoder then needs other bytes.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Received<M>> {
        while let Some(zero) = memchr::memchr(0, input) {
            let (part, rest) = input.split_at(zero);
            *input = &rest[1..];
            self.append(part);
            if let Some(received) = self.frame() {
                return Some(received);
            }
        }
        let part = std::mem::take(input);
        self.append(part);
        None
    }

    /// What was passed over so far.
    #[must_use]
    pub fn dropped(&self) -> Dropped {
        self.dropped
    }

    fn append(&mut self, part: &[u8]) {
        if self.overlong || self.stuffed.len() + part.len() > MAX_STUFFED {
            self.overlong = true;
            self.dropped.garbage += u64::try_from(self.stuffed.len() + part.len()).unwrap_or(0);
            self.stuffed.clear();
        } else {
            self.stuffed.extend_from_slice(part);
        }
    }

    /// The frame that a zero has ended, if it is one.
    fn frame(&mut self) -> Option<Received<M>> {
        let overlong = std::mem::take(&mut self.overlong);
        if overlong || self.stuffed.is_empty() {
            return None;
        }
        let checked = self.check();
        if matches!(checked, Check::Garbage) {
            self.dropped.garbage += u64::try_from(self.stuffed.len()).unwrap_or(0);
        }
        self.stuffed.clear();
        match checked {
            Check::Frame(received) => Some(received),
            Check::Echo => {
                self.dropped.echoes += 1;
                None
            }
            Check::Garbage => None,
        }
    }

    fn check(&mut self) -> Check<M> {
        self.plain.clear();
        if cobs::unstuff(&self.stuffed, &mut self.plain).is_none() {
            return Check::Garbage;
        }
        let Some((covered, checksum)) = self.plain.split_last_chunk::<CHECKSUM>() else {
            return Check::Garbage;
        };
        let Some((head, body)) = covered.split_first_chunk::<HEAD>() else {
            return Check::Garbage;
        };
        if crc32fast::hash(covered) != u32::from_le_bytes(*checksum) || body.len() > MAX_BODY {
            return Check::Garbage;
        }
        let [direction, session @ .., r0, r1, r2, r3] = head;
        if *direction != M::DIRECTION as u8 {
            return Check::Echo;
        }
        let fits = |message: &M| message.data().is_none_or(|data| data.len() <= MAX_DATA);
        let message = postcard::from_bytes::<M>(body).ok().filter(fits);
        Check::Frame(Received {
            session: SessionId(u64::from_le_bytes(*session)),
            request: RequestId(u32::from_le_bytes([*r0, *r1, *r2, *r3])),
            message: message.ok_or(Undecodable),
        })
    }
}

enum Check<M> {
    Frame(Received<M>),
    Echo,
    Garbage,
}
