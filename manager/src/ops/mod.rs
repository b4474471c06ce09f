//! Operations: what brood can do with guests, pools and claims, behind one trait.
//!
//! What implements [`StateFolder`] does the work itself: it opens a state folder and the engine of
//! the host when an operation first needs them. The daemon has one for each request, and [`Local`] is
//! a command's. The daemon's client implements the trait, too: each operation is one request. So a
//! handler of the API and a command are alike: parse, one call, answer. Results do not depend on who
//! does the work.
//!
//! Which of them does it for a command is chosen in one place, `client::Auto`, by what is gained. The
//! daemon restores, and works on pools, claims and running guests: it has warm nurseries, and events
//! and metrics tell of what it does. This process looks at the record, and works where files are: it
//! suspends, plans, trusts, removes and sweeps with the rights of its user, who may write where a
//! confined daemon may not, and see the progress. A user who may not enter the state folder has the
//! daemon do that, too.
//!
//! Not in the trait:
//! - What concerns only files that a user names, or the record itself, is a method of [`Local`] in
//!   `files`: a daemon may see other files under the same path, or is what is to be repaired.
//! - Programs, copies and consoles in guests (exec, run, cp, logs, console) are streams in both
//!   directions for as long as a user likes, not a request and an answer. The command speaks with
//!   the guest's agent itself; the API carries the same over its own connections.
//! - `density` measures this process among others, step by step.

mod error;
mod files;
mod folder;
mod here;
mod local;
mod progress;

use std::{path::Path, time::Duration};

pub(crate) use error::Error;
#[cfg(target_os = "linux")]
pub(crate) use files::ImageBoot;
pub(crate) use files::{ImportSource, flatten};
pub(crate) use folder::{OpenFolder, StateFolder};
pub(crate) use local::Local;
pub(crate) use progress::{RestoreObserver, Watch, unless};

#[cfg(feature = "top")]
use crate::types::RestoreEvent;
use crate::types::{
    AskRequest, Checkpoint, Claim, DestroyAnswer, DestroyTargets, FillRequest, Guest, GuestAnswer,
    Host, Leftovers, Pool, PoolAnswer, PoolDetails, RemovedCheckpoint, ResumeClaimRequest,
    ResumeReport, SuspendAnswer, SuspendTarget, SweepReport,
};
use brood_core::{
    checkpoint::{self, BundlePath},
    disk::Place,
    guests, host,
    pool::{ApplyOutcome, ClaimSpec, NewPool},
    restore::{RestoreReport, RestoreSpec},
    state::PoolChange,
    units::Bytes,
};

/// Guests that one operation may name: a request to the daemon has their names in its path.
pub(crate) const NAMES: usize = 500;

/// What a daemon does and has counted.
#[cfg(feature = "top")]
pub(crate) struct DaemonActivity {
    /// Its process.
    pub(crate) pid: u32,
    /// Restores in flight.
    pub(crate) restores: Vec<RestoreEvent>,
    /// What it has counted, as OpenMetrics text.
    pub(crate) metrics: String,
}

/// A pool to put in order.
#[derive(Clone, Debug)]
pub(crate) struct PutPool {
    /// What to do first.
    pub(crate) first: PoolStep,
    /// How to fill it then.
    pub(crate) fill: Option<FillRequest>,
}

/// What to do to a pool before it is filled.
#[derive(Clone, Debug)]
pub(crate) enum PoolStep {
    /// Create it.
    Create(NewPool),
    /// Create it, or change one that differs.
    Apply(NewPool),
    /// Change the settings of the pool of this name.
    Change(String, PoolChange),
    /// Nothing: the pool of this name is there.
    Fill(String),
}

impl PoolStep {
    /// The pool's name.
    pub(crate) fn pool(&self) -> &str {
        match self {
            Self::Create(new) | Self::Apply(new) => &new.name,
            Self::Change(name, _) | Self::Fill(name) => name,
        }
    }
}

/// A pool that was put in order.
#[derive(Debug)]
pub(crate) struct PutAnswer {
    /// The pool.
    pub(crate) pool: PoolAnswer,
    /// What applying it has changed; only this process tells.
    pub(crate) applied: Option<ApplyOutcome>,
}

/// What brood can do. Requests and answers are the types of the API.
pub(crate) trait Operations {
    /// The guests whose names begin with `prefix`; with what each costs, if `usage` is set.
    fn guests(&mut self, prefix: &str, usage: bool) -> Result<Vec<Guest>, Error>;

