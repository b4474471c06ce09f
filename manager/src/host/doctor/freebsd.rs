//! What `doctor` looks at on FreeBSD only: vmm and its modules, overcommit, ZFS.

use nix::errno::Errno;
use vmm_sys::abi::VM_VNODE_ABI;

use super::{Check, Status};
use crate::host::{
    facts::HostFacts,
    folder::Folder,
    freebsd::{OVERCOMMIT_NEVER, Vmm},
};

/// The hypervisor, and what shares a checkpoint between its guests.
pub(super) fn vmm(vmm: &Vmm) -> [Check; 2] {
    let errno = vmm.control_errno.map(Errno::from_raw);
    let found = match (vmm.max_machines, errno) {
        (None, _) => "not loaded".to_owned(),
        (Some(_), Some(errno)) => format!("loaded; {}: {errno}", vmm_sys::VMM_CTL_PATH),
        (Some(_), None) => format!("loaded, {} machines", vmm.machines),
    };
    let hint = match (vmm.max_machines, errno) {
        (Some(_), Some(Errno::EACCES | Errno::EPERM)) => {
            "run brood as root, or as a user who may open it"
        }
        (Some(_), _) => {
            "a jail needs allow.vmm in jail.conf(5), and a devfs(8) rule that shows vmm's devices"
        }
        (None, _) => {
            "load it: kldload vmm, and for each boot vmm_load=\"YES\" in /boot/loader.conf; if \
             that fails, enable virtualization (VT-x with EPT, or AMD-V) in the firmware"
        }
    };
    [
        Check::new("vmm", found, "loaded").unless(
            vmm.max_machines.is_some() && errno.is_none(),
            Status::Fail,
            hint,
        ),
        vnode(vmm),
    ]
}

fn vnode(vmm: &Vmm) -> Check {
    let found = match (vmm.vnode_abi, vmm.vnode_segments) {
        (None, _) => "not loaded".to_owned(),
        (Some(abi), segments) => {
            format!("loaded, ABI {abi}, {} segments", segments.unwrap_or(0))
        }
    };
    let hint = match vmm.vnode_abi {
        None => {
            "without it each guest has a copy of all its memory: tools/freebsd/kernel build, then install; \
             then kldload vmm_vnode, and for each boot vmm_vnode_load=\"YES\" in /boot/loader.conf"
        }
        Some(_) => "build the module and brood from the same release",
    };
    Check::new("vmm_vnode", found, format!("loaded, ABI {VM_VNODE_ABI}")).unless(
        vmm.vnode_abi == Some(VM_VNODE_ABI.into()),
        Status::Fail,
        hint,
    )
}

/// Whether the kernel refuses memory that swap could not hold; see tuning(7).
pub(super) fn overcommit(facts: &HostFacts) -> Check {
    let mode = facts.memory.overcommit_mode;
    let found = if facts.never_overcommits() {
        format!("{mode} (never)")
    } else {
        format!("{mode} (always)")
    };
    let without = mode & !OVERCOMMIT_NEVER;
    Check::new("vm.overcommit", found, "without bit 0").unless(
        !facts.never_overcommits(),
        Status::Warn,
        format!(
            "each guest counts with all its memory, shared or not: sysctl vm.overcommit={without}"
        ),
    )
}

/// ZFS keeps what is mapped in its own cache too.
pub(super) fn checkpoint_folder(check: Check, folder: &Folder) -> Check {
    check.unless(
        folder.filesystem != "zfs" || !folder.exists,
        Status::Warn,
        "ZFS caches a checkpoint twice, in the ARC and as mapped pages: keep it on UFS or tmpfs, \
         or zfs set primarycache=metadata DATASET",
    )
}
