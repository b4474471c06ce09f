//! Errors of engines: why a guest was not restored, asked, suspended or found, and what to do next.

use std::{io, time::Duration};

use crate::{checkpoint::manifest::EngineKind, disk, full_disk};

/// Why an engine failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This machine cannot run the engine.
    #[error("cannot use {engine}: {reason}")]
    Unavailable {
        /// Engine's name.
        engine: &'static str,
        /// What is missing.
        reason: String,
    },
    /// The checkpoint is not for this engine, or cannot be used by it.
    #[error("cannot restore from {checkpoint}: {reason}")]
    Checkpoint {
        /// The bundle.
        checkpoint: String,
        /// Why not.
        reason: String,
    },
    /// The requester cancelled it.
    #[error("interrupted: nothing was changed")]
    Interrupted,
    /// The bundle itself.
    #[error(transparent)]
    Bundle(#[from] crate::checkpoint::Error),
    /// A disk of the guest.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// A guest did not come up.
    #[error("cannot make the guest ready: {0}")]
    Boot(String),
    /// The process that guests are forked from.
    #[error("cannot start the nursery: {0}")]
    Nursery(String),
    /// A guest's process is gone.
    #[error("the guest's process is gone")]
    Gone,
    /// A guest did not answer in time.
    #[error("the guest did not answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    /// A guest is busy with an earlier request.
    #[error("the guest is busy with an earlier request")]
    Busy,
    /// A guest is being suspended.
    #[error("the guest is being suspended")]
    Suspending,
    /// A guest died of a request.
    #[error("the guest died: {0}")]
    Died(String),
    /// A guest refused a request.
    #[error("{0}")]
    Refused(String),
    /// Guests of this engine have no console that brood keeps or connects to.
    #[error("guests of {} have no console that brood logs or connects to", .0.name())]
    NoConsole(EngineKind),
    /// Guests' private limits cannot be enforced here.
    #[error("cannot enforce private limits: {0}")]
    LimitNotEnforceable(String),
    /// The system.
    #[error("cannot {action}: {source}")]
    Io {
        /// The action that failed.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// Whether it ended because whoever wanted it wants it no more.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        match self {
            Self::Interrupted => true,
            Self::Bundle(e) => e.is_interrupted(),
            Self::Disk(e) => e.is_interrupted(),
            _ => false,
        }
    }

    /// A hint what to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Unavailable { .. } => {
                "`brood doctor` says what this machine lacks and how to change it"
            }
            Self::Bundle(e) => return e.hint(),
            Self::Disk(e) => return e.hint(),
            Self::Gone | Self::Died(_) => {
                "`brood show GUEST` says how it ended; `brood destroy GUEST` forgets it"
            }
            Self::Timeout(_) => {
                "it may be busy or paused: see `brood show GUEST`; allow it more time with --timeout"
            }
            Self::LimitNotEnforceable(_) => {
                "leave out --enforce-private-limit: admission counts with the limit all the same; or \
                 run brood where it may make control groups, as root or with systemd's Delegate=yes \
                 and DelegateSubgroup="
            }
            Self::NoConsole(EngineKind::Kvm) => {
                "the demonstration's guest says nothing by itself: brood ask GUEST ping"
            }
            Self::NoConsole(_) => {
                "read what the guest itself logs, if it runs brood-agent: brood exec GUEST -- tail \
                 /var/log/messages"
            }
            Self::Suspending => "try again when it is done: then it has ended, or goes on",
            Self::Busy => "try again when it is done, or destroy it",
            Self::Io { source, .. } if full_disk::is_full(source) => {
                return Some(format!("{}; the guest goes on", full_disk::HINT));
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
