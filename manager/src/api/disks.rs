//! Leftover disks over the API: those whose guest or checkpoint is gone.

use axum::{
    Json as Answer,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    App,
    extract::{Json, Query},
    permits::PermitKind,
    problem::Problem,
    types::{Leftovers, SweepReport, SweepRequest},
};
use crate::ops::Operations;
use brood_core::{disk::Place, restore};

/// Where to look.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DiskQuery {
    /// `zfs:DATASET` (its direct children) or `reflink:FOLDER`; by default all places in which
    /// guests of this state folder had disks.
    #[param(example = "zfs:tank/vm")]
    place: Option<String>,
}

/// Lists disks without a guest, and snapshots without a checkpoint
#[utoipa::path(
    get, path = "/disks/leftovers", tag = "host", operation_id = "listLeftovers",
    params(DiskQuery),
    responses((status = 200, body = Leftovers))
)]
pub(super) async fn leftovers(
    State(app): State<App>,
    Query(looking): Query<DiskQuery>,
) -> Result<Answer<Leftovers>, Problem> {
    let places = places(looking.place.as_slice())?;
    let permit = app.take(&[PermitKind::disks()], restore::TIMEOUT).await?;
    let found = app.operate(permit, move |ops| ops.leftovers(&places));
    Ok(Answer(found.await?))
}

fn places(named: &[String]) -> Result<Vec<Place>, Problem> {
    let parsed = named.iter().map(|place| place.parse::<Place>());
    parsed
        .collect::<Result<_, _>>()
        .map_err(|e| Problem::bad_request(e.to_string()))
}

/// Removes the disks and snapshots that listLeftovers lists
#[utoipa::path(
    post, path = "/disks/sweep", tag = "host", operation_id = "sweepLeftovers",
    request_body = SweepRequest,
    responses(
        (status = 200, description = "All of it was removed", body = SweepReport),
        (status = 207, description = "Some of it is among the errors", body = SweepReport),
    )
)]
pub(super) async fn sweep(
    State(app): State<App>,
    Json(sweeping): Json<SweepRequest>,
) -> Result<Response, Problem> {
    let places = places(&sweeping.places)?;
    let permit = app.take(&[PermitKind::disks()], restore::TIMEOUT).await?;
    let swept = app.operate(permit, move |ops| ops.sweep(&places)).await?;
    let status = if swept.errors.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::MULTI_STATUS
    };
    Ok((status, Answer(swept)).into_response())
}
