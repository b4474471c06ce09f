//! Resource limits of a nursery and its guests (setrlimit(2)). All but one are the nursery's, which
//! its guests inherit at no cost.

use nix::sys::resource::Resource;

use crate::{
    engine::resource_limits::{lower, no_core_and_no_locked_memory},
    units::Bytes,
};

/// Descriptors: twice as many as a guest has at most. A nursery has its own from 48 on
/// (`descriptors.rs`).
pub(super) const OPEN_FILES: u64 = 96;
/// Processes and threads of a guest's own user: a Linux's processors, and what KVM does beside them,
/// ten at most. Guests in several PID namespaces of a host can have one user, for that is their
/// process's number; and a thread that KVM cannot make keeps a guest from running.
pub(super) const PROCESSES: u64 = 64;
/// What a guest writes beside its memory and its disk: lists of pages, logs and records.
const OTHER_FILES: Bytes = Bytes::mib(16);

/// Takes the limits of a nursery whose guests write files of this size at most: their memory when
/// they are suspended, and their disks.
pub(super) fn enter(largest: Bytes) -> nix::Result<()> {
    no_core_and_no_locked_memory()?;
    lower(Resource::RLIMIT_NOFILE, OPEN_FILES)?;
    lower(Resource::RLIMIT_FSIZE, (largest + OTHER_FILES).0)
}

/// Takes those of a guest that will have a user of its own. A nursery cannot: where root is one of a
/// user namespace, the kernel counts all processes of that root.
pub(super) fn enter_guest() -> nix::Result<()> {
    lower(Resource::RLIMIT_NPROC, PROCESSES)
}
