//! Host over the API: its facts, checks and capacity.

use std::path::PathBuf;

use axum::{Extension, Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    extract::Query,
    problem::Problem,
    request::Authorization,
    types::{Host, words},
};
use crate::ops::{Operations, StateFolder};
use brood_core::{checkpoint::manifest::EngineKind, host::doctor::DEFAULT_GUESTS};

/// Most guests that a host is examined for: more than any has process ids for.
const GUESTS_MAX: u64 = 1_000_000_000;

/// Whether the daemon answers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// Always `ok`.
    #[schema(example = "ok")]
    status: &'static str,
    /// The brood that answers.
    #[schema(example = "0.1.0")]
    version: &'static str,
    /// Its process id.
    pid: u32,
    /// Whether the daemon accepts other requests made in the same way: over the port, whether this
    /// one bears the token.
    authorized: bool,
}

/// Whether the daemon answers, and can read its state
#[utoipa::path(
    get, path = "/health", tag = "host", operation_id = "health",
    responses((status = 200, body = Health))
)]
pub(super) async fn health(
    State(app): State<App>,
    authorized: Option<Extension<Authorization>>,
) -> Result<Json<Health>, Problem> {
    app.look(|folder| Ok(folder.state()?.guests()?)).await?;
    Ok(Json(Health {
        status: "ok",
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        authorized: authorized.is_none_or(|Extension(Authorization(is))| is),
    }))
}

/// The daemon.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Daemon {
    /// The brood that answers.
    #[schema(example = "0.1.0")]
    pub(crate) version: String,
    /// Its process id.
    pub(crate) pid: u32,
    /// Its state folder, free of symlinks.
    #[schema(example = "/var/db/brood")]
    pub(crate) state_dir: String,
    /// Engines whose checkpoints it restores.
    #[schema(value_type = Vec<words::EngineKind>)]
    pub(crate) engines: Vec<EngineKind>,
}

/// Identifies the daemon: its version, state folder and engines
#[utoipa::path(
    get, path = "/daemon", tag = "host", operation_id = "daemon",
    responses((status = 200, body = Daemon))
)]
pub(super) async fn daemon(State(app): State<App>) -> Json<Daemon> {
    let dir = app.workers.dir();
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    Json(Daemon {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        state_dir: dir.display().to_string(),
        engines: app.workers.engine().kinds(),
    })
}

/// Intended use of this host.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PlanRequest {
    /// Number of guests that the host is to hold.
    #[param(default = 1000, maximum = 1_000_000_000)]
    guests: Option<u64>,
    /// Folder of the checkpoint; the daemon checks its file system too.
    #[param(value_type = Option<String>)]
    checkpoint_dir: Option<PathBuf>,
}

/// Checks this host, as `brood doctor`
#[utoipa::path(
    get, path = "/host", tag = "host", operation_id = "host",
    params(PlanRequest),
    responses((status = 200, body = Host))
)]
pub(super) async fn host(
    State(app): State<App>,
    Query(meant): Query<PlanRequest>,
) -> Result<Json<Host>, Problem> {
    let guests = meant.guests.unwrap_or(DEFAULT_GUESTS);
    if guests > GUESTS_MAX {
        let detail = format!("guests must be at most {GUESTS_MAX}");
        return Err(Problem::bad_request(detail));
    }
    let host = app.look(move |ops| ops.host(guests, meant.checkpoint_dir.as_deref()));
    Ok(Json(host.await?))
}
