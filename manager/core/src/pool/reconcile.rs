//! Pool reconciliation: repairs the entries that exist, then restores those that are missing. One
//! process at a time does this for a pool, by the pool's own lock: no pool waits for another pool's
//! guests.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::Flock;

use super::{AGED_AT_ONCE, Error, Pool, Pools};
use crate::{
    engine::restore_lock,
    guest_id::GuestId,
    guests::{Guest, GuestState},
    restore::{self, RestoreContext, RestoreFailure, RestoreSpec, RestoreStep, cost, restore},
    state::{
        EntryRow, EntryState,
        lock::{self, Wait},
    },
    units::Bytes,
};

/// Size of a batch of guests after the first few: entries can be claimed when their batch is done.
const GO: u64 = 128;

/// How long a restore may take to end by itself after its manager has died.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(1);
/// How long to wait for such a restore in all.
const RESTORE_PATIENCE: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Result of a reconciliation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReconcileReport {
    /// Guests of an interrupted fill that are hot now.
    pub saved: u64,
    /// Entries whose guest was destroyed: released, expired, dead, no longer pristine, or of a
    /// network that the pool had before.
    pub destroyed: u64,
    /// Hot entries beyond the pool's high water.
    pub evicted: u64,
    /// Guests that could not be ended, each with the reason; the next reconciliation tries again.
    pub left: Vec<String>,
}

/// How far a pool is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refill {
    /// Until nothing is missing.
    Whole,
    /// As its policy has it.
    Kept {
        /// It was begun and is gone on with; else it waits until too few are hot.
        under_way: bool,
        /// No more guests than these for now.
        at_most: u64,
    },
}

/// Result of filling a pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FillReport {
    /// New entries.
    pub restored: u64,
    /// Guests that were not restored.
    pub failures: Vec<RestoreFailure>,
    /// Entries that are still missing: it was interrupted, or the pool or the host takes no more.
    pub missing: u64,
    /// Why there was no room for those.
    pub no_room: Option<String>,
    /// From the beginning to the last new entry.
    pub wall: Duration,
}

