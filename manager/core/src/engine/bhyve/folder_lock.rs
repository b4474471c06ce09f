//! Lock of a guest's folder (flock(2) on the folder itself): a process holds it while it makes or
//! removes what the guest has on this host.
//!
//! The commands that such a process runs hold the lock too. A command that outlives its caller
//! could otherwise destroy a tap that belongs to another guest by then.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{
    folder::Folder,
    host::{self, Host},
};
use crate::engine::{Process, ProcessState};

/// How long it is waited for: a holder may wait for a killed bhyve to end.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a holder is waited for that is stopped.
const STOPPED_PATIENCE: Duration = Duration::from_secs(3);
/// How often it is tried: soon at first, and then more seldom.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// Says who removes a guest.
const REMOVER: &str = "remover";

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot lock the guest's folder: {0}")]
    Io(#[from] io::Error),
    #[error("{}", held(*.by, *.stopped, *.waited))]
    Held {
        by: Option<i32>,
        stopped: bool,
        waited: Duration,
    },
}

fn held(by: Option<i32>, stopped: bool, waited: Duration) -> String {
    let waited = waited.as_secs();
    match (by, stopped) {
        (Some(pid), true) => format!(
            "process {pid} removes it and is stopped; waited {waited} s for it; let it go on \
             (kill -CONT {pid}), or end it: kill -KILL {pid}"
        ),
        (Some(pid), false) => format!(
            "process {pid} removes it; waited {waited} s for it; try again, or end it: kill {pid}"
        ),
        (None, _) => format!(
            "a command that is at it has not ended; waited {waited} s for it; `lsof` of the guest's \
             folder names it"
        ),
    }
}

/// The lock, held.
#[derive(Debug)]
pub(super) struct FolderLock(Flock<File>);

impl FolderLock {
    /// Waits for the lock; `None` when there is no folder, or not any more.
    ///
    /// # Errors
    /// When another process holds the lock for too long, or the folder cannot be opened.
    pub(super) fn take(folder: &Folder) -> Result<Option<Self>, Error> {
        let begin = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let file = match File::open(folder.path()) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e.into()),
            };
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) if is_at(&lock, folder.path())? => return Ok(Some(Self(lock))),
                // The holder of the lock has removed the folder.
                Ok(_) => continue,
                Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => {}
                Err((_, e)) => return Err(io::Error::from(e).into()),
            }
            let waited = begin.elapsed();
            if waited >= STOPPED_PATIENCE {
                let remover = remover(folder);
                let stopped = remover.is_some_and(|(_, state)| state == ProcessState::Stopped);
                if stopped || waited >= LOCK_TIMEOUT {
                    return Err(Error::Held {
                        by: remover.map(|(process, _)| process.pid),
                        stopped,
                        waited,
                    });
                }
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Notes that this process removes the guest, for processes that wait for it.
    pub(super) fn sign(&self, folder: &Folder) {
        let this = Process::with_pid(std::process::id().cast_signed());
        if let Ok(Some(this)) = this
            && let Ok(text) = serde_json::to_vec(&this)
        {
            // A full disk must not prevent the removal of guests.
            let _ = fs::write(folder.file(REMOVER), text);
        }
    }

    /// Runs a command of the host that holds the lock until it ends; returns what it printed.
    pub(super) fn run(
        &self,
        host: &Host,
        program: &str,
        arguments: &[&str],
    ) -> Result<String, host::Error> {
        host.run_holding(&self.0, program, arguments)
    }
}

/// Who removes the guest, when that is known and it may live.
fn remover(folder: &Folder) -> Option<(Process, ProcessState)> {
    let text = fs::read(folder.file(REMOVER)).ok()?;
    let process: Process = serde_json::from_slice(&text).ok()?;
    let state = process.state().ok()?;
    (state != ProcessState::Gone).then_some((process, state))
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((held.dev(), held.ino()) == (named.dev(), named.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_id::GuestId;

    #[test]
    fn a_folder_that_is_removed_while_it_is_waited_for_is_nobodys_to_lock() {
        let run = tempfile::tempdir().unwrap();
        let folder = Folder::of(run.path(), &GuestId([7; 8]));
        assert!(FolderLock::take(&folder).unwrap().is_none());
        folder.create().unwrap();
        let held = FolderLock::take(&folder).unwrap().unwrap();
        thread::scope(|scope| {
            let waits = scope.spawn(|| FolderLock::take(&folder).unwrap().is_none());
            thread::sleep(Duration::from_millis(50));
            folder.remove().unwrap();
            drop(held);
            assert!(waits.join().unwrap());
        });
    }
}
