//! Eviction: hot guests of a pool that a client has destroyed.

use axum::{Json as Answer, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    extract::{Json, Path},
    metrics,
    permits::PermitKind,
    problem::Problem,
};
use crate::ops::Operations;
use brood_core::restore;

/// What to drop.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EvictRequest {
    /// How many, at most.
    pub(crate) entries: u32,
}

/// Hot entries were dropped.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct EvictReport {
    /// How many.
    pub(crate) evicted: u64,
}

/// Destroys hot guests of a pool
///
/// They hold nothing that the checkpoint does not. The daemon restores as many again: to keep
/// fewer, change the pool.
#[utoipa::path(
    post, path = "/pools/{pool}/evict", tag = "pools", operation_id = "evictFromPool",
    params(("pool" = String, Path, description = "Its name")),
    request_body = EvictRequest,
    responses((status = 200, body = EvictReport))
)]
pub(super) async fn evict(
    State(app): State<App>,
    Path(name): Path<String>,
    Json(evicting): Json<EvictRequest>,
) -> Result<Answer<EvictReport>, Problem> {
    let pool = name.clone();
    let permit = app
        .take(&[PermitKind::pool(&name)], restore::TIMEOUT)
        .await?;
    let evicted = app.change_pools(permit, move |ops| ops.evict(&name, evicting.entries));
    let evicted = evicted.await?;
    app.metrics
        .evicted(&pool, metrics::EvictReason::asked, evicted);
    Ok(Answer(EvictReport { evicted }))
}
