//! Restores in flight, for requests and for pools: their progress, and their cancellation.

use std::{
    ops::ControlFlow,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Json as Answer, extract::State, http::StatusCode};

use super::{
    App,
    events::{About, RestoreEvent},
    extract::Path,
    metrics::Origin,
    problem::Problem,
};
use crate::ops::{RestoreObserver, unless};
use brood_core::{
    checkpoint::Progress,
    pool::{NEVER, Pool},
    restore::RestoreStep,
};

/// Interval of progress events while memory is checked.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// A restore in flight.
#[derive(Debug, Default)]
pub(super) struct InFlight(Mutex<Vec<Arc<Work>>>);

/// A restore under way.
#[derive(Debug)]
struct Work {
    progress: Mutex<RestoreEvent>,
    /// Begins no more guests when set. A restore without a request has none.
    cancelled: Option<Arc<AtomicBool>>,
    /// When it was last told how far the checking of memory is.
    told: Mutex<Option<Instant>>,
}

impl Work {
    fn progress(&self) -> MutexGuard<'_, RestoreEvent> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InFlight {
    fn all(&self) -> MutexGuard<'_, Vec<Arc<Work>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A restore that is under way until this is dropped.
pub(super) struct RunningRestore {
    app: App,
    work: Arc<Work>,
    /// Of its guests, as soon as it is known.
    origin: OnceLock<Origin>,
}

impl Drop for RunningRestore {
    fn drop(&mut self) {
        let mut all = self.app.in_flight.all();
        all.retain(|work| !Arc::ptr_eq(work, &self.work));
    }
}

impl RestoreObserver for RunningRestore {
    fn cancelled(&self) -> &AtomicBool {
        self.work.cancelled.as_deref().unwrap_or(&NEVER)
    }

    fn fills(&self, pool: &Pool) {
        self.work.progress().asked = u32::try_from(pool.missing()).unwrap_or(u32::MAX);
        let _ = self.origin.set(Origin::from(&pool.row));
    }

    fn verifying(&self, progress: Progress) -> ControlFlow<()> {
        let mut told = self
            .work
            .told
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let whole = progress.done == progress.total;
        if whole || told.is_none_or(|at| at.elapsed() >= PROGRESS_INTERVAL) {
            *told = Some(Instant::now());
            let event = self.work.progress().verifying(progress);
            self.app.tell_restore(&event);
        }
        unless(self.cancelled())
    }

    fn note(&self, step: &RestoreStep<'_>) {
        self.app
            .count(step, self.origin.get_or_init(Origin::default));
        let mut progress = self.work.progress();
        progress.count(step);
        let told = progress.clone();
        drop(progress);
        self.app.tell_restore(&told);
    }
}

impl App {
    fn tell_restore(&self, event: &RestoreEvent) {
        let about = About {
            request: Some(&event.request_id),
            pool: event.pool.as_deref(),
        };
        self.events.send("restore", about, event);
    }

    /// Begins a restore. If it has a flag, a client that knows its request id may cancel it.
    pub(super) fn begin(
        &self,
        progress: RestoreEvent,
        origin: Option<Origin>,
        cancelled: Option<Arc<AtomicBool>>,
    ) -> RunningRestore {
        let work = Arc::new(Work {
            progress: Mutex::new(progress),
            cancelled,
            told: Mutex::default(),
        });
        self.in_flight.all().push(Arc::clone(&work));
        RunningRestore {
            app: self.clone(),
            work,
            origin: origin.map_or_else(OnceLock::new, OnceLock::from),
        }
    }
}

/// Restores under way, those too that fill pools
#[utoipa::path(
    get, path = "/restores", tag = "guests", operation_id = "listRestores",
    responses((status = 200, body = [RestoreEvent]))
)]
pub(super) async fn list(State(app): State<App>) -> Answer<Vec<RestoreEvent>> {
    let all = app.in_flight.all();
    Answer(all.iter().map(|work| work.progress().clone()).collect())
}

/// Cancels a restore: no further guests are begun
///
/// The request that restores is answered soon: with those guests that stand, and how many were not
/// begun.
#[utoipa::path(
    delete, path = "/restores/{request}", tag = "guests", operation_id = "cancelRestore",
    params(("request" = String, Path, description = "The x-request-id of the request that restores")),
    responses((status = 204, description = "It begins no more guests"))
)]
pub(super) async fn cancel(
    State(app): State<App>,
    Path(request): Path<String>,
) -> Result<StatusCode, Problem> {
    let mut found = false;
    for work in app.in_flight.all().iter() {
        if let Some(cancelled) = &work.cancelled
            && work.progress().request_id == request
        {
            cancelled.store(true, Ordering::Relaxed);
            found = true;
        }
    }
    if found {
        return Ok(StatusCode::NO_CONTENT);
    }
    let detail = format!("no request {request:?} restores guests now");
    Err(
        Problem::new(StatusCode::NOT_FOUND, "no-such-restore", detail)
            .with_hint("it may have ended: GET /api/v1/restores lists the restores in flight"),
    )
}
