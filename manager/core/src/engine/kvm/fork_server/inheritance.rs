//! Inheritance of a guest: what the nursery prepares once for all guests, and the place at which a
//! spare takes its order.

use std::{
    os::fd::{OwnedFd, RawFd},
    sync::Arc,
    time::Duration,
};

use kvm_ioctls::Kvm;
use nix::unistd::Pid;

use crate::engine::kvm::{
    fork_server::shared_orders::Desk,
    jail::Jail,
    vm::{layers::Layers, slots::Region, vcpu::RestorePlan},
};

/// What every guest inherits.
#[derive(Debug)]
pub(crate) struct Inheritance {
    pub(crate) kvm: Kvm,
    pub(crate) layers: Arc<Layers>,
    /// An idle guest gives its virtual machine back after this time; never, when there is none.
    pub(crate) park_after: Option<Duration>,
    pub(crate) plan: RestorePlan,
    pub(crate) regions: Vec<Region>,
    /// The restore lock, which everything holds that may still be restoring: a descriptor of each
    /// process. A guest's process closes its own and writes nothing here, for the page would be a
    /// page of its own from then on.
    pub(crate) restore_lock: RawFd,
    /// What a guest's process takes before its guest runs.
    pub(crate) jail: Jail,
    /// Whether each guest has a control group, by which the kernel enforces its private limit.
    pub(crate) enforces_limits: bool,
    /// Where a guest's process says why it ends.
    pub(crate) last_words: OwnedFd,
    /// The process of the nursery.
    pub(crate) nursery: Pid,
}

/// A spare's way to its order.
#[derive(Debug)]
pub(crate) struct Spare<'a> {
    pub(crate) desk: &'a Desk,
    /// Its place at the desk, which no other process uses before the nursery knows of the order, or
    /// that the spare has ended.
    pub(crate) place: usize,
    /// The pipe by which it tells the nursery that it took an order.
    pub(crate) receipts: &'a OwnedFd,
}

/// The life of a process that was forked for a guest: which kind of guest that is, the nursery does
/// not know.
pub(crate) type Life = fn(&Inheritance, &Spare<'_>) -> !;
