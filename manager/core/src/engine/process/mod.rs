//! Process of a guest: its id and start time, which together tell it from a later process with the
//! same id.

mod confinement;
#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(any(target_os = "freebsd", test))]
mod kinfo;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(any(target_os = "freebsd", test))]
mod vmmap;

use std::{
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

pub use confinement::Confinement;
#[cfg(target_os = "freebsd")]
use freebsd as system;
#[cfg(target_os = "linux")]
use linux as system;
pub use system::Handle;
pub(crate) use system::namespace;

/// A process id and the moment it was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Process {
    /// The process id.
    pub pid: i32,
    /// When it started, counted from when the host booted: in clock ticks on Linux
    /// (proc_pid_stat(5), field 22), in microseconds on FreeBSD (`ki_start` less `kern.boottime`).
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
    /// The process that has this id now; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be looked at: out of descriptors or memory, no permission, no /proc.
    pub fn with_pid(pid: i32) -> io::Result<Option<Self>> {
        let found = system::look(pid)?;
        Ok(found.map(|(_, start_time)| Self { pid, start_time }))
    }

    /// What the process is doing. It is [`ProcessState::Gone`] only when the kernel says so.
    ///
    /// # Errors
    /// When it cannot be looked at: then it is unknown whether it lives.
    pub fn state(&self) -> io::Result<ProcessState> {
        Ok(match system::look(self.pid)? {
            Some((state, start_time)) if start_time == self.start_time => state,
            _ => ProcessState::Gone,
        })
    }

    /// Whether it may live: `true` for one that cannot be looked at.
    #[must_use]
    pub(crate) fn may_live(&self) -> bool {
        !matches!(self.state(), Ok(ProcessState::Gone))
    }

    /// What confines it; `None` when it is gone.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn confinement(&self) -> io::Result<Option<Confinement>> {
        let found = system::confinement(self.pid)?;
        // Another may have its number by now.
        Ok(found.filter(|_| self.may_live()))
    }

    /// Its command line, words parted by blanks, or the title that it has given itself; empty when it
    /// has none, as for a moment after exec(2). `None` when it is gone.
    pub(crate) fn command_line(&self) -> io::Result<Option<String>> {
        let words = system::command_line(self.pid)?;
        Ok(words.map(|words| {
            let words = words.strip_suffix(b"\0").unwrap_or(&words);
            String::from_utf8_lossy(words).replace('\0', " ")
        }))
    }

    /// Whether it works in this folder, which may be gone itself. `false` when that may not be
    /// seen.
    pub(crate) fn works_in(&self, folder: &Path) -> bool {
        let Ok(Some(cwd)) = system::works_in(self.pid) else {
            return false;
        };
        let cwd = cwd.as_os_str().as_bytes();
        // Linux marks a removed folder so.
        cwd.strip_suffix(b" (deleted)").unwrap_or(cwd) == folder.as_os_str().as_bytes()
    }

    /// Its children that have this file open.
    pub(crate) fn children_with(&self, file: &std::fs::Metadata) -> Vec<Self> {
        system::children_with(self.pid, file)
    }

    /// Sends a signal to this very process; `false` when it is gone.
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        let Some(handle) = self.open()? else {
            return Ok(false);
        };
        send(&handle, signal)
    }

    /// Takes hold of this very process; `None` when it is gone. Takes one descriptor.
    ///
    /// # Errors
    /// When out of descriptors.
    pub fn open(&self) -> io::Result<Option<Handle>> {
        system::open(self)
    }
}

/// Resident memory of a process that is its own, on systems without `/proc`: see
/// [`vmmap::own_pages`].
#[cfg(target_os = "freebsd")]
pub(crate) fn own_memory(process: Process) -> Option<crate::units::Bytes> {
    system::own_memory(process.pid)
}

