//! Checkpoints over the API: list, show, verify, remove.

use std::path::PathBuf;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    extract::{Json as Body, Path, Query},
    permits::{Permit, PermitKind},
    problem::Problem,
    types::{self, RemovedCheckpoint, VerifyReport},
};
use crate::ops::{Operations, StateFolder, flatten as flatten_bundle};
use brood_core::{
    checkpoint::{self, BundlePath, Checkpoint, until},
    engine::make_demo_checkpoint,
    host::plan::Plan,
    restore,
    state::BundleAction,
    units::Bytes,
};

/// Default memory of a demo guest.
const DEMO_MEMORY: Bytes = Bytes::mib(256);

impl App {
    /// The bundle of this name: an absolute `DIR/NAME`, or a name in the daemon's own folder of
    /// checkpoints. A relative path would depend on where the daemon was started.
    pub(super) fn bundle(&self, named: &str) -> Result<BundlePath, Problem> {
        if named.contains('/') && !named.starts_with('/') {
            return Err(
                Problem::bad_request(format!("{named:?} is a relative path"))
                    .with_hint("give all of its path, from /, or only its name"),
            );
        }
        Ok(BundlePath::new(&self.checkpoints.join(named))?)
    }

    /// Waits for a permit for work at a checkpoint that takes as long as its memory is large.
    async fn at_checkpoint(&self, path: &BundlePath) -> Result<Permit, Problem> {
        let bound = PermitKind::checkpoint(&path.to_string());
        self.take(&[bound], restore::TIMEOUT).await
    }
}

/// Where to look.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Folder {
    /// The folder; the daemon's own by default.
    #[param(value_type = Option<String>, example = "/var/tmp/ckp")]
    dir: Option<PathBuf>,
}

/// Lists the checkpoints in a folder, as `brood checkpoint list`
#[utoipa::path(
    get, path = "/checkpoints", tag = "checkpoints", operation_id = "listCheckpoints",
    params(Folder),
    responses((status = 200, body = [types::ListedCheckpoint]))
)]
pub(super) async fn list(
    State(app): State<App>,
    Query(folder): Query<Folder>,
) -> Result<Json<Vec<types::ListedCheckpoint>>, Problem> {
    let dir = folder.dir.unwrap_or_else(|| app.checkpoints.clone());
    if !dir.is_absolute() {
        return Err(Problem::bad_request(format!(
            "{} is a relative path",
            dir.display()
        )));
    }
    app.look(move |_| {
        let bundles = checkpoint::list(&dir)?;
        Ok(Json(bundles.iter().map(Into::into).collect()))
    })
    .await
}

/// Shows a checkpoint, as `brood checkpoint inspect`
#[utoipa::path(
    get, path = "/checkpoints/{checkpoint}", tag = "checkpoints", operation_id = "showCheckpoint",
    params(("checkpoint" = String, Path, description = "Its name in the daemon's folder, or its \
        whole DIR/NAME, percent-encoded: %2Fvar%2Ftmp%2Fckp%2Fdemo")),
    responses((status = 200, body = types::Checkpoint))
)]
pub(super) async fn show(
    State(app): State<App>,
    Path(named): Path<String>,
) -> Result<Json<types::Checkpoint>, Problem> {
    let path = app.bundle(&named)?;
    app.look(move |folder| {
        let checkpoint = Checkpoint::open(&path)?;
        let trusted = folder.state()?.is_trusted(&checkpoint)?;
        Ok(Json(types::Checkpoint::of(&checkpoint, Some(trusted))))
    })
    .await
}

/// Trusts a checkpoint, as `brood checkpoint trust`
///
/// A checkpoint that was made elsewhere can name commands to run, files to open and addresses to
/// connect to (`wants` of showCheckpoint). brood refuses to restore it until it is trusted. Trust
/// is recorded by the digest of the manifest.
#[utoipa::path(
    post, path = "/checkpoints/{checkpoint}/trust", tag = "checkpoints",
    operation_id = "trustCheckpoint",
    params(("checkpoint" = String, Path, description = "As for showCheckpoint")),
    responses((status = 200, description = "It is trusted", body = types::Checkpoint))
)]
pub(super) async fn trust(
    State(app): State<App>,
    Path(named): Path<String>,
) -> Result<Json<types::Checkpoint>, Problem> {
    let path = app.bundle(&named)?;
    let permit = app.at_checkpoint(&path).await?;
    let trusted = app.operate(permit, move |ops| ops.trust(&path));
    Ok(Json(trusted.await?))
}

/// Reads all of a checkpoint and compares it with its digests; answers when that is done
#[utoipa::path(
    post, path = "/checkpoints/{checkpoint}/verify", tag = "checkpoints",
    operation_id = "verifyCheckpoint",
    params(("checkpoint" = String, Path, description = "As for showCheckpoint")),
    responses((status = 200, body = VerifyReport))
)]
pub(super) async fn verify(
    State(app): State<App>,
    Path(named): Path<String>,
) -> Result<Json<VerifyReport>, Problem> {
    let path = app.bundle(&named)?;
    let permit = app.at_checkpoint(&path).await?;
    app.operate(permit, move |folder| {
        let wanted = until(folder.cancelled());
        Ok(Json(VerifyReport::of(&path, &wanted)?))
    })
    .await
}

