//! Library calls on threads of their own. The library blocks, and an opened state is used by one
//! call at a time; so each call runs on a thread for blocking work, with a state that was opened
//! before and is idle, or a new one.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use super::problem::Problem;
use crate::{
    engine::{self, Engine, bhyve::Rctl},
    guests::Guests,
    host::{facts::HostFacts, proc},
    pool::{self, LOCK_LIMIT, NEVER, Pools},
    restore::Slots,
    state::{self, State},
};

/// The image that this very process runs. A binary that was replaced on disk meanwhile, as by an
/// upgrade, is not what its nurseries are run from.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// What library calls are made with.
#[derive(Debug)]
pub(super) struct Workers {
    dir: PathBuf,
    engine: Box<dyn Engine>,
    idle: Mutex<Vec<Opened>>,
    /// Nurseries, warm from one restore to the next: of pools by their name, of others by their
    /// checkpoint, which has a slash in it.
    standing: Slots,
}

/// A state, and the database file that it was opened from.
#[derive(Debug)]
struct Opened {
    state: State,
    database: Option<(u64, u64)>,
}

impl Opened {
    fn new(dir: &Path) -> Result<Self, state::Error> {
        let state = State::open(dir)?;
        let database = database(dir);
        Ok(Self { state, database })
    }
}

/// Device and inode of the database in `dir`.
fn database(dir: &Path) -> Option<(u64, u64)> {
    let file = fs::metadata(dir.join("brood.sqlite")).ok()?;
    Some((file.dev(), file.ino()))
}

impl Workers {
    pub(super) fn new(dir: &Path, rctl: &Rctl) -> Result<Self, engine::Error> {
        Ok(Self {
            dir: dir.to_owned(),
            engine: engine::choose(Path::new(THIS_PROGRAM), rctl)?,
            idle: Mutex::default(),
            standing: Slots::default(),
        })
    }

    /// The state folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What runs guests.
    pub(super) fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// An opened state. One whose database was moved away or replaced is not used again: what the
    /// command line sees is what counts.
    fn opened(&self) -> Result<Opened, state::Error> {
        let now = database(&self.dir);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|opened| opened.database == now && now.is_some());
        let found = idle.pop();
        drop(idle);
        found.map_or_else(|| Opened::new(&self.dir), Ok)
    }

    /// Makes a library call here and now; for use on a thread that may block.
    pub(super) fn call<T, E>(
        &self,
        work: impl FnOnce(&mut State, &dyn Engine) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: From<state::Error>,
    {
        let mut opened = self.opened()?;
        let result = work(&mut opened.state, &*self.engine);
        // One that a panic went through is dropped instead.
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(opened);
        result
    }

    /// The same, on pools.
    pub(super) fn pools<T>(
        &self,
        work: impl FnOnce(&mut Pools<'_>) -> Result<T, pool::Error>,
    ) -> Result<T, pool::Error> {
        self.pools_until(&NEVER, LOCK_LIMIT, work)
    }

    /// The same, until it is `cancelled`; another who works at the same pool is waited for so long.
    pub(super) fn pools_until<T>(
        &self,
        cancelled: &AtomicBool,
        lock_limit: Duration,
        work: impl FnOnce(&mut Pools<'_>) -> Result<T, pool::Error>,
    ) -> Result<T, pool::Error> {
        self.call(|state, engine| {
            work(&mut Pools {
                state,
                engine,
                facts: &|folder| self.facts(Some(folder.to_owned())),
                standing: &self.standing,
                cancelled,
                lock_limit,
            })
        })
    }

    /// Nurseries that stand by.
    pub(super) fn standing(&self) -> &Slots {
        &self.standing
    }

    /// Facts of this host.
    pub(super) fn facts(&self, checkpoint: Option<PathBuf>) -> Result<HostFacts, proc::Error> {
        self.engine.host().facts(self.dir.clone(), checkpoint)
    }
}

/// Runs `work`, which blocks, on a thread for that, in the caller's tracing span.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
        .await
        .unwrap_or_else(|panic| {
            tracing::error!("{panic}");
            Err(Problem::internal())
        })
}

/// Guests of an opened state.
pub(super) fn guests<'a>(state: &'a mut State, engine: &'a dyn Engine) -> Guests<'a> {
    Guests { state, engine }
}
