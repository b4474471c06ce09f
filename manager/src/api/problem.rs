//! Problem details (RFC 9457): errors of the API, each with a hint and with the exit code that the
//! command line would end with.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{failure::Failure, ops};
use brood_core::{checkpoint, disk, engine, full_disk, guests, host, pool, restore, state};

/// Media type of an error.
pub(super) const MEDIA_TYPE: &str = "application/problem+json";
/// What every kind of error begins with.
const KINDS: &str = "urn:brood:error:";

/// An error, as of RFC 9457.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Problem {
    /// Its kind, a name that does not change: `urn:brood:error:KIND`.
    #[serde(rename = "type")]
    #[schema(example = "urn:brood:error:no-such-guest")]
    pub(crate) kind: String,
    /// The HTTP status in words.
    #[schema(example = "Not Found")]
    pub(crate) title: String,
    /// The HTTP status.
    #[schema(example = 404)]
    pub(crate) status: u16,
    /// What was tried, on what, and why it failed.
    #[schema(example = "there is no guest \"web-1\"")]
    pub(crate) detail: String,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
    /// The exit code of the command line for this kind of error: 1 nothing was done, 2 the request
    /// is invalid, 4 refused because it does not fit on this host.
    pub(crate) exit_code: u8,
    /// Partial result, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub(crate) report: Option<serde_json::Value>,
}

impl Problem {
    /// An error of this status and kind.
    pub(super) fn new(status: StatusCode, kind: &str, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        // Past the request's own faults, it is what the command line calls "nothing was done".
        let of_request = [
            StatusCode::BAD_REQUEST,
            StatusCode::PAYLOAD_TOO_LARGE,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ];
        let exit_code = if of_request.contains(&status) { 2 } else { 1 };
        Self {
            kind: format!("{KINDS}{kind}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            hint: None,
            exit_code,
            report: None,
        }
    }

    fn of(status: StatusCode, kind: &str, failure: Failure) -> Self {
        Self {
            hint: failure.hint,
            exit_code: failure.code,
            ..Self::new(status, kind, failure.message)
        }
    }

    /// A request that makes no sense.
    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", detail)
    }

    /// A mistake of brood's own.
    pub(super) fn internal() -> Self {
        let detail = "internal error; see the daemon's log";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// The same, with what to do next.
    #[must_use]
    pub(super) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// The same, with what became of it so far.
    #[must_use]
    pub(super) fn with_report(self, report: serde_json::Value) -> Self {
        Self {
            report: Some(report),
            ..self
        }
    }

    /// Its kind, without what every kind begins with.
    pub(crate) fn kind(&self) -> &str {
        self.kind.strip_prefix(KINDS).unwrap_or(&self.kind)
    }

    /// Whether it is for want of room, which may come.
    pub(crate) fn is_for_want_of_room(&self) -> bool {
        ["pool-full", "does-not-fit"].contains(&self.kind())
    }

    /// Its status.
    pub(super) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// The part of a problem that the log shows in the request's line, and that clients of another API
/// get.
#[derive(Clone, Debug)]
pub(super) struct ToldProblem {
    pub(super) kind: String,
    pub(super) detail: String,
    pub(super) hint: Option<String>,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let told = ToldProblem {
            kind: self.kind.clone(),
            detail: self.detail.clone(),
            hint: self.hint.clone(),
        };
        let mut response = (self.status(), Json(self)).into_response();
        response.extensions_mut().insert(told);
        let media_type = HeaderValue::from_static(MEDIA_TYPE);
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, media_type);
        response
    }
}

impl From<disk::Error> for Problem {
    fn from(error: disk::Error) -> Self {
        let (status, kind) = of_disk(&error);
        Self::of(status, kind, error.into())
    }
}

impl From<checkpoint::Error> for Problem {
    fn from(error: checkpoint::Error) -> Self {
        let (status, kind) = of_checkpoint(&error);
        Self::of(status, kind, error.into())
    }
}

/// A full disk.
const NO_SPACE: (StatusCode, &str) = (StatusCode::INSUFFICIENT_STORAGE, "no-space");

