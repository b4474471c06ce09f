//! Guests over the API: list, show, ask, pause, resume, suspend, destroy.

use std::{sync::Arc, time::Duration};

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
    extract::{Json, Path, Query},
    permits::PermitKind,
    problem::Problem,
    types::{self, SuspendRequest, SuspendTarget, report},
    workers::{self, until_hang_up},
};
use brood_core::{
    checkpoint::{BundlePath, until},
    guests::{Guest, Guests},
    restore::{self, RestoreFailure},
};

/// Default time to wait for an answer.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that anybody may want to wait, in seconds.
const TIMEOUT_MAX_S: f64 = 3600.0;

impl App {
    /// Makes a library call on guests, on a thread for that, until the client hangs up.
    pub(super) async fn on_guests<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Guests<'_>) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let workers = Arc::clone(&self.workers);
        until_hang_up(move |cancelled| {
            workers.call(|state, engine| work(&mut workers::guests(state, engine, cancelled)))
        })
        .await
    }

    /// The same, for something that is done to them.
    pub(super) async fn change_guests<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Guests<'_>) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let result = self.on_guests(work).await;
        self.events.poke();
        result
    }
}

/// What to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Include the cost of each guest, which takes longer.
    #[serde(default)]
    usage: bool,
}

/// Lists all guests, as `brood list`
#[utoipa::path(
    get, path = "/guests", tag = "guests", operation_id = "listGuests",
    params(ListQuery),
    responses((status = 200, body = [types::Guest]))
)]
pub(super) async fn list(
    State(app): State<App>,
    Query(listing): Query<ListQuery>,
) -> Result<Answer<Vec<types::Guest>>, Problem> {
    app.on_guests(move |guests| Ok(Answer(types::Guest::all(guests, listing.usage)?)))
        .await
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
    app.on_guests(move |guests| Ok(Answer(types::Guest::one(guests, &name)?)))
        .await
}

/// A request to a guest.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AskRequest {
    /// The request, word by word.
    #[schema(example = json!(["ping", "hello"]), min_items = 1)]
    pub(crate) request: Vec<String>,
    /// How long to wait for the answer, in seconds.
    #[schema(default = 10.0, exclusive_minimum = 0.0, maximum = 3600.0)]
    pub(crate) timeout_s: Option<f64>,
    /// Answer with a text for people, as `brood ask` prints it, instead of an object.
    #[serde(default)]
    pub(crate) text: bool,
}

/// A guest's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum GuestAnswer {
    /// For people.
    Text(String),
    /// For programs.
    Object(serde_json::Value),
}

impl AskRequest {
    /// Puts the request to a guest.
    pub(crate) fn put(
        &self,
        guests: &mut Guests<'_>,
        name: &str,
        timeout: Duration,
    ) -> Result<GuestAnswer, brood_core::guests::Error> {
        let answer = guests.ask(name, &self.request, timeout)?;
        Ok(if self.text {
            GuestAnswer::Text(answer.to_string())
        } else {
            GuestAnswer::Object(answer.to_json())
        })
    }
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
    let permit = app
        .permits
        .take(&[PermitKind::guest(&name)], timeout)
        .await?;
    app.on_guests(move |guests| {
        let _permit = permit;
        Ok(Answer(asked.put(guests, &name, timeout)?))
    })
    .await
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
    let permit = app
        .permits
        .take(&[PermitKind::guest(&name)], TIMEOUT)
        .await?;
    app.change_guests(move |guests| {
        let _permit = permit;
        let guest = guests.find(&name)?;
        guests.pause(&guest)?;
        Ok(Answer(types::Guest::new(
            &guests.find(&name)?,
            guests.engine.kind(),
            None,
        )))
    })
    .await
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

/// A guest was resumed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct ResumeReport {
    /// Its name.
    pub(crate) name: String,
    /// From SIGCONT to its answer, in milliseconds.
    pub(crate) resume_ms: f64,
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
    let permit = app
        .permits
        .take(&[PermitKind::guest(&name)], timeout)
        .await?;
    let (resumed, took) = app
        .change_guests(move |guests| {
            let _permit = permit;
            Ok(ResumeReport::of(guests, &name, timeout)?)
        })
        .await?;
    app.metrics.resumed(took);
    Ok(Answer(resumed))
}

