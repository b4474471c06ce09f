//! Worker threads for library calls. The library blocks, and an open state serves one call at a
//! time; so each call runs on a blocking thread, with an idle open state or a new one.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::problem::Problem;
use brood_core::{
    engine::{self, Engine, EngineConfig},
    guests::Guests,
    host::{facts::HostFacts, proc},
    pool::{self, LOCK_LIMIT, NEVER, Pools},
    restore::SessionCache,
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
    states: Mutex<States>,
    /// Nurseries, warm from one restore to the next: of pools by their name, of others by their
    /// checkpoint, which has a slash in it.
    sessions: SessionCache,
}

/// How long an unused state stays open: it costs three descriptors, and memory of SQLite's.
const IDLE: Duration = Duration::from_secs(10);
/// Idle states, at most.
const IDLE_MAX: usize = 32;

/// A state, and the database file that it was opened from.
#[derive(Debug)]
struct OpenState {
    state: State,
    database: Option<(u64, u64)>,
    /// When it was used last.
    used: Instant,
}

/// The states that are open.
#[derive(Debug, Default)]
struct States {
    idle: Vec<OpenState>,
    /// How many are being used.
    used: usize,
    /// How many were closed while others were open. SQLite keeps the descriptor of such a one until
    /// the process has no other: locks of files are the process's, and would go with it.
    half_closed: usize,
}

/// A state that is being used until this is dropped, also by a panic.
struct InUse<'a>(&'a Workers);

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.0.states().used -= 1;
    }
}

impl OpenState {
    fn new(dir: &Path) -> Result<Self, state::Error> {
        let state = State::open(dir)?;
        let database = database(dir);
        Ok(Self {
            state,
            database,
            used: Instant::now(),
        })
    }
}

/// Device and inode of the database in `dir`.
fn database(dir: &Path) -> Option<(u64, u64)> {
    let file = fs::metadata(dir.join("brood.sqlite")).ok()?;
    Some((file.dev(), file.ino()))
}

impl Workers {
    pub(super) fn new(dir: &Path, engines: &EngineConfig) -> Result<Self, engine::Error> {
        Ok(Self {
            dir: dir.to_owned(),
            engine: engine::choose(Path::new(THIS_PROGRAM), engines)?,
            states: Mutex::default(),
            sessions: SessionCache::default(),
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

    fn states(&self) -> MutexGuard<'_, States> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An open state. A state whose database was moved away or replaced is not used again: the
    /// command line would see another one.
    fn opened(&self) -> Result<(OpenState, InUse<'_>), state::Error> {
        let now = database(&self.dir);
        let mut states = self.states();
        states
            .idle
            .retain(|opened| opened.database == now && now.is_some());
        let found = states.idle.pop();
        states.used += 1;
        drop(states);
        let in_use = InUse(self);
        let opened = found.map_or_else(|| OpenState::new(&self.dir), Ok)?;
        Ok((opened, in_use))
    }

    /// Makes a library call here and now; for use on a thread that may block.
    pub(super) fn call<T, E>(
        &self,
        work: impl FnOnce(&mut State, &dyn Engine) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: From<state::Error>,
    {
        let (mut opened, in_use) = self.opened()?;
        let result = work(&mut opened.state, &*self.engine);
        // After a panic, the state is dropped instead.
        opened.used = Instant::now();
        let mut states = self.states();
        if states.idle.len() < IDLE_MAX {
            states.idle.push(opened);
        } else {
            states.half_closed += 1;
        }
        drop(states);
        drop(in_use);
        result
    }

    /// Closes states that were not used for a while. The last one returned is the first one used
    /// again, so this finds those that were needed only at the busiest moment. When some were
    /// closed, the others follow as soon as none is in use.
    pub(super) fn close_idle(&self) {
        let mut states = self.states();
        let is_quiet = states.used == 0;
        let all = is_quiet && states.half_closed > 0;
        let (kept, closed): (Vec<_>, Vec<_>) = std::mem::take(&mut states.idle)
            .into_iter()
            .partition(|opened| !all && opened.used.elapsed() < IDLE);
        states.half_closed += closed.len();
        if is_quiet && kept.is_empty() {
            states.half_closed = 0;
        }
        states.idle = kept;
        // No call opens one until these are closed.
        drop(closed);
    }

    /// The same, on pools.
    pub(super) fn pools<T>(
        &self,
        work: impl FnOnce(&mut Pools<'_>) -> Result<T, pool::Error>,
    ) -> Result<T, pool::Error> {
        self.pools_until(&NEVER, LOCK_LIMIT, work)
    }

    /// As above, until `cancelled`; `lock_limit` is the time to wait for another process that works
    /// at the same pool.
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
                sessions: &self.sessions,
                cancelled,
                lock_limit,
            })
        })
    }

    /// Nurseries that stand by.
    pub(super) fn sessions(&self) -> &SessionCache {
        &self.sessions
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

/// Sets the flag when the request that it belongs to is dropped: its client has hung up.
pub(super) struct CancelOnDrop(pub(super) Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// As above, with a flag that is set when the client disconnects: every wait checks it, so that no
/// thread is held for a client that has gone.
pub(super) async fn until_hang_up<T: Send + 'static>(
    work: impl FnOnce(&AtomicBool) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let cancelled = Arc::<AtomicBool>::default();
    let _cancel = CancelOnDrop(Arc::clone(&cancelled));
    blocking(move || work(&cancelled)).await
}

/// Guests of an opened state.
pub(super) fn guests<'a>(
    state: &'a mut State,
    engine: &'a dyn Engine,
    cancelled: &'a AtomicBool,
) -> Guests<'a> {
    Guests {
        state,
        engine,
        cancelled,
    }
}
