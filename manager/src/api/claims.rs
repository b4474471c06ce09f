//! Claims over the API: make, renew, release.

use std::{
    future::Future,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use axum::{
    Json as Answer,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{oneshot, watch},
    task::{JoinHandle, spawn_blocking},
    time::sleep,
};
use utoipa::ToSchema;

use super::{
    App,
    events::About,
    extract::{Json, Path},
    guests::limit,
    permits::PermitKind,
    pools::lease,
    problem::Problem,
    types::{Claim, ClaimRequest, LeaseRenewal, RenewRequest, words},
    workers::{CancelOnDrop, RequestFolder},
};
use crate::ops::{self, Operations, StateFolder};
use brood_core::{
    pool::{ClaimSpec, NEVER, NextStep, RoomWait, Tier},
    restore,
    state::QueuePlace,
};

/// Interval at which a claim that waits for room tries again. It also tries at once when another
/// claim is released.
pub(super) const ROOM_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The longest that a claim may wait for room, in seconds.
const WAIT_MAX_S: f64 = 3600.0;

/// A claim was made. The token is the claimer's alone.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct ClaimEvent {
    /// The pool.
    pub(crate) pool: String,
    /// Name of the guest.
    pub(crate) guest: String,
    /// Where it came from.
    #[schema(value_type = words::Tier)]
    pub(crate) tier: Tier,
    /// From the claim to the guest's answer, in milliseconds.
    pub(crate) claim_ms: f64,
}

/// Claims a guest of a pool; answers when the guest has answered
///
/// The guest is the oldest hot one, or a newly restored one. When the client disconnects before the
/// answer, the guest is released.
#[utoipa::path(
    post, path = "/pools/{pool}/claims", tag = "pools", operation_id = "claim",
    params(("pool" = String, Path, description = "Name of the pool")),
    request_body = ClaimRequest,
    responses(
        (status = 201, body = Claim),
        (status = 503, description = "The pool has as many entries as it may have", body = Problem,
         content_type = "application/problem+json"),
        (status = 507, description = "One more guest does not fit on this host", body = Problem,
         content_type = "application/problem+json"),
    )
)]
pub(super) async fn claim(
    State(app): State<App>,
    Path(pool): Path<String>,
    Json(claiming): Json<ClaimRequest>,
) -> Result<Response, Problem> {
    let wanted = ClaimSpec {
        lease: lease(claiming.lease_s)?,
        timeout: limit(claiming.timeout_s)?,
        // Waiting is done here, where it holds no thread.
        wait: Duration::ZERO,
        place: None,
    };
    let wait = wait(claiming.wait_s)?;
    let begin = Instant::now();
    let line = RoomWait::new(wait, ROOM_POLL_INTERVAL);
    let attempt = |place| app.claim(&pool, ClaimSpec { place, ..wanted });
    let claimed = app.wait_for_room(line, &pool, attempt).await;
    let took = begin.elapsed();
    let claimed = claimed.map_err(|refused| {
        // Clients may make names of pools up; those are not counted one by one.
        let known = refused.problem.status() != StatusCode::NOT_FOUND;
        let pool = if known { pool.as_str() } else { "" };
        app.metrics.claim_failed(pool, refused.waiters.is_some());
        refused.problem
    })?;
    app.metrics.claimed(&pool, claimed.tier, took);
    app.pools_changed.notify_one();
    app.events.poke();
    let event = ClaimEvent {
        pool,
        guest: claimed.guest.clone(),
        tier: claimed.tier,
        claim_ms: took.as_secs_f64() * 1e3,
    };
    app.events.send("claim", About::pool(&event.pool), &event);
    Ok((StatusCode::CREATED, Answer(claimed.after(took))).into_response())
}

pub(super) fn wait(seconds: f64) -> Result<Duration, Problem> {
    if (0.0..=WAIT_MAX_S).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    let detail = format!("wait_s must be 0 to {WAIT_MAX_S}");
    Err(Problem::bad_request(detail))
}

/// Why there is no guest for a claimer.
pub(super) struct ClaimRefusal {
    pub(super) problem: Problem,
    /// How many others wait who came first; none where waiting does not help.
    waiters: Option<u64>,
}

/// A place in a pool's queue, which is given up when this is dropped.
struct InLine {
    app: App,
    place: Option<QueuePlace>,
}

impl InLine {
    fn new(app: &App) -> Self {
        Self {
            app: app.clone(),
            place: None,
        }
    }

    async fn wait(&mut self, pool: &str, wait: Duration) -> Result<QueuePlace, Problem> {
        let pool = pool.to_owned();
        let place = self.app.look(move |folder| {
            let mut opened = folder.open()?;
            Ok(opened.pools(|pools| pools.wait_in_line(&pool, wait))?)
        });
        Ok(*self.place.insert(place.await?))
    }

    async fn leave(mut self) {
        if let Some(left) = self.begin_to_leave() {
            let _ = left.await;
        }
    }

    fn begin_to_leave(&mut self) -> Option<JoinHandle<()>> {
        let place = self.place.take()?;
        let app = self.app.clone();
        Some(spawn_blocking(move || {
            if let Err(e) = app.workers.call(|opened| opened.state.leave_line(place)) {
                tracing::warn!("cannot leave the line: {e}");
            }
            app.room.notify_waiters();
        }))
    }
}

/// For a client that has hung up.
impl Drop for InLine {
    fn drop(&mut self) {
        drop(self.begin_to_leave());
    }
}

