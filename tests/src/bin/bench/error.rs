//! Errors of a benchmark: why it has no result.

use std::{io, path::PathBuf};

use brood_core::host::proc;

/// Why a benchmark has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Something of the operating system failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A command ended with an error.
    #[error("{command}: {status}\n{stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// A command's answer is not what it should be.
    #[error("{command} printed what cannot be read: {source}")]
    Answer {
        /// The command line.
        command: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A command did less than it was asked for, and did not say so by its exit code.
    #[error("{command} did {done} of {asked}")]
    Short {
        /// What was run.
        command: &'static str,
        /// How much it did.
        done: u64,
        /// How much it was asked for.
        asked: u64,
    },
    /// The host could not be read.
    #[error(transparent)]
    Host(#[from] proc::Error),
    /// A pool could not do what it was to do.
    #[error(transparent)]
    Pool(#[from] brood_core::pool::Error),
    /// The daemon did not answer, or with an error.
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    /// The state cannot be read.
    #[error(transparent)]
    State(#[from] brood_core::state::Error),
    /// Something is left of what was released.
    #[error("claims and releases leave something: before {before}, after {after}")]
    Leak {
        /// What was held at first.
        before: String,
        /// What is held now.
        after: String,
    },
    /// Guests are left that could not be destroyed.
    #[error(
        "{guests} guests are still there; the state folder is kept: BROOD_STATE_DIR={} brood destroy --all --force",
        state.display()
    )]
    LeftBehind {
        /// How many.
        guests: usize,
        /// Where they are known.
        state: PathBuf,
    },
    /// A Linux guest could not be had, or did not do what it was told.
    #[error("{0}")]
    Guest(String),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// For `map_err`: an I/O error with what was tried.
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action: action.into(),
            source,
        }
    }
}
