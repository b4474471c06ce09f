//! Channels: byte streams to an agent.

use std::{
    fmt,
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
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
        }
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
