//! Guests over the API: list, show, ask, pause, resume, suspend, destroy.

use std::time::Duration;

use axum::{
    Json as Answer,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::IntoParams;

pub(super) use super::types::TIMEOUT;
use super::{
    App,
    extract::{Json, Path, Query},
    permits::PermitKind,
    problem::Problem,
    types::{
        self, AskRequest, DestroyAnswer, DestroyTargets, GuestAnswer, ResumeReport, SuspendRequest,
        SuspendTarget,
    },
};
use crate::ops::Operations;
use brood_core::{
    checkpoint::{BundlePath, until},
    guests::Guests,
    restore,
};

/// The longest that anybody may want to wait, in seconds.
const TIMEOUT_MAX_S: f64 = 3600.0;

/// What to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Only guests whose names begin with this; others are not looked at.
    #[serde(default)]
    prefix: String,
    /// Include the cost of each guest, which takes longer.
    #[serde(default)]
    usage: bool,
}

/// Lists guests, as `brood list`
#[utoipa::path(
    get, path = "/guests", tag = "guests", operation_id = "listGuests",
    params(ListQuery),
    responses((status = 200, body = [types::Guest]))
)]
pub(super) async fn list(
    State(app): State<App>,
    Query(listing): Query<ListQuery>,
) -> Result<Answer<Vec<types::Guest>>, Problem> {
    let listed = app.look(move |ops| ops.guests(&listing.prefix, listing.usage));
    Ok(Answer(listed.await?))
}

/// Shows one guest with its cost, as `brood show`
#[utoipa::path(
    get, path = "/guests/{guest}", tag = "guests", operation_id = "showGuest",
    params(("guest" = String, Path, description = "Name or id")),
    responses((status = 200, body = types::Guest))
)]
pub(super) async fn show(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Answer<types::Guest>, Problem> {
    let shown = app.look(move |ops| ops.guest(&name));
    Ok(Answer(shown.await?))
}

/// Sends a request to a guest; answers with the guest's answer
///
/// When the client disconnects, the wait ends.
#[utoipa::path(
    post, path = "/guests/{guest}/ask", tag = "guests", operation_id = "askGuest",
    params(("guest" = String, Path, description = "Name or id")),
    request_body = AskRequest,
    responses(
        (status = 200, description = "What the guest answered: it depends on the request; a string when \
            text is wanted", body = Object),
    )
)]
pub(super) async fn ask(
    State(app): State<App>,
    Path(name): Path<String>,
    Json(asked): Json<AskRequest>,
) -> Result<Answer<GuestAnswer>, Problem> {
    let timeout = timeout(asked.timeout_s)?;
    if asked.request.is_empty() {
        return Err(Problem::bad_request("the request has no words"));
    }
    let permit = app.take(&[PermitKind::guest(&name)], timeout).await?;
    let answered = app.operate(permit, move |ops| ops.ask(&name, &asked));
    Ok(Answer(answered.await?))
}

pub(super) fn timeout(seconds: Option<f64>) -> Result<Duration, Problem> {
    Ok(limit(seconds)?.unwrap_or(TIMEOUT))
}

/// The time limit that a client gives, if it gives one, capped so that no thread is lost to it.
pub(super) fn limit(seconds: Option<f64>) -> Result<Option<Duration>, Problem> {
    match seconds {
        Some(seconds) if seconds > 0.0 && seconds <= TIMEOUT_MAX_S => {
            Ok(Some(Duration::from_secs_f64(seconds)))
        }
        Some(_) => {
            let detail = format!("timeout_s must be above 0 and at most {TIMEOUT_MAX_S}");
            Err(Problem::bad_request(detail))
        }
        None => Ok(None),
    }
}

/// Stops a guest (SIGSTOP); it keeps its memory. A paused guest stays paused
#[utoipa::path(
    post, path = "/guests/{guest}/pause", tag = "guests", operation_id = "pauseGuest",
    params(("guest" = String, Path, description = "Name or id")),
    responses((status = 200, body = types::Guest))
)]
pub(super) async fn pause(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Answer<types::Guest>, Problem> {
    // It is not asked, so it need not have answered others.
    let permit = app.take_change(&[PermitKind::end_of(&name)]).await?;
    let paused = app.change(permit, move |ops| ops.pause(&name));
    Ok(Answer(paused.await?))
}

/// How a guest is to be resumed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ResumeRequest {
    /// Time that it has to answer, in seconds.
    #[param(default = 10.0, exclusive_minimum = 0.0, maximum = 3600.0)]
    timeout_s: Option<f64>,
}