impl ResumeReport {
    /// Resumes a guest; returns how long its answer took, too.
    pub(crate) fn of(
        guests: &mut Guests<'_>,
        name: &str,
        timeout: Duration,
    ) -> Result<(Self, Duration), brood_core::guests::Error> {
        let guest = guests.find(name)?;
        let took = guests.resume(&guest, timeout)?;
        let resumed = Self {
            name: guest.row.name,
            resume_ms: took.as_secs_f64() * 1e3,
        };
        Ok((resumed, took))
    }
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
        let from = self.on_guests(find).await?;
        // All guests of a checkpoint may be as silent as one of them.
        let bounds = [
            PermitKind::guest(&name),
            PermitKind::suspends(&format!("checkpoint {from}")),
        ];
        let permit = self.permits.take(&bounds, restore::TIMEOUT).await?;
        self.change_guests(move |guests| {
            let _permit = permit;
            let progress = until(guests.cancelled);
            let checkpoint = &path;
            let target = SuspendTarget { checkpoint, delta };
            Ok(types::Checkpoint::suspended(
                guests, &name, &target, &progress,
            )?)
        })
        .await
    }
}

/// Guests were destroyed.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct DestroyAnswer {
    /// How many.
    pub(crate) destroyed: usize,
    /// Their names.
    pub(crate) guests: Vec<String>,
    /// Guests that could not be destroyed, and stay recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<report::RestoreFailure>)]
    pub(crate) left: Vec<RestoreFailure>,
    /// Names of guests that were left alone because they are claimed.
    #[serde(default)]
    pub(crate) spared: Vec<String>,
}

/// Guests to destroy.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DestroyTargets<'a> {
    /// All; claimed ones only when `force` is set.
    All { force: bool },
    /// These: names or ids.
    Named {
        guests: &'a [String],
        ignore_missing: bool,
    },
}

/// Guests of these names or ids, each once.
pub(crate) fn named(
    guests: &mut Guests<'_>,
    names: &[String],
    ignore_missing: bool,
) -> Result<Vec<Guest>, brood_core::guests::Error> {
    let mut found: Vec<Guest> = Vec::new();
    for name in names {
        let guest = match guests.find(name) {
            Err(brood_core::guests::Error::NoSuchGuest(_)) if ignore_missing => continue,
            found => found?,
        };
        if !found.iter().any(|other| other.row.id == guest.row.id) {
            found.push(guest);
        }
    }
    Ok(found)
}

impl DestroyAnswer {
    /// Destroys guests.
    pub(crate) fn of(
        guests: &mut Guests<'_>,
        targets: DestroyTargets<'_>,
    ) -> Result<Self, brood_core::guests::Error> {
        let (doomed, claimed) = match targets {
            DestroyTargets::All { force } => guests
                .list()?
                .into_iter()
                .partition(|guest| force || !guest.is_claimed()),
            DestroyTargets::Named {
                guests: names,
                ignore_missing,
            } => (named(guests, names, ignore_missing)?, Vec::new()),
        };
        Ok(Self {
            spared: claimed.into_iter().map(|guest| guest.row.name).collect(),
            ..guests.destroy(&doomed)?.try_into()?
        })
    }

    /// Adds another result.
    pub(crate) fn add(&mut self, more: Self) {
        self.destroyed += more.destroyed;
        self.guests.extend(more.guests);
        self.left.extend(more.left);
        self.spared.extend(more.spared);
    }
}

impl TryFrom<brood_core::guests::DestroyReport> for DestroyAnswer {
    type Error = brood_core::guests::Error;

    /// The view of the result; an error when none of the guests was destroyed.
    fn try_from(ended: brood_core::guests::DestroyReport) -> Result<Self, Self::Error> {
        if ended.names.is_empty() {
            ended.whole().map(|guests| Self {
                destroyed: 0,
                guests,
                left: Vec::new(),
                spared: Vec::new(),
            })
        } else {
            Ok(Self {
                destroyed: ended.names.len(),
                guests: ended.names,
                left: ended.left.iter().map(failure_view).collect(),
                spared: Vec::new(),
            })
        }
    }
}

impl From<brood_core::guests::EndedStrays> for DestroyAnswer {
    fn from(ended: brood_core::guests::EndedStrays) -> Self {
        let left = ended.left.into_iter().map(|(name, error)| RestoreFailure {
            name,
            error: error.to_string(),
        });
        Self {
            destroyed: ended.names.len(),
            guests: ended.names,
            left: left.collect(),
            spared: Vec::new(),
        }
    }
}

fn failure_view(left: &brood_core::guests::Left) -> RestoreFailure {
    RestoreFailure {
        name: left.name.clone(),
        error: left.error.to_string(),
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
    app.change_guests(move |guests| {
        let guest = guests.find(&name)?;
        Ok(Answer(guests.destroy(&[guest])?.try_into()?))
    })
    .await
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
    app.change_guests(move |guests| {
        let names: Vec<String>;
        let targets = match named {
            None => DestroyTargets::All { force: which.force },
            Some(text) => {
                names = text.split(',').map(str::to_owned).collect();
                DestroyTargets::Named {
                    guests: &names,
                    ignore_missing: which.ignore_missing,
                }
            }
        };
        Ok(Answer(DestroyAnswer::of(guests, targets)?))
    })
    .await
}