impl Pools<'_> {
    /// Takes the pool's lock; waits until no other process reconciles or fills this pool.
    pub(super) fn lock(&self, name: &str, cancelled: &AtomicBool) -> Result<PoolLock, Error> {
        let (dir, limit) = (self.state.dir(), self.lock_limit);
        let wait = Wait { limit, cancelled };
        Ok(PoolLock {
            _all: lock::take(dir, lock::POOLS, false, wait)?,
            _own: lock::take(dir, &lock::of_pool(name), true, wait)?,
        })
    }

    /// Reconciles the entries of a pool with the guests that exist.
    ///
    /// # Errors
    /// When there is no such pool, or the state cannot be written.
    pub fn reconcile(&mut self, name: &str) -> Result<ReconcileReport, Error> {
        self.row(name)?;
        let _lock = self.lock(name, self.cancelled)?;
        self.reconcile_locked(name)
    }

    /// Ends claims of a pool whose lease is over. Returns their guests, which the caller is to end.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn expire(&mut self, name: &str) -> Result<Vec<GuestId>, Error> {
        let mut expired = Vec::new();
        while let Some(guest) = self.state.expire_claim(name)? {
            expired.push(guest);
        }
        Ok(expired)
    }

    /// Ends guests of claims that are over. Needs no lock: another process could only do the same.
    ///
    /// # Errors
    /// When the state cannot be read or written.
    pub fn end_expired(&mut self, guests: &[GuestId]) -> Result<(), Error> {
        // Who is left is released, and found when the pool is reconciled.
        self.destroy(guests).map(drop)
    }

    fn reconcile_locked(&mut self, name: &str) -> Result<ReconcileReport, Error> {
        let pool = self.row(name)?;
        self.reconcile_suspended_claims();
        let (guests, entries) = self.when_restores_are_over(name)?;
        let (mut saved, mut doomed, mut hot) = (Vec::new(), Vec::new(), 0);
        for entry in entries {
            let Some(guest) = guests.get(&entry.guest) else {
                continue;
            };
            let this_boot = self.state.of_this_boot(&guest.row);
            match (entry.state, guest.state) {
                // A claim is restoring this guest.
                (_, GuestState::Restoring) => {}
                (EntryState::Releasing, _) => doomed.push(entry.guest),
                (EntryState::Filling, GuestState::Running | GuestState::Paused)
                    if !entry.outdated =>
                {
                    saved.push(guest.clone());
                }
                (EntryState::Hot, GuestState::Paused) if !entry.outdated => hot += 1,
                // It died, or a user continued it: it no longer equals the checkpoint. Or no claim
                // gets it, as it has a network that the pool had before.
                (EntryState::Filling | EntryState::Hot, _) => {
                    if self.state.give_up(&entry.guest, entry.state)? {
                        doomed.push(entry.guest);
                    }
                }
                // It stays, so that its claimer learns how it ended, until the lease is over or the
                // host is rebooted.
                (EntryState::Claimed, GuestState::Dead) if !this_boot => {
                    if self.state.give_up(&entry.guest, entry.state)? {
                        doomed.push(entry.guest);
                    }
                }
                (EntryState::Claimed, _) => {}
            }
        }
        doomed.extend(self.expire(name)?);
        let destroyed = doomed.len() as u64;
        let saved_count = self.mark_hot(&saved, &mut doomed)?;
        let surplus = (hot + saved_count).saturating_sub(pool.policy.hot);
        let mut evicted = 0;
        while evicted < surplus {
            let Some(guest) = self.state.evict_hot(name)? else {
                break;
            };
            doomed.push(guest);
            evicted += 1;
        }
        let left = self.destroy(&doomed)?;
        Ok(ReconcileReport {
            saved: saved_count,
            destroyed: destroyed.saturating_sub(left.len() as u64),
            evicted,
            left: left.iter().map(|left| left.error.to_string()).collect(),
        })
    }

    /// The guests and the entries of a pool. Waits for the restores of an earlier fill whose
    /// manager has died, and ends them when they do not end soon.
    fn when_restores_are_over(
        &mut self,
        name: &str,
    ) -> Result<(HashMap<GuestId, Guest>, Vec<EntryRow>), Error> {
        let begin = Instant::now();
        loop {
            // First the processes, then the record: an entry that was claimed in between is seen as
            // claimed. The other way around it would seem hot, and run.
            let guests: HashMap<GuestId, Guest> = self
                .guests()
                .list()?
                .into_iter()
                .map(|guest| (guest.row.id, guest))
                .collect();
            let entries = self.state.entries(name)?;
            let still_restored = |entry: &EntryRow| {
                let guest = guests.get(&entry.guest);
                entry.state == EntryState::Filling
                    && guest.is_some_and(|guest| guest.state == GuestState::Restoring)
            };
            let mut orphans = entries
                .iter()
                .filter(|entry| still_restored(entry))
                .peekable();
            if begin.elapsed() > RESTORE_PATIENCE || orphans.peek().is_none() {
                return Ok((guests, entries));
            }
            if begin.elapsed() > ORPHAN_PATIENCE {
                let sessions: HashSet<&str> = orphans
                    .filter_map(|entry| guests.get(&entry.guest))
                    .map(|guest| guest.row.session.as_str())
                    .collect();
                for session in sessions {
                    restore_lock::end_orphans(&self.state.run_dir(), session);
                }
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Reconciles a pool and restores the entries that it lacks. Entries can be claimed as they
    /// come; setting `cancelled` ends the fill early. Failures are recorded.
    ///
    /// # Errors
    /// When there is no such pool, its checkpoint is not good, or nothing could be restored.
    pub fn fill(
        &mut self,
        name: &str,
        refill: Refill,
        concurrency: u32,
        cancelled: &AtomicBool,
        observe: &mut dyn FnMut(&RestoreStep<'_>),
    ) -> Result<(ReconcileReport, FillReport), Error> {
        self.row(name)?;
        let _lock = self.lock(name, cancelled)?;
        let result = self.fill_locked(name, refill, concurrency, cancelled, observe);
        match why_failing(&result) {
            Some(_) if cancelled.load(Ordering::Relaxed) => {}
            Some(error) => self.state.note_failing(name, &error)?,
            None => drop(self.state.note_not_failing(name)?),
        }
        result
    }

    fn fill_locked(
        &mut self,
        name: &str,
        refill: Refill,
        concurrency: u32,
        cancelled: &AtomicBool,
        observe: &mut dyn FnMut(&RestoreStep<'_>),
    ) -> Result<(ReconcileReport, FillReport), Error> {
        let begin = Instant::now();
        let mut reconciled = self.reconcile_locked(name)?;
        reconciled.evicted += self.evict_aged(name)?;
        let mut filled = FillReport::default();
        let (mut under_way, mut at_most) = match refill {
            Refill::Whole => (true, u64::MAX),
            Refill::Kept { under_way, at_most } => (under_way, at_most),
        };
        let mut go = u64::from(concurrency.max(1));
        loop {
            let pool = self.show(name)?;
            let there = pool.entries.hot + pool.entries.filling;
            filled.missing = pool.row.policy.hot.saturating_sub(there);
            let enough = !under_way && there >= pool.row.policy.enough();
            if filled.missing == 0 || enough {
                filled.missing = 0;
                return Ok((reconciled, filled));
            }
            under_way = true;
            let checkpoint = self.checkpoint(&pool.row)?;
            let each = pool.row.private_limit + cost::measured(self.state, &checkpoint)?.overhead;
            let room = pool
                .row
                .policy
                .room(each)
                .map_or(u64::MAX, |room| room.saturating_sub(pool.entries.all()));
            if room == 0 {
                filled.no_room = Some(full(&pool, each));
            }
            let now = filled.missing.min(room).min(at_most).min(go);
            let give_up = !filled.failures.is_empty() || cancelled.load(Ordering::Relaxed);
            if now == 0 || give_up {
                return Ok((reconciled, filled));
            }
            let spec = RestoreSpec {
                guests: u32::try_from(now).unwrap_or(u32::MAX),
                concurrency: Some(concurrency),
                ..self.restore_spec(&pool.row, &checkpoint, None)?
            };
            let facts = (self.facts)(checkpoint.path().dir())?;
            let context = RestoreContext {
                state: self.state,
                engine: self.engine,
                facts: &facts,
                slot: Some(self.sessions.named(name)),
                cancelled,
            };
            let restored = restore(context, &checkpoint, &spec, observe);
            let report = match restored {
                // Earlier batches are kept.
                Err(restore::Error::Admission(e)) if filled.restored > 0 => {
                    filled.no_room = Some(e.to_string());
                    return Ok((reconciled, filled));
                }
                other => other?,
            };
            let mut new = Vec::with_capacity(report.guests.len());
            for guest in &report.guests {
                new.push(self.guests().find(&guest.id.to_string())?);
            }
            let mut not_stopped = Vec::new();
            filled.restored += self.mark_hot(&new, &mut not_stopped)?;
            let left = self.destroy(&not_stopped)?;
            reconciled
                .left
                .extend(left.iter().map(|left| left.error.to_string()));
            at_most = at_most.saturating_sub(now);
            filled.failures.extend(report.failures);
            filled.wall = begin.elapsed();
            go = GO;
        }
    }

    /// Destroys hot guests of a pool that have become too old, a few at a time: new ones take their
    /// place before the next ones go.
    fn evict_aged(&mut self, name: &str) -> Result<u64, Error> {
        let Some(age_s) = self.row(name)?.policy.max_age_s else {
            return Ok(0);
        };
        let age = Duration::from_secs(age_s);
        let at_once = self.show(name)?.entries.hot.div_ceil(AGED_AT_ONCE);
        let mut doomed = Vec::new();
        while (doomed.len() as u64) < at_once {
            let Some(guest) = self.state.evict_aged(name, age)? else {
                break;
            };
            doomed.push(guest);
        }
        self.end_expired(&doomed)?;
        Ok(doomed.len() as u64)
    }

    /// Stops guests that were restored for a pool, and marks their entries hot. Returns how many
    /// there are. Guests that live and cannot be stopped go to `doomed`, to be ended.
    fn mark_hot(&mut self, guests: &[Guest], doomed: &mut Vec<GuestId>) -> Result<u64, Error> {
        // The next reconciliation finds one that died meanwhile.
        let hot = self.guests().pause_all(guests);
        self.state.mark_hot(&hot)?;
        let stopped: HashSet<&GuestId> = hot.iter().collect();
        for guest in guests.iter().filter(|g| !stopped.contains(&g.row.id)) {
            if self.state.give_up(&guest.row.id, EntryState::Filling)? {
                doomed.push(guest.row.id);
            }
        }
        Ok(hot.len() as u64)
    }
}

/// The locks that a process holds while it works at a pool.
#[derive(Debug)]
pub(super) struct PoolLock {
    // Its own goes first.
    _own: Flock<File>,
    _all: Flock<File>,
}

/// Why a pool could not be filled; `None` when the host only lacks room, or another process works
/// at the pool.
fn why_failing(result: &Result<(ReconcileReport, FillReport), Error>) -> Option<String> {
    match result {
        Ok((_, filled)) if filled.restored == 0 => {
            let failed = filled.failures.first();
            failed.map(|failure| format!("{}: {}", failure.name, failure.error))
        }
        Ok(_)
        | Err(
            Error::NoSuchPool(_)
            | Error::State(_)
            | Error::Restore(restore::Error::State(_) | restore::Error::Admission(_)),
        ) => None,
        Err(e) => Some(e.to_string()),
    }
}

/// Why a pool takes no more entries, given the memory that each may come to hold.
fn full(pool: &Pool, each: Bytes) -> String {
    let (policy, all) = (&pool.row.policy, pool.entries.all());
    match policy.max_memory {
        Some(memory) if policy.most.is_none_or(|most| all < most) => {
            format!(
                "the pool has {all} entries, which may come to hold {each} each, {memory} in all"
            )
        }
        _ => format!("the pool has {all} entries"),
    }
}
