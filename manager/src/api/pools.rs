//! Pools over the API: guests that wait, stopped, to be claimed.

use std::{
    num::NonZeroU32,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use axum::{
    Extension, Json as Answer,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    events::RestoreEvent,
    extract::{Json, Path, Query},
    metrics,
    permits::PermitKind,
    problem::Problem,
    request::RequestId,
    types::{
        ChangePool, CreatePool, FillRequest, FilledPool, Pool, PoolAnswer, PoolDetails, words,
    },
    workers::CancelOnDrop,
};
use crate::ops::{Operations, PoolStep, PutAnswer, PutPool};
use brood_core::{
    pool::{self, ApplyOutcome, NewPool},
    restore::{self, PRIVATE_LIMIT},
    state::{Policy, PoolChange},
    units::Bytes,
};

/// Lists all pools, as `brood pool list`
#[utoipa::path(
    get, path = "/pools", tag = "pools", operation_id = "listPools",
    responses((status = 200, body = [Pool]))
)]
pub(super) async fn list(State(app): State<App>) -> Result<Answer<Vec<Pool>>, Problem> {
    Ok(Answer(app.look(|ops| ops.pools()).await?))
}

impl CreatePool {
    fn new_pool(self, app: &App) -> Result<NewPool, Problem> {
        Ok(NewPool {
            name: self.name,
            checkpoint: app.bundle(&self.checkpoint)?,
            private_limit: self.private_limit.map_or(PRIVATE_LIMIT, Bytes),
            enforce_private_limit: self.enforce_private_limit,
            network: self.network,
            publish: self.publish,
            policy: Policy {
                hot: self.hot.into(),
                hot_min: self.hot_min.map(number),
                most: self.most.map(Into::into),
                max_memory: self.max_memory.map(Bytes),
                max_age_s: self.max_age_s.map(number),
                refill_per_s: self.refill_per_s.map(number),
                lease_s: lease(self.lease_s)?.unwrap_or(pool::LEASE).as_secs(),
            },
            trust: self.trust,
        })
    }
}

/// Creates a pool; the daemon fills it from then on
#[utoipa::path(
    post, path = "/pools", tag = "pools", operation_id = "createPool",
    request_body = CreatePool,
    responses(
        (status = 201, description = "It is there, with no entries yet; when it was to be filled, \
            with what came of that, as for fillPool", body = Pool),
    )
)]
pub(super) async fn create(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    Json(making): Json<CreatePool>,
) -> Result<Response, Problem> {
    let fill = making.fill;
    let new = making.new_pool(&app)?;
    let made = app.put_pool(id, PoolStep::Create(new), fill).await?;
    Ok((StatusCode::CREATED, Answer(made.pool)).into_response())
}

fn number(n: NonZeroU32) -> u64 {
    n.get().into()
}

pub(super) fn lease(seconds: Option<u32>) -> Result<Option<Duration>, Problem> {
    if seconds == Some(0) {
        return Err(Problem::bad_request("lease_s must be at least 1"));
    }
    Ok(seconds.map(|s| Duration::from_secs(s.into())))
}

/// Shows a pool with its entries and suspended claims, as `brood pool show`
#[utoipa::path(
    get, path = "/pools/{pool}", tag = "pools", operation_id = "showPool",
    params(("pool" = String, Path, description = "Its name")),
    responses((status = 200, body = PoolDetails))
)]
pub(super) async fn show(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Answer<PoolDetails>, Problem> {
    let shown = app.look(move |ops| ops.pool(&name));
    Ok(Answer(shown.await?))
}

/// Result of applying a pool.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AppliedPool {
    /// The pool.
    #[serde(flatten)]
    #[schema(value_type = Pool)]
    pool: PoolAnswer,
    /// What was done to it.
    #[schema(value_type = words::ApplyOutcome)]
    applied: ApplyOutcome,
}

/// Creates a pool, or changes one that differs, as `brood pool apply`; the daemon fills it
///
/// The body is that of createPool, and must name the same pool. A pool keeps its checkpoint and its
/// private limit for good.
#[utoipa::path(
    put, path = "/pools/{pool}", tag = "pools", operation_id = "applyPool",
    params(("pool" = String, Path, description = "Its name")),
    request_body = CreatePool,
    responses(
        (status = 200, description = "It was there; when it was to be filled, with what came of \
            that, as for fillPool", body = AppliedPool),
        (status = 201, description = "It was made", body = AppliedPool),
    )
)]
pub(super) async fn apply(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    Path(name): Path<String>,
    Json(making): Json<CreatePool>,
) -> Result<Response, Problem> {
    if making.name != name {
        let detail = format!("the path names pool {name:?}, the body {:?}", making.name);
        return Err(Problem::bad_request(detail));
    }
    let fill = making.fill;
    let wanted = making.new_pool(&app)?;
    let put = app.put_pool(id, PoolStep::Apply(wanted), fill).await?;
    let (pool, applied) = (put.pool, put.applied.unwrap_or(ApplyOutcome::Same));
    let status = match applied {
        ApplyOutcome::Made => StatusCode::CREATED,
        ApplyOutcome::Changed | ApplyOutcome::Same => StatusCode::OK,
    };
    Ok((status, Answer(AppliedPool { pool, applied })).into_response())
}

