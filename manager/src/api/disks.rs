//! Leftover disks over the API: those whose guest or checkpoint is gone.

use axum::{
    Json as Answer,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    extract::{Json, Query},
    permits::PermitKind,
    problem::Problem,
};
use brood_core::{disk::Place, guests, restore};

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

/// A disk without a guest, or a snapshot without a checkpoint.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Leftover {
    /// What it is called.
    disk: String,
    /// What it was of.
    of: String,
}

impl From<&guests::Leftover> for Leftover {
    fn from(left: &guests::Leftover) -> Self {
        Self {
            disk: left.found.name(),
            of: left.of.clone(),
        }
    }
}

/// What is left over.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Leftovers {
    /// All of it.
    leftovers: Vec<Leftover>,
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
    let permit = app
        .permits
        .take(&[PermitKind::disks()], restore::TIMEOUT)
        .await?;
    app.on_guests(move |guests| {
        let _permit = permit;
        let left = guests.leftovers(&places)?;
        let leftovers = left.iter().map(Into::into).collect();
        Ok(Answer(Leftovers { leftovers }))
    })
    .await
}

fn places(named: &[String]) -> Result<Vec<Place>, Problem> {
    let parsed = named.iter().map(|place| place.parse::<Place>());
    parsed
        .collect::<Result<_, _>>()
        .map_err(|e| Problem::bad_request(e.to_string()))
}

/// Where to sweep.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SweepQuery {
    /// `zfs:DATASET` or `reflink:FOLDER`, any number; by default all places in which guests of this
    /// state folder had disks.
    #[serde(default)]
    #[schema(example = json!(["zfs:tank/vm"]))]
    places: Vec<String>,
}

/// What came of sweeping.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SweepReport {
    /// What was removed.
    removed: Vec<Leftover>,
    /// What was not, and why.
    errors: Vec<SweepFailure>,
}

/// Something that could not be removed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SweepFailure {
    /// What it is called.
    disk: String,
    /// Why not.
    error: String,
}

/// Removes the disks and snapshots that listLeftovers lists
#[utoipa::path(
    post, path = "/disks/sweep", tag = "host", operation_id = "sweepLeftovers",
    request_body = SweepQuery,
    responses(
        (status = 200, description = "All of it was removed", body = SweepReport),
        (status = 207, description = "Some of it is among the errors", body = SweepReport),
    )
)]
pub(super) async fn sweep(
    State(app): State<App>,
    Json(sweeping): Json<SweepQuery>,
) -> Result<Response, Problem> {
    let places = places(&sweeping.places)?;
    let permit = app
        .permits
        .take(&[PermitKind::disks()], restore::TIMEOUT)
        .await?;
    app.on_guests(move |guests| {
        let _permit = permit;
        let left = guests.leftovers(&places)?;
        let failed = guests.sweep(&left);
        let removed = left
            .iter()
            .filter(|left| !failed.iter().any(|(other, _)| other == *left));
        let swept = SweepReport {
            removed: removed.map(Into::into).collect(),
            errors: failed
                .iter()
                .map(|(left, e)| SweepFailure {
                    disk: left.found.name(),
                    error: e.to_string(),
                })
                .collect(),
        };
        let status = if swept.errors.is_empty() {
            StatusCode::OK
        } else {
            StatusCode::MULTI_STATUS
        };
        Ok((status, Answer(swept)).into_response())
    })
    .await
}
