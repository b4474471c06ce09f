//! Verbs of Cloud Hypervisor's API. They find the guest by its id, so that a later guest of the
//! same name is never meant.

use std::path::PathBuf;

use axum::{Extension, Json as Answer, body::Bytes, extract::State, http::StatusCode};
use percent_encoding::percent_decode_str;

use super::{
    SocketGuest,
    types::{
        CpusConfig, MemoryConfig, PayloadConfig, VmConfig, VmCounters, VmInfo, VmSnapshotConfig,
        VmmPingResponse,
    },
};
use crate::api::{App, guests::TIMEOUT, permits::PermitKind, problem::Problem};
use brood_core::{
    checkpoint::{BundlePath, Checkpoint, until},
    engine,
    guests::{self, Guest, GuestState, Guests},
    restore,
};

/// Done, and nothing to tell.
type Done = Result<StatusCode, Problem>;

pub(super) async fn ping() -> Answer<VmmPingResponse> {
    Answer(VmmPingResponse::of_process())
}

pub(super) async fn info(
    State(app): State<App>,
    Extension(served): Extension<SocketGuest>,
) -> Result<Answer<VmInfo>, Problem> {
    app.look_at_guests(move |guests| {
        let guest = served.find(guests)?;
        let size = guest.row.memory.0;
        Ok(Answer(VmInfo {
            config: VmConfig {
                cpus: vcpus(&guest).map(CpusConfig::of),
                memory: MemoryConfig {
                    size,
                    shared: false,
                },
                payload: PayloadConfig {},
            },
            state: guest.state.into(),
            memory_actual_size: size,
        }))
    })
    .await
}

/// Virtual CPUs of a guest, as its checkpoint tells of them.
fn vcpus(guest: &Guest) -> Option<u32> {
    let checkpoint: BundlePath = guest.row.checkpoint.parse().ok()?;
    Some(Checkpoint::open(&checkpoint).ok()?.manifest().vcpus)
}

pub(super) async fn counters(
    State(app): State<App>,
    Extension(served): Extension<SocketGuest>,
) -> Result<Answer<VmCounters>, Problem> {
    app.look_at_guests(move |guests| {
        let guest = served.find(guests)?;
        Ok(Answer(guests.usage(&guest)?.into()))
    })
    .await
}

