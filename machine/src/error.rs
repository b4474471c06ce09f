//! Errors of the machine.

use std::io;

/// A machine could not be made, or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call of KVM failed.
    #[error("cannot {action}: {source}")]
    Kvm {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: kvm_ioctls::Error,
    },
    /// Guest memory cannot be made or used.
    #[error("cannot {action}: {reason}")]
    Memory {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// The kernel cannot be booted.
    #[error("the kernel cannot be booted: {0}")]
    Kernel(String),
    /// A machine cannot have what was asked for.
    #[error("{0}")]
    Refused(String),
    /// A file or thread failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// An error of KVM, by what was tried.
pub(crate) fn at(action: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |source| Error::Kvm { action, source }
}

/// An error of guest memory, by what was tried.
pub(crate) fn memory<E: ToString>(action: &'static str) -> impl Fn(E) -> Error {
    move |error| Error::Memory {
        action,
        reason: error.to_string(),
    }
}
