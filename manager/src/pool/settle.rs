//! Bringing a pool to what it should be: first what is there is put in order, then what is missing
//! is restored. One does that at a time.

use std::{
    collections::HashMap,
    fs::File,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{AGED_AT_ONCE, Error, Pool, Pools};
use crate::{
    engine::GuestId,
    guests::{Guest, GuestState},
    restore::{
        cost,
        mass::{self, Event, Failure},
    },
    state::{EntryRow, EntryState, lock},
    units::Bytes,
};

/// Guests restored in one go, after the first few: entries can be claimed when their go is done.
const GO: usize = 128;

/// How long a restore whose manager is gone is waited for, and how often it is looked at.
const RESTORE_PATIENCE: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_millis(5);

/// What was put in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Settled {
    /// Guests of a fill that was cut off, and are hot now.
    pub saved: u64,
    /// Entries whose guest was ended: released or expired, dead, or not pristine any more.
    pub destroyed: u64,
    /// Hot entries that were one too many.
    pub evicted: u64,
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

/// What came of filling a pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filled {
    /// Entries that are new.
    pub restored: u64,
    /// Guests that were not restored.
    pub failures: Vec<Failure>,
    /// Entries that are still missing: it was interrupted, or the pool or the host takes no more.
    pub missing: u64,
    /// Why there was no room for those.
    pub no_room: Option<String>,
    /// From the beginning to the last new entry.
    pub wall: Duration,
}