pub(super) async fn pause(
    State(app): State<App>,
    Extension(served): Extension<SocketGuest>,
) -> Done {
    let permit = app.take_change(&[served.end()]).await?;
    app.change_guests(permit, move |guests| {
        let guest = served.find(guests)?;
        must_be(&guest, GuestState::Running, "paused")?;
        guests.pause(&guest)?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

pub(super) async fn resume(
    State(app): State<App>,
    Extension(served): Extension<SocketGuest>,
) -> Done {
    let permit = app.take(&[served.bound()], TIMEOUT).await?;
    let took = app
        .change_guests(permit, move |guests| {
            let guest = served.find(guests)?;
            must_be(&guest, GuestState::Paused, "resumed")?;
            match guests.resume(&guest, TIMEOUT) {
                // It goes on with an earlier request, and so it runs.
                Err(guests::Error::Engine {
                    source: engine::Error::Busy,
                    ..
                }) => Ok(None),
                resumed => Ok(Some(resumed?)),
            }
        })
        .await?;
    if let Some(took) = took {
        app.metrics.resumed(took);
    }
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn snapshot(
    State(app): State<App>,
    Extension(served): Extension<SocketGuest>,
    // ch-remote says of no body that it is JSON.
    body: Bytes,
) -> Done {
    let config: VmSnapshotConfig = serde_json::from_slice(&body).map_err(|e| {
        Problem::bad_request(format!("the body is not what vm.snapshot takes: {e}"))
    })?;
    let path = bundle(&config.destination_url, &served.name)?;
    let wanted = served.clone();
    let find = move |guests: &mut Guests<'_>| Ok(wanted.find(guests)?.row.checkpoint);
    let from = app.look_at_guests(find).await?;
    let bounds = [
        served.bound(),
        PermitKind::suspends(&format!("checkpoint {from}")),
    ];
    let permit = app.take(&bounds, restore::TIMEOUT).await?;
    app.change_guests(permit, move |guests| {
        let guest = served.find(guests)?;
        let wanted = until(guests.cancelled);
        guests.snapshot(&guest, &path, &wanted)?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

/// Cloud Hypervisor restores into a process that has no machine yet; a guest's socket has its
/// guest.
pub(super) async fn restore(Extension(served): Extension<SocketGuest>) -> Problem {
    let detail = format!("this socket has its machine already: guest {}", served.name);
    Problem::new(StatusCode::CONFLICT, "guest-exists", detail)
        .with_hint("restore a snapshot with `brood restore DIR/NAME`, or POST /api/v1/guests")
}

pub(super) async fn shutdown(
    State(app): State<App>,
    Extension(served): Extension<SocketGuest>,
) -> Done {
    served.destroy(&app).await?;
    app.guest_sockets.linger(&served.id);
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn delete(
    State(app): State<App>,
    Extension(served): Extension<SocketGuest>,
) -> Done {
    match served.destroy(&app).await {
        // Clients shut a machine down, and then delete it.
        Err(problem) if problem.kind() == "no-such-guest" => {}
        destroyed => destroyed?,
    }
    app.guest_sockets.linger(&served.id);
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn shutdown_vmm(
    State(app): State<App>,
    Extension(served): Extension<SocketGuest>,
) -> Done {
    match served.destroy(&app).await {
        Err(problem) if problem.kind() == "no-such-guest" => {}
        destroyed => destroyed?,
    }
    app.guest_sockets.close(&served.id);
    Ok(StatusCode::NO_CONTENT)
}

impl SocketGuest {
    fn find(&self, guests: &mut Guests<'_>) -> Result<Guest, Problem> {
        guests
            .find(&self.id.to_string())
            .map_err(|error| match error {
                guests::Error::NoSuchGuest(_) => {
                    guests::Error::NoSuchGuest(self.name.clone()).into()
                }
                error => error.into(),
            })
    }

    fn bound(&self) -> PermitKind {
        PermitKind::guest(&self.name)
    }

    fn end(&self) -> PermitKind {
        PermitKind::end_of(&self.name)
    }

    /// Ends the guest for good.
    async fn destroy(&self, app: &App) -> Result<(), Problem> {
        let served = self.clone();
        let permit = app.take_change(&[served.end()]).await?;
        app.change_guests(permit, move |guests| {
            let guest = served.find(guests)?;
            guests.destroy(&[guest])?.whole()?;
            Ok(())
        })
        .await
    }
}

/// Refuses a verb that does not suit what the guest is doing.
fn must_be(guest: &Guest, state: GuestState, past: &str) -> Result<(), Problem> {
    if guest.state == state {
        return Ok(());
    }
    let (name, is) = (&guest.row.name, guest.state.name());
    let detail = format!("guest {name} is {is}, and cannot be {past}");
    Err(Problem::new(StatusCode::CONFLICT, "guest-state", detail))
}

/// The bundle of a guest's snapshot: it gets the guest's name, in the folder that a `file://` URL
/// names.
fn bundle(url: &str, guest: &str) -> Result<BundlePath, Problem> {
    let refuse = |why: &str| {
        Problem::bad_request(format!("{url:?} names no folder: {why}"))
            .with_hint("write it as file:///DIR")
    };
    let path = url
        .strip_prefix("file://")
        .ok_or_else(|| refuse("it does not begin with file://"))?;
    if !path.starts_with('/') {
        return Err(refuse("it names another host, or a relative path"));
    }
    let path = percent_decode_str(path)
        .decode_utf8()
        .map_err(|_| refuse("it is not UTF-8"))?;
    let folder = PathBuf::from(&*path);
    if !folder.is_dir() {
        let detail = format!("there is no folder {}", folder.display());
        return Err(
            Problem::new(StatusCode::NOT_FOUND, "no-such-folder", detail)
                .with_hint("make it: a snapshot is written into a folder that exists"),
        );
    }
    Ok(BundlePath::new(&folder.join(guest))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_has_the_guests_name_in_the_folder_of_the_url() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a b");
        std::fs::create_dir(&folder).unwrap();
        let named = |url: &str| bundle(url, "vm0").map_err(|problem| problem.status().as_u16());
        let at = dir.path().display();
        let expected = folder.join("vm0").display().to_string();
        for spelled in ["a%20b", "a b", "a%20b/"] {
            let path = named(&format!("file://{at}/{spelled}")).unwrap();
            assert_eq!(path.to_string(), expected);
        }
        assert_eq!(named(&format!("file://{at}/missing")), Err(404));
        for bad in [
            "/a",
            "file://host/a",
            "file://a",
            "http:///a",
            "file:///%ff",
            "",
        ] {
            assert_eq!(named(bad), Err(400), "{bad:?}");
        }
    }
}
