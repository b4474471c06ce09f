//! Restores over the API: one request restores any number of guests, and is answered when each of
//! them has answered.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use axum::{
    Extension, Json as Answer,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    events::RestoreEvent,
    extract::Json,
    guests::limit,
    metrics::Origin,
    permits::PermitKind,
    problem::Problem,
    request::RequestId,
    types::report,
    workers::{CancelOnDrop, Workers, blocking},
};
use brood_core::{
    disk::{Choice, Source},
    restore::{
        job::{Job, PRIVATE_LIMIT, RestoreEnd, View},
        mass::{self, Event},
    },
    units::Bytes,
};

/// What to restore.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RestoreRequest {
    /// From where: `DIR/NAME`, or a name in the daemon's folder.
    #[schema(example = "/var/tmp/ckp/demo")]
    pub(crate) checkpoint: String,
    /// How many guests.
    #[schema(minimum = 1)]
    pub(crate) guests: u32,
    /// How many restores run at once; by default one for each core.
    #[schema(minimum = 1)]
    pub(crate) concurrency: Option<u32>,
    /// Time that each guest has from its order to its answer, in seconds. brood ends one that takes
    /// longer, and goes on with the others.
    #[schema(default = 60.0, exclusive_minimum = 0.0, maximum = 3600.0)]
    pub(crate) timeout_s: Option<f64>,
    /// Guests are named `PREFIX-1`, `PREFIX-2`, ...; the default prefix is the checkpoint's name.
    pub(crate) prefix: Option<String>,
    /// Pause the guests as soon as all have answered.
    #[serde(default)]
    pub(crate) paused: bool,
    /// Private memory that each guest may come to hold, in bytes. Admission counts with it for the
    /// worst case; nothing keeps a guest from writing more.
    #[schema(default = 1_048_576)]
    pub(crate) private_limit: Option<u64>,
    /// Restore even if that worst case does not fit in memory.
    #[serde(default)]
    pub(crate) overcommit: bool,
    /// Park guests that were idle for this many seconds: they give their virtual machine back to
    /// the host until the next request. By default never.
    #[schema(minimum = 0, maximum = 1e6)]
    pub(crate) park_after_s: Option<f64>,
    /// If any guest fails, destroy all guests of this request.
    #[serde(default)]
    pub(crate) all_or_nothing: bool,
    /// Disk that each guest gets a clone of: `zfs:POOL/DATASET@SNAPSHOT`, `reflink:FILE`,
    /// `reflink-or-copy:FILE` or `none`; by default the disk sealed with the checkpoint.
    #[schema(example = "none")]
    pub(crate) disk: Option<String>,
    /// Trust the checkpoint from now on: see trustCheckpoint.
    #[serde(default)]
    pub(crate) trust: bool,
}

impl RestoreRequest {
    fn job(self, app: &App) -> Result<Job, Problem> {
        if self.guests == 0 || self.concurrency == Some(0) {
            let detail = "guests and concurrency must be at least 1";
            return Err(Problem::bad_request(detail));
        }
        let park_after = match self.park_after_s {
            Some(s) if !(0.0..=1e6).contains(&s) => {
                return Err(Problem::bad_request("park_after_s must be 0 to 1000000"));
            }
            s => s.map(Duration::from_secs_f64),
        };
        let checkpoint = app.bundle(&self.checkpoint)?;
        Ok(Job {
            guests: self.guests,
            concurrency: self.concurrency,
            timeout: limit(self.timeout_s)?,
            names: Job::numbered(self.prefix, &checkpoint),
            checkpoint,
            paused: self.paused,
            private_limit: self.private_limit.map_or(PRIVATE_LIMIT, Bytes),
            overcommit: self.overcommit,
            park_after,
            all_or_nothing: self.all_or_nothing,
            disk: self.disk.as_deref().map_or(Ok(Choice::Sealed), disk)?,
            trust: self.trust,
        })
    }
}

/// The disk that a client chose. A relative path would depend on where the daemon was started.
fn disk(text: &str) -> Result<Choice, Problem> {
    let choice = text.parse();
    let choice =
        choice.map_err(|e: brood_core::disk::Error| Problem::bad_request(e.to_string()))?;
    match &choice {
        Choice::Source(Source::Reflink { file, .. }) if !file.is_absolute() => {
            let problem = Problem::bad_request(format!("{text:?} has a relative path"));
            Err(problem.with_hint("give all of the file's path, from /"))
        }
        _ => Ok(choice),
    }
}

