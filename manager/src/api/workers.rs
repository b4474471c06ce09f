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
    thread,
    time::{Duration, Instant},
};

use super::{
    App, ServeConfig,
    permits::{Permit, PermitKind},
    problem::Problem,
};
use crate::ops::{Error, OpenFolder, StateFolder};
use brood_core::{
    engine::{self, Engine},
    guests::Guests,
    pool::NEVER,
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
    /// The folder of keys of which one must have signed each checkpoint.
    signers: Option<PathBuf>,
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

/// A state that is being used until this is dropped.
struct InUse<'a> {
    workers: &'a Workers,
    /// None while it is being opened.
    opened: Option<OpenState>,
}

impl InUse<'_> {
    /// The state with what library calls are made with.
    fn folder<'a>(&'a mut self, cancelled: &'a AtomicBool) -> OpenFolder<'a> {
        let opened = self.opened.as_mut().expect("it is open while it is used");
        OpenFolder {
            dir: &self.workers.dir,
            state: &mut opened.state,
            engine: self.workers.engine(),
            sessions: Some(&self.workers.sessions),
            cancelled,
        }
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let mut states = self.workers.states();
        states.used -= 1;
        // After a panic, it is closed.
        let opened = self.opened.take_if(|_| !thread::panicking());
        if let Some(mut opened) = opened {
            opened.used = Instant::now();
            if states.idle.len() < IDLE_MAX {
                states.idle.push(opened);
            } else {
                states.half_closed += 1;
                self.opened = Some(opened);
            }
        }
    }
}

/// The state folder for one request, opened when that first needs it, with warm nurseries.
pub(super) struct RequestFolder<'a> {
    workers: &'a Workers,
    in_use: Option<InUse<'a>>,
    cancelled: &'a AtomicBool,
}

impl<'a> RequestFolder<'a> {
    /// Set when the client has hung up.
    pub(super) fn cancelled(&self) -> &'a AtomicBool {
        self.cancelled
    }
}

impl StateFolder for RequestFolder<'_> {
    fn state(&mut self) -> Result<&mut State, Error> {
        Ok(self.open()?.state)
    }

    fn engine(&mut self) -> Result<(&dyn Engine, &Path), Error> {
        Ok((self.workers.engine(), &self.workers.dir))
    }

    fn open(&mut self) -> Result<OpenFolder<'_>, Error> {
        let in_use = match &mut self.in_use {
            Some(in_use) => in_use,
            none => none.insert(self.workers.opened()?),
        };
        Ok(in_use.folder(self.cancelled))
    }
}

impl OpenState {
    fn new(dir: &Path, signers: Option<PathBuf>) -> Result<Self, state::Error> {
        let state = State::open(dir)?.with_signers(signers);
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
    pub(super) fn new(config: &ServeConfig) -> Result<Self, engine::Error> {
        Ok(Self {
            dir: config.state.clone(),
            signers: config.signers.clone(),
            engine: engine::choose(Path::new(THIS_PROGRAM), &config.engines)?,
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
    fn opened(&self) -> Result<InUse<'_>, state::Error> {
        let now = database(&self.dir);
        let mut states = self.states();
        states
            .idle
            .retain(|opened| opened.database == now && now.is_some());
        let found = states.idle.pop();
        states.used += 1;
        drop(states);
        let mut in_use = InUse {
            workers: self,
            opened: found,
        };
        if in_use.opened.is_none() {
            in_use.opened = Some(OpenState::new(&self.dir, self.signers.clone())?);
        }
        Ok(in_use)
    }

    /// The state folder for work on a thread that may block, until `cancelled`.
    pub(super) fn folder<'a>(&'a self, cancelled: &'a AtomicBool) -> RequestFolder<'a> {
        RequestFolder {
            workers: self,
            in_use: None,
            cancelled,
        }
    }

    /// Makes library calls here and now; for use on a thread that may block.
    pub(super) fn call<T, E: From<state::Error>>(
        &self,
        work: impl FnOnce(&mut OpenFolder<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        work(&mut self.opened()?.folder(&NEVER))
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

    /// Nurseries that stand by.
    pub(super) fn sessions(&self) -> &SessionCache {
        &self.sessions
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

impl App {
    /// Waits for a permit for a long call, which these bounds limit.
    pub(super) async fn take(
        &self,
        bounds: &[PermitKind],
        limit: Duration,
    ) -> Result<Permit, Problem> {
        self.permits.take(self.by, bounds, limit).await
    }

    /// The same for a change.
    pub(super) async fn take_change(&self, bounds: &[PermitKind]) -> Result<Permit, Problem> {
        self.permits.take_change(self.by, bounds).await
    }

    /// Does an operation that only reads.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut RequestFolder<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Problem> {
        let permit = self.permits.take_look(self.by).await?;
        self.operate(permit, operation).await
    }

    /// Does an operation on a thread for that. It ends when its client hangs up: every wait checks
    /// that, so that no thread is held for a client that has gone. The permit goes when it has ended.
    pub(super) async fn operate<T: Send + 'static>(
        &self,
        permit: Permit,
        operation: impl FnOnce(&mut RequestFolder<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Problem> {
        self.operate_until(Arc::default(), permit, operation).await
    }

    /// The same, with the flag that ends it.
    pub(super) async fn operate_until<T: Send + 'static>(
        &self,
        cancelled: Arc<AtomicBool>,
        permit: Permit,
        operation: impl FnOnce(&mut RequestFolder<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Problem> {
        let workers = Arc::clone(&self.workers);
        let _cancel = CancelOnDrop(Arc::clone(&cancelled));
        blocking(move || {
            let _permit = permit;
            Ok(operation(&mut workers.folder(&cancelled))?)
        })
        .await
    }

    /// Does an operation that changes guests.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        permit: Permit,
        operation: impl FnOnce(&mut RequestFolder<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Problem> {
        let result = self.operate(permit, operation).await;
        self.events.poke();
        result
    }

    /// Does an operation that changes pools: the reconciler looks at them afterwards.
    pub(super) async fn change_pools<T: Send + 'static>(
        &self,
        permit: Permit,
        operation: impl FnOnce(&mut RequestFolder<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Problem> {
        let result = self.change(permit, operation).await;
        self.pools_changed.notify_one();
        result
    }

    /// Makes library calls on guests that are no operation, in the same way, and only read.
    pub(super) async fn look_at_guests<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Guests<'_>) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let permit = self.permits.take_look(self.by).await?;
        self.on_guests(permit, work).await
    }

    /// The same, when a guest may be waited for.
    pub(super) async fn on_guests<T: Send + 'static>(
        &self,
        permit: Permit,
        work: impl FnOnce(&mut Guests<'_>) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        self.operate(permit, |folder| Ok(work(&mut folder.open()?.guests())))
            .await?
    }

    /// The same, for something that is done to them.
    pub(super) async fn change_guests<T: Send + 'static>(
        &self,
        permit: Permit,
        work: impl FnOnce(&mut Guests<'_>) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        self.change(permit, |folder| Ok(work(&mut folder.open()?.guests())))
            .await?
    }
}
