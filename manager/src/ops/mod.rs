//! Operations: what brood can do with pools and claims, behind one trait.
//!
//! [`Daemon`] has the daemon do the work, [`Local`] does it in this process. [`Auto`] chooses: the
//! daemon, if one answers and has not refused before it began the work, and else this process.
//! Results do not depend on the choice.

mod daemon;
mod local;

pub(crate) use daemon::{by_daemon, daemon, done, only_daemon};
pub(crate) use local::{Local, engine, engine_with, facts, state};

use crate::api::types::{Pool, PoolDetails};
use crate::{
    api::{claims::Claim, suspended_claims::ResumeClaimRequest},
    client::{self, Client},
    config::Config,
    failure::Failure,
};

/// The daemon of a state folder.
pub(crate) type Daemon = Client;

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

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What brood can do. Requests and answers are the types of the API.
pub(crate) trait Operations {
    /// All pools.
    fn pools(&mut self) -> Result<Vec<Pool>, Error>;
    /// A pool, with its guests and suspended claims.
    fn pool(&mut self, pool: &str) -> Result<PoolDetails, Error>;
    /// Destroys hot guests of a pool; returns how many.
    fn evict(&mut self, pool: &str, entries: u32) -> Result<u64, Error>;
    /// Removes a pool; one with claimed guests only when `force` is set.
    fn remove_pool(&mut self, pool: &str, force: bool) -> Result<(), Error>;
    /// Renews a claim: its lease ends this many seconds from now.
    fn renew(&mut self, token: &str, lease_s: u32) -> Result<(), Error>;
    /// Releases a claim: its guest is gone when this returns.
    fn release(&mut self, token: &str) -> Result<(), Error>;
    /// Restores the guest of a suspended claim.
    fn resume_claim(&mut self, token: &str, resuming: &ResumeClaimRequest) -> Result<Claim, Error>;
}

/// Operations by the daemon or by this process: the one place that chooses.
pub(crate) struct Auto<'a> {
    daemon: Option<Daemon>,
    /// This user may not enter the state folder, so that this process can do nothing itself.
    only_daemon: bool,
    local: Local<'a>,
}

impl<'a> Auto<'a> {
    /// The daemon, if one answers and may be used, for as long as it begins what it is asked.
    pub(crate) fn new(config: &'a Config) -> Self {
        Self {
            daemon: daemon(config),
            only_daemon: false,
            local: Local::new(config),
        }
    }

    /// To look at something: this process needs no daemon for that, unless its user may not enter
    /// the state folder.
    pub(crate) fn to_look(config: &'a Config) -> Self {
        let daemon = only_daemon(config);
        Self {
            only_daemon: daemon.is_some(),
            daemon,
            local: Local::new(config),
        }
    }

    /// Does one operation. Once the daemon has refused to begin one, this process does that one and
    /// all later ones.
    pub(crate) fn run<T>(
        &mut self,
        operation: impl Fn(&mut dyn Operations) -> Result<T, Error>,
    ) -> Result<T, Failure> {
        if let Some(done) = self.by_daemon(&operation)? {
            return Ok(done);
        }
        self.local.open()?;
        here(operation(&mut self.local))
    }

    /// Does an operation on each item; one that fails does not keep the others from being done.
    /// Returns the failures.
    ///
    /// # Errors
    /// When this process must do the work and cannot do any.
    pub(crate) fn each<I>(
        &mut self,
        items: &[I],
        operation: impl Fn(&mut dyn Operations, &I) -> Result<(), Error>,
    ) -> Result<Vec<Failure>, Failure> {
        let mut failures = Vec::new();
        for item in items {
            match self.by_daemon(|ops| operation(ops, item)) {
                Ok(Some(())) => {}
                Ok(None) => {
                    self.local.open()?;
                    failures.extend(here(operation(&mut self.local, item)).err());
                }
                Err(failure) => failures.push(failure),
            }
        }
        Ok(failures)
    }

    /// Has the daemon do an operation; `None` when it has begun nothing.
    fn by_daemon<T>(
        &mut self,
        operation: impl Fn(&mut dyn Operations) -> Result<T, Error>,
    ) -> Result<Option<T>, Failure> {
        let Some(daemon) = &mut self.daemon else {
            return Ok(None);
        };
        match operation(daemon) {
            Ok(done) => Ok(Some(done)),
            Err(Error::Failed(failure)) => Err(failure),
            Err(Error::NotBegun(why)) if self.only_daemon => {
                Err(client::Error::NotBegun(why).into())
            }
            Err(Error::NotBegun(why)) => {
                tracing::info!("without the daemon: {why}");
                self.daemon = None;
                Ok(None)
            }
        }
    }
}

/// What this process has done, which nobody else can do when it could not begin.
fn here<T>(result: Result<T, Error>) -> Result<T, Failure> {
    result.map_err(|error| match error {
        Error::NotBegun(why) => Failure::new(&why, None),
        Error::Failed(failure) => failure,
    })
}
