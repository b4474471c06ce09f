//! Extractors of requests: axum's, with problem details as their refusals.

use axum::{
    extract::{
        FromRequest, FromRequestParts,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    http::StatusCode,
};

use super::problem::Problem;

/// The body, as JSON.
#[derive(FromRequest)]
#[from_request(via(axum::Json), rejection(Problem))]
pub(super) struct Json<T>(pub(super) T);

/// Parts of the path.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Problem))]
pub(super) struct Path<T>(pub(super) T);

/// The query.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Problem))]
pub(super) struct Query<T>(pub(super) T);

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        match rejection.status() {
            // A body of the wrong shape gets the same status as one that is no JSON.
            StatusCode::UNPROCESSABLE_ENTITY => Self::bad_request(rejection.body_text()),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                let detail = "the body is not said to be JSON";
                Self::new(rejection.status(), "unsupported-media-type", detail)
                    .with_hint("send the header Content-Type: application/json")
            }
            StatusCode::PAYLOAD_TOO_LARGE => {
                Self::new(rejection.status(), "body-too-large", rejection.body_text())
            }
            status => Self::new(status, "bad-request", rejection.body_text()),
        }
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), "bad-request", rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), "bad-request", rejection.body_text())
    }
}
