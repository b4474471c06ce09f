//! Suspended claims over the API: show, suspend, resume.

use std::time::Instant;

use axum::{Json as Answer, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    claims::{Claim, ROOM_POLL_INTERVAL, wait},
    events::About,
    extract::{Json, Path},
    guests::limit,
    permits::PermitKind,
    pools::lease,
    problem::Problem,
    types::{ClaimStatus, words},
};
use brood_core::{
    checkpoint::{Watch, until},
    pool::{Error, Pools, RoomWait, Tier},
    restore,
    state::{SuspendedClaimState, TokenDigest},
    units::Bytes,
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
    app.on_pools(move |pools| Ok(Answer(pools.find_claim(&token)?.into())))
        .await
}

/// A claim was suspended. The event leaves out the token, which is the claimer's alone.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = SuspendedClaim)]
pub(crate) struct SuspendAnswer {
    /// The pool.
    pub(crate) pool: String,
    /// Name that its guest had.
    pub(crate) guest: String,
    /// Guest memory that was written.
    #[schema(value_type = words::Bytes)]
    pub(crate) written_bytes: Bytes,
    /// How long that took, in milliseconds.
    pub(crate) suspend_ms: f64,
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
    let pool = app.on_pools(move |pools| match pools.state.suspended_claim(&digest)? {
        Some(suspended) => Ok(suspended.pool),
        None => {
            let guest = pools.state.claimed_by(&digest)?.ok_or(Error::NoSuchClaim)?;
            pools.state.entry_pool(&guest)?.ok_or(Error::NoSuchClaim)
        }
    });
    let bounds = [
        PermitKind::claim(&token),
        PermitKind::suspends(&format!("pool {}", pool.await?)),
    ];
    let permit = app.permits.take(&bounds, restore::TIMEOUT).await?;
    let suspended = app.change_pools(move |pools| {
        let _permit = permit;
        let wanted = until(pools.cancelled);
        SuspendAnswer::of(pools, &token, &wanted)
    });
    let suspended = suspended.await;
    let took = begin.elapsed();
    let (suspended, news) = suspended.inspect_err(|_| app.metrics.claim_not_suspended())?;
    let rested = SuspendAnswer {
        suspend_ms: took.as_secs_f64() * 1e3,
        ..suspended
    };
    if news {
        let written = rested.written_bytes;
        app.metrics.claim_suspended(&rested.pool, took, written);
        app.events
            .send("suspend", About::pool(&rested.pool), &rested);
        // There may be one entry more now.
        app.room.notify_waiters();
    }
    Ok(Answer(rested))
}

impl SuspendAnswer {
    /// Suspends a claim; says whether it was not suspended before, too.
    pub(crate) fn of(
        pools: &mut Pools<'_>,
        token: &str,
        progress: Watch<'_>,
    ) -> Result<(Self, bool), Error> {
        let begin = Instant::now();
        let digest = TokenDigest::of(token);
        let before = pools.state.suspended_claim(&digest)?;
        let manifest = pools.suspend(token, progress)?;
        let after = pools.state.suspended_claim(&digest)?;
        let answer = Self {
            guest: manifest.guest,
            written_bytes: manifest.files.ckp.size,
            suspend_ms: begin.elapsed().as_secs_f64() * 1e3,
            pool: after.ok_or(Error::NoSuchClaim)?.pool,
        };
        let news = before.is_none_or(|before| before.state != SuspendedClaimState::Suspended);
        Ok((answer, news))
    }
}

/// Request to resume a suspended claim.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResumeClaimRequest {
    /// Lease of the claim from then on, in seconds, until it is renewed; the pool's lease by
    /// default.
    #[schema(minimum = 1)]
    pub(crate) lease_s: Option<u32>,
    /// How long to wait, in seconds, when the pool or the host has no room.
    #[serde(default)]
    #[schema(default = 0.0, minimum = 0.0, maximum = 3600.0)]
    pub(crate) wait_s: f64,
    /// Time that the guest has to answer, in seconds; by default 10 if it still runs and 60 if it
    /// is restored.
    #[schema(exclusive_minimum = 0.0, maximum = 3600.0)]
    pub(crate) timeout_s: Option<f64>,
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
    let lease = lease(resuming.lease_s)?;
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
            app.attempt(&key, limit, move |pools| {
                let claimed = pools.resume(&token, lease, timeout)?;
                let pool = pools.state.entry_pool(&claimed.id)?;
                Ok((pool.ok_or(Error::NoSuchClaim)?, claimed))
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
    Ok(Answer(Claim::new(claimed, took)))
}
