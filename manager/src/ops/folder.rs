//! State folder that operations work in, opened when one first needs it, with the engine of the host.

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::Duration,
};

use super::Error;
use brood_core::{
    engine::Engine,
    guests::Guests,
    host::{self, facts::HostFacts},
    pool::{self, LOCK_LIMIT, Pools},
    restore::SessionCache,
    state::State,
};

/// Where operations work.
pub(crate) trait StateFolder {
    /// The record, to change it.
    fn state(&mut self) -> Result<&mut State, Error>;
    /// The engine, and the folder's path. This opens nothing.
    fn engine(&mut self) -> Result<(&dyn Engine, &Path), Error>;
    /// Facts of the host.
    fn facts(&mut self, checkpoint_dir: Option<PathBuf>) -> Result<HostFacts, Error> {
        let (engine, dir) = self.engine()?;
        Ok(engine.host().facts(dir.to_owned(), checkpoint_dir)?)
    }
    /// All that there is.
    fn open(&mut self) -> Result<OpenFolder<'_>, Error>;
    /// The same to list or end guests, which works even if the folder cannot be written.
    fn open_to_look(&mut self) -> Result<OpenFolder<'_>, Error> {
        self.open()
    }
}

/// A state folder that is open, and what runs guests.
pub(crate) struct OpenFolder<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) state: &'a mut State,
    pub(crate) engine: &'a dyn Engine,
    /// Nurseries, where they stay warm from one restore to the next.
    pub(crate) sessions: Option<&'a SessionCache>,
    /// Ends all waits when set: the requester has gone.
    pub(crate) cancelled: &'a AtomicBool,
}

impl OpenFolder<'_> {
    /// Its guests.
    pub(crate) fn guests(&mut self) -> Guests<'_> {
        Guests {
            state: self.state,
            engine: self.engine,
            cancelled: self.cancelled,
        }
    }

    /// Works on its pools.
    pub(crate) fn pools<T>(
        &mut self,
        work: impl FnOnce(&mut Pools<'_>) -> Result<T, pool::Error>,
    ) -> Result<T, pool::Error> {
        self.pools_within(LOCK_LIMIT, work)
    }

    /// The same, waiting so long for another process that works at the same pool.
    pub(crate) fn pools_within<T>(
        &mut self,
        lock_limit: Duration,
        work: impl FnOnce(&mut Pools<'_>) -> Result<T, pool::Error>,
    ) -> Result<T, pool::Error> {
        let (engine, dir) = (self.engine, self.dir);
        work(&mut Pools {
            state: self.state,
            engine,
            facts: &|folder| engine.host().facts(dir.to_owned(), Some(folder.to_owned())),
            sessions: self.sessions.unwrap_or(&SessionCache::default()),
            cancelled: self.cancelled,
            lock_limit,
        })
    }

    /// Facts of the host.
    pub(crate) fn facts(
        &self,
        checkpoint_dir: Option<PathBuf>,
    ) -> Result<HostFacts, host::proc::Error> {
        let dir = self.dir.to_owned();
        self.engine.host().facts(dir, checkpoint_dir)
    }
}