/// Restores guests from a checkpoint, as `brood restore`; answers when each has answered
///
/// The event stream has its progress, under the request's id (x-request-id). When the client
/// disconnects, brood begins no further guests; it keeps those that were restored, unless
/// `all_or_nothing` is set.
#[utoipa::path(
    post, path = "/guests", tag = "guests", operation_id = "restoreGuests",
    request_body = RestoreRequest,
    responses(
        (status = 201, description = "All guests were restored and have answered", body = report::Restored),
        (status = 207, description = "Some were; the others are among the errors", body = report::Restored),
        (status = 507, description = "Refused before anything was started: it does not fit on this \
            host", body = Problem, content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn restore(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    Json(restoring): Json<RestoreRequest>,
) -> Result<Response, Problem> {
    let job = restoring.job(&app)?;
    let (ending, view) = app.restore(job, id).await?;
    match ending {
        RestoreEnd::Whole => Ok((StatusCode::CREATED, Answer(view)).into_response()),
        RestoreEnd::Some | RestoreEnd::Interrupted => {
            Ok((StatusCode::MULTI_STATUS, Answer(view)).into_response())
        }
        RestoreEnd::Nothing => Err(Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "nothing-restored",
            if view.rolled_back {
                "some guests failed, and all or nothing was asked for".to_owned()
            } else {
                format!("all {} guests failed", view.asked)
            },
        )
        .with_report(serde_json::to_value(view).expect("a report is plain data"))),
    }
}

impl App {
    /// Carries out a job for the request of this id.
    pub(super) async fn restore(
        &self,
        job: Job,
        id: RequestId,
    ) -> Result<(RestoreEnd, View), Problem> {
        let bound = PermitKind::checkpoint(&job.checkpoint.to_string());
        let permit = self.permits.take(&[bound], mass::TIMEOUT).await?;
        let cancelled = Arc::new(AtomicBool::new(false));
        let _cancel = CancelOnDrop(Arc::clone(&cancelled));
        let app = self.clone();
        let result = blocking(move || {
            let _permit = permit;
            let result = app.carry_out(&app.workers, &job, &id, &cancelled);
            // Also when the client is not there any more to be answered.
            app.events.poke();
            result
        });
        result.await
    }

    fn carry_out(
        &self,
        workers: &Workers,
        job: &Job,
        id: &RequestId,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<(RestoreEnd, View), Problem> {
        let checkpoint =
            workers.call(|state, _| Ok::<_, Problem>(state.open_checkpoint(&job.checkpoint)?))?;
        let facts = workers.facts(Some(job.checkpoint.dir().to_owned()))?;
        let progress = RestoreEvent {
            request_id: id.to_string(),
            checkpoint: job.checkpoint.to_string(),
            asked: job.guests,
            ..RestoreEvent::default()
        };
        let begun = self.begin(progress, Some(Arc::clone(cancelled)));
        let origin = Origin {
            checkpoint: job.checkpoint.absolute()?.to_string(),
            pool: String::new(),
        };
        let mut verify = Duration::ZERO;
        let done = workers.call(|state, engine| {
            if job.trust {
                state.trust(&checkpoint)?;
            }
            let begin = Instant::now();
            let in_use = mass::verify(state, engine, &checkpoint, &|progress| {
                begun.verifying(progress)
            })?;
            if in_use.is_some() {
                verify = begin.elapsed();
            }
            // More guests of it are often wanted soon.
            let context = mass::Context {
                state,
                engine,
                facts: &facts,
                slot: Some(workers.standing().named(&origin.checkpoint)),
                cancelled,
            };
            job.run(context, &checkpoint, &mut |event| {
                begun.note(event, &origin);
            })
        })?;
        let view = View::new(job, &done, verify);
        tracing::info!(
            checkpoint = view.checkpoint,
            asked = view.asked,
            restored = view.restored,
            failed = view.failed,
            wall_s = view.wall_s,
            verify_s = view.verify_s,
            "restored"
        );
        Ok((view.ending(), view))
    }

    /// Counts and logs what happens in a restore, be it for a request or for a pool.
    pub(super) fn count(&self, event: &Event<'_>, origin: &Origin) {
        match event {
            Event::Admitted { verdict } => {
                if let Some(risk) = verdict.memory_risk() {
                    tracing::warn!("overcommitted: {risk}");
                }
            }
            Event::Restored(guest) => self.metrics.restored(origin, guest.latency),
            Event::Failed(failure) => {
                self.metrics.failed(origin);
                tracing::warn!(guest = failure.name, "not restored: {}", failure.error);
            }
            Event::Exposed(exposure) => tracing::warn!("{exposure}"),
            Event::NurseryReplaced => tracing::warn!("the nursery was killed; a new one goes on"),
            Event::Verifying(_) => {}
        }
    }
}
