//! Limits of a process's resources (setrlimit(2)), which it never gets back: those of guests'
//! processes, as low as their work allows.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lowers a limit for good to `most`, or leaves one that is lower. Async-signal-safe.
pub(in crate::engine) fn lower(resource: Resource, most: u64) -> nix::Result<()> {
    let (soft, hard) = getrlimit(resource)?;
    setrlimit(resource, soft.min(most), hard.min(most))
}

/// No core file, which would be a guest's memory on the host's disk, and no memory that cannot be
/// swapped or moved. Async-signal-safe.
pub(in crate::engine) fn no_core_and_no_locked_memory() -> nix::Result<()> {
    lower(Resource::RLIMIT_CORE, 0)?;
    lower(Resource::RLIMIT_MEMLOCK, 0)
}