fn of_checkpoint(error: &checkpoint::Error) -> (StatusCode, &'static str) {
    use checkpoint::Error as E;
    use std::io::ErrorKind;
    match error {
        E::Name { .. } => (StatusCode::BAD_REQUEST, "bad-checkpoint-name"),
        E::NotFound { .. } => (StatusCode::NOT_FOUND, "no-such-checkpoint"),
        E::Io { cause, .. } if full_disk::is_full(cause) => NO_SPACE,
        E::Io { cause, .. } => match cause.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => {
                (StatusCode::NOT_FOUND, "no-such-folder")
            }
            ErrorKind::PermissionDenied => (StatusCode::FORBIDDEN, "not-permitted"),
            ErrorKind::InvalidFilename | ErrorKind::InvalidInput => {
                (StatusCode::BAD_REQUEST, "bad-checkpoint-name")
            }
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "io"),
        },
        E::NoSpace { .. } => NO_SPACE,
        E::Incomplete { .. } => (StatusCode::CONFLICT, "checkpoint-incomplete"),
        E::Exists { .. } => (StatusCode::CONFLICT, "checkpoint-exists"),
        E::Busy { .. } | E::BeingRemoved { .. } | E::BeingRead { .. } => {
            (StatusCode::CONFLICT, "checkpoint-busy")
        }
        E::InUse { .. } => (StatusCode::CONFLICT, "checkpoint-in-use"),
        E::Needed { .. } => (StatusCode::CONFLICT, "checkpoint-needed"),
        E::NotADelta { .. } => (StatusCode::CONFLICT, "checkpoint-not-a-delta"),
        E::OwnDisk { .. } => (StatusCode::CONFLICT, "checkpoint-has-a-disk"),
        E::NotTrusted { .. } => (StatusCode::FORBIDDEN, "checkpoint-not-trusted"),
        E::NotSigned { .. } => (StatusCode::FORBIDDEN, "checkpoint-not-signed"),
        E::Key { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "signing-key"),
        E::Exposed { .. } => (StatusCode::FORBIDDEN, "checkpoint-exposed"),
        E::TooDeep { .. } => (StatusCode::CONFLICT, "checkpoint-too-deep"),
        // All other errors are about the content of a bundle.
        _ => (StatusCode::UNPROCESSABLE_ENTITY, "checkpoint-broken"),
    }
}

fn of_disk(error: &disk::Error) -> (StatusCode, &'static str) {
    use disk::Error as E;
    use std::io::ErrorKind;
    match error {
        E::Name { .. } => (StatusCode::BAD_REQUEST, "bad-disk-name"),
        E::Missing { .. } => (StatusCode::NOT_FOUND, "no-such-disk"),
        E::Other { .. } | E::Mismatch { .. } | E::Changed { .. } => {
            (StatusCode::CONFLICT, "other-disk")
        }
        E::Taken { .. } => (StatusCode::CONFLICT, "disk-exists"),
        E::InUse { .. } => (StatusCode::CONFLICT, "disk-in-use"),
        E::NoZfs(_) => (StatusCode::SERVICE_UNAVAILABLE, "zfs-unavailable"),
        E::Io { cause, .. } if full_disk::is_full(cause) => NO_SPACE,
        E::Io { cause, .. } => match cause.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => {
                (StatusCode::NOT_FOUND, "no-such-folder")
            }
            ErrorKind::PermissionDenied => (StatusCode::FORBIDDEN, "not-permitted"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "disk"),
        },
        // All other errors are about the named source, which cannot be used as a disk.
        _ => (StatusCode::UNPROCESSABLE_ENTITY, "disk-unsuitable"),
    }
}

impl From<engine::Error> for Problem {
    fn from(error: engine::Error) -> Self {
        let (status, kind) = of_engine(&error);
        Self::of(status, kind, error.into())
    }
}

fn of_engine(error: &engine::Error) -> (StatusCode, &'static str) {
    use engine::Error as E;
    match error {
        E::Bundle(e) => of_checkpoint(e),
        E::Disk(e) => of_disk(e),
        E::Unavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "engine-unavailable"),
        E::Checkpoint { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "checkpoint-unsuitable"),
        E::LimitNotEnforceable(_) => (StatusCode::UNPROCESSABLE_ENTITY, "limit-not-enforceable"),
        E::NoConsole(_) => (StatusCode::UNPROCESSABLE_ENTITY, "no-console"),
        E::Refused(_) => (StatusCode::UNPROCESSABLE_ENTITY, "refused"),
        E::Gone => (StatusCode::CONFLICT, "guest-not-alive"),
        E::Busy | E::Suspending => (StatusCode::CONFLICT, "guest-busy"),
        E::Timeout(_) => (StatusCode::GATEWAY_TIMEOUT, "guest-timeout"),
        E::Died(_) => (StatusCode::BAD_GATEWAY, "guest-died"),
        E::Io { source, .. } if full_disk::is_full(source) => NO_SPACE,
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "engine"),
    }
}

impl From<state::Error> for Problem {
    fn from(error: state::Error) -> Self {
        let (status, kind) = of_state(&error);
        Self::of(status, kind, error.into())
    }
}

fn of_state(error: &state::Error) -> (StatusCode, &'static str) {
    match error {
        state::Error::Name { .. } => (StatusCode::BAD_REQUEST, "bad-guest-name"),
        state::Error::PoolFull(_) => (StatusCode::SERVICE_UNAVAILABLE, "pool-full"),
        state::Error::Io { source, .. } if full_disk::is_full(source) => NO_SPACE,
        state::Error::Locked { .. } => (StatusCode::CONFLICT, "locked"),
        state::Error::Cancelled => (StatusCode::CONFLICT, "cancelled"),
        state::Error::Damaged { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "state-damaged"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "state"),
    }
}

impl From<guests::Error> for Problem {
    fn from(error: guests::Error) -> Self {
        let (status, kind) = of_guests(&error);
        Self::of(status, kind, error.into())
    }
}

