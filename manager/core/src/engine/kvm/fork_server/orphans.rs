//! Orphans: guests that were still being restored when their manager closed the connection. No
//! process waits for them any more, so the nursery ends those that do not answer soon.
//!
//! The nursery holds the restore lock until it has recorded the result of each. A command that
//! looks meanwhile sees these guests as being restored, and does not remove them before their
//! reasons are recorded.

use std::{
    fs::{self, File, Metadata},
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

use nix::{sys::signal::Signal, unistd::Pid};

use crate::engine::Process;

/// How long guests that have not answered may still take when the manager has hung up.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon it is first looked whether all have answered. Each look comes after twice that time.
const FIRST_LOOK: Duration = Duration::from_millis(10);

/// The orphans of a nursery.
#[derive(Debug)]
pub(crate) struct Orphans {
    /// The restore lock, held.
    lock: Option<File>,
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
        Some(Self {
            lock: was_killed.then_some(lock),
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
    pub(crate) fn look(&mut self, children: impl Iterator<Item = Pid>) {
        let now = Instant::now();
        if self.ended.is_none() && self.time_is_up <= now {
            self.ended = Some(self.end());
        }
        if self.lock.is_none() || self.next_look > now {
            return;
        }
        let mut children = children;
        let waited_for = match &self.ended {
            Some(ended) => children.any(|pid| ended.contains(&pid)),
            None => children.any(|pid| may_restore(pid, &self.of_lock)),
        };
        if waited_for {
            self.pause *= 2;
            self.next_look = now + self.pause;
        } else {
            self.lock = None;
        }
    }

    /// Ends the children that still restore: they hold the lock open.
    fn end(&self) -> Vec<Pid> {
        let Ok(Some(this)) = Process::with_pid(Pid::this().as_raw()) else {
            return Vec::new();
        };
        let mut restoring = this.children_with(&self.of_lock);
        restoring.retain(|guest| matches!(guest.signal(Signal::SIGKILL), Ok(true)));
        let restoring = restoring.into_iter();
        restoring.map(|guest| Pid::from_raw(guest.pid)).collect()
    }
}

/// Whether a child has this lock open, or is about to end: then it has nothing open any more, and
/// its end is not recorded yet.
fn may_restore(pid: Pid, lock: &Metadata) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return true;
    };
    let mut has_files = false;
    for file in open.flatten() {
        has_files = true;
        let is_lock = |file: Metadata| (file.dev(), file.ino()) == (lock.dev(), lock.ino());
        if fs::metadata(file.path()).is_ok_and(is_lock) {
            return true;
        }
    }
    !has_files
}
