//! Frozen file systems: their writers wait, so that a snapshot of the disk is whole.

use std::{
    fs::{self, File},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use brood_agent_protocol::{Failure, FailureKind, OsBytes, Reply};
use nix::errno::Errno;

use super::System;
use crate::{failure::Context, serve::Answer};

// Of <linux/fs.h>: _IOWR('X', 119, int) and _IOWR('X', 120, int). Both pass over their argument.
nix::ioctl_write_int_bad!(fifreeze, nix::request_code_readwrite!(b'X', 119, 4));
nix::ioctl_write_int_bad!(fithaw, nix::request_code_readwrite!(b'X', 120, 4));

#[derive(Debug, Default)]
pub(super) struct Frozen {
    state: Mutex<State>,
    /// Something was frozen.
    frozen: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The file systems, by their open mount points: opening one anew could wait for the thaw.
    mounts: Vec<(PathBuf, File)>,
    until: Option<Instant>,
    /// The thread that keeps the time is there.
    watched: bool,
}

impl Frozen {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Thaws when the time is over: the host may be gone for ever. The thread stays, and a thaw does
    /// not wake it: a clone thaws first of all, and would pay for both.
    fn watch(&self) {
        let mut state = self.lock();
        loop {
            let left = state
                .until
                .map(|until| until.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => {
                    let _ = state.thaw();
                    state
                }
                Some(left) => {
                    let waited = self.frozen.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.frozen.wait(state);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    /// Has a thread keep the time from now on.
    fn start(self: &Arc<Frozen>, state: &mut State) -> Result<(), Failure> {
        if !state.watched {
            let frozen = Arc::clone(self);
            let thread = thread::Builder::new().name("thaw".into());
            let started = thread.stack_size(64 * 1024).spawn(move || frozen.watch());
            started.map(drop).context("cannot start a thread to thaw")?;
            state.watched = true;
        }
        self.frozen.notify_all();
        Ok(())
    }
}

impl State {
    /// Thaws all, also when one fails.
    fn thaw(&mut self) -> Result<(), Failure> {
        let mut result = Ok(());
        for (path, mount) in std::mem::take(&mut self.mounts).into_iter().rev() {
            // SAFETY: the descriptor is open; the argument is not looked at.
            match unsafe { fithaw(mount.as_raw_fd(), 0) } {
                // It is not frozen.
                Ok(_) | Err(Errno::EINVAL) => {}
                Err(e) => result = Err(e).context(format!("cannot thaw {}", path.display())),
            }
        }
        self.until = None;
        result
    }

    fn freeze(&mut self, path: &Path, mount: File) -> Result<(), Failure> {
        // SAFETY: the descriptor is open; the argument is not looked at.
        let frozen = unsafe { fifreeze(mount.as_raw_fd(), 0) };
        match frozen {
            Ok(_) => self.mounts.push((path.to_path_buf(), mount)),
            // Another mount of the same file system was named before.
            Err(Errno::EBUSY) if !self.mounts.is_empty() => {}
            Err(e) => return Err(e).context(format!("cannot freeze {}", path.display())),
        }
        Ok(())
    }
}

impl System {
    pub(crate) fn freeze(&self, paths: &[OsBytes], limit: Duration) -> Answer {
        let mut state = self.frozen.lock();
        if state.until.is_some() {
            let text = "file systems are frozen already; thaw them first";
            return Err(Failure::new(FailureKind::Busy, text));
        }
        let paths = if paths.is_empty() {
            let mounts = "/proc/self/mountinfo";
            disks(&fs::read_to_string(mounts).context(format!("cannot read {mounts}"))?)
        } else {
            paths.iter().map(OsBytes::to_path_buf).collect()
        };
        // All are opened before any is frozen.
        let mut mounts = Vec::new();
        for path in paths {
            let mount = File::open(&path).context(format!("cannot open {}", path.display()))?;
            mounts.push((path, mount));
        }
        if mounts.is_empty() {
            return Ok(Reply::Nothing);
        }
        state.until = Some(Instant::now() + limit);
        let mut result = self.frozen.start(&mut state);
        // Those that are mounted last first: a loop device's file is on one below it.
        for (path, mount) in mounts.into_iter().rev() {
            result = result.and_then(|()| state.freeze(&path, mount));
        }
        if let Err(failure) = result {
            let _ = state.thaw();
            return Err(failure);
        }
        Ok(Reply::Nothing)
    }

    pub(crate) fn thaw(&self) -> Answer {
        let result = self.frozen.lock().thaw();
        result.map(|()| Reply::Nothing)
    }
}

/// Mount points of writable file systems with a disk behind them, each file system once.
fn disks(mountinfo: &str) -> Vec<PathBuf> {
    let mut devices = Vec::new();
    let mut paths = Vec::new();
    for line in mountinfo.lines() {
        // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
        let Some((mount, filesystem)) = line.split_once(" - ") else {
            continue;
        };
        let mount: Vec<_> = mount.split(' ').collect();
        let filesystem: Vec<_> = filesystem.split(' ').collect();
        let ([_, _, device, _, path, ..], [_, source, options]) = (&mount[..], &filesystem[..])
        else {
            continue;
        };
        let writable = options.split(',').any(|option| option == "rw");
        if writable && source.starts_with("/dev/") && !devices.contains(device) {
            devices.push(device);
            paths.push(PathBuf::from(unescape(path)));
        }
    }
    paths
}

/// Mount points have spaces as `\040`.
fn unescape(path: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .into_iter()
    .fold(path.to_owned(), |path, (from, to)| path.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_with_a_disk_each_once() {
        let mountinfo = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:5 / /dev rw shared:2 - devtmpfs devtmpfs rw,size=1k
24 22 254:16 / /srv/a\\040b rw - xfs /dev/vdb rw,noquota
25 22 254:0 /home /home rw - ext4 /dev/vda rw
26 22 254:32 / /cd ro - iso9660 /dev/sr0 ro
27 22 0:30 / /tmp rw - tmpfs tmpfs rw
";
        assert_eq!(disks(mountinfo), ["/", "/srv/a b"].map(PathBuf::from));
    }

    #[test]
    fn nothing_is_thawed_where_nothing_is_frozen() {
        assert_eq!(System::default().thaw(), Ok(Reply::Nothing));
    }

    #[test]
    fn a_file_system_that_cannot_be_frozen_leaves_none_frozen() {
        let system = System::default();
        // /proc cannot be frozen by anybody.
        let refused = system.freeze(&["/proc".into()], Duration::from_secs(600));
        assert!(refused.is_err());
        assert!(system.frozen.lock().until.is_none());
    }
}
