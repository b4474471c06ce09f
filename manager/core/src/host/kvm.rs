//! Facts of KVM: whether `/dev/kvm` opens, what it can do, its modules, and the process ids that a
//! guest takes.

use serde::Serialize;

use super::proc::ProcRoot;

/// The only version that KVM has had since Linux 2.6.22; its documentation says to refuse others.
pub const API_VERSION: i32 = 12;

/// KVM as this process sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KvmFacts {
    /// Whether `/dev/kvm` is there.
    pub present: bool,
    /// Why `/dev/kvm` cannot be opened for reading and writing, as an errno; none if it can.
    pub open_errno: Option<i32>,
    /// What KVM says about itself; none if it cannot be opened.
    pub capabilities: Option<Capabilities>,
    /// Loaded back ends, such as `kvm_intel`.
    pub modules: Vec<String>,
    /// The `nx_huge_pages` parameter of the `kvm` module; none where there is no such parameter.
    pub nx_huge_pages: Option<String>,
}

/// Answers to `KVM_GET_API_VERSION` and `KVM_CHECK_EXTENSION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// See [`API_VERSION`].
    pub api_version: i32,
    /// `KVM_CAP_NR_MEMSLOTS`: memory slots per guest.
    pub memory_slots: u64,
    /// `KVM_CAP_IMMEDIATE_EXIT`: a vCPU can be told to leave KVM_RUN at once.
    pub immediate_exit: bool,
    /// `KVM_CAP_SYNC_REGS`: registers travel through the run page.
    pub sync_regs: bool,
    /// `KVM_CAP_READONLY_MEM`: read-only memory slots.
    pub readonly_mem: bool,
}

impl KvmFacts {
    /// Tasks that one guest takes: its process and, unless the mitigation is off for good, a
    /// kernel thread (`kvm-nx-lpage-recovery`) that KVM makes in each virtual machine's process.
    #[must_use]
    pub(crate) fn pids_per_guest(&self) -> u64 {
        if self.nx_huge_pages.as_deref() == Some("never") {
            1
        } else {
            2
        }
    }

    /// Opens `/dev/kvm` below `root` and asks it. Every failure is a fact, not an error.
    pub(crate) fn read(root: &ProcRoot) -> Self {
        let opened = probe(root);
        let modules = ["kvm_intel", "kvm_amd", "kvm_pvm", "kvm_hv"];
        Self {
            present: root.path("/dev/kvm").exists(),
            open_errno: opened.as_ref().err().copied(),
            capabilities: opened.ok(),
            modules: modules
                .into_iter()
                .filter(|name| root.path(format!("/sys/module/{name}")).exists())
                .map(str::to_owned)
                .collect(),
            nx_huge_pages: root.optional("/sys/module/kvm/parameters/nx_huge_pages"),
        }
    }
}

#[cfg(target_os = "linux")]
fn probe(root: &ProcRoot) -> Result<Capabilities, i32> {
    use std::{ffi::CString, os::unix::ffi::OsStrExt};

    use kvm_ioctls::{Cap, Kvm};
    use nix::errno::Errno;

    let path = CString::new(root.path("/dev/kvm").as_os_str().as_bytes())
        .map_err(|_| Errno::EINVAL as i32)?;
    let kvm = Kvm::new_with_path(path).map_err(kvm_ioctls::Error::errno)?;
    let api_version = kvm.get_api_version();
    if api_version < 0 {
        return Err(Errno::last_raw());
    }
    Ok(Capabilities {
        api_version,
        memory_slots: kvm.get_nr_memslots() as u64,
        immediate_exit: kvm.check_extension(Cap::ImmediateExit),
        sync_regs: kvm.check_extension(Cap::SyncRegs),
        readonly_mem: kvm.check_extension(Cap::ReadonlyMem),
    })
}

#[cfg(not(target_os = "linux"))]
fn probe(_: &ProcRoot) -> Result<Capabilities, i32> {
    Err(nix::errno::Errno::ENODEV as i32)
}
