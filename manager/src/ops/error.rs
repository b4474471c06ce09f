//! Error of an operation: the core's own where this process did the work, so that the API finds its
//! status.

use crate::failure::Failure;
use brood_core::{checkpoint, engine, guests, host, pool, restore, state};

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Nothing was begun, so that another can do the work. Says why.
    #[error("{0}")]
    NotBegun(String),
    /// The daemon refused or failed.
    #[error("{0}")]
    Failed(Failure),
    /// A bundle.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// What runs guests.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// Guests.
    #[error(transparent)]
    Guests(#[from] guests::Error),
    /// The host's facts.
    #[error(transparent)]
    Host(#[from] host::proc::Error),
    /// Pools and claims.
    #[error(transparent)]
    Pool(#[from] pool::Error),
    /// A restore.
    #[error(transparent)]
    Restore(#[from] restore::Error),
    /// The record.
    #[error(transparent)]
    State(#[from] state::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::NotBegun(why) => Self::new(&why, None),
            Error::Failed(failure) => failure,
            Error::Checkpoint(e) => e.into(),
            Error::Engine(e) => e.into(),
            Error::Guests(e) => e.into(),
            Error::Host(e) => e.into(),
            Error::Pool(e) => e.into(),
            Error::Restore(e) => e.into(),
            Error::State(e) => e.into(),
        }
    }
}
