//! Channel to `brood-agent` in a guest: bytes over a null modem, nmdm(4).
//!
//! A null modem tells nobody that the other side was closed for good, so the reader looks whether
//! the guest's process lives.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::Flock,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{folder::Folder, serial::Line};
use crate::{
    agent::{Agent, Channel},
    engine::{Error, Limit, Process, agent_ask},
};

/// How long a guest may leave what it is sent untaken.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// How often a silent line's guest is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How often a line is tried that has nobody at its other side, or that another command uses.
const RETRY: Duration = Duration::from_millis(2);
/// How long one attempt to begin a session may take, before the wait is looked at again.
const ATTEMPT: Duration = Duration::from_millis(1000);

/// The lock of a guest's line. Whoever holds it has the line to itself.
pub(super) type LineLock = Flock<File>;

/// An open line, and what ends its reads.
#[derive(Debug)]
struct OpenLine {
    file: File,
    /// Reads and writes end when this is shut down.
    closed: UnixStream,
    process: Process,
    _lock: Option<LineLock>,
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

/// Opens the host's side of a guest's null modem. The lock is held until the channel is gone.
fn channel(path: &Path, process: Process, lock: Option<LineLock>) -> io::Result<Channel> {
    let (closer, closed) = UnixStream::pair()?;
    let line = Arc::new(OpenLine {
        file: Line::open(path)?.into_file(),
        closed,
        process,
        _lock: lock,
    });
    let (reader, writer) = (Reader(Arc::clone(&line)), Writer(line));
    Ok(Channel::new(reader, writer, move || {
        let _ = closer.shutdown(Shutdown::Both);
    }))
}

/// Tries once to begin a session with the agent at this line; `None` when it did not answer yet.
pub(super) fn attempt(
    path: &Path,
    process: Process,
    limit: Duration,
) -> Result<Option<Agent>, agent_ask::Error> {
    begin(path, process, None, limit.min(ATTEMPT), limit)
}

fn begin(
    path: &Path,
    process: Process,
    lock: Option<LineLock>,
    attempt: Duration,
    limit: Duration,
) -> Result<Option<Agent>, agent_ask::Error> {
    let channel = match channel(path, process, lock) {
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
    match Agent::over(channel, attempt) {
        Ok(agent) => Ok(Some(agent)),
        Err(e) => match agent_ask::Error::of(e, limit) {
            agent_ask::Error::Other(Error::Timeout(_)) => Ok(None),
            e => Err(e),
        },
    }
}

/// Begins a session with the agent of a running guest, once no other command uses its line.
pub(super) fn connect(
    folder: &Folder,
    path: &Path,
    process: Process,
    limit: Limit<'_>,
) -> Result<Agent, agent_ask::Error> {
    let other = agent_ask::Error::Other;
    let begun = Instant::now();
    let mut was_busy = false;
    loop {
        let left = limit.timeout.saturating_sub(begun.elapsed());
        if limit.is_cancelled() {
            return Err(other(Error::Interrupted));
        }
        if left.is_zero() && was_busy {
            return Err(other(Error::Busy));
        }
        if left.is_zero() {
            return Err(other(Error::Timeout(limit.timeout)));
        }
        let lock = folder.lock().map_err(|source| {
            other(Error::Io {
                action: "lock the guest's serial line",
                source,
            })
        })?;
        was_busy = lock.is_none();
        if was_busy {
            thread::sleep(RETRY);
            continue;
        }
        if let Some(agent) = begin(path, process, lock, left.min(ATTEMPT), limit.timeout)? {
            return Ok(agent.with_limit(limit.timeout));
        }
    }
}
