//! Channels: byte streams to an agent.

use std::{
    fmt,
    fs::File,
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::{SFlag, fstat},
};

use super::AgentError;

/// How long a guest may leave what it is sent untaken.
pub(super) const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// How often a socket is tried that nobody listens on yet.
const CONNECT_INTERVAL: Duration = Duration::from_millis(2);

/// A byte stream to an agent, as its two directions.
pub struct Channel {
    pub(super) reader: Box<dyn Read + Send>,
    pub(super) writer: Box<dyn Write + Send>,
    pub(super) close: Box<dyn Fn() + Send + Sync>,
    /// What is written waits until the guest reads it.
    pub(super) lossless: bool,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").finish_non_exhaustive()
    }
}

impl Channel {
    /// A channel of any two halves. `close` has to end a read that waits; a writer has to fail when
    /// the guest takes nothing for a long time.
    pub fn new(
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
        close: impl Fn() + Send + Sync + 'static,
    ) -> Channel {
        Channel {
            reader: Box::new(reader),
            writer: Box::new(writer),
            close: Box::new(close),
            lossless: false,
        }
    }

    /// The same of a guest whose port is open, and whose device loses nothing: so a hello need not be
    /// repeated soon. Each one wakes the guest, and is answered.
    #[cfg(any(target_os = "linux", test))]
    pub(crate) fn lossless(mut self) -> Channel {
        self.lossless = true;
        self
    }

    /// A channel over a connected unix socket.
    ///
    /// # Errors
    /// The system refuses another descriptor.
    pub fn over(socket: UnixStream) -> io::Result<Channel> {
        socket.set_write_timeout(Some(WRITE_LIMIT))?;
        socket.set_read_timeout(None)?;
        let (reader, closer) = (socket.try_clone()?, socket.try_clone()?);
        Ok(Channel::new(reader, socket, move || {
            let _ = closer.shutdown(Shutdown::Both);
        }))
    }

    /// A channel over an open descriptor: a unix socket, or a terminal line in raw mode.
    ///
    /// # Errors
    /// The system refuses another descriptor.
    pub fn of(fd: OwnedFd) -> io::Result<Channel> {
        let kind = SFlag::from_bits_truncate(fstat(&fd)?.st_mode);
        if kind.contains(SFlag::S_IFSOCK) {
            Channel::over(fd.into())
        } else {
            Channel::over_line(fd)
        }
    }

    /// A channel over a line that does not know its other end: it waits for bytes by poll(2), so that
    /// it can be told to end.
    fn over_line(fd: OwnedFd) -> io::Result<Channel> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let (closed, closer) = UnixStream::pair()?;
        let reader = Line {
            file: File::from(fd.try_clone()?),
            closed: Some(closed),
        };
        let writer = Line {
            file: File::from(fd),
            closed: None,
        };
        Ok(Channel::new(reader, writer, move || {
            let _ = closer.shutdown(Shutdown::Both);
        }))
    }

    /// The same, which holds a lock until it is closed.
    pub(super) fn holding(self, lock: File) -> Channel {
        let Channel {
            reader,
            writer,
            close,
            lossless,
        } = self;
        Channel {
            reader,
            writer,
            lossless,
            close: Box::new(move || {
                let _held = &lock;
                close();
            }),
        }
    }

    /// Connects to a unix socket. Waits until then for somebody who listens.
    pub(super) fn connect(path: &Path, until: Instant) -> Result<Channel, AgentError> {
        loop {
            let source = match UnixStream::connect(path).and_then(Channel::over) {
                Ok(channel) => return Ok(channel),
                Err(e) => e,
            };
            let may_come = matches!(
                source.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::WouldBlock
            );
            if !may_come || Instant::now() >= until {
                let path = path.to_path_buf();
                return Err(AgentError::Connect { path, source });
            }
            thread::sleep(CONNECT_INTERVAL);
        }
    }
}

/// One direction of a line.
struct Line {
    file: File,
    /// Readable when the line is to end.
    closed: Option<UnixStream>,
}

impl Line {
    /// Waits until the line can be used; whether it is to end.
    fn wait(&self, direction: PollFlags, timeout: PollTimeout) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(self.file.as_fd(), direction)];
        if let Some(closed) = &self.closed {
            fds.push(PollFd::new(closed.as_fd(), PollFlags::POLLIN));
        }
        if poll(&mut fds, timeout)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(fds.get(1).and_then(PollFd::any).unwrap_or(false))
    }
}

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.wait(PollFlags::POLLIN, PollTimeout::NONE)? {
                return Ok(0);
            }
            match self.file.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let limit = PollTimeout::try_from(WRITE_LIMIT).unwrap_or(PollTimeout::MAX);
        loop {
            self.wait(PollFlags::POLLOUT, limit)?;
            match self.file.write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
