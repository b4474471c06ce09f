//! Way to the agent of a guest, for all processes of this host.
//!
//! Two files in the guest's folder belong to it: `channel`, which is locked by whoever has the
//! channel, and `broker`, the socket of the broker. A broker holds the lock for as long as it lives,
//! so one that was killed leaves a socket that nobody listens on and a lock that is free.

use std::{
    fs::{self, File, TryLockError},
    io::{self, ErrorKind},
    os::{
        fd::OwnedFd,
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
    unistd::{ForkResult, fork, setsid},
};

use super::serve::BROKER_COMMAND;
use crate::{agent::Channel, owner_only};

const LOCK: &str = "channel";
const SOCKET: &str = "broker";

/// How the channel is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nobody else knows of the guest yet.
    Alone,
    /// For a few requests: by the broker if there is one, else with the channel to oneself.
    Short,
    /// For as long as anybody likes, beside others: by a broker, which is started if there is none.
    Shared,
}

/// The way to a guest's agent.
pub struct AgentPort<'a> {
    /// The guest's folder.
    pub folder: &'a Path,
    /// The brood binary.
    pub program: &'a Path,
    /// Words that tell the broker's process whose channel it is; none for a channel that ends with
    /// its guest.
    pub guest: &'a [String],
    /// Opens the channel to the guest, which the caller has to itself.
    pub open: &'a dyn Fn() -> io::Result<OwnedFd>,
    /// Makes a channel of what was opened, where no broker does.
    pub channel: &'a dyn Fn(OwnedFd) -> io::Result<Channel>,
}

/// A channel that was opened.
#[derive(Debug)]
pub struct Way {
    /// The channel.
    pub channel: Channel,
    /// Whether a broker is at its other end. It may have ended just now.
    pub by_broker: bool,
}

impl AgentPort<'_> {
    /// Opens the way to the agent; none while another process has the channel to itself.
    ///
    /// # Errors
    /// The guest's channel cannot be opened, or no broker be started.
    pub fn way(&self, access: Access) -> io::Result<Option<Way>> {
        if access == Access::Alone {
            return Ok(Some(Way {
                channel: (self.channel)((self.open)()?)?,
                by_broker: false,
            }));
        }
        let by_broker = |socket| {
            Ok(Some(Way {
                channel: Channel::over(socket)?,
                by_broker: true,
            }))
        };
        let place = Place::of(self.folder)?;
        match UnixStream::connect(place.path(SOCKET)) {
            Ok(socket) => return by_broker(socket),
            Err(e) if is_absent(&e) => {}
            Err(e) => return Err(e),
        }
        let mut options = owner_only::options();
        let lock = options.append(true).create(true).open(place.path(LOCK))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        let channel = (self.open)()?;
        if access == Access::Short {
            return Ok(Some(Way {
                channel: (self.channel)(channel)?.holding(lock),
                by_broker: false,
            }));
        }
        // Of a broker that was killed.
        match fs::remove_file(place.path(SOCKET)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(place.path(SOCKET))?;
        self.start(channel, listener, lock)?;
        by_broker(UnixStream::connect(place.path(SOCKET))?)
    }

    /// Starts a broker, which belongs to nobody: it outlives this process, and this process need not
    /// wait for its end.
    fn start(&self, channel: OwnedFd, listener: UnixListener, lock: File) -> io::Result<()> {
        let mut command = Command::new(self.program);
        command
            .arg(BROKER_COMMAND)
            // For people who look at the list of processes.
            .arg(self.folder)
            .args(self.guest)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(channel))
            .stdout(Stdio::from(OwnedFd::from(listener)))
            .stderr(Stdio::from(lock));
        // SAFETY: detach() makes system calls only, and allocates nothing.
        unsafe { command.pre_exec(detach) };
        let status = command.spawn()?.wait()?;
        match status.success() {
            true => Ok(()),
            false => Err(io::Error::other(format!("its broker: {status}"))),
        }
    }
}

/// Between fork and exec: a session of its own, and a parent that is init.
fn detach() -> io::Result<()> {
    setsid()?;
    // SAFETY: the child of this fork goes on to exec, as its parent would have.
    match unsafe { fork() }? {
        // SAFETY: _exit(2) runs nothing of this process.
        ForkResult::Parent { .. } => unsafe { libc::_exit(0) },
        ForkResult::Child => Ok(()),
    }
}

/// Nobody listens there.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused
    )
}

/// A folder with sockets. The path of a socket may have 107 bytes, that of a state folder more, so on
/// Linux the way goes by a descriptor of the folder.
pub(crate) struct Place {
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "see path()"))]
    folder: OwnedFd,
    #[cfg_attr(target_os = "linux", expect(dead_code, reason = "see path()"))]
    path: PathBuf,
}

impl Place {
    pub(crate) fn of(path: &Path) -> io::Result<Place> {
        #[cfg(target_os = "linux")]
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY;
        #[cfg(not(target_os = "linux"))]
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY;
        Ok(Place {
            folder: open(path, flags, Mode::empty())?,
            path: path.to_owned(),
        })
    }

    /// A short path of a file in it, as long as this value lives.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        #[cfg(target_os = "linux")]
        return {
            use std::os::fd::AsRawFd;
            format!("/proc/self/fd/{}/{name}", self.folder.as_raw_fd()).into()
        };
        #[cfg(not(target_os = "linux"))]
        return self.path.join(name);
    }
}