/// The absolute path of a folder that may not be there, or not any more, as the system calls it
/// that processes work in.
pub(crate) fn absolute(dir: &Path) -> io::Result<PathBuf> {
    let dir = std::path::absolute(dir)?;
    let mut missing = Vec::new();
    let mut there = dir.as_path();
    loop {
        if let Ok(found) = there.canonicalize() {
            return Ok(missing
                .iter()
                .rev()
                .fold(found, |path, name| path.join(name)));
        }
        let (Some(parent), Some(name)) = (there.parent(), there.file_name()) else {
            return Ok(dir);
        };
        missing.push(name.to_owned());
        there = parent;
    }
}

/// Sends a signal to a process that is held; `false` when it is gone.
pub(crate) fn send(handle: &Handle, signal: Signal) -> io::Result<bool> {
    system::send(handle, signal)
}

/// Waits for the end of a process that is held; `false` when it goes on past `timeout`.
pub(crate) fn wait_for_end(handle: &Handle, timeout: Duration) -> io::Result<bool> {
    system::wait_for_end(handle, timeout)
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::CommandExt,
        process::{Child, Command, Stdio},
    };

    use nix::{
        sys::wait::{WaitPidFlag, WaitStatus, waitpid},
        unistd::Pid,
    };

    use super::*;

    /// A process that waits until its standard input is closed.
    fn waiting() -> (Child, Process) {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = Process::with_pid(child.id().cast_signed())
            .unwrap()
            .unwrap();
        (child, process)
    }

    #[test]
    fn a_process_has_the_command_line_that_it_was_started_with() {
        let this = Process::with_pid(std::process::id().cast_signed());
        let line = this.unwrap().unwrap().command_line().unwrap().unwrap();
        let words: Vec<String> = std::env::args().collect();
        assert_eq!(line, words.join(" "));
        let (mut child, process) = waiting();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(process.command_line().unwrap(), None);
    }

    #[test]
    fn a_process_is_stopped_continued_and_ended() {
        let (mut child, process) = waiting();
        assert_eq!(process.state().unwrap(), ProcessState::Running);
        assert_eq!(Process::with_pid(process.pid).unwrap(), Some(process));
        assert!(process.signal(Signal::SIGSTOP).unwrap());
        let pid = Pid::from_raw(process.pid);
        let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGSTOP));
        assert_eq!(process.state().unwrap(), ProcessState::Stopped);
        assert!(process.signal(Signal::SIGCONT).unwrap());
        assert_ne!(process.state().unwrap(), ProcessState::Gone);

        let handle = process.open().unwrap().unwrap();
        assert!(!wait_for_end(&handle, Duration::ZERO).unwrap());
        assert!(send(&handle, Signal::SIGKILL).unwrap());
        assert!(wait_for_end(&handle, Duration::from_secs(60)).unwrap());
        // Nobody has waited for it yet.
        assert_eq!(process.state().unwrap(), ProcessState::Gone);
        child.wait().unwrap();
        assert!(wait_for_end(&handle, Duration::ZERO).unwrap());
        assert!(!send(&handle, Signal::SIGKILL).unwrap());
        assert!(process.open().unwrap().is_none());
        assert_eq!(Process::with_pid(process.pid).unwrap(), None);
    }

    #[test]
    fn a_process_whose_group_lives_on_is_gone() {
        let mut leader = Command::new("sh");
        leader.args(["-c", "cat <&0 & exec true"]).process_group(0);
        let mut child = leader.stdin(Stdio::piped()).spawn().unwrap();
        let process = Process::with_pid(child.id().cast_signed())
            .unwrap()
            .unwrap();
        let stdin = child.stdin.take();
        child.wait().unwrap();
        assert_eq!(process.state().unwrap(), ProcessState::Gone);
        assert!(process.open().unwrap().is_none());
        assert!(!process.signal(Signal::SIGTERM).unwrap());
        drop(stdin);
    }

    #[test]
    fn a_later_process_with_the_same_id_is_left_alone() {
        let (mut child, process) = waiting();
        let earlier = Process {
            start_time: process.start_time - 1,
            ..process
        };
        assert_eq!(earlier.state().unwrap(), ProcessState::Gone);
        assert!(!earlier.signal(Signal::SIGKILL).unwrap());
        assert!(earlier.open().unwrap().is_none());
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success(), "it was not killed");
    }
}
