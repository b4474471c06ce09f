//! Holder of the database's locks: the process that a command waits for. A process that was stopped
//! in the middle of a change holds up all others, and their errors name it.

use std::{
    cell::Cell,
    collections::BTreeSet,
    fs::{self, File},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{FcntlArg, fcntl};

use super::journal::Journal;
use crate::engine::{Process, ProcessState};

/// How long another command may hold a lock.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait for a holder that is stopped: somebody at a terminal may let it go on.
const STOPPED_PATIENCE: Duration = Duration::from_secs(3);
/// How often a lock is tried: a change takes tens of microseconds, and SQLite's own handler is soon
/// down to ten tries a second.
const TRY_AGAIN: Duration = Duration::from_micros(250);
/// How often the holder is looked for, in tries.
const LOOK: i32 = 2000;

/// The locks for writing, checkpointing and recovery, in the file `-shm` (`WAL_WRITE_LOCK` and
/// `UNIX_SHM_BASE` of SQLite).
const SHM: (libc::off_t, libc::off_t) = (120, 3);
/// All locks on the database itself (`PENDING_BYTE` and `SHARED_SIZE` of SQLite).
const DATABASE: (libc::off_t, libc::off_t) = (0x4000_0000, 512);

/// Files whose locks were looked at. They are never closed: a process that closes any descriptor of
/// a file loses all of its locks on the file (fcntl(2)), and SQLite's connections have some.
static OPEN: Mutex<Vec<File>> = Mutex::new(Vec::new());
/// Databases that this process has opened.
static KNOWN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

thread_local! {
    /// How long this thread waits for a lock.
    static PATIENCE: Cell<Duration> = const { Cell::new(LOCK_TIMEOUT) };
    /// Since when this thread waits for a lock, or has waited for the last one.
    static SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Notes that this database is used.
pub(super) fn note(database: &Path) {
    let mut known = lock(&KNOWN);
    if !known.contains(database) {
        known.insert(database.to_owned());
    }
}

/// SQLite calls this when another connection holds a lock, with how often it did so before.
pub(super) fn wait(tries: i32) -> bool {
    thread::sleep(TRY_AGAIN);
    if tries == 0 {
        SINCE.set(Some(Instant::now()));
    }
    let waited = waited();
    if waited > STOPPED_PATIENCE && tries % LOOK == 0 {
        let known: Vec<PathBuf> = lock(&KNOWN).iter().cloned().collect();
        let holders = known.iter().filter_map(|database| of(database));
        if holders.into_iter().any(|holder| is_stopped(&holder)) {
            return false;
        }
    }
    waited < PATIENCE.get()
}

/// Does something for which this thread waits no longer than this for a lock.
pub(super) fn within<T>(patience: Duration, act: impl FnOnce() -> T) -> T {
    let before = PATIENCE.replace(patience);
    let done = act();
    PATIENCE.set(before);
    done
}

/// How long this thread has waited for the last lock that it did not get.
pub(super) fn waited() -> Duration {
    SINCE.get().map_or(Duration::ZERO, |since| since.elapsed())
}

/// The other process that holds a lock of this database, if one does.
pub(super) fn of(database: &Path) -> Option<Process> {
    let pid = holder(&Journal::beside(database, "-shm"), SHM);
    let pid = pid.or_else(|| holder(database, DATABASE))?;
    Process::with_pid(pid).ok().flatten()
}

pub(super) fn is_stopped(process: &Process) -> bool {
    matches!(process.state(), Ok(ProcessState::Stopped))
}

/// The process that keeps others from reading this part of a file.
fn holder(path: &Path, (start, length): (libc::off_t, libc::off_t)) -> Option<i32> {
    let same = |a: &fs::Metadata, b: &fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    let named = fs::metadata(path).ok()?;
    let mut open = lock(&OPEN);
    let is_it = |file: &File| file.metadata().is_ok_and(|facts| same(&facts, &named));
    if !open.iter().any(is_it) {
        open.push(File::open(path).ok()?);
    }
    let file = open.iter().find(|file| is_it(file))?;
    // SAFETY: all fields are integers, for which zeroes are values.
    let mut asked: libc::flock = unsafe { std::mem::zeroed() };
    asked.l_type = libc::c_short::try_from(libc::F_RDLCK).ok()?;
    asked.l_whence = libc::c_short::try_from(libc::SEEK_SET).ok()?;
    (asked.l_start, asked.l_len) = (start, length);
    fcntl(file.as_fd(), FcntlArg::F_GETLK(&mut asked)).ok()?;
    let held = libc::c_int::from(asked.l_type) != libc::c_int::from(libc::F_UNLCK);
    (held && asked.l_pid > 0).then_some(asked.l_pid)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
