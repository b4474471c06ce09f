//! Locks on files of the state folder (flock(2)), held until their guard is dropped.
//!
//! The file of an exclusive lock names its holder, so that a process that waits can say for whom.
//! Every wait has a limit: a holder may be stopped, or hang.

use std::{
    env,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::Path,
    process,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use serde::{Deserialize, Serialize};

use super::{Error, TokenDigest};
use crate::{
    engine::{Process, ProcessState},
    full_disk, owner_only,
};

/// Held, shared, by each process that has the lock of a pool; alone by a rebuild of the record.
pub(crate) const POOLS: &str = "pools.lock";
/// Held, shared, while a claim is suspended or resumed; alone by a sweep of bundles that no claim
/// needs.
pub(crate) const SUSPENDED: &str = "suspended.lock";
/// The folder of the pools' own locks.
const LOCKS: &str = "locks";
/// The folder of the claims' own locks. A lock's file exists as long as the lock is held.
pub(super) const CLAIMS: &str = "claims";
/// Characters of a token's digest that name a lock.
const DIGEST: usize = 32;

/// How long a command waits for a lock.
pub(crate) const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a command waits for a holder that is stopped: somebody at a terminal may let it go on.
const STOPPED_PATIENCE: Duration = Duration::from_secs(3);
/// How often it tries: soon at first, and then more seldom.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// Words of the holder's command that are told. Later ones may be a claim's token.
const WORDS: usize = 3;

/// Name of the lock of a pool, which is held while the pool is reconciled or filled.
pub(crate) fn of_pool(pool: &str) -> String {
    format!("{LOCKS}/{pool}.lock")
}

/// Name of the lock of a claim, which is held while the claim is suspended or resumed.
pub(crate) fn of_claim(token: &TokenDigest) -> String {
    format!("{CLAIMS}/{}.lock", &token.as_str()[..DIGEST])
}

/// How long a lock is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait<'a> {
    pub(crate) limit: Duration,
    /// Ends the wait when it is set.
    pub(crate) cancelled: &'a AtomicBool,
}

/// The holder of a lock.
#[derive(Debug, Serialize, Deserialize)]
struct Owner {
    process: Process,
    command: String,
}

