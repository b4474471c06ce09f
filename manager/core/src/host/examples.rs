//! Example hosts for tests.

use super::{
    cgroup::Groups,
    facts::{Cpu, HostFacts, HostMemory, OpenFiles, System},
    folder::{DiskClones, Folder},
    freebsd::{BhyveTools, DeviceOwner, Freebsd, Processes, Vmm},
    jail::JailFacts,
    kvm::{Capabilities, KvmFacts},
    linux::{Linux, Pids, RunFolder},
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
        memory: HostMemory {
            total: Bytes::gib(24),
            available: Bytes::gib(20),
            swap_total: Bytes(0),
            swap_free: Some(Bytes(0)),
            overcommit_mode: 0,
            commit_limit: Bytes::gib(12),
            committed: Bytes::gib(1),
        },
        files: OpenFiles {
            soft: Some(1024),
            hard: Some(524_288),
            open: 2000,
            max: 2_466_165,
        },
        system: System::Linux(Linux {
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
            jail: JailFacts {
                landlock: 7,
                users: true,
                namespaces: true,
            },
            pids: Pids {
                pid_max: 32768,
                threads_max: 192_729,
                tasks: 500,
                nproc_limit: Some(96_364),
                nproc_binds: false,
                user_tasks: 0,
            },
            max_map_count: 65530,
            qemu: None,
            engines: Vec::new(),
            run: Some(RunFolder {
                folder: folder("/var/db/brood/run", "ext4"),
                without_journal: false,
            }),
            groups: Groups::default(),
        }),
        state_folder: folder("/var/db/brood", "ext4"),
        checkpoint_folder: None,
    }
}

/// A FreeBSD host with 32 GiB, 24 of them free, the vmm-vnode kernel, and limits raised for a
/// thousand guests.
pub(crate) fn freebsd() -> HostFacts {
    HostFacts {
        kernel: "15.0-RELEASE".into(),
        cpu: Cpu {
            model: "Made-up Processor 9000".into(),
            vendor: "AuthenticAMD".into(),
            cores: 16,
        },
        memory: HostMemory {
            total: Bytes::gib(32),
            available: Bytes::gib(24),
            swap_total: Bytes::gib(4),
            swap_free: None,
            overcommit_mode: 0,
            commit_limit: Bytes::gib(4),
            committed: Bytes::gib(1),
        },
        files: OpenFiles {
            soft: Some(942_192),
            hard: Some(942_192),
            open: 400,
            max: 1_046_880,
        },
        system: System::Freebsd(Freebsd {
            vmm: Vmm {
                loaded: true,
                control_errno: None,
                control: Some(DeviceOwner {
                    uid: 0,
                    gid: 0,
                    mode: 0o600,
                }),
                max_machines: None,
                user_machines: None,
                machines: 3,
                vnode_abi: Some(1),
                vnode_segments: Some(3),
                vnode_installed: true,
            },
            bhyve_maps_checkpoints: Some(true),
            processes: Processes {
                max: 34_232,
                existing: 80,
                user_limit: Some(30_808),
                user_limit_binds: false,
                max_per_user: 30_808,
                of_user: 0,
            },
            racct: Some(false),
            jailed: false,
            tools: None,
        }),
        state_folder: Folder {
            options: vec!["noatime".into(), "soft-updates".into()],
            ..folder("/var/db/brood", "ufs")
        },
        checkpoint_folder: None,
    }
}

/// Everything of bhyve, as `brood doctor` finds it on a host that is ready.
pub(crate) fn bhyve() -> BhyveTools {
    let there = |names: &[&str]| names.iter().map(|n| ((*n).to_owned(), true)).collect();
    BhyveTools {
        commands: there(&["bhyve", "bhyvectl", "ifconfig", "sysctl", "kldstat"]),
        restores: true,
        suspends: true,
        modules: there(&["vmm", "vmm_vnode", "nmdm"]),
        primarycache: None,
        builds_tables: true,
        holes: None,
    }
}

impl HostFacts {
    /// What only Linux hosts have, of one.
    pub(crate) fn linux(&mut self) -> &mut Linux {
        match &mut self.system {
            System::Linux(linux) => linux,
            System::Freebsd(_) => panic!("this host runs FreeBSD"),
        }
    }

    /// What only FreeBSD hosts have, of one.
    pub(crate) fn freebsd(&mut self) -> &mut Freebsd {
        match &mut self.system {
            System::Freebsd(freebsd) => freebsd,
            System::Linux(_) => panic!("this host runs Linux"),
        }
    }
}

/// A writable folder with 100 GiB free.
pub(crate) fn folder(path: &str, filesystem: &str) -> Folder {
    Folder {
        path: path.into(),
        exists: true,
        filesystem: filesystem.into(),
        options: vec!["rw".into(), "relatime".into()],
        mount_point: Some("/".into()),
        free: Bytes::gib(100),
        open_to_others: false,
        changed_by: None,
        writable: true,
        clones: match filesystem {
            "zfs" => DiskClones::Zfs,
            "xfs" => DiskClones::Reflink,
            _ => DiskClones::Overlay,
        },
    }
}
