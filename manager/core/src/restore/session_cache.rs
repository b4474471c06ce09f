//! Session cache: engine sessions that stay between restores, each with a warm fork server
//! (nursery) and spare guests, so that a restore pays for the guest alone and for no start of a
//! process. A cached session keeps its checkpoint's file open and its memory mapped.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    checkpoint::{Checkpoint, FileStamp},
    engine::{Session, SessionTerms, restore_lock::RestoreLock},
};

/// A session with its fork server, for one restore after the other.
#[derive(Debug)]
pub(super) struct WarmSession {
    pub(super) session: Box<dyn Session>,
    /// How many orders it was given.
    pub(super) next: u64,
    /// Stamps of the checkpoint's files at the time when their content was verified.
    pub(super) stamps: Vec<FileStamp>,
    pub(super) terms: SessionTerms,
}

impl WarmSession {
    fn fits(&self, checkpoint: &Checkpoint, terms: SessionTerms) -> bool {
        self.stamps == checkpoint.stamps() && self.terms == terms
    }
}

/// Sessions that stand by, at most. Each has a process and its spares, a descriptor for each file of
/// the checkpoint, and threads of its engine.
const SESSIONS_MAX: usize = 32;

/// Idle sessions by the name of the pool or restore that they serve. Threads share the cache: a
/// session that one thread has taken is its own, and another thread begins a new one meanwhile.
#[derive(Default)]
pub struct SessionCache(Mutex<HashMap<String, CachedSession>>);

/// A session that stands by, with its lock.
struct CachedSession {
    // Its name goes before nurseries see the end, so that they know all results to be recorded.
    lock: RestoreLock,
    warm: WarmSession,
    since: Instant,
}

impl SessionCache {
    /// The slot of this name.
    #[must_use]
    pub fn named<'a>(&'a self, name: &'a str) -> Slot<'a> {
        Slot { slots: self, name }
    }

    /// Ends sessions that were not used for `after`, except those that are `wanted`.
    pub fn end_unused(&self, after: Duration, wanted: impl Fn(&str) -> bool) {
        let unused = |name: &String, cached: &mut CachedSession| {
            !wanted(name) && cached.since.elapsed() > after
        };
        let ended: Vec<_> = self.all().extract_if(unused).collect();
        drop(ended);
    }

    /// Ends a session that is not needed any more.
    pub fn end(&self, name: &str) {
        let ended = self.all().remove(name);
        drop(ended);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, CachedSession>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SessionCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.all().keys()).finish()
    }
}

/// Room for one session that stands by.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a> {
    slots: &'a SessionCache,
    name: &'a str,
}

impl Slot<'_> {
    /// Takes the session out if it restores this checkpoint on these terms; ends it if not.
    pub(super) fn take(
        self,
        checkpoint: &Checkpoint,
        terms: SessionTerms,
    ) -> Option<(RestoreLock, WarmSession)> {
        let cached = self.slots.all().remove(self.name);
        let CachedSession { lock, mut warm, .. } =
            cached.filter(|cached| cached.warm.fits(checkpoint, terms))?;
        // Outcomes of guests that have ended since do not matter any more. A session that broke
        // down meanwhile shows here.
        loop {
            match warm.session.wait(Duration::ZERO) {
                Ok(Some(_)) => {}
                Ok(None) => return Some((lock, warm)),
                Err(_) => return None,
            }
        }
    }

    /// Puts a session into the slot. Of two sessions the later one stays, because it restores the
    /// present content of the checkpoint.
    pub(super) fn put(self, lock: RestoreLock, mut warm: WarmSession) {
        warm.session.rest();
        let cached = CachedSession {
            warm,
            lock,
            since: Instant::now(),
        };
        let mut all = self.slots.all();
        let replaced = all.insert(self.name.to_owned(), cached);
        // Whoever restores from many checkpoints pays for that, and the host does not.
        let longest_idle = (all.len() > SESSIONS_MAX)
            .then(|| all.iter().min_by_key(|(_, cached)| cached.since))
            .flatten()
            .map(|(name, _)| name.clone());
        let ended = longest_idle.and_then(|name| all.remove(&name));
        drop(all);
        drop((replaced, ended));
    }
}