/// Changes a pool's settings; the daemon fills it accordingly
#[utoipa::path(
    patch, path = "/pools/{pool}", tag = "pools", operation_id = "changePool",
    params(("pool" = String, Path, description = "Its name")),
    request_body = ChangePool,
    responses(
        (status = 200, description = "It should be so now; when it was to be filled, with what came \
            of that, as for fillPool", body = Pool),
    )
)]
pub(super) async fn change(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    Path(name): Path<String>,
    Json(changing): Json<ChangePool>,
) -> Result<Answer<PoolAnswer>, Problem> {
    let change = PoolChange {
        hot: changing.hot.map(Into::into),
        hot_min: changing.hot_min.map(|limit| limit.map(number)),
        most: changing.most.map(|limit| limit.map(Into::into)),
        max_memory: changing.max_memory.map(|limit| limit.map(Bytes)),
        max_age_s: changing.max_age_s.map(|limit| limit.map(number)),
        refill_per_s: changing.refill_per_s.map(|limit| limit.map(number)),
        lease_s: lease(changing.lease_s)?.map(|lease| lease.as_secs()),
        network: changing.network,
        publish: changing.publish,
    };
    let first = PoolStep::Change(name, change);
    let changed = app.put_pool(id, first, changing.fill).await?;
    Ok(Answer(changed.pool))
}

/// How to remove.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RemovePool {
    /// Remove the pool even if guests are claimed, and destroy them.
    #[serde(default)]
    force: bool,
}

/// Removes a pool and its entries
#[utoipa::path(
    delete, path = "/pools/{pool}", tag = "pools", operation_id = "removePool",
    params(("pool" = String, Path, description = "Its name"), RemovePool),
    responses((status = 204, description = "It is gone, and its guests"))
)]
pub(super) async fn remove(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(removing): Query<RemovePool>,
) -> Result<StatusCode, Problem> {
    let held = app.fills.interrupt(&name);
    let permit = app
        .take(&[PermitKind::pool(&name)], restore::TIMEOUT)
        .await?;
    app.change_pools(permit, move |ops| {
        let _held = held;
        ops.remove_pool(&name, removing.force)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Repairs a pool and restores its missing guests; answers when that is done
///
/// The daemon also does this by itself; a client uses this request to wait for it.
#[utoipa::path(
    post, path = "/pools/{pool}/fill", tag = "pools", operation_id = "fillPool",
    params(("pool" = String, Path, description = "Its name"), FillRequest),
    responses((status = 200, body = FilledPool))
)]
pub(super) async fn fill(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    Path(name): Path<String>,
    Query(filling): Query<FillRequest>,
) -> Result<Answer<PoolAnswer>, Problem> {
    let filled = app.put_pool(id, PoolStep::Fill(name), Some(filling));
    Ok(Answer(filled.await?.pool))
}

impl App {
    /// Makes or changes a pool for the request of this id, and fills it then, if it is to be filled.
    /// The reconciler learns of the pool only afterwards.
    async fn put_pool(
        &self,
        id: RequestId,
        first: PoolStep,
        fill: Option<FillRequest>,
    ) -> Result<PutAnswer, Problem> {
        let name = first.pool();
        if fill
            .as_ref()
            .is_some_and(|fill| fill.concurrency == Some(0))
        {
            return Err(Problem::bad_request("concurrency must be at least 1"));
        }
        let bounds = [PermitKind::pool(name)];
        let permit = self.take(&bounds, restore::TIMEOUT).await?;
        let cancelled = Arc::new(AtomicBool::new(false));
        let _cancel = CancelOnDrop(Arc::clone(&cancelled));
        let progress = RestoreEvent {
            request_id: id.to_string(),
            pool: Some(name.to_owned()),
            checkpoint: match &first {
                PoolStep::Create(new) | PoolStep::Apply(new) => new.checkpoint.to_string(),
                PoolStep::Change(..) | PoolStep::Fill(_) => String::new(),
            },
            ..RestoreEvent::default()
        };
        let begun = self.begin(progress, None, Some(cancelled));
        let app = self.clone();
        // The reconciler's present fill may be obsolete.
        let changes = matches!(first, PoolStep::Change(..) | PoolStep::Apply(_));
        let interrupted = changes.then(|| self.fills.interrupt(first.pool()));
        self.change_pools(permit, move |ops| {
            let _interrupted = interrupted;
            let wanted = PutPool { first, fill };
            let put = ops.put_pool(&wanted, &begun)?;
            if let PoolAnswer::Filled(filled) = &put.pool {
                let (name, why) = (wanted.first.pool(), metrics::EvictReason::policy);
                app.metrics.evicted(name, why, filled.reconciled.evicted);
            }
            Ok(put)
        })
        .await
    }
}
