//! Restores over the API: one request restores any number of guests, and is answered when each of
//! them has answered.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use super::{
    App, events::RestoreEvent, extract::Json, guests::limit, metrics::Origin, permits::PermitKind,
    problem::Problem, request::RequestId, types::report,
};
use crate::ops::Operations;
use axum::{
    Extension, Json as Answer,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use brood_core::{
    checkpoint::BundlePath,
    disk::Choice,
    restore::{RestoreEnd, RestoreReport, RestoreSpec, RestoreStep, TIMEOUT},
};

/// The longest time that a guest may have to be idle before it parks.
const PARK_AFTER_MAX: Duration = Duration::from_secs(1_000_000);

impl App {
    /// Checks what a client wants restored, and finds the bundle. A relative path would depend on
    /// where the daemon was started.
    fn check(&self, spec: &mut RestoreSpec) -> Result<BundlePath, Problem> {
        if spec.guests == 0 || spec.concurrency == Some(0) {
            let detail = "guests and concurrency must be at least 1";
            return Err(Problem::bad_request(detail));
        }
        if spec.park_after.is_some_and(|idle| idle > PARK_AFTER_MAX) {
            return Err(Problem::bad_request("park_after_s must be 0 to 1000000"));
        }
        limit(spec.timeout.map(|limit| limit.as_secs_f64()))?;
        if let Choice::Source(source) = &spec.disk
            && source.file().is_some_and(|file| !file.is_absolute())
        {
            let problem = Problem::bad_request(format!("{source} has a relative path"));
            return Err(problem.with_hint("give all of the file's path, from /"));
        }
        let path = self.bundle(&spec.checkpoint)?;
        spec.checkpoint = path.to_string();
        Ok(path)
    }
}

/// Restores guests from a checkpoint, as `brood restore`; answers when each has answered
///
/// The event stream has its progress, under the request's id (x-request-id). When the client
/// disconnects, brood begins no further guests; it keeps those that were restored, unless
/// `all_or_nothing` is set.
#[utoipa::path(
    post, path = "/guests", tag = "guests", operation_id = "restoreGuests",
    request_body = report::RestoreRequest,
    responses(
        (status = 201, description = "All guests were restored and have answered", body = report::RestoreReport),
        (status = 207, description = "Some were; the others are among the errors", body = report::RestoreReport),
        (status = 507, description = "Refused before anything was started: it does not fit on this \
            host", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn restore(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    Json(mut spec): Json<RestoreSpec>,
) -> Result<Response, Problem> {
    let path = app.check(&mut spec)?;
    let report = app.restore(path, spec, id).await?;
    match report.ending() {
        RestoreEnd::Whole => Ok((StatusCode::CREATED, Answer(report)).into_response()),
        RestoreEnd::Some | RestoreEnd::Interrupted => {
            Ok((StatusCode::MULTI_STATUS, Answer(report)).into_response())
        }
        RestoreEnd::Nothing => Err(Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "nothing-restored",
            if report.rolled_back {
                "some guests failed, and all or nothing was asked for".to_owned()
            } else {
                format!("all {} guests failed", report.asked)
            },
        )
        .with_report(serde_json::to_value(report).expect("a report is plain data"))),
    }
}

impl App {
    /// Restores guests for the request of this id.
    async fn restore(
        &self,
        path: BundlePath,
        spec: RestoreSpec,
        id: RequestId,
    ) -> Result<RestoreReport, Problem> {
        let bounds = [
            PermitKind::checkpoint(&spec.checkpoint),
            PermitKind::restores(),
        ];
        let permit = self.take(&bounds, TIMEOUT).await?;
        let cancelled = Arc::<AtomicBool>::default();
        let progress = RestoreEvent {
            request_id: id.to_string(),
            checkpoint: spec.checkpoint.clone(),
            asked: spec.guests,
            ..RestoreEvent::default()
        };
        let origin = Origin {
            checkpoint: path.absolute()?.to_string(),
            pool: String::new(),
        };
        let begun = self.begin(progress, Some(origin), Some(Arc::clone(&cancelled)));
        let app = self.clone();
        self.operate_until(cancelled, permit, move |ops| {
            let restored = ops.restore(&path, &spec, &begun);
            // Also when the client is not there any more to be answered.
            app.events.poke();
            let report = restored?;
            tracing::info!(
                checkpoint = report.checkpoint,
                asked = report.asked,
                restored = report.restored,
                failed = report.failed,
                wall_s = report.wall_s,
                verify_s = report.verify_s,
                "restored"
            );
            Ok(report)
        })
        .await
    }

    /// Counts and logs what happens in a restore, be it for a request or for a pool.
    pub(super) fn count(&self, step: &RestoreStep<'_>, origin: &Origin) {
        match step {
            RestoreStep::Admitted { verdict } => {
                if let Some(risk) = verdict.memory_risk() {
                    tracing::warn!("overcommitted: {risk}");
                }
            }
            RestoreStep::Restored(guest) => self.metrics.restored(origin, guest.restore_ms / 1e3),
            RestoreStep::Failed(failure) => {
                self.metrics.failed(origin);
                tracing::warn!(guest = failure.name, "not restored: {}", failure.error);
            }
            RestoreStep::Exposed(exposure) => tracing::warn!("{exposure}"),
            RestoreStep::NurseryReplaced => {
                tracing::warn!("the nursery was killed; a new one goes on");
            }
        }
    }
}