/// Takes the lock of this name in the state folder `dir`; alone when it is to be `exclusive`.
///
/// # Errors
/// [`Error::Locked`] when another process holds it for too long, [`Error::Cancelled`]; when its
/// file cannot be made.
pub(crate) fn take(
    dir: &Path,
    name: &str,
    exclusive: bool,
    wait: Wait<'_>,
) -> Result<Flock<File>, Error> {
    let path = dir.join(name);
    let failed = |source| Error::Io {
        action: "take the lock",
        path: path.clone(),
        source,
    };
    let how = if exclusive {
        FlockArg::LockExclusiveNonblock
    } else {
        FlockArg::LockSharedNonblock
    };
    let begin = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let file = open(&path).map_err(failed)?;
        match Flock::lock(file, how) {
            // The process that removed the file had locked it: that lock is void.
            Ok(lock) if !is_at(&lock, &path) => continue,
            Ok(lock) => {
                if exclusive {
                    sign(&lock).map_err(failed)?;
                }
                return Ok(lock);
            }
            Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => {}
            Err((_, e)) => return Err(failed(e.into())),
        }
        if wait.cancelled.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let waited = begin.elapsed();
        if waited >= wait.limit.min(STOPPED_PATIENCE) {
            let owner = holder(dir, name);
            let stopped = owner.as_ref().is_some_and(Owner::is_stopped);
            if stopped || waited >= wait.limit {
                return Err(Error::Locked {
                    path: path.clone(),
                    waited,
                    pid: owner.as_ref().map(|owner| owner.process.pid),
                    command: owner.map(|owner| owner.command),
                    stopped,
                });
            }
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Removes the file of a held lock that will not be used again.
pub(crate) fn remove(dir: &Path, name: &str) {
    let _ = fs::remove_file(dir.join(name));
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = owner_only::options();
    options.create(true).append(true);
    match options.open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // The folder of the pools' locks.
            if let Some(folder) = path.parent()
                && folder.parent().is_some_and(Path::exists)
            {
                owner_only::create_folder(folder)?;
            }
            options.open(path)
        }
        result => result,
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

fn sign(mut file: &File) -> io::Result<()> {
    let Some(process) = Process::with_pid(process::id().cast_signed())? else {
        return Ok(());
    };
    let command = command(env::args_os().map(|word| word.to_string_lossy().into_owned()));
    file.set_len(0)?;
    let text = serde_json::to_vec(&Owner { process, command })?;
    // A full disk must not keep anybody from the lock.
    match file.write_all(&text) {
        Err(e) if !full_disk::is_full(&e) => Err(e),
        _ => Ok(()),
    }
}

/// The command that a process is, in a few words: without options and the folder of its program.
pub(super) fn command(words: impl Iterator<Item = String>) -> String {
    let mut words = words.filter(|word| !word.starts_with('-'));
    let program = words.next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default().to_owned();
    let rest: Vec<String> = words.take(WORDS - 1).collect();
    [vec![program], rest].concat().join(" ")
}

/// The holder of the lock of this name. Processes that share the lock of all claims hold one
/// claim's lock each; of these, a stopped one is returned first.
fn holder(dir: &Path, name: &str) -> Option<Owner> {
    let mut claims: Vec<Owner> = match name {
        SUSPENDED => fs::read_dir(dir.join(CLAIMS))
            .into_iter()
            .flatten()
            .filter_map(|file| owner(&file.ok()?.path()))
            .collect(),
        _ => Vec::new(),
    };
    claims.sort_by_key(|owner| !owner.is_stopped());
    claims.into_iter().next().or_else(|| owner(&dir.join(name)))
}

fn owner(path: &Path) -> Option<Owner> {
    let owner: Owner = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    owner.process.may_live().then_some(owner)
}

impl Owner {
    fn is_stopped(&self) -> bool {
        matches!(self.process.state(), Ok(ProcessState::Stopped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn take_now(dir: &Path, name: &str, exclusive: bool) -> Result<Flock<File>, Error> {
        let cancelled = &AtomicBool::new(false);
        let limit = NOW;
        take(dir, name, exclusive, Wait { limit, cancelled })
    }

    #[test]
    fn pools_do_not_wait_for_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let _a = take_now(dir.path(), &of_pool("a"), true).unwrap();
        let _b = take_now(dir.path(), &of_pool("b"), true).unwrap();
        let _shared = take_now(dir.path(), POOLS, false).unwrap();
        let _again = take_now(dir.path(), POOLS, false).unwrap();
        assert!(take_now(dir.path(), POOLS, true).is_err());
    }

    #[test]
    fn who_waits_is_told_for_whom() {
        let dir = tempfile::tempdir().unwrap();
        let held = take_now(dir.path(), &of_pool("a"), true).unwrap();
        let error = take_now(dir.path(), &of_pool("a"), true).unwrap_err();
        let Error::Locked { pid, stopped, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*pid, Some(process::id().cast_signed()));
        assert!(!stopped);
        assert!(error.to_string().contains("process"), "{error}");
        drop(held);
        take_now(dir.path(), &of_pool("a"), true).unwrap();
    }

    #[test]
    fn who_waits_for_all_claims_is_told_who_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let _all = take_now(dir.path(), SUSPENDED, false).unwrap();
        let token = TokenDigest::of("token");
        let _own = take_now(dir.path(), &of_claim(&token), true).unwrap();
        let error = take_now(dir.path(), SUSPENDED, true).unwrap_err();
        let Error::Locked { pid, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*pid, Some(process::id().cast_signed()));
        let error = take_now(dir.path(), &of_claim(&token), true).unwrap_err();
        assert!(error.to_string().contains("the claim"), "{error}");
        assert!(!error.to_string().contains(token.as_str()), "{error}");
        let other = TokenDigest::of("other");
        let _other = take_now(dir.path(), &of_claim(&other), true).unwrap();
    }

    #[test]
    fn a_wait_ends_when_it_is_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let _held = take_now(dir.path(), SUSPENDED, true).unwrap();
        let cancelled = &AtomicBool::new(true);
        let limit = LOCK_TIMEOUT;
        let error = take(dir.path(), SUSPENDED, false, Wait { limit, cancelled }).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
    }

    #[test]
    fn a_lock_whose_file_was_removed_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let _old = take_now(dir.path(), &of_pool("a"), true).unwrap();
        remove(dir.path(), &of_pool("a"));
        let _new = take_now(dir.path(), &of_pool("a"), true).unwrap();
        assert!(take_now(dir.path(), &of_pool("a"), true).is_err());
    }

    #[test]
    fn a_command_is_told_without_options_and_tokens() {
        let words = ["/usr/bin/brood", "--no-daemon", "pool", "resume", "secret"];
        let words = words.into_iter().map(str::to_owned);
        assert_eq!(command(words), "brood pool resume");
    }
}
