//! Made-up hosts for tests.

use super::{
    cgroup::Groups,
    facts::{Cpu, Files, HostFacts, Memory, Pids},
    folder::Folder,
    kvm::{Capabilities, KvmFacts},
};
use crate::units::Bytes;

/// An ordinary machine with 24 GiB, 20 of them free, and the kernel's defaults.
pub(crate) fn healthy() -> HostFacts {
    HostFacts {
        kernel: "6.12.9".into(),
        cpu: Cpu {
            model: "Made-up Processor 9000".into(),
            vendor: "AuthenticAMD".into(),
            cores: 8,
        },
        memory: Memory {
            total: Bytes::gib(24),
            available: Bytes::gib(20),
            swap_total: Bytes(0),
            swap_free: Bytes(0),
            overcommit_mode: 0,
            commit_limit: Bytes::gib(12),
            committed: Bytes::gib(1),
        },
        kvm: KvmFacts {
            present: true,
            open_errno: None,
            capabilities: Some(Capabilities {
                api_version: 12,
                memory_slots: 32764,
                immediate_exit: true,
                sync_regs: true,
                readonly_mem: true,
            }),
            modules: vec!["kvm_amd".into()],
            nx_huge_pages: Some("N".into()),
        },
        pids: Pids {
            pid_max: 32768,
            threads_max: 192_729,
            tasks: 500,
            nproc_limit: Some(96_364),
            nproc_binds: false,
            user_tasks: 0,
        },
        files: Files {
            soft: Some(1024),
            hard: Some(524_288),
            open: 2000,
            max: 2_466_165,
        },
        max_map_count: 65530,
        groups: Groups::default(),
        state_folder: folder("/var/db/brood", "ext4"),
        checkpoint_folder: None,
    }
}

/// A writable folder with 100 GiB free.
pub(crate) fn folder(path: &str, filesystem: &str) -> Folder {
    Folder {
        path: path.into(),
        exists: true,
        filesystem: filesystem.into(),
        options: vec!["rw".into(), "relatime".into()],
        free: Bytes::gib(100),
        writable: true,
    }
}
