//! The lock that says that a restore is still going on.
//!
//! It is held by the manager, by its nursery and by each guest that is not ready yet, through one
//! open file: a lock of flock(2) lasts until the last of them has let go or died. So a later
//! command knows whether a guest recorded as "restoring" may still come to life. Manager and
//! nursery are named in the file, so that those whom a killed manager left stopped are found.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;

use super::{Error, State};
use crate::{
    engine::{
        Process, ProcessState, random,
        roll::{self, Worker},
    },
    owner_only,
};

/// The lock of one restore, held.
#[derive(Debug)]
pub struct SessionLock {
    name: String,
    path: PathBuf,
    // Closed when this is dropped, not unlocked: others may hold on.
    file: File,
}

impl SessionLock {
    /// Its name in the run folder.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The open file, to hand on to others who restore.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for SessionLock {
    fn drop(&mut self) {
        // The name goes with the manager: by then every guest of the session is recorded.
        let _ = fs::remove_file(&self.path);
    }
}

impl State {
    /// Takes a new lock.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn begin_session(&self) -> Result<SessionLock, Error> {
        loop {
            if let Some(lock) = self.try_session()? {
                return Ok(lock);
            }
        }
    }

    /// Takes a new lock; `None` when somebody took its file, not locked yet, for a dead one's.
    fn try_session(&self) -> Result<Option<SessionLock>, Error> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io {
                action: "make the lock",
                path,
                source,
            }
        };
        let run = self.run_dir();
        let name = format!(
            "{:016x}.lock",
            u64::from_ne_bytes(random().map_err(io(&run))?)
        );
        let path = run.join(&name);
        // It has its name only once it is held: a lock that nobody holds is swept away.
        let unnamed = run.join(format!("{name}.new"));
        let file = owner_only::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&unnamed)
            .map_err(io(&unnamed))?;
        match file.try_lock() {
            Ok(()) => {}
            // Somebody just looks whether it is a dead one's, and will remove it.
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(io(&path)(e)),
        }
        let this = Process::with_pid(std::process::id().cast_signed());
        if let Some(process) = this.map_err(io(&path))? {
            roll::sign(&file, Worker::Manager(process)).map_err(io(&path))?;
        }
        match fs::rename(&unnamed, &path) {
            Ok(()) => Ok(Some(SessionLock { name, path, file })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io(&path)(e)),
        }
    }

    /// Removes locks whose holders are gone.
    pub fn sweep_sessions(&self) {
        let entries = fs::read_dir(self.run_dir()).into_iter().flatten().flatten();
        for entry in entries {
            if let Some(name) = entry
                .file_name()
                .to_str()
                .filter(|name| name.ends_with(".lock") || name.ends_with(".lock.new"))
            {
                // One that cannot be looked at stays.
                let _ = self.session_lives(name);
            }
        }
    }

    /// Whether somebody still restores under this lock.
    ///
    /// # Errors
    /// When the lock cannot be looked at.
    pub(super) fn session_lives(&self, name: &str) -> Result<bool, Error> {
        let path = self.run_dir().join(name);
        let failed = |source| Error::Io {
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

    /// Ends those who restore under this lock, if their manager is gone. Guests that have answered
    /// live on; of those that had not, nothing is left.
    pub(crate) fn end_orphans(&self, name: &str) {
        let path = self.run_dir().join(name);
        for nursery in orphans(&path) {
            // One that was stopped right after its birth does not end with its nursery.
            let restoring = fs::metadata(&path).map(|lock| nursery.children_with(&lock));
            let _ = nursery.signal(Signal::SIGKILL);
            for guest in restoring.unwrap_or_default() {
                let _ = guest.signal(Signal::SIGKILL);
            }
        }
    }
}

/// The nurseries of a restore whose manager is gone; none when it lives.
fn orphans(lock: &Path) -> Vec<Process> {
    let (mut managed, mut nurseries) = (true, Vec::new());
    for worker in roll::read(lock) {
        match worker {
            Worker::Manager(manager) => managed = manager.may_live(),
            Worker::Nursery(nursery) => nurseries.push(nursery),
        }
    }
    if managed {
        nurseries.clear();
    }
    nurseries
}