/// Continues a stopped guest (SIGCONT); answers when the guest has answered
#[utoipa::path(
    post, path = "/guests/{guest}/resume", tag = "guests", operation_id = "resumeGuest",
    params(("guest" = String, Path, description = "Name or id"), ResumeRequest),
    responses((status = 200, body = ResumeReport))
)]
pub(super) async fn resume(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(resuming): Query<ResumeRequest>,
) -> Result<Answer<ResumeReport>, Problem> {
    let timeout = timeout(resuming.timeout_s)?;
    let permit = app.take(&[PermitKind::guest(&name)], timeout).await?;
    let resumed = app.change(permit, move |ops| ops.resume(&name, timeout));
    let resumed = resumed.await?;
    let took = Duration::from_secs_f64(resumed.resume_ms / 1e3);
    app.metrics.resumed(took);
    Ok(Answer(resumed))
}

/// Suspends a guest into a new checkpoint and ends it; if anything fails, the guest goes on
///
/// When the client disconnects before the checkpoint is sealed, the guest goes on.
#[utoipa::path(
    post, path = "/guests/{guest}/suspend", tag = "guests", operation_id = "suspendGuest",
    params(("guest" = String, Path, description = "Name or id")),
    request_body = SuspendRequest,
    responses((status = 201, description = "The new checkpoint", body = types::Checkpoint))
)]
pub(super) async fn suspend(
    State(app): State<App>,
    Path(name): Path<String>,
    Json(suspending): Json<SuspendRequest>,
) -> Result<Response, Problem> {
    let path = app.bundle(&suspending.checkpoint)?;
    let view = app.suspend(name, path, suspending.delta).await?;
    Ok((StatusCode::CREATED, Answer(view)).into_response())
}

impl App {
    pub(super) async fn suspend(
        &self,
        name: String,
        path: BundlePath,
        delta: bool,
    ) -> Result<types::Checkpoint, Problem> {
        let found = name.clone();
        let find = move |guests: &mut Guests<'_>| Ok(guests.find(&found)?.row.checkpoint);
        let from = self.look_at_guests(find).await?;
        // All guests of a checkpoint may be as silent as one of them.
        let bounds = [
            PermitKind::guest(&name),
            PermitKind::suspends(&format!("checkpoint {from}")),
        ];
        let permit = self.take(&bounds, restore::TIMEOUT).await?;
        self.change(permit, move |ops| {
            let progress = until(ops.cancelled());
            let checkpoint = &path;
            ops.suspend(&name, &SuspendTarget { checkpoint, delta }, &progress)
        })
        .await
    }
}

/// Destroys a guest: its process is gone when this answers
#[utoipa::path(
    delete, path = "/guests/{guest}", tag = "guests", operation_id = "destroyGuest",
    params(("guest" = String, Path, description = "Name or id")),
    responses((status = 200, body = DestroyAnswer))
)]
pub(super) async fn destroy(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Answer<DestroyAnswer>, Problem> {
    app.destroy(vec![name], false).await
}

/// Which guests.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct GuestSelection {
    /// All guests.
    #[serde(default)]
    all: bool,
    /// With `all`: destroy claimed guests too.
    #[serde(default)]
    force: bool,
    /// With `guests`: ignore names that no guest has. Otherwise such a name fails the whole
    /// request.
    #[serde(default)]
    ignore_missing: bool,
    /// Names or ids of guests, separated by commas.
    #[param(example = "demo-1,demo-2")]
    guests: Option<String>,
}

/// Destroys the named guests, or all guests that are not claimed
#[utoipa::path(
    delete, path = "/guests", tag = "guests", operation_id = "destroyGuests",
    params(GuestSelection),
    responses((status = 200, body = DestroyAnswer))
)]
pub(super) async fn destroy_many(
    State(app): State<App>,
    Query(which): Query<GuestSelection>,
) -> Result<Answer<DestroyAnswer>, Problem> {
    let named = match (which.all, which.guests) {
        (true, None) => None,
        (false, Some(_)) if which.force => {
            return Err(Problem::bad_request(
                "force goes with all: who is named is meant",
            ));
        }
        (false, Some(names)) if !names.is_empty() => Some(names),
        _ => {
            let problem = Problem::bad_request("no guests are named, or all of them and some");
            return Err(problem.with_hint("?all=true destroys all, ?guests=NAME,NAME these"));
        }
    };
    match named {
        None => {
            let targets = DestroyTargets::All { force: which.force };
            let permit = app.take_change(&[PermitKind::end_of("all guests")]).await?;
            let destroyed = app.change(permit, move |ops| ops.destroy(targets));
            Ok(Answer(destroyed.await?))
        }
        Some(text) => {
            let names = text.split(',').map(str::to_owned).collect();
            app.destroy(names, which.ignore_missing).await
        }
    }
}

impl App {
    async fn destroy(
        &self,
        names: Vec<String>,
        ignore_missing: bool,
    ) -> Result<Answer<DestroyAnswer>, Problem> {
        let what = match &names[..] {
            [first, _, ..] => format!("{first} and {} more", names.len() - 1),
            one => one.concat(),
        };
        let permit = self.take_change(&[PermitKind::end_of(&what)]).await?;
        let destroyed = self.change(permit, move |ops| {
            ops.destroy(DestroyTargets::Named {
                guests: &names,
                ignore_missing,
            })
        });
        Ok(Answer(destroyed.await?))
    }
}