    /// Guests of these names or ids, each once. One that does not exist is an error, unless it is to
    /// be passed over.
    fn named_guests(
        &mut self,
        names: &[String],
        ignore_missing: bool,
    ) -> Result<Vec<Guest>, Error> {
        let mut all = self.guests("", false)?;
        let mut found: Vec<Guest> = Vec::new();
        for name in names {
            let is_meant = |guest: &Guest| guest.name == *name || guest.id == *name;
            if found.iter().any(is_meant) {
                continue;
            }
            match all.iter().position(is_meant) {
                Some(at) => found.push(all.swap_remove(at)),
                None if ignore_missing => {}
                None => return Err(guests::Error::NoSuchGuest(name.clone()).into()),
            }
        }
        Ok(found)
    }

    /// One guest, with what it costs and where its disk is.
    fn guest(&mut self, guest: &str) -> Result<Guest, Error>;
    /// Puts a request to a guest.
    fn ask(&mut self, guest: &str, asked: &AskRequest) -> Result<GuestAnswer, Error>;
    /// Stops a guest; returns what it is then.
    fn pause(&mut self, guest: &str) -> Result<Guest, Error>;
    /// Continues a guest, which must answer in time.
    fn resume(&mut self, guest: &str, timeout: Duration) -> Result<ResumeReport, Error>;
    /// Suspends a guest into a new checkpoint. Only this process tells the progress, the first time
    /// before it begins.
    fn suspend(
        &mut self,
        guest: &str,
        target: &SuspendTarget<'_>,
        progress: checkpoint::Watch<'_>,
    ) -> Result<Checkpoint, Error>;
    /// Destroys guests, [`NAMES`] of them if they are named: their processes are gone when this
    /// returns.
    fn destroy(&mut self, targets: DestroyTargets<'_>) -> Result<DestroyAnswer, Error>;
    /// What a daemon does and has counted; nothing, where this process does the work.
    #[cfg(feature = "top")]
    fn activity(&mut self) -> Result<Option<DaemonActivity>, Error> {
        Ok(None)
    }

    /// Restores guests, as many of those that are wanted as can be. `path` is the bundle that the
    /// spec names.
    fn restore(
        &mut self,
        path: &BundlePath,
        spec: &RestoreSpec,
        observer: &dyn RestoreObserver,
    ) -> Result<RestoreReport, Error>;

    /// Whether mass restore can work on the host, with so many guests.
    fn host(&mut self, guests: u64, checkpoint_dir: Option<&Path>) -> Result<Host, Error>;

    /// How many guests of a checkpoint fit on this host, or on one with so much memory.
    fn plan(
        &mut self,
        checkpoint: &BundlePath,
        host_memory: Option<Bytes>,
    ) -> Result<host::plan::Plan, Error>;
    /// Trusts a checkpoint that was made elsewhere.
    fn trust(&mut self, checkpoint: &BundlePath) -> Result<Checkpoint, Error>;
    /// Removes a checkpoint; one that something needs only when `force` is set.
    fn remove_checkpoint(
        &mut self,
        checkpoint: &BundlePath,
        force: bool,
    ) -> Result<RemovedCheckpoint, Error>;
    /// Disks without a guest and snapshots without a checkpoint, in these places; in all that are
    /// recorded, when none is named.
    fn leftovers(&mut self, places: &[Place]) -> Result<Leftovers, Error>;
    /// Removes them.
    fn sweep(&mut self, places: &[Place]) -> Result<SweepReport, Error>;

    /// All pools.
    fn pools(&mut self) -> Result<Vec<Pool>, Error>;
    /// A pool, with its guests and suspended claims.
    fn pool(&mut self, pool: &str) -> Result<PoolDetails, Error>;
    /// Makes, changes or repairs a pool, and fills it then, if that is wanted.
    fn put_pool(
        &mut self,
        put: &PutPool,
        observer: &dyn RestoreObserver,
    ) -> Result<PutAnswer, Error>;
    /// Destroys hot guests of a pool; returns how many.
    fn evict(&mut self, pool: &str, entries: u32) -> Result<u64, Error>;
    /// Removes a pool; one with claimed guests only when `force` is set.
    fn remove_pool(&mut self, pool: &str, force: bool) -> Result<(), Error>;
    /// Claims a guest of a pool, which has answered when this returns.
    fn claim(&mut self, pool: &str, wanted: &ClaimSpec) -> Result<Claim, Error>;
    /// Renews a claim: its lease ends this many seconds from now.
    fn renew(&mut self, token: &str, lease_s: u32) -> Result<(), Error>;
    /// Releases a claim: its guest is gone when this returns.
    fn release(&mut self, token: &str) -> Result<(), Error>;
    /// Suspends a claim. Only this process tells the progress, the first time before it begins.
    fn suspend_claim(
        &mut self,
        token: &str,
        progress: checkpoint::Watch<'_>,
    ) -> Result<SuspendAnswer, Error>;
    /// Restores the guest of a suspended claim.
    fn resume_claim(&mut self, token: &str, resuming: &ResumeClaimRequest) -> Result<Claim, Error>;
}