fn of_guests(error: &guests::Error) -> (StatusCode, &'static str) {
    use guests::Error as E;
    match error {
        E::NoSuchGuest(_) => (StatusCode::NOT_FOUND, "no-such-guest"),
        E::OfAPool { .. } => (StatusCode::CONFLICT, "guest-of-a-pool"),
        E::NotPaused(_) => (StatusCode::CONFLICT, "guest-not-paused"),
        E::Paused(_) => (StatusCode::CONFLICT, "guest-paused"),
        E::NotAlive { .. } => (StatusCode::CONFLICT, "guest-not-alive"),
        E::BeingRestored { .. } => (StatusCode::CONFLICT, "guest-being-restored"),
        E::OtherCheckpoint { .. } => (StatusCode::CONFLICT, "checkpoint-changed"),
        E::Unreachable { .. } => (StatusCode::CONFLICT, "guest-unreachable"),
        E::OtherNamespace { .. } => (StatusCode::SERVICE_UNAVAILABLE, "other-pid-namespace"),
        E::Engine { source, .. } | E::Files(source) => of_engine(source),
        E::Disk(e) | E::Release { source: e, .. } => of_disk(e),
        E::Checkpoint(e) => of_checkpoint(e),
        E::State(e) => of_state(e),
    }
}

impl From<restore::Error> for Problem {
    fn from(error: restore::Error) -> Self {
        let (status, kind) = of_restore(&error);
        Self::of(status, kind, error.into())
    }
}

fn of_restore(error: &restore::Error) -> (StatusCode, &'static str) {
    use restore::Error as E;
    match error {
        E::Admission(_) => (StatusCode::INSUFFICIENT_STORAGE, "does-not-fit"),
        E::Checkpoint(e) => of_checkpoint(e),
        E::Engine(e) => of_engine(e),
        E::Disk { source, .. } => of_disk(source),
        E::State(e) => of_state(e),
        E::Guests(e) => of_guests(e),
    }
}

impl From<pool::Error> for Problem {
    fn from(error: pool::Error) -> Self {
        use pool::Error as E;
        let (status, kind) = match &error {
            E::NoSuchPool(_) => (StatusCode::NOT_FOUND, "no-such-pool"),
            E::NoSuchClaim => (StatusCode::NOT_FOUND, "no-such-claim"),
            E::Suspended => (StatusCode::CONFLICT, "claim-suspended"),
            E::Name { .. } => (StatusCode::BAD_REQUEST, "bad-name"),
            E::Contradiction { .. } => (StatusCode::BAD_REQUEST, "pool-contradiction"),
            E::Exists(_) => (StatusCode::CONFLICT, "pool-exists"),
            E::InUse { .. } => (StatusCode::CONFLICT, "pool-in-use"),
            E::Fixed { .. } => (StatusCode::CONFLICT, "pool-fixed"),
            E::Line { .. } => (StatusCode::SERVICE_UNAVAILABLE, "others-wait"),
            E::OtherCheckpoint { .. } => (StatusCode::CONFLICT, "checkpoint-changed"),
            E::Broken { .. } => (StatusCode::GATEWAY_TIMEOUT, "guest-timeout"),
            E::Left { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "guests-left"),
            E::Restore(e) => of_restore(e),
            E::Checkpoint(e) => of_checkpoint(e),
            E::Guests(e) => of_guests(e),
            E::State(e) => of_state(e),
            E::NotRestored { .. } | E::Randomness(_) | E::Host(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "pool")
            }
        };
        Self::of(status, kind, error.into())
    }
}

impl From<ops::Error> for Problem {
    fn from(error: ops::Error) -> Self {
        use ops::Error as E;
        match error {
            E::Checkpoint(e) => e.into(),
            E::Engine(e) => e.into(),
            E::Guests(e) => e.into(),
            E::Host(e) => e.into(),
            E::Pool(e) => e.into(),
            E::Restore(e) => e.into(),
            E::State(e) => e.into(),
            // Not of an operation that a request has this process do.
            E::NotBegun(_) | E::Failed(_) => {
                Self::of(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.into())
            }
        }
    }
}

impl From<host::proc::Error> for Problem {
    fn from(error: host::proc::Error) -> Self {
        Self::of(StatusCode::INTERNAL_SERVER_ERROR, "host", error.into())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_full_disk_is_told_in_the_same_way_whoever_met_it() {
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let (action, file) = ("write", std::path::PathBuf::from("/full/file"));
            let problems: [Problem; 4] = [
                checkpoint::Error::Io {
                    action,
                    file: file.clone(),
                    cause: kind.into(),
                }
                .into(),
                engine::Error::Disk(disk::Error::Io {
                    action,
                    file: file.clone(),
                    cause: kind.into(),
                })
                .into(),
                engine::Error::Io {
                    action,
                    source: kind.into(),
                }
                .into(),
                state::Error::Io {
                    action,
                    path: file,
                    source: kind.into(),
                }
                .into(),
            ];
            for problem in problems {
                assert_eq!(problem.status, 507, "{problem:?}");
                let hint = problem.hint.as_deref().unwrap_or_default();
                assert!(hint.starts_with(full_disk::HINT), "{problem:?}");
            }
        }
    }
}