impl From<ops::Error> for ClaimRefusal {
    fn from(error: ops::Error) -> Self {
        let waiters = match &error {
            ops::Error::Pool(e) => e.waiters(),
            _ => None,
        };
        Self {
            waiters,
            problem: error.into(),
        }
    }
}

impl From<Problem> for ClaimRefusal {
    fn from(problem: Problem) -> Self {
        Self {
            waiters: None,
            problem,
        }
    }
}

impl App {
    /// Retries while there is no room for one more guest, as `line` says. Takes a place in the queue
    /// of `pool` if that has one.
    pub(super) async fn wait_for_room<T, F>(
        &self,
        mut line: RoomWait,
        pool: &str,
        attempt: impl Fn(Option<QueuePlace>) -> F,
    ) -> Result<T, ClaimRefusal>
    where
        F: Future<Output = Result<T, ClaimRefusal>>,
    {
        let _request = self.permits.begin_at_pool(self.by)?;
        let mut draining = self.draining.subscribe();
        let mut in_line = InLine::new(self);
        let result = loop {
            let refused = match attempt(line.place()).await {
                Err(refused) => refused,
                claimed => break claimed,
            };
            // A daemon that is to end does not keep those waiting who wait for room.
            let next = line.after(refused.waiters);
            match next.filter(|_| !*draining.borrow()) {
                None => break Err(refused),
                Some(NextStep::TakePlace) => line.stand_at(in_line.wait(pool, line.left()).await?),
                Some(NextStep::Pause(pause)) => self.until_room(pause, &mut draining).await,
            }
        };
        // A claimer who comes after this answer finds nobody in the queue who has stopped waiting.
        in_line.leave().await;
        result
    }

    /// Waits until there may be room for one more guest, the time is up, or the daemon drains.
    async fn until_room(&self, at_most: Duration, draining: &mut watch::Receiver<bool>) {
        // The reconciler ends claims whose lease is over.
        self.pools_changed.notify_one();
        tokio::select! {
            () = self.room.notified() => {}
            () = sleep(at_most) => {}
            _ = draining.wait_for(|draining| *draining) => {}
        }
    }

    /// Does an operation on a claim that may find no room, on a thread for that, until its client
    /// hangs up.
    pub(super) async fn attempt<T: Send + 'static>(
        &self,
        token: &str,
        limit: Duration,
        operation: impl FnOnce(&mut RequestFolder<'_>) -> Result<T, ops::Error> + Send + 'static,
    ) -> Result<T, ClaimRefusal> {
        let bounds = [PermitKind::claim(token)];
        let permit = self.permits.take_begun(self.by, &bounds, limit).await?;
        Ok(self.operate(permit, |ops| Ok(operation(ops))).await??)
    }

    /// Claims once. Releases the claim again if the client has disconnected meanwhile.
    async fn claim(&self, pool: &str, wanted: ClaimSpec) -> Result<Claim, ClaimRefusal> {
        let (sender, receiver) = oneshot::channel();
        let (workers, pool) = (Arc::clone(&self.workers), pool.to_owned());
        let limit = wanted.timeout.unwrap_or(restore::TIMEOUT);
        let bounds = [PermitKind::pool(&pool)];
        let permit = self.permits.take_begun(self.by, &bounds, limit).await?;
        // A client that disconnects ends the restore for it.
        let cancelled = Arc::<AtomicBool>::default();
        let _cancel = CancelOnDrop(Arc::clone(&cancelled));
        spawn_blocking(move || {
            let _permit = permit;
            let claimed = workers.folder(&cancelled).claim(&pool, &wanted);
            if let Err(Ok(unwanted)) = sender.send(claimed)
                && let Err(e) = workers.folder(&NEVER).release(&unwanted.token)
            {
                tracing::warn!(guest = unwanted.guest, "cannot give it back: {e}");
            }
        });
        let claimed = receiver.await.map_err(|_| Problem::internal())?;
        Ok(claimed?)
    }
}

/// Renews a claim: its lease ends the given time from now
#[utoipa::path(
    put, path = "/claims/{token}", tag = "pools", operation_id = "renewClaim",
    params(("token" = String, Path, description = "What the claim was answered with")),
    request_body = RenewRequest,
    responses((status = 200, body = LeaseRenewal))
)]
pub(super) async fn renew(
    State(app): State<App>,
    Path(token): Path<String>,
    Json(renewing): Json<RenewRequest>,
) -> Result<Answer<LeaseRenewal>, Problem> {
    let lease_s = renewing.lease_s;
    lease(Some(lease_s))?;
    let permit = app.take_change(&[PermitKind::claim(&token)]).await?;
    app.operate(permit, move |ops| ops.renew(&token, lease_s))
        .await?;
    Ok(Answer(LeaseRenewal { lease_s }))
}

/// Releases a claim; its guest is gone when this answers
#[utoipa::path(
    delete, path = "/claims/{token}", tag = "pools", operation_id = "releaseClaim",
    params(("token" = String, Path, description = "What the claim was answered with")),
    responses((status = 204, description = "The guest is gone"))
)]
pub(super) async fn release(
    State(app): State<App>,
    Path(token): Path<String>,
) -> Result<StatusCode, Problem> {
    let permit = app.take_change(&[PermitKind::end_of_claim(&token)]).await?;
    app.change_pools(permit, move |ops| ops.release(&token))
        .await?;
    app.room.notify_waiters();
    Ok(StatusCode::NO_CONTENT)
}
