//! Inheritance of a guest: what the nursery prepares once for all guests, and the place at which a
//! spare takes its order.

use std::{
    fmt,
    fs::File,
    os::fd::{OwnedFd, RawFd},
    sync::Arc,
    time::Duration,
};

use kvm_ioctls::Kvm;
use nix::unistd::Pid;

use crate::engine::kvm::{
    fork_server::shared_orders::Desk,
    jail::Jail,
    vm::layers::Layers,
    wire::{REPORT_FAILED, REPORT_UNUSABLE_KERN, Start},
};

/// Why a nursery cannot start.
#[derive(Debug)]
pub(crate) struct StartError {
    /// What kind of report this is.
    pub(crate) kind: u32,
    pub(crate) reason: String,
}

impl StartError {
    /// Because of what stands in the `.ckp.kern`.
    pub(crate) fn kern(error: impl fmt::Display) -> Self {
        Self {
            kind: REPORT_UNUSABLE_KERN,
            reason: error.to_string(),
        }
    }
}

impl From<String> for StartError {
    fn from(reason: String) -> Self {
        Self {
            kind: REPORT_FAILED,
            reason,
        }
    }
}

/// A kind of guest, as a nursery sees it.
pub(crate) trait GuestKind {
    /// What is made of a checkpoint's state once for all guests.
    type Plan;

    /// Makes the plan, of which `files` are those that all guests of this kind read. A refusal by KVM
    /// shows here, before any guest is forked.
    fn plan(
        kvm: &Kvm,
        layers: &Arc<Layers>,
        kern: &[u8],
        start: &Start,
        files: Vec<File>,
    ) -> Result<Self::Plan, StartError>;

    /// The process `pid` of a guest was handed out, which has its memory at the address `memory`: what
    /// later spares can learn from that, the plan has from here on. `layers` are the guest's.
    fn learn(_plan: &mut Self::Plan, _layers: &Layers, _pid: Pid, _memory: u64) {}

    /// The life of a process that was forked for a guest.
    fn live(inheritance: &Inheritance<Self::Plan>, spare: &Spare<'_>) -> !;
}

/// What every guest inherits.
#[derive(Debug)]
pub(crate) struct Inheritance<P> {
    pub(crate) kvm: Kvm,
    pub(crate) layers: Arc<Layers>,
    /// An idle guest gives its virtual machine back after this time; never, when there is none.
    pub(crate) park_after: Option<Duration>,
    pub(crate) plan: P,
    /// The restore lock, which everything holds that may still be restoring: a descriptor of each
    /// process. A guest's process closes its own and writes nothing here, for the page would be a
    /// page of its own from then on.
    pub(crate) restore_lock: RawFd,
    /// What a guest's process takes before its guest runs.
    pub(crate) jail: Jail,
    /// Whether each guest has a control group, by which the kernel enforces its private limit.
    pub(crate) enforces_limits: bool,
    /// Where a guest's process says to the nursery that it was handed out, and why it ends.
    pub(crate) messages: OwnedFd,
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
