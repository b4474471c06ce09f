//! Operations: what brood can do with guests, pools and claims, behind one trait.
//!
//! [`Daemon`] has the daemon do the work, [`Local`] does it in this process. [`Auto`] chooses: the
//! daemon, if one answers and has not refused before it began the work, and else this process.
//! Results do not depend on the choice. A command of the command line is: parse, one call, print.
//!
//! Who is asked first depends on what is gained. The daemon restores, and works on pools, claims and
//! running guests: it has warm nurseries, and events and metrics tell of what it does. This process
//! looks at the record, and works where files are: it suspends, plans, trusts, removes and sweeps
//! with the rights of its user, who may write where a confined daemon may not, and see the progress.
//! A user who may not enter the state folder has the daemon do that, too.
//!
//! Not in the trait:
//! - What concerns only files that a user names, or the record itself, is a method of [`Local`] in
//!   `files`: a daemon may see other files under the same path, or is what is to be repaired.
//! - Programs, copies and consoles in guests (exec, run, cp, logs, console) are streams in both
//!   directions for as long as a user likes, not a request and an answer. The command speaks with
//!   the guest's agent itself; the API carries the same over its own connections.
//! - `density` measures this process among others, step by step.
//!
//! The API's handlers do not call the trait: HTTP wants the core's typed errors for its statuses,
//! and work on threads that end when a client hangs up. They and [`Local`] make the same answers by
//! the same functions of the answers' types, such as [`DestroyAnswer::of`].

mod auto;
mod daemon;
mod files;
mod local;
mod progress;

use std::{path::Path, time::Duration};

pub(crate) use crate::client::Watch;
pub(crate) use auto::{Auto, daemon};
#[cfg(target_os = "linux")]
pub(crate) use files::ImageBoot;
pub(crate) use files::ImportSource;
pub(crate) use local::{Local, engine, engine_with, facts, state};

#[cfg(feature = "top")]
use crate::api::events::RestoreEvent;
use crate::{
    api::{
        host::Host,
        types::{
            AskRequest, Checkpoint, Claim, ClaimRequest, DestroyAnswer, DestroyTargets,
            FillRequest, Guest, GuestAnswer, Leftovers, Pool, PoolAnswer, PoolDetails,
            RemovedCheckpoint, ResumeClaimRequest, ResumeReport, SuspendAnswer, SuspendTarget,
            SweepReport,
        },
    },
    client::{self, Client},
    failure::Failure,
};
use brood_core::{
    checkpoint::{self, BundlePath},
    disk::Place,
    guests, host,
    pool::{self, NewPool},
    restore::{self, RestoreReport, RestoreSpec},
    state::{self, PoolChange},
    units::Bytes,
};

/// Guests that one operation may name: a request to the daemon has their names in its path.
pub(crate) const NAMES: usize = 500;

/// The daemon of a state folder.
pub(crate) type Daemon = Client;

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
#[derive(Clone, Copy, Debug)]
pub(crate) struct PutPool<'a> {
    /// What to do first.
    pub(crate) first: PoolStep<'a>,
    /// How to fill it then.
    pub(crate) fill: Option<FillRequest>,
}

/// What to do to a pool before it is filled.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PoolStep<'a> {
    /// Create it.
    Create(&'a NewPool),
    /// Create it, or change one that differs.
    Apply(&'a NewPool),
    /// Change the settings of the pool of this name.
    Change(&'a str, &'a PoolChange),
    /// Nothing: the pool of this name is there.
    Fill(&'a str),
}

/// Why an operation failed.
#[derive(Debug)]
pub(crate) enum Error {
    /// Nothing was begun, so that another can do the work. Says why.
    NotBegun(String),
    /// The work was begun or refused, and failed.
    Failed(Failure),
}

impl From<client::Error> for Error {
    fn from(error: client::Error) -> Self {
        match error {
            client::Error::NotBegun(why) => Self::NotBegun(why),
            error => Self::Failed(error.into()),
        }
    }
}

macro_rules! failed_from {
    ($($error:ty),*) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::Failed(error.into())
            }
        })*
    };
}

failed_from!(
    Failure,
    checkpoint::Error,
    guests::Error,
    host::proc::Error,
    pool::Error,
    restore::Error,
    state::Error
);

/// What brood can do. Requests and answers are the types of the API.
pub(crate) trait Operations {
    /// All guests; with what each costs, if `usage` is set.
    fn guests(&mut self, usage: bool) -> Result<Vec<Guest>, Error>;

    /// Guests of these names or ids, each once. One that does not exist is an error, unless it is to
    /// be passed over.
    fn named_guests(
        &mut self,
        names: &[String],
        ignore_missing: bool,
    ) -> Result<Vec<Guest>, Error> {
        let mut all = self.guests(false)?;
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
    /// Stops a guest.
    fn pause(&mut self, guest: &str) -> Result<(), Error>;
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
        watch: Watch<'_>,
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
    fn put_pool(&mut self, put: &PutPool<'_>, watch: Watch<'_>) -> Result<PoolAnswer, Error>;
    /// Destroys hot guests of a pool; returns how many.
    fn evict(&mut self, pool: &str, entries: u32) -> Result<u64, Error>;
    /// Removes a pool; one with claimed guests only when `force` is set.
    fn remove_pool(&mut self, pool: &str, force: bool) -> Result<(), Error>;
    /// Claims a guest of a pool, which has answered when this returns.
    fn claim(&mut self, pool: &str, claiming: &ClaimRequest) -> Result<Claim, Error>;
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
