//! Failures of requests, from errors of the system.

use std::{fmt::Display, io};

use brood_agent_protocol::{Failure, FailureKind};

/// Turns an error into the [`Failure`] of a request, and says what was tried.
pub(crate) trait Context<T> {
    fn context(self, tried: impl Display) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, tried: impl Display) -> Result<T, Failure> {
        self.map_err(|e| {
            let e = e.into();
            let mut failure = Failure::new(kind(&e), format!("{tried}: {e}"));
            failure.errno = e.raw_os_error();
            failure
        })
    }
}

fn kind(e: &io::Error) -> FailureKind {
    match e.kind() {
        io::ErrorKind::NotFound => FailureKind::NotFound,
        io::ErrorKind::AlreadyExists => FailureKind::Exists,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => FailureKind::Denied,
        io::ErrorKind::Unsupported => FailureKind::Unsupported,
        io::ErrorKind::InvalidInput
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::DirectoryNotEmpty
        | io::ErrorKind::InvalidFilename => FailureKind::Invalid,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureKind::Full,
        io::ErrorKind::TimedOut => FailureKind::TimedOut,
        _ => FailureKind::Other,
    }
}

pub(crate) fn invalid(text: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Invalid, text)
}

pub(crate) fn not_found(text: impl Into<String>) -> Failure {
    Failure::new(FailureKind::NotFound, text)
}

/// What this system cannot do.
#[cfg_attr(target_os = "linux", expect(dead_code, reason = "Linux can do all"))]
pub(crate) fn unsupported(what: &str) -> Failure {
    Failure::new(
        FailureKind::Unsupported,
        format!("the agent cannot {what} on {}", std::env::consts::OS),
    )
}
