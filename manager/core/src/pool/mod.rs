//! Pools: guests that wait, restored and stopped, until somebody claims one.
//!
//! A pool's cold tier is its checkpoint on disk, from which any number of entries can be restored.
//! Its hot tier holds guests that were restored, have answered, and were stopped (SIGSTOP): a claim
//! only continues one. An entry goes one way:
//!
//! ```text
//! filling ──▶ hot ──▶ claimed ──▶ releasing ──▶ gone
//!    └─────────┴──────────────────────▲
//! ```
//!
//! Each entry is restored anew, so no claimer finds what another has left in a guest's memory. An
//! entry that was never claimed holds nothing that the checkpoint does not hold, so evicting it
//! means dropping it.
//!
//! Each step is recorded before it is taken, by an SQL statement that only one of many processes
//! can win, and each step can be repeated. So when a manager is killed between two steps, the next
//! process goes on from there: [`Pools::reconcile`] reconciles the pool, after a crash and in everyday
//! work alike.

mod apply;
mod claim;
mod details;
mod error;
mod pace;
mod reconcile;
mod room_wait;
mod suspended;
mod sweep;

use std::{path::Path, sync::atomic::AtomicBool, time::Duration};

use jiff::Timestamp;

pub use apply::ApplyOutcome;
pub use claim::{ClaimGrant, ClaimSpec, Tier, WAKE_TIMEOUT};
pub use details::{ClaimState, ClaimView, ClaimedEntry, Details, SuspendedClaim};
pub use error::Error;
pub use pace::Pace;
pub use reconcile::{FillReport, ReconcileReport, Refill};
pub use room_wait::{NextStep, RoomWait};

use crate::{
    checkpoint::{BundlePath, Checkpoint, Network, Watch, until},
    engine::{self, Engine, GuestNetwork, Publish, check_network},
    guest_id::GuestId,
    guests::{Guest, Guests, Left},
    host::{self, facts::HostFacts},
    restore::{RestoreSpec, SessionCache, cost, verify},
    state::{
        self, EntryState, Lease, Membership, Policy, PoolChange, PoolFailure, PoolRow, State,
        check_prefix, lock,
    },
    units::Bytes,
};

/// Checks that a policy does not contradict itself, given the memory that each guest may come to
/// hold.
fn check(pool: &str, policy: &Policy, each: Bytes) -> Result<(), Error> {
    let contradiction = |reason| {
        Err(Error::Contradiction {
            pool: pool.to_owned(),
            reason,
        })
    };
    let hot = policy.hot;
    if let Some(most) = policy.most.filter(|most| *most < hot) {
        return contradiction(format!(
            "it may have {most} guests, and should have {hot} hot"
        ));
    }
    if let Some(low) = policy.hot_min.filter(|low| *low > hot) {
        return contradiction(format!("it never has {low} hot guests, but up to {hot}"));
    }
    if let Some(memory) = policy.max_memory.filter(|memory| *memory < each) {
        return contradiction(format!(
            "its guests may come to hold {memory} together, and one alone {each}"
        ));
    }
    Ok(())
}

/// Checks that so many guests can have their ports.
fn check_ports(
    network: Option<Network>,
    publish: &[Publish],
    policy: &Policy,
) -> Result<(), engine::Error> {
    let most = policy.most.unwrap_or(u64::MAX);
    check_network(network, publish, u32::try_from(most).unwrap_or(u32::MAX))
        .map_err(engine::Error::Refused)
}

/// Default lease of a claim.
pub const LEASE: Duration = Duration::from_secs(300);

/// Divisor of the hot entries: at most one in so many aged entries is replaced at a time.
const AGED_AT_ONCE: u64 = 8;

