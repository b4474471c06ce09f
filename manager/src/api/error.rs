//! Errors of the daemon at its start: why it cannot serve.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::failure::Failure;
use brood_core::{engine, state};

/// Why the daemon cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state folder.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// A socket.
    #[error("cannot listen on {on}: {source}")]
    Listen {
        /// Its path, or its address.
        on: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The lock of the socket's name.
    #[error("cannot take the lock {}: {source}", .path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// An address that others than this machine can reach.
    #[error("refusing to listen on {0}: the token would go over the network in the clear")]
    NotLoopback(SocketAddr),
    /// The file with the token.
    #[error("cannot use the token file {}: {reason}", .path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Threads, signals.
    #[error("cannot {action}: {source}")]
    Start {
        /// The action that failed.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// A hint what to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::State(e) => e.hint(),
            Self::Engine(e) => e.hint(),
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::InvalidInput => {
                Some(format!(
                    "the path of a socket may have 107 bytes; use a state folder with a shorter \
                     one: {}=DIR",
                    state::STATE_DIR_VARIABLE
                ))
            }
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Some("another program listens there; choose another port".to_owned())
            }
            Self::Listen { .. } | Self::Lock { .. } | Self::Start { .. } => None,
            Self::NotLoopback(_) => {
                Some("listen on 127.0.0.1 or [::1], and put a proxy with TLS in front".to_owned())
            }
            Self::Token { path, .. } => Some(format!(
                "make one: (umask 077; head -c 32 /dev/urandom | base64 > {})",
                path.display()
            )),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(&error, error.hint())
    }
}
