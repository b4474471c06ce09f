//! Pools: guests that wait, stopped, to be claimed.

use std::{
    num::NonZeroU32,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use axum::{
    Json as Answer,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    extract::{Json, Path, Query},
    metrics::{self, Origin},
    problem::Problem,
    workers::blocking,
};
use crate::{
    pool::{self, Applied, Details, NewPool, Pool, Pools, Refill, Settled},
    restore::job::{ALLOWANCE, FailureView, cores},
    state::{Policy, PoolChange},
    units::Bytes,
};

impl App {
    /// Makes a library call on pools, on a thread for that.
    pub(super) async fn on_pools<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Pools<'_>) -> Result<T, pool::Error> + Send + 'static,
    ) -> Result<T, Problem> {
        let workers = Arc::clone(&self.workers);
        blocking(move || Ok(workers.pools(work)?)).await
    }

    /// The same, for something that is done to them: the keeper looks at them afterwards.
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

/// All pools, as `brood pool list`
#[utoipa::path(
    get, path = "/pools", tag = "pools", operation_id = "listPools",
    responses(
        (status = 200, body = [Pool]),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(State(app): State<App>) -> Result<Answer<Vec<Pool>>, Problem> {
    app.on_pools(|pools| Ok(Answer(pools.list()?))).await
}

/// A pool to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewPool)]
pub(super) struct Making {
    /// Its name; its guests are `NAME-1`, `NAME-2`, ...
    #[schema(example = "web")]
    name: String,
    /// What its guests are restored from: `DIR/NAME`, or a name in the daemon's folder.
    #[schema(example = "/var/tmp/ckp/demo")]
    checkpoint: String,
    /// How many guests wait to be claimed.
    hot: u32,
    /// It is filled when fewer than these wait; when one is missing, when it is not said.
    #[schema(value_type = Option<u32>, minimum = 1)]
    hot_min: Option<NonZeroU32>,
    /// How many guests it may have, claimed ones too; as many as the host takes, when it is not
    /// said.
    most: Option<u32>,
    /// What its guests may come to hold together, in bytes: each counts with its private limit and
    /// what it costs besides. As much as the host has, when it is not said.
    max_memory: Option<u64>,
    /// After how many seconds a guest that waits is replaced by a new one; never, when it is not
    /// said.
    #[schema(value_type = Option<u32>, minimum = 1)]
    max_age_s: Option<NonZeroU32>,
    /// How many guests are restored for it a second, at most.
    #[schema(value_type = Option<u32>, minimum = 1)]
    refill_per_s: Option<NonZeroU32>,
    /// How long a claim lasts when it is not renewed, in seconds.
    #[schema(default = 300, minimum = 1)]
    lease_s: Option<u32>,
    /// Worst case to allow for: private memory that each guest may come to hold, in bytes.
    #[schema(default = 1_048_576)]
    private_limit_bytes: Option<u64>,
}

impl Making {
    fn new_pool(self, app: &App) -> Result<NewPool, Problem> {
        Ok(NewPool {
            name: self.name,
            checkpoint: app.bundle(&self.checkpoint)?,
            allowance: self.private_limit_bytes.map_or(ALLOWANCE, Bytes),
            policy: Policy {
                hot: self.hot.into(),
                hot_min: self.hot_min.map(number),
                most: self.most.map(Into::into),
                max_memory: self.max_memory.map(Bytes),
                max_age_s: self.max_age_s.map(number),
                refill_per_s: self.refill_per_s.map(number),
                lease_s: lease(self.lease_s)?.unwrap_or(pool::LEASE).as_secs(),
            },
        })
    }
}

/// Makes a pool; the daemon fills it from then on
#[utoipa::path(
    post, path = "/pools", tag = "pools", operation_id = "createPool",
    request_body = Making,
    responses(
        (status = 201, description = "It is there, with no entries yet", body = Pool),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn create(
    State(app): State<App>,
    Json(making): Json<Making>,
) -> Result<Response, Problem> {
    let new = making.new_pool(&app)?;
    let pool = app
        .change_pools(move |pools| pools.create(&new, &|_| {}))
        .await?;
    Ok((StatusCode::CREATED, Answer(pool)).into_response())
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

/// A pool and its entries, as `brood pool show`
#[utoipa::path(
    get, path = "/pools/{pool}", tag = "pools", operation_id = "showPool",
    params(("pool" = String, Path, description = "Its name")),
    responses(
        (status = 200, body = Details),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Answer<Details>, Problem> {
    app.on_pools(move |pools| Ok(Answer(pools.details(&name)?)))
        .await
}

/// What had to be done for a pool to be as it should.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AppliedPool {
    /// The pool.
    #[serde(flatten)]
    pool: Pool,
    /// What was done to it.
    applied: Applied,
}

/// Makes a pool, or changes one that is otherwise, as `brood pool apply`; the daemon brings it there
///
/// The body is that of createPool, and must name the same pool. Its checkpoint and its private limit
/// stay as long as it is there.
#[utoipa::path(
    put, path = "/pools/{pool}", tag = "pools", operation_id = "applyPool",
    params(("pool" = String, Path, description = "Its name")),
    request_body = Making,
    responses(
        (status = 200, description = "It was there", body = AppliedPool),
        (status = 201, description = "It was made", body = AppliedPool),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn apply(
    State(app): State<App>,
    Path(name): Path<String>,
    Json(making): Json<Making>,
) -> Result<Response, Problem> {
    if making.name != name {
        let detail = format!("the path names pool {name:?}, the body {:?}", making.name);
        return Err(Problem::bad_request(detail));
    }
    let wanted = making.new_pool(&app)?;
    let applied = app.change_pools(move |pools| {
        let applied = pools.apply(&wanted, &|_| {})?;
        let pool = pools.show(&name)?;
        Ok(AppliedPool { pool, applied })
    });
    let applied = applied.await?;
    let status = match applied.applied {
        Applied::Made => StatusCode::CREATED,
        Applied::Changed | Applied::Same => StatusCode::OK,
    };
    Ok((status, Answer(applied)).into_response())
}

/// What to change of a pool. `null` takes a limit away.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PoolChange)]
pub(super) struct Changing {
    /// How many guests wait to be claimed.
    hot: Option<u32>,
    /// It is filled when fewer than these wait.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    hot_min: Option<Option<NonZeroU32>>,
    /// How many guests it may have.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>)]
    most: Option<Option<u32>>,
    /// What its guests may come to hold together, in bytes.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    max_memory: Option<Option<u64>>,
    /// After how many seconds a guest that waits is replaced by a new one.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    max_age_s: Option<Option<NonZeroU32>>,
    /// How many guests are restored for it a second, at most.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    refill_per_s: Option<Option<NonZeroU32>>,
    /// How long a claim lasts when it is not renewed, in seconds.
    #[schema(minimum = 1)]
    lease_s: Option<u32>,
}

/// Reads a limit that is given, be it `null`.
fn given<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

/// Changes what a pool should be; the daemon brings it there
#[utoipa::path(
    patch, path = "/pools/{pool}", tag = "pools", operation_id = "changePool",
    params(("pool" = String, Path, description = "Its name")),
    request_body = Changing,
    responses(
        (status = 200, body = Pool),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn change(
    State(app): State<App>,
    Path(name): Path<String>,
    Json(changing): Json<Changing>,
) -> Result<Answer<Pool>, Problem> {
    let change = PoolChange {
        hot: changing.hot.map(Into::into),
        hot_min: changing.hot_min.map(|limit| limit.map(number)),
        most: changing.most.map(|limit| limit.map(Into::into)),
        max_memory: changing.max_memory.map(|limit| limit.map(Bytes)),
        max_age_s: changing.max_age_s.map(|limit| limit.map(number)),
        refill_per_s: changing.refill_per_s.map(|limit| limit.map(number)),
        lease_s: lease(changing.lease_s)?.map(|lease| lease.as_secs()),
    };
    app.change_pools(move |pools| Ok(Answer(pools.change(&name, &change)?)))
        .await
}

/// How to remove.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Removing {
    /// End claimed guests too.
    #[serde(default)]
    force: bool,
}

/// Removes a pool and its entries
#[utoipa::path(
    delete, path = "/pools/{pool}", tag = "pools", operation_id = "removePool",
    params(("pool" = String, Path, description = "Its name"), Removing),
    responses(
        (status = 204, description = "It is gone, and its guests"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn remove(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(removing): Query<Removing>,
) -> Result<StatusCode, Problem> {
    app.change_pools(move |pools| pools.remove(&name, removing.force))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What came of filling a pool.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FilledPool {
    /// The pool, as it is now.
    #[serde(flatten)]
    pool: Pool,
    /// What was put in order first.
    settled: Settled,
    /// Entries that are new.
    restored: u64,
    /// Entries that are still missing.
    missing: u64,
    /// Why there was no room for those.
    no_room: Option<String>,
    /// From the beginning to the last new entry, in seconds.
    wall_s: f64,
    /// Guests that were not restored.
    errors: Vec<FailureView>,
}

/// How to fill.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filling {
    /// How many restores at once; as many as the host has cores, when it is not said.
    #[param(minimum = 1)]
    concurrency: Option<u32>,
}

/// Puts a pool in order and restores what it lacks; answers when that is done
///
/// The daemon does so by itself, too: this is for those who want to wait for it.
#[utoipa::path(
    post, path = "/pools/{pool}/fill", tag = "pools", operation_id = "fillPool",
    params(("pool" = String, Path, description = "Its name"), Filling),
    responses(
        (status = 200, body = FilledPool),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn fill(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(filling): Query<Filling>,
) -> Result<Answer<FilledPool>, Problem> {
    let at_once = match filling.concurrency {
        Some(0) => return Err(Problem::bad_request("concurrency must be at least 1")),
        Some(k) => k as usize,
        None => at_once(),
    };
    let notes = app.clone();
    app.change_pools(move |pools| {
        let go_on = AtomicBool::new(false);
        let origin = Origin::from(&pools.show(&name)?.row);
        let (settled, filled) =
            pools.fill(&name, Refill::Whole, at_once, &go_on, &mut |event| {
                notes.count(event, &origin);
            })?;
        let metrics = &notes.metrics;
        metrics.evicted(&name, metrics::Evicted::policy, settled.evicted);
        Ok(Answer(FilledPool {
            pool: pools.show(&name)?,
            settled,
            restored: filled.restored,
            missing: filled.missing,
            no_room: filled.no_room,
            wall_s: filled.wall.as_secs_f64(),
            errors: filled.failures.iter().map(Into::into).collect(),
        }))
    })
    .await
}

/// How many guests are restored for pools at once.
pub(super) fn at_once() -> usize {
    std::thread::available_parallelism().map_or(1, |n| cores(n.get() as u64))
}

/// What to drop.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Evicting {
    /// How many, at most.
    entries: u32,
}

/// Hot entries were dropped.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Evicted {
    /// How many.
    evicted: u64,
}

/// Drops hot entries
///
/// They hold nothing that the checkpoint does not. The daemon restores as many again: to have fewer
/// for good, change the pool.
#[utoipa::path(
    post, path = "/pools/{pool}/evict", tag = "pools", operation_id = "evictFromPool",
    params(("pool" = String, Path, description = "Its name")),
    request_body = Evicting,
    responses(
        (status = 200, body = Evicted),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn evict(
    State(app): State<App>,
    Path(name): Path<String>,
    Json(evicting): Json<Evicting>,
) -> Result<Answer<Evicted>, Problem> {
    let pool = name.clone();
    let evicted = app.change_pools(move |pools| pools.evict(&name, evicting.entries.into()));
    let evicted = evicted.await?;
    app.metrics.evicted(&pool, metrics::Evicted::asked, evicted);
    Ok(Answer(Evicted { evicted }))
}
