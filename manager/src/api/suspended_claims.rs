//! Suspended claims over the API: show, suspend, resume.

use std::time::Instant;

use axum::{Json as Answer, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    App,
    claims::{ROOM_POLL_INTERVAL, wait},
    events::About,
    extract::{Json, Path},
    guests::limit,
    permits::PermitKind,
    pools::lease,
    problem::Problem,
    types::{Claim, ClaimStatus, ResumeClaimRequest, SuspendAnswer},
};
use crate::ops::{Operations, StateFolder};
use brood_core::{
    checkpoint::until,
    pool::{Error, RoomWait, Tier},
    restore,
    state::{self, TokenDigest},
};

/// Shows a claim by its token
#[utoipa::path(
    get, path = "/claims/{token}", tag = "pools", operation_id = "showClaim",
    params(("token" = String, Path, description = "What the claim was answered with")),
    responses((status = 200, body = ClaimStatus))
)]
pub(super) async fn show(
    State(app): State<App>,
    Path(token): Path<String>,
) -> Result<Answer<ClaimStatus>, Problem> {
    app.look(move |folder| {
        let found = folder.open()?.pools(|pools| pools.find_claim(&token))?;
        Ok(Answer(found.into()))
    })
    .await
}

/// The guest of a suspended claim was restored, and has answered.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct ResumeEvent {
    /// The pool.
    pool: String,
    /// Name of the guest.
    guest: String,
    /// From the request to its answer, in milliseconds.
    resume_ms: f64,
}

/// Suspends a claim: writes its guest to disk and ends the guest
///
/// Writes a delta with the guest's private pages (bhyve: all memory). The claim and its token stay
/// until the claim is released, through reboots of the host, and have no lease meanwhile. If
/// anything fails, or the client disconnects before all is written, the guest goes on. The request
/// can be repeated.
#[utoipa::path(
    post, path = "/claims/{token}/suspend", tag = "pools", operation_id = "suspendClaim",
    params(("token" = String, Path, description = "What the claim was answered with")),
    responses((status = 200, body = SuspendAnswer))
)]
pub(super) async fn suspend(
    State(app): State<App>,
    Path(token): Path<String>,
) -> Result<Answer<SuspendAnswer>, Problem> {
    let begin = Instant::now();
    let digest = TokenDigest::of(&token);
    let pool = app.look(move |folder| {
        let state = folder.state()?;
        match state.suspended_claim(&digest)? {
            Some(suspended) => Ok(suspended.pool),
            None => Ok(pool_of(state, &digest)?),
        }
    });
    let bounds = [
        PermitKind::claim(&token),
        PermitKind::suspends(&format!("pool {}", pool.await?)),
    ];
    let permit = app.take(&bounds, restore::TIMEOUT).await?;
    let suspended = app.change_pools(permit, move |ops| {
        let wanted = until(ops.cancelled());
        ops.suspend_claim(&token, &wanted)
    });
    let suspended = suspended.await;
    let took = begin.elapsed();
    let suspended = suspended.inspect_err(|_| app.metrics.claim_not_suspended())?;
    let rested = SuspendAnswer {
        suspend_ms: took.as_secs_f64() * 1e3,
        ..suspended
    };
    if rested.is_news {
        let written = rested.written_bytes;
        app.metrics.claim_suspended(&rested.pool, took, written);
        app.events
            .send("suspend", About::pool(&rested.pool), &rested);
        // There may be one entry more now.
        app.room.notify_waiters();
    }
    Ok(Answer(rested))
}

/// The pool of a claim that has its guest.
fn pool_of(state: &state::State, digest: &TokenDigest) -> Result<String, Error> {
    let guest = state.claimed_by(digest)?.ok_or(Error::NoSuchClaim)?;
    state.entry_pool(&guest)?.ok_or(Error::NoSuchClaim)
}

/// Resumes a suspended claim: restores its guest; answers when the guest has answered
///
/// The guest has a new id, and its old name unless that is taken. The request can be repeated.
#[utoipa::path(
    post, path = "/claims/{token}/resume", tag = "pools", operation_id = "resumeClaim",
    params(("token" = String, Path, description = "What the claim was answered with")),
    request_body = ResumeClaimRequest,
    responses(
        (status = 200, body = Claim),
        (status = 503, description = "The pool has as many entries as it may have", body = Problem,
         content_type = "application/problem+json"),
        (status = 507, description = "One more guest does not fit on this host", body = Problem,
         content_type = "application/problem+json"),
    )
)]
pub(super) async fn resume(
    State(app): State<App>,
    Path(token): Path<String>,
    Json(resuming): Json<ResumeClaimRequest>,
) -> Result<Answer<Claim>, Problem> {
    lease(resuming.lease_s)?;
    let timeout = limit(resuming.timeout_s)?;
    let wait = wait(resuming.wait_s)?;
    let begin = Instant::now();
    // It takes no place in the queue: it waits for its own guest, not for any.
    let line = RoomWait::alone(wait, ROOM_POLL_INTERVAL);
    let resumed = app.wait_for_room(line, "", |_| {
        let (key, token) = (token.clone(), token.clone());
        let limit = timeout.unwrap_or(restore::TIMEOUT);
        let app = app.clone();
        async move {
            app.attempt(&key, limit, move |ops| {
                let claimed = ops.resume_claim(&token, &resuming)?;
                let pool = pool_of(ops.state()?, &TokenDigest::of(&token))?;
                Ok((pool, claimed))
            })
            .await
        }
    });
    let resumed = resumed.await;
    app.pools_changed.notify_one();
    app.events.poke();
    let (pool, claimed) = match resumed {
        Ok(resumed) => resumed,
        Err(refused) => {
            app.metrics.claim_not_resumed();
            return Err(refused.problem);
        }
    };
    let took = begin.elapsed();
    // One that was there already is no news.
    if claimed.tier == Tier::Cold {
        app.metrics.claim_resumed(&pool, took);
        let event = ResumeEvent {
            pool,
            guest: claimed.guest.clone(),
            resume_ms: took.as_secs_f64() * 1e3,
        };
        app.events.send("resume", About::pool(&event.pool), &event);
    }
    Ok(Answer(claimed.after(took)))
}