/// A pool to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPool {
    /// Its name, which is also the prefix of its guests' names.
    pub name: String,
    /// What its guests are restored from.
    pub checkpoint: BundlePath,
    /// Private memory that each of its guests is allowed.
    pub private_limit: Bytes,
    /// Have the kernel end a guest that holds more.
    pub enforce_private_limit: bool,
    /// What its guests reach; none is for the checkpoint to say.
    pub network: Option<Network>,
    /// What leads into its guests.
    pub publish: Vec<Publish>,
    /// What it should be.
    pub policy: Policy,
    /// Trust the checkpoint from now on.
    pub trust: bool,
}

/// How many of a pool's entries are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Being restored.
    pub filling: u64,
    /// Waiting to be claimed.
    pub hot: u64,
    /// Somebody's.
    pub claimed: u64,
    /// Being destroyed.
    pub releasing: u64,
    /// Suspended claims. They are no entries, and take no memory.
    pub suspended: u64,
}

impl Counts {
    /// All entries: what may have a guest.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.filling + self.hot + self.claimed + self.releasing
    }
}

/// A pool and what there is of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// What it should be.
    pub row: PoolRow,
    /// What it is.
    pub entries: Counts,
    /// Why the last fill failed.
    pub failing: Option<PoolFailure>,
}

impl Pool {
    /// How many hot guests are missing.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.row.policy.hot.saturating_sub(self.entries.hot)
    }
}

/// Reads the host's facts, as far as they matter to guests of a checkpoint in this folder.
pub(crate) type ReadFacts<'a> = &'a dyn Fn(&Path) -> Result<HostFacts, host::proc::Error>;

/// The pools of a state folder, and what is needed to keep them.
#[expect(missing_debug_implementations, reason = "holds a function")]
pub struct Pools<'a> {
    /// The record.
    pub state: &'a mut State,
    /// What runs guests.
    pub engine: &'a dyn Engine,
    /// What the host can hold.
    pub facts: ReadFacts<'a>,
    /// Warm fork servers (nurseries) of pools. The daemon keeps them; a command that claims once
    /// has none.
    pub sessions: &'a SessionCache,
    /// Ends all waits when set: the requester has gone.
    pub cancelled: &'a AtomicBool,
    /// How long to wait for another process that works at the same pool.
    pub lock_limit: Duration,
}

pub use crate::engine::NEVER;

/// The usual `lock_limit`.
pub const LOCK_LIMIT: Duration = lock::LOCK_TIMEOUT;

