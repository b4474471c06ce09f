//! Orphans: guests that were still being restored when their manager closed the connection. No
//! process waits for them any more, so the nursery ends those that do not answer soon.
//!
//! The nursery holds the restore lock until it has recorded the result of each. A command that
//! looks meanwhile sees these guests as being restored, and does not remove them before their
//! reasons are recorded.

use std::{
    fs::{self, File, Metadata},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long guests that have not answered may still take when the manager has hung up.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon it is first looked whether all have answered. Each look comes after twice that time.
const FIRST_LOOK: Duration = Duration::from_millis(10);

/// The orphans of a nursery.
#[derive(Debug)]
pub(crate) struct Orphans {
    /// The restore lock, held.
    lock: Option<File>,
    /// Its file, opened once more when the manager ended by itself: then it can be locked as soon
    /// as no guest of the session restores, and nobody else looks at it, for it has no name.
    nameless: Option<File>,
    /// Its file, by which processes that still restore are found.
    of_lock: Metadata,
    time_is_up: Instant,
    next_look: Instant,
    pause: Duration,
    /// Guests that were ended because they had not answered; `None` before the time is up.
    ended: Option<Vec<Pid>>,
}

impl Orphans {
    /// Those of a manager that hangs up now; none where they cannot be found.
    pub(crate) fn new(lock: File) -> Option<Self> {
        let of_lock = lock.metadata().ok()?;
        let now = Instant::now();
        // A manager that ended normally has recorded all results, and has removed the lock's name.
        // A killed one has not.
        let was_killed = of_lock.nlink() > 0;
        let again = || File::open(format!("/proc/self/fd/{}", lock.as_raw_fd())).ok();
        let nameless = if was_killed { None } else { again() };
        Some(Self {
            lock: was_killed.then_some(lock),
            nameless,
            of_lock,
            time_is_up: now + PATIENCE,
            next_look: now + FIRST_LOOK,
            pause: FIRST_LOOK,
            ended: None,
        })
    }

    /// How long the nursery may wait for something to happen; for ever, when there is none.
    pub(crate) fn limit(&self) -> Option<Duration> {
        let at = match (&self.lock, &self.ended) {
            (None, Some(_)) => return None,
            (None, None) => self.time_is_up,
            (Some(_), None) => self.next_look.min(self.time_is_up),
            (Some(_), Some(_)) => self.next_look,
        };
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// Whether this child was ended because it had not answered.
    pub(crate) fn ended(&self, pid: Pid) -> bool {
        self.ended.as_ref().is_some_and(|all| all.contains(&pid))
    }

    /// Does what is due by now. `children` are those whose end is not recorded yet.
    pub(crate) fn look(&mut self, children: impl Iterator<Item = Pid> + Clone) {
        let now = Instant::now();
        if self.ended.is_none() && self.time_is_up <= now {
            self.ended = Some(self.end(children.clone()));
        }
        if self.lock.is_none() || self.next_look > now {
            return;
        }
        let mut children = children;
        let waited_for = match &self.ended {
            Some(ended) => children.any(|pid| ended.contains(&pid)),
            None => children.any(|pid| has_open(pid, &self.of_lock) != Some(false)),
        };
        if waited_for {
            self.pause *= 2;
            self.next_look = now + self.pause;
        } else {
            self.lock = None;
        }
    }

    /// Ends the children that still restore: they hold the lock open. Where none can, no child is
    /// looked at, for there may be thousands of them.
    fn end(&mut self, children: impl Iterator<Item = Pid>) -> Vec<Pid> {
        let nameless = self.nameless.take();
        let none_restores = nameless.is_some_and(|lock| lock.try_lock().is_ok());
        if none_restores {
            return Vec::new();
        }
        // No wait(2) has collected any of them, so each id is still the child's.
        children
            .filter(|pid| has_open(*pid, &self.of_lock) == Some(true))
            .filter(|pid| kill(*pid, Signal::SIGKILL).is_ok())
            .collect()
    }
}

/// Whether a child has this lock open; `None` when it has nothing open any more: it is about to end,
/// and its end is not recorded yet.
fn has_open(pid: Pid, lock: &Metadata) -> Option<bool> {
    let mut has_files = None;
    for file in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
        has_files = Some(false);
        let is_lock = |file: Metadata| (file.dev(), file.ino()) == (lock.dev(), lock.ino());
        if fs::metadata(file.path()).is_ok_and(is_lock) {
            return Some(true);
        }
    }
    has_files
}

#[cfg(test)]
mod tests {
    use std::{iter, process::Command};

    use tempfile::TempDir;

    use super::*;

    /// A lock as a session has it, in a folder of its own.
    fn lock() -> (TempDir, File) {
        let folder = TempDir::new().unwrap();
        let lock = File::create_new(folder.path().join("lock")).unwrap();
        lock.try_lock().unwrap();
        (folder, lock)
    }

    /// Children that nobody may look at.
    fn not_looked_at() -> impl Iterator<Item = Pid> + Clone {
        iter::from_fn(|| panic!("a child was looked at"))
    }

    #[test]
    fn no_child_is_looked_at_when_the_manager_ended_by_itself_and_none_restores() {
        let (folder, lock) = lock();
        fs::remove_file(folder.path().join("lock")).unwrap();
        let mut orphans = Orphans::new(lock).unwrap();
        orphans.time_is_up = Instant::now();
        orphans.look(not_looked_at());
        assert_eq!(orphans.ended.as_deref(), Some(&[][..]));
        assert_eq!(orphans.limit(), None);
    }

    #[test]
    fn a_child_that_still_restores_is_ended_and_no_other() {
        let (folder, lock) = lock();
        fs::remove_file(folder.path().join("lock")).unwrap();
        let sleep = || {
            let mut command = Command::new("sleep");
            command.arg("600");
            command
        };
        // Its standard input is the lock, as a guest's that has not answered has it.
        let mut restoring = sleep().stdin(lock.try_clone().unwrap()).spawn().unwrap();
        let mut answered = sleep().spawn().unwrap();
        let pids = [&restoring, &answered].map(|child| Pid::from_raw(child.id().cast_signed()));
        let mut orphans = Orphans::new(lock).unwrap();
        orphans.look(not_looked_at());
        assert!(orphans.ended.is_none());
        orphans.time_is_up = Instant::now();
        orphans.look(pids.into_iter());
        assert!(orphans.ended(pids[0]));
        assert!(!orphans.ended(pids[1]));
        let killed = restoring.wait().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&killed),
            Some(libc::SIGKILL)
        );
        assert!(answered.try_wait().unwrap().is_none());
        answered.kill().unwrap();
        answered.wait().unwrap();
    }
}
