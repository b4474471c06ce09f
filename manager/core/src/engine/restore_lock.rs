//! Restore lock: a file of the run folder that is locked for as long as a restore goes on, with one
//! JSON line for each of its owners.
//!
//! The manager, its fork server (nursery) and each guest that is not ready yet hold the lock
//! through one open file: a flock(2) lock lasts until the last of them has closed the file or died.
//! So a later command knows whether a guest that is recorded as "restoring" may still come to life.
//! Manager and nursery each write a line with their process. From these lines a process that finds
//! the lock held learns who holds it, and finds stopped nurseries whose manager was killed.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;

use serde::{Deserialize, Serialize};

use super::{Process, ProcessState};
use crate::{guest_id::random, owner_only};

/// Why a restore lock cannot be taken or looked at.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", .path.display())]
pub struct Error {
    /// The action that failed.
    pub action: &'static str,
    /// The lock's file.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

/// A process that holds a restore lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LockOwner {
    /// It gives out orders and records what comes of them.
    Manager(Process),
    /// It forks guests, and ends by itself when its manager is gone.
    Nursery(Process),
}

/// The lock of one restore, held.
#[derive(Debug)]
pub(crate) struct RestoreLock {
    name: String,
    path: PathBuf,
    // Closed when this is dropped, not unlocked: others may hold on.
    file: File,
}

impl RestoreLock {
    /// Its name in the run folder.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The open file, to hand on to others who restore.
    #[must_use]
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Takes a new lock in this run folder.
    ///
    /// # Errors
    /// When its file cannot be made.
    pub(crate) fn take(run_dir: &Path) -> Result<Self, Error> {
        loop {
            if let Some(lock) = try_take(run_dir)? {
                return Ok(lock);
            }
        }
    }
}

impl Drop for RestoreLock {
    fn drop(&mut self) {
        // The name goes with the manager: by then every guest of the session is recorded.
        let _ = fs::remove_file(&self.path);
    }
}

/// Takes a new lock; `None` when another process removed the file before it was locked, as if its
/// owner had died.
fn try_take(run: &Path) -> Result<Option<RestoreLock>, Error> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| Error {
            action: "make the lock",
            path,
            source,
        }
    };
    let name = format!(
        "{:016x}.lock",
        u64::from_ne_bytes(random().map_err(io(run))?)
    );
    let path = run.join(&name);
    // The file gets its name only once it is locked: a sweep removes locks that nobody holds.
    let unnamed = run.join(format!("{name}.new"));
    let file = owner_only::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&unnamed)
        .map_err(io(&unnamed))?;
    match file.try_lock() {
        Ok(()) => {}
        // Another process is checking whether its owner died, and will remove it.
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(e)) => return Err(io(&path)(e)),
    }
    let this = Process::with_pid(std::process::id().cast_signed());
    if let Some(process) = this.map_err(io(&path))? {
        sign(&file, LockOwner::Manager(process)).map_err(io(&path))?;
    }
    match fs::rename(&unnamed, &path) {
        Ok(()) => Ok(Some(RestoreLock { name, path, file })),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io(&path)(e)),
    }
}

/// Removes locks whose holders are gone.
pub(crate) fn sweep(run_dir: &Path) {
    let entries = fs::read_dir(run_dir).into_iter().flatten().flatten();
    for entry in entries {
        if let Some(name) = entry
            .file_name()
            .to_str()
            .filter(|name| name.ends_with(".lock") || name.ends_with(".lock.new"))
        {
            // One that cannot be looked at stays.
            let _ = is_held(run_dir, name);
        }
    }
}

/// Whether a process still restores under this lock.
///
/// # Errors
/// When the lock cannot be looked at.
pub(crate) fn is_held(run_dir: &Path, name: &str) -> Result<bool, Error> {
    let path = run_dir.join(name);
    let failed = |source| Error {
        action: "look at the lock",
        path: path.clone(),
        source,
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(failed(e)),
    };
    match file.try_lock() {
        Ok(()) => {
            let _ = fs::remove_file(&path);
            Ok(false)
        }
        Err(TryLockError::WouldBlock) => {
            // It has no work any more, and would end if it could.
            for nursery in orphans(&path) {
                if matches!(nursery.state(), Ok(ProcessState::Stopped)) {
                    let _ = nursery.signal(Signal::SIGCONT);
                }
            }
            Ok(true)
        }
        Err(TryLockError::Error(e)) => Err(failed(e)),
    }
}

/// Ends the processes that restore under this lock, if their manager has died. Guests that have
/// answered live on; nothing is left of the others.
pub(crate) fn end_orphans(run_dir: &Path, name: &str) {
    let path = run_dir.join(name);
    for nursery in orphans(&path) {
        // One that was stopped right after its birth does not end with its nursery.
        let restoring = fs::metadata(&path).map(|lock| nursery.children_with(&lock));
        let _ = nursery.signal(Signal::SIGKILL);
        for guest in restoring.unwrap_or_default() {
            let _ = guest.signal(Signal::SIGKILL);
        }
    }
}

/// The nurseries of a restore whose manager has died; empty while the manager lives.
fn orphans(lock: &Path) -> Vec<Process> {
    let (mut managed, mut nurseries) = (true, Vec::new());
    for owner in owners(lock) {
        match owner {
            LockOwner::Manager(manager) => managed = manager.may_live(),
            LockOwner::Nursery(nursery) => nurseries.push(nursery),
        }
    }
    if managed {
        nurseries.clear();
    }
    nurseries
}

/// Adds an owner's line to the lock's file.
pub(crate) fn sign(mut file: &File, worker: LockOwner) -> io::Result<()> {
    let mut line = serde_json::to_vec(&worker)?;
    line.push(b'\n');
    file.write_all(&line)
}

/// The owners in the lock's file. Leaves out an incomplete line of a process that was killed while
/// it wrote.
fn owners(path: &Path) -> Vec<LockOwner> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_signed_is_read_and_half_a_line_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(owners(file.path()), []);
        let process = |pid| Process { pid, start_time: 7 };
        let workers = [
            LockOwner::Manager(process(1)),
            LockOwner::Nursery(process(2)),
        ];
        for worker in workers {
            sign(file.as_file(), worker).unwrap();
        }
        file.as_file()
            .write_all(b"{\"nursery\":{\"pid\":3")
            .unwrap();
        assert_eq!(owners(file.path()), workers);
    }
}