impl Pools<'_> {
    /// Waits until nobody else settles or fills pools.
    pub(super) fn lock(&self) -> Result<Flock<File>, Error> {
        let (dir, how) = (self.state.dir(), FlockArg::LockExclusive);
        Ok(lock::take(dir, lock::POOLS, how)?)
    }

    /// Puts the entries of a pool in order.
    ///
    /// # Errors
    /// When there is no such pool, or a guest cannot be stopped or ended.
    pub fn settle(&mut self, name: &str) -> Result<Settled, Error> {
        let _lock = self.lock()?;
        self.settle_locked(name)
    }

    fn settle_locked(&mut self, name: &str) -> Result<Settled, Error> {
        let pool = self.row(name)?;
        self.settle_cold()?;
        let (guests, entries) = self.when_restores_are_over(name)?;
        let (mut saved, mut doomed, mut hot) = (Vec::new(), Vec::new(), 0);
        for entry in entries {
            let Some(guest) = guests.get(&entry.guest) else {
                continue;
            };
            let this_boot = self.state.of_this_boot(&guest.row);
            match (entry.state, guest.state) {
                // A claim that had to restore a guest is at it.
                (_, GuestState::Restoring) => {}
                (EntryState::Releasing, _) => doomed.push(entry.guest),
                (EntryState::Filling, GuestState::Running | GuestState::Paused) => {
                    saved.push(guest.clone());
                }
                (EntryState::Hot, GuestState::Paused) => hot += 1,
                // It died, or somebody let it run: it is not what the checkpoint is any more.
                (EntryState::Filling | EntryState::Hot, _) => {
                    if self.state.give_up(&entry.guest, entry.state)? {
                        doomed.push(entry.guest);
                    }
                }
                // Its claimer is told how it ended, until the lease is over or the host rebooted.
                (EntryState::Claimed, GuestState::Dead) if !this_boot => {
                    if self.state.give_up(&entry.guest, entry.state)? {
                        doomed.push(entry.guest);
                    }
                }
                (EntryState::Claimed, _) => {}
            }
        }
        while let Some(guest) = self.state.expire_claim(name)? {
            doomed.push(guest);
        }
        let destroyed = doomed.len() as u64;
        let saved_count = self.heat(&saved)?;
        let surplus = (hot + saved_count).saturating_sub(pool.policy.hot);
        let mut evicted = 0;
        while evicted < surplus {
            let Some(guest) = self.state.evict_hot(name)? else {
                break;
            };
            doomed.push(guest);
            evicted += 1;
        }
        self.destroy(&doomed)?;
        Ok(Settled {
            saved: saved_count,
            destroyed,
            evicted,
        })
    }

    /// The guests and the entries of a pool. Whoever is still restoring for an earlier fill, whose
    /// manager is gone, is waited for: it ends by itself.
    fn when_restores_are_over(
        &mut self,
        name: &str,
    ) -> Result<(HashMap<GuestId, Guest>, Vec<EntryRow>), Error> {
        let begin = Instant::now();
        loop {
            // First what runs, then what is recorded: an entry that was claimed in between is seen
            // as claimed. The other way around it would be hot, and run.
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
            if begin.elapsed() > RESTORE_PATIENCE || !entries.iter().any(still_restored) {
                return Ok((guests, entries));
            }
            thread::sleep(GLANCE);
        }
    }

    /// Settles a pool and restores what it lacks. Entries can be claimed as they come; setting
    /// `cancelled` ends it early.
    ///
    /// # Errors
    /// When there is no such pool, its checkpoint is not good, or nothing could be restored.
    pub fn fill(
        &mut self,
        name: &str,
        refill: Refill,
        concurrency: usize,
        cancelled: &AtomicBool,
        observe: &mut dyn FnMut(&Event<'_>),
    ) -> Result<(Settled, Filled), Error> {
        let _lock = self.lock()?;
        let begin = Instant::now();
        let mut settled = self.settle_locked(name)?;
        settled.evicted += self.evict_aged(name)?;
        let mut filled = Filled::default();
        let (mut under_way, mut at_most) = match refill {
            Refill::Whole => (true, u64::MAX),
            Refill::Kept { under_way, at_most } => (under_way, at_most),
        };
        let mut go = concurrency.max(1);
        loop {
            let pool = self.show(name)?;
            let there = pool.entries.hot + pool.entries.filling;
            filled.missing = pool.row.policy.hot.saturating_sub(there);
            let enough = !under_way && there >= pool.row.policy.enough();
            if filled.missing == 0 || enough {
                filled.missing = 0;
                return Ok((settled, filled));
            }
            under_way = true;
            let checkpoint = self.checkpoint(&pool.row)?;
            let each = pool.row.allowance + cost::measured(self.state, &checkpoint)?.overhead;
            let room = pool
                .row
                .policy
                .room(each)
                .map_or(u64::MAX, |room| room.saturating_sub(pool.entries.all()));
            if room == 0 {
                filled.no_room = Some(full(&pool, each));
            }
            let now = usize::try_from(filled.missing.min(room).min(at_most))
                .unwrap_or(usize::MAX)
                .min(go);
            let give_up = !filled.failures.is_empty() || cancelled.load(Ordering::Relaxed);
            if now == 0 || give_up {
                return Ok((settled, filled));
            }
            let request = self.request(&pool.row, &checkpoint, now, concurrency, None)?;
            let facts = (self.facts)(checkpoint.path().dir())?;
            let restored = mass::restore_by(
                self.standing.named(name),
                self.state,
                self.engine,
                &facts,
                &checkpoint,
                &request,
                cancelled,
                observe,
            );
            let report = match restored {
                // What came before stands.
                Err(mass::Error::Admission(e)) if filled.restored > 0 => {
                    filled.no_room = Some(e.to_string());
                    return Ok((settled, filled));
                }
                other => other?,
            };
            let mut new = Vec::with_capacity(report.guests.len());
            for guest in &report.guests {
                new.push(self.guests().find(&guest.id.to_string())?);
            }
            filled.restored += self.heat(&new)?;
            at_most = at_most.saturating_sub(now as u64);
            filled.failures.extend(report.failures);
            filled.wall = begin.elapsed();
            go = GO;
        }
    }

    /// Drops hot entries that have become too old, a few at a time: new ones take their place before
    /// the next ones go.
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
        self.destroy(&doomed)?;
        Ok(doomed.len() as u64)
    }

    /// Stops guests that were restored for a pool, and offers them. Returns how many there are.
    fn heat(&mut self, guests: &[Guest]) -> Result<u64, Error> {
        // One that died meanwhile is found by whoever settles the pool next.
        let hot = self.guests().pause_all(guests)?;
        self.state.mark_hot(&hot)?;
        Ok(hot.len() as u64)
    }
}

/// Why a pool takes no more entries, each of which may come to hold so much.
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
