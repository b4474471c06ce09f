//! A few verbs of Cloud Hypervisor's API, for each guest below a base URL of its own:
//! `/guests/NAME/api/v1`. Methods, bodies and statuses are those of its OpenAPI document
//! (`vmm/src/api/openapi/cloud-hypervisor.yaml`, version 0.3.0).
//!
//! What is different: `source_url` and `destination_url` name a bundle, `file:///DIR/NAME`; a guest
//! ends with its snapshot, as with `brood suspend`; a restore always shares the checkpoint's memory,
//! so `prefault`, `memory_restore_mode` and `zone_updates` are taken and ignored; errors are problem
//! details.

use std::path::PathBuf;

use axum::{Extension, Json as Answer, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    extract::{Json, Path},
    guests::TIMEOUT,
    permits::Bound,
    problem::Problem,
    request::RequestId,
};
use brood_core::{
    checkpoint::BundlePath,
    disk::Choice,
    guests::{Guest, GuestState},
    restore::{
        job::{ALLOWANCE, Ending, Job},
        mass::Names,
    },
};

/// What answers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VmmPingResponse {
    /// The program and its version.
    build_version: &'static str,
    /// Its version.
    version: &'static str,
    /// Process id of the daemon.
    pid: u32,
    /// None.
    features: Vec<String>,
}

/// Whether the API answers
#[utoipa::path(
    get, path = "/vmm.ping", tag = "cloud-hypervisor", operation_id = "vmmPing",
    params(("guest" = String, Path, description = "Name or id; it need not exist")),
    responses((status = 200, body = VmmPingResponse))
)]
pub(super) async fn ping() -> Answer<VmmPingResponse> {
    Answer(VmmPingResponse {
        build_version: concat!("brood ", env!("CARGO_PKG_VERSION")),
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        features: Vec::new(),
    })
}

/// A guest, as Cloud Hypervisor tells of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VmInfo {
    /// How it is built; only the parts that it has.
    config: VmConfig,
    /// What it is doing.
    state: VmState,
    /// Its memory, in bytes.
    memory_actual_size: u64,
}

/// How a guest is built.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VmConfig {
    /// Its processors.
    cpus: CpusConfig,
    /// Its memory.
    memory: MemoryConfig,
    /// Nothing: it was restored, not booted.
    payload: PayloadConfig,
}

/// Processors of a guest.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CpusConfig {
    /// At boot.
    boot_vcpus: u32,
    /// At most.
    max_vcpus: u32,
}

/// Memory of a guest.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MemoryConfig {
    /// In bytes.
    size: u64,
    /// Always false: it is shared with the checkpoint until it is written, and then private.
    shared: bool,
}

/// What a guest was booted from.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PayloadConfig {}

/// What a guest is doing, in Cloud Hypervisor's words.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) enum VmState {
    /// It is being restored.
    Created,
    /// It runs.
    Running,
    /// It ended.
    Shutdown,
    /// It is paused.
    Paused,
}

