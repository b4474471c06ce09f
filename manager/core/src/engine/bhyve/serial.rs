//! Serial line to a guest: the host's end of a null modem, nmdm(4).
//!
//! The agent's protocol (docs/bhyve.md) is lines of text. A request is `@TAG WORDS`, its answer
//! `!TAG WORDS`; all other lines come from other programs, and the reader passes over them. The tag
//! is new for each request, so a late answer is never taken for another's. An answer that begins
//! with `error` is a refusal.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr},
};

use crate::guest_id::random;

/// How often a wait checks whether it was cancelled.
const CANCEL_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Time without an answer after which a repeatable request is sent again; it doubles with each
/// repetition. A null modem keeps what a slow guest has not read, and the guest reads all of that
/// before anything new, so copies must be few: five in 50 s are less than what nmdm(4) holds for a
/// guest that reads nothing, and close(2) of this side does not wait for them.
const REPEAT: Duration = Duration::from_secs(2);
/// Longest line that is waited for the end of.
const LINE_MAX: usize = 64 << 10;

/// Why a guest gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// It said that it cannot.
    #[error("the guest says: {0}")]
    Refused(String),
    /// Nothing came in time.
    #[error("no answer came in time")]
    Timeout,
    /// The wait was given up: the guest's process has ended, or the caller cancelled.
    #[error("the wait was given up")]
    GivenUp,
    /// The line.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// An open line.
#[derive(Debug)]
pub(super) struct Line {
    file: File,
    received: Vec<u8>,
}

/// How long, and whether still, to wait.
#[derive(Clone, Copy)]
pub(super) struct Wait<'a> {
    pub(super) until: Instant,
    pub(super) still: &'a dyn Fn() -> bool,
}

impl Line {
    /// Opens the host's end. What the guest said before that is lost, or still to be read.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags((OFlag::O_NOCTTY | OFlag::O_NONBLOCK).bits())
            .open(path)?;
        let mut modes = tcgetattr(&file)?;
        cfmakeraw(&mut modes);
        tcsetattr(&file, SetArg::TCSANOW, &modes)?;
        Ok(Self {
            file,
            received: Vec::new(),
        })
    }

    /// The open line itself.
    pub(super) fn into_file(self) -> File {
        self.file
    }

    /// Opens it as soon as it is there.
    pub(super) fn open_when_there(path: &Path, wait: Wait<'_>) -> Result<Self, Error> {
        loop {
            match Self::open(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => return Ok(other?),
            }
            check(wait)?;
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Puts a request to the agent and waits for its answer.
    pub(super) fn ask(&mut self, words: &str, wait: Wait<'_>) -> Result<String, Error> {
        self.request(words, wait, false)
    }

    /// The same, for a request that can be repeated, to a guest that may not listen yet.
    pub(super) fn insist(&mut self, words: &str, wait: Wait<'_>) -> Result<String, Error> {
        self.request(words, wait, true)
    }

    fn request(&mut self, words: &str, wait: Wait<'_>, repeat: bool) -> Result<String, Error> {
        let tag = u32::from_ne_bytes(random()?);
        // The first newline ends whatever half a line is at the guest already.
        let request = format!("\n@{tag:08x} {words}\n");
        let prefix = format!("!{tag:08x} ");
        self.send(request.as_bytes(), wait)?;
        let (mut sent, mut patience) = (Instant::now(), REPEAT);
        loop {
            if let Some(line) = self.line(wait)? {
                if let Some(answer) = line.strip_prefix(&prefix) {
                    return match answer.strip_prefix("error") {
                        Some(why) => Err(Error::Refused(
                            why.trim_start_matches([':', ' ']).to_owned(),
                        )),
                        None => Ok(answer.to_owned()),
                    };
                }
            } else if repeat && sent.elapsed() > patience {
                self.send(request.as_bytes(), wait)?;
                (sent, patience) = (Instant::now(), patience * 2);
            }
        }
    }

    /// Waits until the guest has written these words.
    pub(super) fn expect(&mut self, words: &str, wait: Wait<'_>) -> Result<(), Error> {
        loop {
            let text = String::from_utf8_lossy(&self.received);
            if text.contains(words) {
                return Ok(());
            }
            // Words may come in pieces: as much is kept as could be their beginning.
            let keep = self.received.len().min(words.len().max(LINE_MAX));
            self.received.drain(..self.received.len() - keep);
            self.receive(wait)?;
        }
    }

    /// The next whole line; `None` when none came for a while.
    fn line(&mut self, wait: Wait<'_>) -> Result<Option<String>, Error> {
        if let Some(end) = self.received.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            let text = String::from_utf8_lossy(&line);
            return Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()));
        }
        if self.received.len() > LINE_MAX {
            self.received.clear();
        }
        self.receive(wait)?;
        Ok(None)
    }

    fn receive(&mut self, wait: Wait<'_>) -> Result<(), Error> {
        if !self.ready(PollFlags::POLLIN, wait)? {
            return Ok(());
        }
        let mut bytes = [0; 4096];
        match self.file.read(&mut bytes) {
            // No process has the other end open: not yet, or not any more.
            Ok(0) => std::thread::sleep(Duration::from_millis(2)),
            Ok(count) => self.received.extend_from_slice(&bytes[..count]),
            Err(e) if e.raw_os_error() == Some(libc::EIO) => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    fn send(&mut self, mut bytes: &[u8], wait: Wait<'_>) -> Result<(), Error> {
        while !bytes.is_empty() {
            if !self.ready(PollFlags::POLLOUT, wait)? {
                continue;
            }
            match self.file.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Waits a short while for the line; whether it is ready.
    fn ready(&self, what: PollFlags, wait: Wait<'_>) -> Result<bool, Error> {
        check(wait)?;
        let left = wait.until.saturating_duration_since(Instant::now());
        let timeout =
            PollTimeout::try_from(left.min(CANCEL_POLL_INTERVAL)).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(self.file.as_fd(), what)];
        match poll(&mut fds, timeout) {
            Ok(count) => Ok(count > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(e) => Err(io::Error::from(e).into()),
        }
    }
}

fn check(wait: Wait<'_>) -> Result<(), Error> {
    if !(wait.still)() {
        Err(Error::GivenUp)
    } else if Instant::now() >= wait.until {
        Err(Error::Timeout)
    } else {
        Ok(())
    }
}