impl Pools<'_> {
    /// Makes a pool, which has no entries yet.
    ///
    /// # Errors
    /// When there is one of this name, or its checkpoint is not good.
    pub fn create(&mut self, new: &NewPool, progress: Watch<'_>) -> Result<Pool, Error> {
        // The name that its first guest would have.
        if let Err(state::Error::Name { name, reason }) = check_prefix(&new.name) {
            return Err(Error::Name { name, reason });
        }
        let checkpoint = self.state.open_checkpoint(&new.checkpoint)?;
        let overhead = cost::measured(self.state, &checkpoint)?.overhead;
        check(&new.name, &new.policy, new.private_limit + overhead)?;
        if new.enforce_private_limit {
            self.engine.can_enforce_limits(&checkpoint)?;
        }
        check_ports(new.network, &new.publish, &new.policy)?;
        self.can_network(new.network, &new.publish, &checkpoint)?;
        if new.trust {
            self.state.trust(&checkpoint)?;
        }
        let _use = verify(self.state, self.engine, &checkpoint, progress)?;
        for exposure in checkpoint.exposures() {
            tracing::warn!(pool = new.name, "{exposure}");
        }
        let row = PoolRow {
            name: new.name.clone(),
            checkpoint: checkpoint.path().absolute()?.to_string(),
            sha256: checkpoint.manifest().memory_sha256(),
            policy: new.policy,
            private_limit: new.private_limit,
            enforce_private_limit: new.enforce_private_limit,
            network: new.network,
            publish: new.publish.clone(),
            network_version: 0,
            created_at: Timestamp::now().to_string(),
        };
        if !self.state.add_pool(&row)? {
            return Err(Error::Exists(row.name));
        }
        Ok(Pool {
            row,
            entries: Counts::default(),
            failing: None,
        })
    }

    /// Whether guests of a checkpoint can have this network.
    fn can_network(
        &self,
        network: Option<Network>,
        publish: &[Publish],
        checkpoint: &Checkpoint,
    ) -> Result<(), Error> {
        if network.is_some() || !publish.is_empty() {
            let wanted = GuestNetwork::of(network, publish, "1").map_err(engine::Error::Refused)?;
            self.engine.can_network(checkpoint, &wanted)?;
        }
        Ok(())
    }

    /// Changes a pool's policy and its network. Its entries follow when the pool is reconciled and
    /// filled; from now on no claim gets one that has another network.
    ///
    /// # Errors
    /// When there is no such pool, or its guests cannot have the network.
    pub fn change(&mut self, name: &str, change: &PoolChange) -> Result<Pool, Error> {
        let row = self.row(name)?;
        let policy = change.apply(&row.policy);
        // What guests cost besides is left out: the checkpoint may be away for now.
        check(name, &policy, row.private_limit)?;
        let (network, publish) = change.network_of(&row);
        check_ports(network, &publish, &policy)?;
        if (network, &publish) != (row.network, &row.publish) {
            let checkpoint = self.state.open_checkpoint(&row.checkpoint.parse()?)?;
            self.can_network(network, &publish, &checkpoint)?;
        }
        self.state.change_pool(name, change)?;
        self.show(name)
    }

    /// All pools, by name.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn list(&self) -> Result<Vec<Pool>, Error> {
        let rows = self.state.pools()?;
        rows.into_iter().map(|row| self.counted(row)).collect()
    }

    /// The pool of this name.
    ///
    /// # Errors
    /// [`Error::NoSuchPool`], or when the state cannot be read.
    pub fn show(&self, name: &str) -> Result<Pool, Error> {
        self.counted(self.row(name)?)
    }

    fn counted(&self, row: PoolRow) -> Result<Pool, Error> {
        let mut entries = Counts::default();
        for entry in self.state.entries(&row.name)? {
            *match entry.state {
                EntryState::Filling => &mut entries.filling,
                EntryState::Hot => &mut entries.hot,
                EntryState::Claimed => &mut entries.claimed,
                EntryState::Releasing => &mut entries.releasing,
            } += 1;
        }
        let suspended = self.state.suspended_claims()?;
        entries.suspended = suspended.iter().filter(|c| c.pool == row.name).count() as u64;
        let failing = self.state.failing(&row.name)?;
        Ok(Pool {
            row,
            entries,
            failing,
        })
    }

    /// Drops up to `entries` hot entries of a pool; returns how many.
    ///
    /// # Errors
    /// When there is no such pool, or a guest cannot be ended.
    pub fn evict(&mut self, name: &str, entries: u64) -> Result<u64, Error> {
        self.row(name)?;
        let mut doomed = Vec::new();
        while (doomed.len() as u64) < entries {
            let Some(guest) = self.state.evict_hot(name)? else {
                break;
            };
            doomed.push(guest);
        }
        let left = self.destroy(&doomed)?;
        none_left(name, &left)?;
        Ok(doomed.len() as u64)
    }

    /// Removes a pool and its entries; if entries are claimed, only with `force`.
    ///
    /// # Errors
    /// [`Error::InUse`], when there is no such pool, or a guest cannot be ended.
    pub fn remove(&mut self, name: &str, force: bool) -> Result<(), Error> {
        self.row(name)?;
        let _lock = self.lock(name, self.cancelled)?;
        // A suspended claim that the record has lost is the pool's too.
        self.reconcile_suspended_claims();
        let entries = self.show(name)?.entries;
        let claimed = entries.claimed + entries.suspended;
        if claimed > 0 && !force {
            return Err(Error::InUse {
                pool: name.to_owned(),
                claimed,
            });
        }
        // From now on it takes no more entries.
        let none = PoolChange {
            hot: Some(0),
            most: Some(Some(0)),
            ..PoolChange::default()
        };
        self.state.change_pool(name, &none)?;
        let mut doomed = Vec::new();
        for entry in self.state.entries(name)? {
            if entry.state != EntryState::Claimed || force {
                self.state.give_up(&entry.guest, entry.state)?;
                doomed.push(entry.guest);
            }
        }
        let left = self.destroy(&doomed)?;
        for suspended in self.state.suspended_claims()? {
            if suspended.pool == name && force {
                self.state.forget_suspended_claim(&suspended.token, false)?;
            }
        }
        self.reconcile_suspended_claims();
        self.sessions.end(name);
        none_left(name, &left)?;
        if self.state.remove_pool(name)? {
            lock::remove(self.state.dir(), &lock::of_pool(name));
            return Ok(());
        }
        Err(Error::InUse {
            pool: name.to_owned(),
            claimed: self.show(name)?.entries.claimed,
        })
    }

    fn row(&self, name: &str) -> Result<PoolRow, Error> {
        let row = self.state.pool(name)?;
        row.ok_or_else(|| Error::NoSuchPool(name.to_owned()))
    }

    fn guests(&mut self) -> Guests<'_> {
        Guests {
            state: self.state,
            engine: self.engine,
            cancelled: self.cancelled,
        }
    }

    /// Ends the guests of entries in the state `releasing`. Returns those that cannot be ended;
    /// their entries stay in that state.
    fn destroy(&mut self, ids: &[GuestId]) -> Result<Vec<Left>, Error> {
        let mut guests = self.guests();
        let mut found: Vec<Guest> = Vec::with_capacity(ids.len());
        for id in ids {
            match guests.find(&id.to_string()) {
                Ok(guest) => found.push(guest),
                // Another process was faster.
                Err(crate::guests::Error::NoSuchGuest(_)) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(guests.destroy(&found)?.left)
    }

    /// A restore of one guest for a pool.
    fn restore_spec(
        &self,
        pool: &PoolRow,
        checkpoint: &Checkpoint,
        claim: Option<Lease>,
    ) -> Result<RestoreSpec, Error> {
        let overhead = cost::measured(self.state, checkpoint)?.overhead;
        Ok(RestoreSpec {
            checkpoint: checkpoint.path().to_string(),
            guests: 1,
            concurrency: Some(1),
            prefix: Some(pool.name.clone()),
            private_limit: Some(pool.private_limit),
            enforce_private_limit: pool.enforce_private_limit,
            network: pool.network,
            publish: pool.publish.clone(),
            overhead: Some(overhead),
            membership: Some(Membership {
                pool: pool.name.clone(),
                claim,
                room: pool.policy.room(pool.private_limit + overhead),
                network_version: pool.network_version,
            }),
            ..RestoreSpec::default()
        })
    }

    /// The pool's checkpoint, which must be unchanged since the pool was made.
    fn checkpoint(&self, pool: &PoolRow) -> Result<Checkpoint, Error> {
        let path: BundlePath = pool.checkpoint.parse()?;
        let checkpoint = self.state.open_checkpoint(&path)?;
        if checkpoint.manifest().memory_sha256() != pool.sha256 {
            return Err(Error::OtherCheckpoint {
                pool: pool.name.clone(),
                checkpoint: pool.checkpoint.clone(),
            });
        }
        // The pool itself is a user of it.
        drop(verify(
            self.state,
            self.engine,
            &checkpoint,
            &until(self.cancelled),
        )?);
        Ok(checkpoint)
    }
}

/// An error when guests could not be ended.
fn none_left(pool: &str, left: &[Left]) -> Result<(), Error> {
    match left.first() {
        None => Ok(()),
        Some(first) => Err(Error::Left {
            pool: pool.to_owned(),
            guests: left.len(),
            first: first.error.to_string(),
        }),
    }
}
