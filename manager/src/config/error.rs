//! Errors of the configuration: which setting, in which file or variable, and why.

use std::{io, net::SocketAddr, path::PathBuf};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file.
    #[error("cannot read the configuration {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Everybody may write the file, which decides what this user runs.
    #[error("refusing the configuration {}: everybody on this host may change it", .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// Something in the file.
    #[error("cannot use the configuration {}, line {line}, column {column}: {message}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The character of that line, from 1.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// A variable of the environment.
    #[error("cannot use {variable} in the environment: {message}")]
    Environment {
        /// The variable.
        variable: String,
        /// What is wrong with it.
        message: String,
    },
    /// A flag that sets a setting.
    #[error("cannot use {setting} as the command line gives it: {message}")]
    Flag {
        /// The setting.
        setting: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// A TCP port that anybody could command guests through.
    #[error("cannot listen on {listen} (serve.listen): there is no serve.token_file")]
    NoToken {
        /// The address.
        listen: SocketAddr,
    },
}

impl Error {
    /// A hint what to do next.
    #[must_use]
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Read { .. } => {
                Some("name another file with --config FILE, or none: --config /dev/null")
            }
            Self::Exposed { .. } => Some("look through it, and take it from them: chmod o-w"),
            Self::File { .. } | Self::Environment { .. } => {
                Some("`brood config example` shows every setting")
            }
            Self::Flag { .. } => None,
            Self::NoToken { .. } => Some(
                "put a long random token into a file that only its owner may read, and name it: \
                 serve.token_file",
            ),
        }
    }
}
