//! A guest's process, told apart from a later one with the same number by when it started.

use std::{
    fs, io,
    os::fd::{AsFd, FromRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};
use serde::{Deserialize, Serialize};

/// A process id and the moment it was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Process {
    /// The process id.
    pub pid: i32,
    /// When it started, in clock ticks since the host booted (proc_pid_stat(5), field 22).
    pub start_time: u64,
}

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// It runs, or waits for something.
    Running,
    /// It was stopped by SIGSTOP.
    Stopped,
    /// It is gone.
    Gone,
}

impl Process {
    /// The process that has this id now.
    #[must_use]
    pub fn with_pid(pid: i32) -> Option<Self> {
        let (_, start_time) = stat(pid)?;
        Some(Self { pid, start_time })
    }

    /// What the process is doing.
    #[must_use]
    pub fn state(&self) -> ProcessState {
        match stat(self.pid) {
            Some((state, start_time)) if start_time == self.start_time => match state {
                'Z' | 'X' => ProcessState::Gone,
                'T' | 't' => ProcessState::Stopped,
                _ => ProcessState::Running,
            },
            _ => ProcessState::Gone,
        }
    }

    /// Sends a signal to this very process; `false` when it is gone.
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        let Some(pidfd) = self.open()? else {
            return Ok(false);
        };
        send(&pidfd, signal)
    }

    /// A descriptor of this very process; `None` when it is gone.
    ///
    /// # Errors
    /// When out of descriptors.
    pub fn open(&self) -> io::Result<Option<OwnedFd>> {
        // SAFETY: pidfd_open touches no memory of this process.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ESRCH) {
                Ok(None)
            } else {
                Err(error)
            };
        }
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the descriptor is new and nobody else's.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd) };
        // The descriptor holds on to whatever has the id; was it ours?
        Ok((self.state() != ProcessState::Gone).then_some(pidfd))
    }
}

/// Sends a signal to the process of a descriptor; `false` when it is gone.
pub(crate) fn send(pidfd: &OwnedFd, signal: Signal) -> io::Result<bool> {
    use std::os::fd::AsRawFd;
    let (fd, signal) = (pidfd.as_raw_fd(), signal as libc::c_int);
    // SAFETY: no signal information is passed, so no memory is touched.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd,
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if sent == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ESRCH) {
        Ok(false)
    } else {
        Err(error)
    }
}

/// Waits for the end of the process of a descriptor; `false` when it goes on past `timeout`.
pub(crate) fn wait_for_end(pidfd: &OwnedFd, timeout: Duration) -> io::Result<bool> {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    Ok(poll(&mut fds, timeout)? > 0)
}

/// State letter and start time of a process.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, parentheses too.
    let rest = text.get(text.iter().rposition(|b| *b == b')')? + 2..)?;
    let mut fields = std::str::from_utf8(rest).ok()?.split(' ');
    let state = fields.next()?.chars().next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((state, start_time))
}
