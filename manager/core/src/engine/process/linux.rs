//! Processes on Linux: pidfd_open(2) and proc_pid_stat(5).

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Confinement, Process, ProcessState};

/// A descriptor of a process (pidfd_open(2)).
#[derive(Debug)]
pub struct Handle(OwnedFd);

/// Readable when the process has ended.
impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a process is doing, and its start time; `None` when there is no such process.
pub(super) fn look(pid: i32) -> io::Result<Option<(ProcessState, u64)>> {
    // A process may end, and another begin with its id, between the two looks.
    for _ in 0..3 {
        match fs::read(format!("/proc/{pid}/stat")) {
            Ok(text) => {
                let unknown = || io::Error::other(format!("/proc/{pid}/stat has another form"));
                return parse(&text).map(Some).ok_or_else(unknown);
            }
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
            Err(e) => return Err(e),
        }
        // Where /proc is not mounted, or hides processes of others (hidepid), only kill(2) knows.
        if !exists(pid) {
            return Ok(None);
        }
    }
    Err(io::Error::other(format!(
        "process {pid} exists, and /proc does not show it: is /proc mounted, without hidepid?"
    )))
}

/// Whether there is a process of this id, by kill(2), which needs neither /proc nor a descriptor.
fn exists(pid: i32) -> bool {
    pid > 0 && kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

/// The PID namespace that this process is in, as the inode of `/proc/self/ns/pid` (namespaces(7));
/// 0 where the kernel has none.
pub(crate) fn namespace() -> io::Result<u64> {
    // A /proc of another namespace tells of other processes than this one's signals reach.
    let this = fs::read_link("/proc/self")?;
    if this.to_str().and_then(|pid| pid.parse().ok()) != Some(std::process::id()) {
        return Err(io::Error::other(
            "/proc belongs to another PID namespace: mount one of this namespace",
        ));
    }
    match fs::metadata("/proc/self/ns/pid") {
        Ok(namespace) => Ok(namespace.ino()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(e),
    }
}

/// State and start time, from what /proc/PID/stat says.
fn parse(text: &[u8]) -> Option<(ProcessState, u64)> {
    // The name in parentheses may hold anything, parentheses too.
    let rest = text.get(text.iter().rposition(|b| *b == b')')? + 2..)?;
    let mut fields = std::str::from_utf8(rest).ok()?.split(' ');
    let state = match fields.next()?.chars().next()? {
        'Z' | 'X' => ProcessState::Gone,
        'T' | 't' => ProcessState::Stopped,
        _ => ProcessState::Running,
    };
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((state, start_time))
}

/// What confines a process; `None` when it is gone.
pub(super) fn confinement(pid: i32) -> io::Result<Option<Confinement>> {
    let status = match fs::read_to_string(format!("/proc/{pid}/status")) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => return Ok(None),
        status => status?,
    };
    let namespace = |pid: &str, kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let shares = |kind| Some(namespace(&pid.to_string(), kind)? == namespace("self", kind)?);
    let confinement = Confinement::of_status(&status).map(|said| Confinement {
        has_network: shares("net"),
        has_ipc: shares("ipc"),
        ..said
    });
    let unknown = || io::Error::other(format!("/proc/{pid}/status has another form"));
    confinement.map(Some).ok_or_else(unknown)
}

/// The words of a process's command line, each with a zero after it; `None` when it is gone.
pub(super) fn command_line(pid: i32) -> io::Result<Option<Vec<u8>>> {
    match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(words) => Ok(Some(words)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The folder that a process works in; `None` when the process is gone.
pub(super) fn works_in(pid: i32) -> io::Result<Option<PathBuf>> {
    match fs::read_link(format!("/proc/{pid}/cwd")) {
        Ok(folder) => Ok(Some(folder)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Children of a process that have this file open.
pub(super) fn children_with(parent: i32, file: &fs::Metadata) -> Vec<Process> {
    let same = |entry: fs::DirEntry| {
        let open = fs::metadata(entry.path());
        open.is_ok_and(|open| (open.dev(), open.ino()) == (file.dev(), file.ino()))
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| parent_of(*pid) == Some(parent))
        .filter(|pid| {
            let open = fs::read_dir(format!("/proc/{pid}/fd"));
            open.into_iter().flatten().flatten().any(same)
        })
        .filter_map(|pid| Process::with_pid(pid).ok().flatten())
        .collect()
}

fn parent_of(pid: i32) -> Option<i32> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let rest = text.get(text.iter().rposition(|b| *b == b')')? + 2..)?;
    let rest = std::str::from_utf8(rest).ok()?;
    rest.split(' ').nth(1)?.parse().ok()
}

pub(super) fn open(process: &Process) -> io::Result<Option<Handle>> {
    // SAFETY: pidfd_open touches no memory of this process.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.pid, 0) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ESRCH) => Ok(None),
            // So says Linux before 6.9 or so of an id that only a session or a process group has
            // any more, and of a thread's.
            Some(libc::EINVAL | libc::ENOENT) if process.state()? == ProcessState::Gone => Ok(None),
            _ => Err(error),
        };
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the descriptor is new and nobody else's.
    let pidfd = unsafe { OwnedFd::from_raw_fd(fd) };
    // The descriptor holds on to whatever has the id; was it ours?
    Ok((process.state()? != ProcessState::Gone).then_some(Handle(pidfd)))
}

pub(super) fn send(handle: &Handle, signal: Signal) -> io::Result<bool> {
    let (fd, signal) = (handle.0.as_raw_fd(), signal as libc::c_int);
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

pub(super) fn wait_for_end(handle: &Handle, timeout: Duration) -> io::Result<bool> {
    let mut fds = [PollFd::new(handle.0.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    Ok(poll(&mut fds, timeout)? > 0)
}
