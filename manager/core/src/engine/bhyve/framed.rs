//! Channel to `brood-agent` in a guest: bytes over a null modem, nmdm(4).
//!
//! A null modem tells nobody that the other side was closed for good, so the reader looks whether
//! the guest's process lives.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::serial::Line;
use crate::{
    agent::{Agent, Channel},
    engine::{Error, Process, agent_ask, agent_session::Attempts},
};

/// How long a guest may leave what it is sent untaken.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// How often a silent line's guest is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How often a line is tried that has nobody at its other side.
const RETRY: Duration = Duration::from_millis(2);

/// An open line, and what ends its reads.
#[derive(Debug)]
struct OpenLine {
    file: File,
    /// Reads and writes end when this is shut down.
    closed: UnixStream,
    process: Process,
}

impl OpenLine {
    /// Waits a while for the line. Whether it is ready; an error once it was closed.
    fn ready(&self, what: PollFlags, at_most: Duration) -> io::Result<bool> {
        let mut fds = [
            PollFd::new(self.file.as_fd(), what),
            PollFd::new(self.closed.as_fd(), PollFlags::POLLIN),
        ];
        let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) if fds[1].any().unwrap_or_default() => Err(ErrorKind::BrokenPipe.into()),
            Ok(_) => Ok(fds[0].any().unwrap_or_default()),
            Err(Errno::EINTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

struct Reader(Arc<OpenLine>);

impl Read for Reader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.ready(PollFlags::POLLIN, LOOK) {
                Ok(true) => match (&self.0.file).read(bytes) {
                    Ok(count) if count > 0 => return Ok(count),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    // No process has the other side open: not yet, or not any more.
                    Ok(_) => thread::sleep(RETRY),
                    Err(e) if e.raw_os_error() == Some(libc::EIO) => thread::sleep(RETRY),
                    Err(e) => return Err(e),
                },
                Ok(false) => {}
                Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(0),
                Err(e) => return Err(e),
            }
            if !self.0.process.may_live() {
                return Ok(0);
            }
        }
    }
}

struct Writer(Arc<OpenLine>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let begin = Instant::now();
        loop {
            let left = WRITE_LIMIT.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            if !self.0.process.may_live() {
                return Err(ErrorKind::BrokenPipe.into());
            }
            if !self.0.ready(PollFlags::POLLOUT, left.min(LOOK))? {
                continue;
            }
            match (&self.0.file).write(bytes) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY),
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens the host's side of a guest's null modem.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(Line::open(path)?.into_file().into())
}

/// The channel over an open null modem, which ends with the guest's process.
pub(super) fn channel(line: OwnedFd, process: Process) -> io::Result<Channel> {
    let (closer, closed) = UnixStream::pair()?;
    let line = Arc::new(OpenLine {
        file: line.into(),
        closed,
        process,
    });
    let (reader, writer) = (Reader(Arc::clone(&line)), Writer(line));
    Ok(Channel::new(reader, writer, move || {
        let _ = closer.shutdown(Shutdown::Both);
    }))
}

/// Tries once to begin a session with the agent of a guest that nobody else knows of yet, within
/// `limit` and as long as that is `wanted`; `None` when it did not answer yet.
pub(super) fn attempt(
    path: &Path,
    process: Process,
    limit: Duration,
    attempts: &mut Attempts,
    wanted: &dyn Fn() -> bool,
) -> Result<Option<Agent>, agent_ask::Error> {
    let channel = match open(path).and_then(|line| channel(line, process)) {
        Ok(channel) => channel,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            thread::sleep(RETRY);
            return Ok(None);
        }
        Err(source) => {
            return Err(agent_ask::Error::Other(Error::Io {
                action: "open the guest's serial line",
                source,
            }));
        }
    };
    match Agent::over_while(channel, attempts.next(limit), wanted) {
        Ok(agent) => Ok(Some(agent)),
        Err(e) => match agent_ask::Error::of(e, limit) {
            agent_ask::Error::Other(Error::Timeout(_)) => Ok(None),
            e => Err(e),
        },
    }
}
