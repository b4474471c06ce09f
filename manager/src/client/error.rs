//! Errors of the client: why the daemon did not do what it was asked.

use crate::{api::problem::Problem, failure::Failure, ops};

/// Why a request to the daemon failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It has begun nothing: it is not there, does not know this request, or cannot see the files.
    /// The same can be done without it.
    #[error("{0}")]
    NotBegun(String),
    /// The connection broke after a change was asked for.
    #[error(
        "the connection to the daemon broke after the request to {asked}: the result is unknown ({why})"
    )]
    Lost {
        /// The request, in words.
        asked: String,
        /// How the connection broke.
        why: String,
    },
    /// It refused, or failed.
    #[error("{}", .0.detail)]
    Problem(Box<Problem>),
    /// It carried the request out, and its answer is invalid.
    #[error("the daemon's answer to the request to {asked} is invalid: {why}")]
    Odd {
        /// The request, in words.
        asked: String,
        /// What is wrong with the answer.
        why: String,
    },
}

impl Error {
    /// A hint what to do next.
    #[must_use]
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NotBegun(_) => None,
            Self::Lost { .. } | Self::Odd { .. } => Some(
                "brood list and brood pool list tell what there is; nothing was tried again"
                    .to_owned(),
            ),
            Self::Problem(problem) => problem.hint.clone(),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Problem(problem) => problem.exit_code,
            Error::NotBegun(_) | Error::Lost { .. } | Error::Odd { .. } => 1,
        };
        Self {
            code,
            ..Self::new(&error, error.hint())
        }
    }
}

impl From<Error> for ops::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::NotBegun(why) => Self::NotBegun(why),
            error => Self::Failed(error.into()),
        }
    }
}