/// A guest
#[utoipa::path(
    get, path = "/vm.info", tag = "cloud-hypervisor", operation_id = "vmInfo",
    params(("guest" = String, Path, description = "Name or id")),
    responses(
        (status = 200, body = VmInfo),
        (status = 404, description = "There is no such guest", body = Problem,
         content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn info(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Answer<VmInfo>, Problem> {
    let guest = app.on_guests(move |guests| Ok(guests.find(&name)?)).await?;
    Ok(Answer(VmInfo {
        config: VmConfig {
            // The engine restores guests with one.
            cpus: CpusConfig {
                boot_vcpus: 1,
                max_vcpus: 1,
            },
            memory: MemoryConfig {
                size: guest.row.memory.0,
                shared: false,
            },
            payload: PayloadConfig {},
        },
        state: match guest.state {
            GuestState::Restoring => VmState::Created,
            GuestState::Running => VmState::Running,
            GuestState::Paused => VmState::Paused,
            GuestState::Dead => VmState::Shutdown,
        },
        memory_actual_size: guest.row.memory.0,
    }))
}

/// Pauses a guest
#[utoipa::path(
    put, path = "/vm.pause", tag = "cloud-hypervisor", operation_id = "pauseVM",
    params(("guest" = String, Path, description = "Name or id")),
    responses(
        (status = 204, description = "It is paused"),
        (status = 404, description = "There is no such guest", body = Problem,
         content_type = "application/problem+json"),
        (status = 405, description = "It does not run", body = Problem,
         content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn pause(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    let permit = app.permits.take(&[Bound::guest(&name)], TIMEOUT).await?;
    app.change_guests(move |guests| {
        let _permit = permit;
        let guest = guests.find(&name)?;
        must_be(&guest, &[GuestState::Running], "paused")?;
        guests.pause(&guest)?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

/// Resumes a paused guest; answers when the guest has answered
#[utoipa::path(
    put, path = "/vm.resume", tag = "cloud-hypervisor", operation_id = "resumeVM",
    params(("guest" = String, Path, description = "Name or id")),
    responses(
        (status = 204, description = "It runs"),
        (status = 404, description = "There is no such guest", body = Problem,
         content_type = "application/problem+json"),
        (status = 405, description = "It is not paused", body = Problem,
         content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn resume(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    let permit = app.permits.take(&[Bound::guest(&name)], TIMEOUT).await?;
    let took = app
        .change_guests(move |guests| {
            let _permit = permit;
            let guest = guests.find(&name)?;
            must_be(&guest, &[GuestState::Paused], "resumed")?;
            Ok(guests.resume(&guest, TIMEOUT)?)
        })
        .await?;
    app.metrics.resumed(took);
    Ok(StatusCode::NO_CONTENT)
}

/// 405 is what Cloud Hypervisor answers to a verb that does not suit the state.
fn must_be(guest: &Guest, states: &[GuestState], past: &str) -> Result<(), Problem> {
    if states.contains(&guest.state) {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "guest-state",
        format!(
            "guest {} cannot be {past}: it is {}",
            guest.row.name,
            guest.state.name()
        ),
    ))
}

/// Where a snapshot goes.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct VmSnapshotConfig {
    /// The new bundle: `file:///DIR/NAME`.
    #[schema(example = "file:///var/tmp/ckp/warm")]
    destination_url: String,
}

/// Suspends a guest into a new checkpoint; the guest ends
#[utoipa::path(
    put, path = "/vm.snapshot", tag = "cloud-hypervisor", operation_id = "snapshotVM",
    params(("guest" = String, Path, description = "Name or id")),
    request_body = VmSnapshotConfig,
    responses(
        (status = 204, description = "It is suspended"),
        (status = 404, description = "There is no such guest", body = Problem,
         content_type = "application/problem+json"),
        (status = 405, description = "It does not live", body = Problem,
         content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn snapshot(
    State(app): State<App>,
    Path(name): Path<String>,
    Json(config): Json<VmSnapshotConfig>,
) -> Result<StatusCode, Problem> {
    let path = bundle(&config.destination_url)?;
    let wanted = name.clone();
    app.on_guests(move |guests| {
        let alive = [GuestState::Running, GuestState::Paused];
        must_be(&guests.find(&wanted)?, &alive, "suspended")
    })
    .await?;
    app.suspend(name, path, false).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What to restore from. Other fields of Cloud Hypervisor's are taken and ignored.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct RestoreConfig {
    /// The bundle: `file:///DIR/NAME`.
    #[schema(example = "file:///var/tmp/ckp/demo")]
    source_url: String,
    /// Let it run at once. Else it is left paused.
    #[serde(default)]
    resume: bool,
}

/// Restores a guest of this name from a checkpoint; answers when the guest has answered
#[utoipa::path(
    put, path = "/vm.restore", tag = "cloud-hypervisor", operation_id = "restoreVM",
    params(("guest" = String, Path, description = "Name that the guest gets")),
    request_body = RestoreConfig,
    responses(
        (status = 204, description = "It is restored, and paused unless `resume` was asked for"),
        (status = 400, description = "The name or the URL cannot be used", body = Problem,
         content_type = "application/problem+json"),
        (status = 404, description = "There is a guest of this name already, or no such checkpoint",
         body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn restore(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    Path(name): Path<String>,
    Json(config): Json<RestoreConfig>,
) -> Result<StatusCode, Problem> {
    let checkpoint = bundle(&config.source_url)?;
    let wanted = name.clone();
    let exists = app
        .on_guests(move |guests| match guests.find(&wanted) {
            Ok(_) => Ok(true),
            Err(brood_core::guests::Error::NoSuchGuest(_)) => Ok(false),
            Err(e) => Err(e.into()),
        })
        .await?;
    if exists {
        // 404 is what Cloud Hypervisor answers here.
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            "guest-exists",
            format!("there is a guest {name:?} already"),
        ));
    }
    let job = Job {
        timeout: None,
        checkpoint,
        guests: 1,
        concurrency: Some(1),
        names: Names::Only(name),
        paused: !config.resume,
        allowance: ALLOWANCE,
        overcommit: false,
        park_after: None,
        all_or_nothing: false,
        disk: Choice::Sealed,
        trust: false,
    };
    let (ending, view) = app.restore(job, id).await?;
    match ending {
        Ending::Whole => Ok(StatusCode::NO_CONTENT),
        Ending::Some | Ending::Nothing | Ending::Interrupted => Err(Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "nothing-restored",
            view.errors
                .first()
                .map_or("the restore was cancelled", |failure| &failure.error),
        )),
    }
}

/// The bundle that a `file://` URL names.
fn bundle(url: &str) -> Result<BundlePath, Problem> {
    let refuse = |why: &str| {
        Problem::bad_request(format!("{url:?} names no checkpoint: {why}"))
            .with_hint("write it as file:///DIR/NAME")
    };
    let path = url
        .strip_prefix("file://")
        .ok_or_else(|| refuse("it does not begin with file://"))?;
    if !path.starts_with('/') {
        return Err(refuse("it names another host, or a relative path"));
    }
    Ok(BundlePath::new(&PathBuf::from(path))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_are_named_by_file_urls() {
        let named = |url| bundle(url).map(|path| path.to_string()).ok();
        assert_eq!(named("file:///a/b"), Some("/a/b".to_owned()));
        for bad in [
            "/a/b",
            "file://host/a",
            "file://a",
            "http:///a/b",
            "file:///a/",
            "",
        ] {
            assert_eq!(named(bad), None, "{bad:?}");
        }
    }
}
