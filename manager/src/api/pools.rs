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
    metrics::{self, Origin},
    permits::PermitKind,
    problem::Problem,
    request::RequestId,
    types::{
        ChangePool, CreatePool, FillRequest, FilledPool, Pool, PoolAnswer, PoolDetails, words,
    },
    workers::{CancelOnDrop, until_hang_up},
};
use brood_core::{
    checkpoint::Watch,
    pool::{self, ApplyOutcome, LOCK_LIMIT, NewPool, Pools},
    restore::{self, PRIVATE_LIMIT, RestoreStep},
    state::{Policy, PoolChange},
    units::Bytes,
};

impl App {
    /// Makes a library call on pools, on a thread for that, until the client hangs up.
    pub(super) async fn on_pools<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Pools<'_>) -> Result<T, pool::Error> + Send + 'static,
    ) -> Result<T, Problem> {
        let workers = Arc::clone(&self.workers);
        until_hang_up(move |cancelled| Ok(workers.pools_until(cancelled, LOCK_LIMIT, work)?)).await
    }

    /// The same, for something that is done to them: the reconciler looks at them afterwards.
    pub(super) async fn change_pools<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Pools<'_>) -> Result<T, pool::Error> + Send + 'static,
    ) -> Result<T, Problem> {
        let result = self.on_pools(work).await;
        self.pools_changed.notify_one();
        self.events.poke();
        result
    }
}

/// Lists all pools, as `brood pool list`
#[utoipa::path(
    get, path = "/pools", tag = "pools", operation_id = "listPools",
    responses((status = 200, body = [Pool]))
)]
pub(super) async fn list(State(app): State<App>) -> Result<Answer<Vec<Pool>>, Problem> {
    app.on_pools(|pools| Ok(Answer(pools.list()?.into_iter().map(Into::into).collect())))
        .await
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
    let (name, checkpoint) = (new.name.clone(), new.checkpoint.to_string());
    let make = move |pools: &mut Pools<'_>, watch: Watch<'_>| pools.create(&new, watch);
    let (_, made) = app.put_pool(id, name, checkpoint, fill, make).await?;
    Ok((StatusCode::CREATED, Answer(made)).into_response())
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
    app.on_pools(move |pools| Ok(Answer(pools.details(&name)?.into())))
        .await
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
    let checkpoint = wanted.checkpoint.to_string();
    let apply = move |pools: &mut Pools<'_>, watch: Watch<'_>| pools.apply(&wanted, watch);
    let (applied, pool) = app.put_pool(id, name, checkpoint, fill, apply).await?;
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
    // The reconciler's present fill may be obsolete.
    app.fills.interrupt(&name);
    let pool = name.clone();
    let change = move |pools: &mut Pools<'_>, _: Watch<'_>| pools.change(&pool, &change);
    let (_, changed) = app
        .put_pool(id, name, String::new(), changing.fill, change)
        .await?;
    Ok(Answer(changed))
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
    app.fills.interrupt(&name);
    app.change_pools(move |pools| pools.remove(&name, removing.force))
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
    let filled = app.put_pool(id, name, String::new(), Some(filling), |_, _| Ok(()));
    Ok(Answer(filled.await?.1))
}

impl App {
    /// Makes or changes a pool for the request of this id, and fills it then, if it is to be filled.
    /// The reconciler learns of the pool only afterwards.
    async fn put_pool<T: Send + 'static>(
        &self,
        id: RequestId,
        name: String,
        checkpoint: String,
        fill: Option<FillRequest>,
        put: impl FnOnce(&mut Pools<'_>, Watch<'_>) -> Result<T, pool::Error> + Send + 'static,
    ) -> Result<(T, PoolAnswer), Problem> {
        let permit = match fill {
            Some(fill) if fill.concurrency == Some(0) => {
                return Err(Problem::bad_request("concurrency must be at least 1"));
            }
            Some(_) => {
                let bounds = [PermitKind::pool(&name)];
                Some(self.permits.take(&bounds, restore::TIMEOUT).await?)
            }
            None => None,
        };
        let cancelled = Arc::new(AtomicBool::new(false));
        let _cancel = CancelOnDrop(Arc::clone(&cancelled));
        let progress = RestoreEvent {
            request_id: id.to_string(),
            pool: Some(name.clone()),
            checkpoint,
            ..RestoreEvent::default()
        };
        let begun = self.begin(progress, Some(Arc::clone(&cancelled)));
        let app = self.clone();
        self.change_pools(move |pools| {
            let _permit = permit;
            let put = put(pools, &|progress| begun.verifying(progress))?;
            let pool = pools.show(&name)?;
            let Some(fill) = fill else {
                return Ok((put, PoolAnswer::Pool(pool.into())));
            };
            begun.asks_for(pool.missing());
            let origin = Origin::from(&pool.row);
            let step = &mut |step: &RestoreStep<'_>| begun.note(step, &origin);
            let filled = FilledPool::of(pools, &name, fill, &cancelled, step)?;
            let why = metrics::EvictReason::policy;
            app.metrics.evicted(&name, why, filled.reconciled.evicted);
            Ok((put, PoolAnswer::Filled(filled)))
        })
        .await
    }
}