/// How to remove.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RemoveCheckpoint {
    /// Remove it even if deltas, pools or suspended claims need it; these are lost.
    #[serde(default)]
    force: bool,
}

/// Removes an unused checkpoint
#[utoipa::path(
    delete, path = "/checkpoints/{checkpoint}", tag = "checkpoints",
    operation_id = "removeCheckpoint",
    params(("checkpoint" = String, Path, description = "As for showCheckpoint"), RemoveCheckpoint),
    responses((status = 200, body = RemovedCheckpoint))
)]
pub(super) async fn remove(
    State(app): State<App>,
    Path(named): Path<String>,
    Query(removing): Query<RemoveCheckpoint>,
) -> Result<Json<RemovedCheckpoint>, Problem> {
    let path = app.bundle(&named)?;
    let permit = app.at_checkpoint(&path).await?;
    let removed = app.operate(permit, move |ops| {
        ops.remove_checkpoint(&path, removing.force)
    });
    Ok(Json(removed.await?))
}

/// The demo guest to boot.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DemoRequest {
    /// Its memory, 4 MiB to 3 GiB.
    #[schema(default = 268_435_456)]
    memory_bytes: Option<u64>,
}

/// Makes a checkpoint by booting the demo guest and suspending it, as `brood checkpoint demo`
#[utoipa::path(
    post, path = "/checkpoints/{checkpoint}/demo", tag = "checkpoints",
    operation_id = "makeDemoCheckpoint",
    params(("checkpoint" = String, Path, description = "The new one, as for showCheckpoint")),
    request_body = DemoRequest,
    responses((status = 201, description = "It is sealed", body = types::Checkpoint))
)]
pub(super) async fn demo(
    State(app): State<App>,
    Path(named): Path<String>,
    Body(making): Body<DemoRequest>,
) -> Result<Response, Problem> {
    let path = app.bundle(&named)?;
    let memory = making.memory_bytes.map_or(DEMO_MEMORY, Bytes);
    let permit = app.at_checkpoint(&path).await?;
    app.operate(permit, move |folder| {
        let wanted = until(folder.cancelled());
        let _use = folder.state()?.use_bundle(&path, BundleAction::Write)?;
        let (engine, _) = folder.engine()?;
        let manifest = make_demo_checkpoint(engine, &path, memory, &wanted)?;
        let view = types::Checkpoint::new(&path, &manifest);
        Ok((StatusCode::CREATED, Json(view)).into_response())
    })
    .await
}

/// Where to put a full checkpoint.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FlattenRequest {
    /// The new bundle: `DIR/NAME`, or a name in the daemon's folder.
    #[schema(example = "/var/tmp/ckp/full")]
    checkpoint: String,
}

/// Joins a delta and its parents into a new, full checkpoint, as `brood checkpoint flatten`
#[utoipa::path(
    post, path = "/checkpoints/{checkpoint}/flatten", tag = "checkpoints",
    operation_id = "flattenCheckpoint",
    params(("checkpoint" = String, Path, description = "The delta, as for showCheckpoint")),
    request_body = FlattenRequest,
    responses((status = 201, description = "The new checkpoint", body = types::Checkpoint))
)]
pub(super) async fn flatten(
    State(app): State<App>,
    Path(named): Path<String>,
    Body(flattening): Body<FlattenRequest>,
) -> Result<Response, Problem> {
    let (path, new) = (app.bundle(&named)?, app.bundle(&flattening.checkpoint)?);
    let permit = app.at_checkpoint(&path).await?;
    app.operate(permit, move |folder| {
        let wanted = until(folder.cancelled());
        let (view, _) = flatten_bundle(folder, &path, &new, &wanted)?;
        Ok((StatusCode::CREATED, Json(view)).into_response())
    })
    .await
}

/// For which host.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PlanQuery {
    /// Plan for a host with this much available memory, instead of this host's.
    host_memory_bytes: Option<u64>,
}

/// Computes how many guests of a checkpoint fit, at best, expected and at worst, as `brood plan`
#[utoipa::path(
    get, path = "/checkpoints/{checkpoint}/plan", tag = "checkpoints",
    operation_id = "planCheckpoint",
    params(("checkpoint" = String, Path, description = "As for showCheckpoint"), PlanQuery),
    responses((status = 200, body = types::Plan))
)]
pub(super) async fn plan(
    State(app): State<App>,
    Path(named): Path<String>,
    Query(planning): Query<PlanQuery>,
) -> Result<Json<Plan>, Problem> {
    let path = app.bundle(&named)?;
    let memory = planning.host_memory_bytes.map(Bytes);
    let planned = app.look(move |ops| ops.plan(&path, memory));
    Ok(Json(planned.await?))
}
