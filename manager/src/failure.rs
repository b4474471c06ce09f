//! Failure: an error as a person reads it, one line and a hint what to do next, with the exit code.

use crate::{config, density, image};
use brood_core::{checkpoint, disk, engine, guests, host, pool, rebuild, restore, state};

/// How a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What was tried, on what, and why it failed.
    pub(crate) message: String,
    /// What to do next.
    pub(crate) hint: Option<String>,
    /// Exit code of the command.
    pub(crate) code: u8,
}

/// Some was done, some not.
pub(crate) const SOME: u8 = 3;
/// Refused before anything was started.
pub(crate) const REFUSED: u8 = 4;
/// Interrupted with Ctrl-C.
pub(crate) const INTERRUPTED: u8 = 130;

impl Failure {
    pub(crate) fn new(message: &dyn std::fmt::Display, hint: Option<String>) -> Self {
        Self {
            message: message.to_string(),
            hint,
            code: 1,
        }
    }
}

macro_rules! failure_from {
    ($($error:ty),*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(&error, error.hint().map(Into::into))
            }
        })*
    };
}

/// Of errors that tell an interruption from what failed.
macro_rules! failure_or_interruption_from {
    ($($error:ty),*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                let code = if error.is_interrupted() { INTERRUPTED } else { 1 };
                Self { code, ..Self::new(&error, error.hint()) }
            }
        })*
    };
}

failure_or_interruption_from!(
    checkpoint::Error,
    engine::Error,
    guests::Error,
    image::Error,
    state::Error
);

failure_from!(config::Error, disk::Error, rebuild::Error);

impl From<host::proc::Error> for Failure {
    fn from(error: host::proc::Error) -> Self {
        Self::new(&error, Some(error.hint().to_owned()))
    }
}

#[cfg(feature = "plots")]
impl From<density::report::Error> for Failure {
    fn from(error: density::report::Error) -> Self {
        Self::new(&error, Some(error.hint().to_owned()))
    }
}

impl From<restore::Error> for Failure {
    fn from(error: restore::Error) -> Self {
        let code = if matches!(
            error,
            restore::Error::Admission(_) | restore::Error::State(state::Error::PoolFull(_))
        ) {
            REFUSED
        } else if error.is_interrupted() {
            INTERRUPTED
        } else {
            1
        };
        Self {
            code,
            ..Self::new(&error, error.hint())
        }
    }
}

impl From<pool::Error> for Failure {
    fn from(error: pool::Error) -> Self {
        match error {
            pool::Error::Restore(e) => e.into(),
            error @ pool::Error::Line { .. } => Self {
                code: REFUSED,
                ..Self::new(&error, error.hint())
            },
            error @ pool::Error::Left { .. } => Self {
                code: SOME,
                ..Self::new(&error, error.hint())
            },
            error if error.is_interrupted() => Self {
                code: INTERRUPTED,
                ..Self::new(&error, None)
            },
            error => Self::new(&error, error.hint()),
        }
    }
}

impl From<density::run::Error> for Failure {
    fn from(error: density::run::Error) -> Self {
        match error {
            density::run::Error::Restore(e) => e.into(),
            density::run::Error::Guests(e) => e.into(),
            density::run::Error::Host(e) => e.into(),
            density::run::Error::Checkpoint(e) => e.into(),
            e @ density::run::Error::Read { .. } => Self::new(&e, None),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}
