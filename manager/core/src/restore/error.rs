//! Restore errors: why nothing was restored at all.

use crate::{checkpoint, disk, engine, guests, host::admission, state};

/// Why nothing was restored at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not fit.
    #[error(transparent)]
    Admission(#[from] admission::Error),
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The engine cannot begin.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The disk.
    #[error("cannot restore {checkpoint}: {source}")]
    Disk {
        /// The bundle.
        checkpoint: String,
        /// What is wrong with its disk.
        source: disk::Error,
    },
    /// The record.
    #[error(transparent)]
    State(#[from] state::Error),
    /// Guests.
    #[error(transparent)]
    Guests(#[from] guests::Error),
}

impl Error {
    /// Whether the restore ended because its requester cancelled it.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        match self {
            Self::Checkpoint(e) => e.is_interrupted(),
            Self::Engine(e) => e.is_interrupted(),
            Self::State(e) => e.is_interrupted(),
            Self::Guests(e) => e.is_interrupted(),
            Self::Disk { source, .. } => source.is_interrupted(),
            _ => false,
        }
    }

    /// A hint what to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            // Its message says what to change.
            Self::Admission(admission::Error::DoesNotFit { limit, .. }) => {
                limit.overcommittable.then(|| {
                    "--overcommit goes ahead: it is memory that guests may never use".to_owned()
                })
            }
            Self::Checkpoint(e) => e.hint(),
            Self::Engine(e) => e.hint(),
            Self::Disk { source, .. } => source.hint(),
            Self::State(e) => e.hint(),
            Self::Guests(e) => e.hint(),
        }
    }
}
