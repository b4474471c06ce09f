//! Checkpoints: list, show, verify, remove.

use std::{path::PathBuf, sync::Arc};

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    extract::{Path, Query},
    problem::Problem,
    workers::{blocking, guests},
};
use crate::{
    checkpoint::{self, BundlePath, Checkpoint, ListedView, View},
    units::Bytes,
};

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
}

/// Where to look.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Folder {
    /// The folder; the daemon's own, when it is not said.
    #[param(value_type = Option<String>, example = "/var/tmp/ckp")]
    dir: Option<PathBuf>,
}

/// The checkpoints in a folder, as `brood checkpoint list`
#[utoipa::path(
    get, path = "/checkpoints", tag = "checkpoints", operation_id = "listCheckpoints",
    params(Folder),
    responses(
        (status = 200, body = [ListedView]),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn list(
    State(app): State<App>,
    Query(folder): Query<Folder>,
) -> Result<Json<Vec<ListedView>>, Problem> {
    let dir = folder.dir.unwrap_or_else(|| app.checkpoints.clone());
    if !dir.is_absolute() {
        return Err(Problem::bad_request(format!(
            "{} is a relative path",
            dir.display()
        )));
    }
    blocking(move || {
        let bundles = checkpoint::list(&dir)?;
        Ok(Json(bundles.iter().map(Into::into).collect()))
    })
    .await
}

/// What is in a checkpoint, as `brood checkpoint inspect`
#[utoipa::path(
    get, path = "/checkpoints/{checkpoint}", tag = "checkpoints", operation_id = "showCheckpoint",
    params(("checkpoint" = String, Path, description = "Its name in the daemon's folder, or its \
        whole DIR/NAME, percent-encoded: %2Fvar%2Ftmp%2Fckp%2Fdemo")),
    responses(
        (status = 200, body = View),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show(
    State(app): State<App>,
    Path(named): Path<String>,
) -> Result<Json<View>, Problem> {
    let path = app.bundle(&named)?;
    blocking(move || {
        let checkpoint = Checkpoint::open(&path)?;
        Ok(Json(View::of(&checkpoint)))
    })
    .await
}

/// A checkpoint was read whole, and is what was sealed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Verified {
    /// The bundle.
    checkpoint: String,
    /// Always true: one that is not whole is an error.
    whole: bool,
    /// SHA-256 of its memory.
    sha256: String,
}

/// Reads a checkpoint whole and compares it with its digests; answers when that is done
#[utoipa::path(
    post, path = "/checkpoints/{checkpoint}/verify", tag = "checkpoints",
    operation_id = "verifyCheckpoint",
    params(("checkpoint" = String, Path, description = "As for showCheckpoint")),
    responses(
        (status = 200, body = Verified),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn verify(
    State(app): State<App>,
    Path(named): Path<String>,
) -> Result<Json<Verified>, Problem> {
    let path = app.bundle(&named)?;
    blocking(move || {
        let checkpoint = Checkpoint::open(&path)?;
        checkpoint.verify_memory(&|_| {})?;
        Ok(Json(Verified {
            checkpoint: path.to_string(),
            whole: true,
            sha256: checkpoint.manifest().memory_sha256(),
        }))
    })
    .await
}

/// A checkpoint was removed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Removed {
    /// The bundle.
    checkpoint: String,
    /// What its files took, in bytes.
    freed: Bytes,
}

/// How to remove.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Removing {
    /// Remove it even when deltas in its folder need it: they are lost.
    #[serde(default)]
    force: bool,
}

/// Removes a checkpoint that no guest uses
#[utoipa::path(
    delete, path = "/checkpoints/{checkpoint}", tag = "checkpoints",
    operation_id = "removeCheckpoint",
    params(("checkpoint" = String, Path, description = "As for showCheckpoint"), Removing),
    responses(
        (status = 200, body = Removed),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn remove(
    State(app): State<App>,
    Path(named): Path<String>,
    Query(removing): Query<Removing>,
) -> Result<Json<Removed>, Problem> {
    let path = app.bundle(&named)?;
    let workers = Arc::clone(&app.workers);
    blocking(move || {
        let users = workers.call(|state, engine| guests(state, engine).users_of(&path))?;
        if !removing.force {
            checkpoint::spare_parent(&path)?;
        }
        let freed = checkpoint::remove(&path, &users)?;
        Ok(Json(Removed {
            checkpoint: path.to_string(),
            freed,
        }))
    })
    .await
}
