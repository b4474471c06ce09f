//! Errors of guests: what was tried, on which guest, and why it failed.

use super::GuestState;
use crate::{checkpoint, disk, engine, state};

/// Why something could not be done with a guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is known by this name.
    #[error("there is no guest {0:?}")]
    NoSuchGuest(String),
    /// The guest is stopped.
    #[error("guest {0} is paused")]
    Paused(String),
    /// The guest runs.
    #[error("guest {0} is not paused")]
    NotPaused(String),
    /// The guest waits in a pool to be claimed.
    #[error("cannot {action} guest {guest}: it waits in a pool to be claimed")]
    OfAPool {
        /// The action that failed.
        action: &'static str,
        /// The guest.
        guest: String,
    },
    /// The guest does not live.
    #[error("guest {guest} is {}{}", .state.name(), .reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default())]
    NotAlive {
        /// Its name.
        guest: String,
        /// Its state.
        state: GuestState,
        /// How it ended.
        reason: Option<String>,
    },
    /// The guest's process lives, and cannot be talked to.
    #[error(
        "cannot {action} guest {guest}: its process {pid} lives, and nobody can talk to it: its control socket was removed from {}",
        .run_dir.display()
    )]
    Unreachable {
        /// The action that failed.
        action: &'static str,
        /// Its name.
        guest: String,
        /// Its process.
        pid: i32,
        /// Where the socket was.
        run_dir: std::path::PathBuf,
    },
    /// The guest's process belongs to another PID namespace, or another jail.
    #[error(
        "cannot look at guest {guest}: it was restored in another PID namespace (container) or jail, whose processes cannot be seen from here"
    )]
    OtherNamespace {
        /// Its name.
        guest: String,
    },
    /// Another command is still restoring guests.
    #[error("{guests} guests are still being restored by another command")]
    BeingRestored {
        /// How many.
        guests: usize,
    },
    /// The bundle that a guest came from has another content now.
    #[error(
        "cannot suspend guest {guest}: {checkpoint} is not the checkpoint that it was restored from any more"
    )]
    OtherCheckpoint {
        /// The guest.
        guest: String,
        /// The bundle.
        checkpoint: String,
    },
    /// The engine could not.
    #[error("cannot {action} guest {guest}: {source}")]
    Engine {
        /// The action that failed.
        action: &'static str,
        /// On which guest.
        guest: String,
        /// Why it failed.
        source: engine::Error,
    },
    /// The engine, with no guest in particular.
    #[error(transparent)]
    Files(#[from] engine::Error),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// The disk of a guest that is gone.
    #[error("cannot remove the disk of guest {guest}: {source}")]
    Release {
        /// The guest.
        guest: String,
        /// Why it failed.
        source: disk::Error,
    },
    /// A bundle.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The record.
    #[error(transparent)]
    State(#[from] state::Error),
}

impl Error {
    /// It is unknown whether a guest lives.
    pub(crate) fn look(guest: &str, source: std::io::Error) -> Self {
        let source = engine::Error::Io {
            action: "look at its process",
            source,
        };
        Self::engine("look at", guest, source)
    }

    pub(crate) fn engine(action: &'static str, guest: &str, source: engine::Error) -> Self {
        Self::Engine {
            action,
            guest: guest.to_owned(),
            source,
        }
    }

    /// Whether the action ended because its requester cancelled it.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        match self {
            Self::Engine { source, .. } | Self::Files(source) => source.is_interrupted(),
            Self::Checkpoint(e) => e.is_interrupted(),
            Self::State(e) => e.is_interrupted(),
            Self::Disk(e) => e.is_interrupted(),
            _ => false,
        }
    }

    /// Whether the guest's state is unknown, as opposed to gone or silent.
    #[must_use]
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(
            self,
            Self::State(_)
                | Self::OtherNamespace { .. }
                | Self::Engine {
                    source: engine::Error::Io { .. },
                    ..
                }
        )
    }

    /// A hint what to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoSuchGuest(_) => Some("`brood list` shows all guests".to_owned()),
            Self::NotPaused(name) => Some(format!("pause it first: brood pause {name}")),
            Self::Paused(name) => Some(format!("resume it first: brood resume {name}")),
            Self::OfAPool { .. } => Some("claim one: brood pool claim POOL".to_owned()),
            Self::NotAlive {
                guest,
                state: GuestState::Dead,
                ..
            } => Some(format!("`brood destroy {guest}` forgets it")),
            Self::NotAlive { .. } => Some("wait until its restore is done".to_owned()),
            Self::BeingRestored { .. } => {
                Some("end that command first (Ctrl-C), then try again".to_owned())
            }
            Self::Unreachable { guest, .. } => Some(format!(
                "`brood destroy {guest}` ends it; spare the folder from whatever cleans up temporary files"
            )),
            Self::OtherNamespace { .. } => Some(
                "use brood where its guests were restored: on the host, or in that container"
                    .to_owned(),
            ),
            Self::OtherCheckpoint { .. } => Some("put the bundle back where it was".to_owned()),
            Self::Engine { source, .. } | Self::Files(source) => source.hint(),
            Self::Disk(e) | Self::Release { source: e, .. } => e.hint(),
            Self::Checkpoint(e) => e.hint(),
            Self::State(e) => e.hint(),
        }
    }
}
