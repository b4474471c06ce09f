//! Facts of a host: what decides whether it can restore guests, and how many. brood reads them once
//! and passes them down as a value.

use std::path::PathBuf;

use serde::Serialize;

pub use super::proc::Error;
use super::{folder::Folder, freebsd::Freebsd, linux::Linux, proc::ProcRoot};
use crate::units::Bytes;

/// What to read: the roots of `/proc`, `/sys` and `/dev`, and the relevant folders.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Root of `/proc`, `/sys` and `/dev`.
    pub root: ProcRoot,
    /// The folder that holds brood's state.
    pub state: PathBuf,
    /// The folder of the checkpoint in question, if there is one.
    pub checkpoint: Option<PathBuf>,
}

/// Facts about this host at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// Kernel release, such as `6.18.1` or `15.0-RELEASE`.
    pub kernel: String,
    /// The processor.
    pub cpu: Cpu,
    /// Memory of the host.
    pub memory: HostMemory,
    /// Open files.
    pub files: OpenFiles,
    /// What only hosts of this system have.
    #[serde(flatten)]
    pub system: System,
    /// The folder that holds brood's state.
    pub state_folder: Folder,
    /// The folder of the checkpoint, if one was asked about.
    pub checkpoint_folder: Option<Folder>,
}

/// The host's system, with the facts that only such hosts have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum System {
    /// Linux: guests run on KVM.
    Linux(Linux),
    /// FreeBSD: guests run on bhyve.
    Freebsd(Freebsd),
}

/// The processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// Model name.
    pub model: String,
    /// Vendor, such as `GenuineIntel` or `AuthenticAMD`; empty where the kernel names none.
    pub vendor: String,
    /// Cores that are online, as the scheduler counts them.
    pub cores: u64,
}

/// Memory of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostMemory {
    /// Linux: `MemTotal`. FreeBSD: `hw.physmem`.
    pub total: Bytes,
    /// Memory that can be taken without swapping. Linux: `MemAvailable`. FreeBSD: pages that are
    /// free, inactive or in the laundry (`vm.stats.vm`).
    pub available: Bytes,
    /// Linux: `SwapTotal`. FreeBSD: `vm.swap_total`.
    pub swap_total: Bytes,
    /// Linux: `SwapFree`. FreeBSD tells it for each device only, so there is none.
    pub swap_free: Option<Bytes>,
    /// Linux, `vm.overcommit_memory`: 0 heuristic, 1 always, 2 never past [`Self::commit_limit`].
    /// FreeBSD, the bits of `vm.overcommit`, see tuning(7): they say nothing about guest memory,
    /// which is never charged to swap.
    pub overcommit_mode: u64,
    /// Linux: `CommitLimit`. FreeBSD: `vm.swap_total`.
    pub commit_limit: Bytes,
    /// Linux: `Committed_AS`. FreeBSD: `vm.swap_reserved`.
    pub committed: Bytes,
}

/// Open files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpenFiles {
    /// `RLIMIT_NOFILE`, soft; none if unlimited.
    pub soft: Option<u64>,
    /// `RLIMIT_NOFILE`, hard; none if unlimited.
    pub hard: Option<u64>,
    /// Open files of the whole host. Linux: from `fs.file-nr`. FreeBSD: `kern.openfiles`.
    pub open: u64,
    /// Linux: `fs.file-max`. FreeBSD: `kern.maxfiles`.
    pub max: u64,
}

impl HostFacts {
    /// Tasks that one guest takes.
    #[must_use]
    pub(crate) fn pids_per_guest(&self) -> u64 {
        match &self.system {
            System::Linux(linux) => linux.kvm.pids_per_guest(),
            System::Freebsd(_) => 1,
        }
    }

    /// Tasks that there are, and how many there may be (FreeBSD: processes).
    #[must_use]
    pub fn tasks(&self) -> (u64, u64) {
        match &self.system {
            System::Linux(linux) => (linux.pids.tasks, linux.pids.pid_max),
            System::Freebsd(freebsd) => (freebsd.processes.existing, freebsd.processes.max),
        }
    }

    /// Whether the kernel counts each guest with all its memory and refuses what does not fit
    /// under [`HostMemory::commit_limit`].
    ///
    /// FreeBSD does not. vm_map_insert() of `vm/vm_map.c` charges a mapping to swap when it is
    /// writable and private, or has no object; guest memory is an object that bhyve and the guest
    /// map shared, and neither vm_alloc_memseg() nor vmm_vnode charges it when it is made.
    #[must_use]
    pub(crate) fn never_overcommits(&self) -> bool {
        match &self.system {
            System::Linux(_) => self.memory.overcommit_mode == 2,
            System::Freebsd(_) => false,
        }
    }
}
