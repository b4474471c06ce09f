//! Facts from a made-up kernel.

use std::{collections::HashMap, path::Path};

use super::*;

struct MadeUp(HashMap<&'static str, Vec<u8>>);

impl Kernel for MadeUp {
    fn sysctl(&self, name: &str) -> io::Result<Value> {
        self.0
            .get(name)
            .cloned()
            .map(Value::Raw)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn processes(&self, user: Option<u32>) -> io::Result<u64> {
        Ok(if user.is_some() { 7 } else { 80 })
    }

    fn mounted(&self, _: &Path) -> Option<(String, Vec<String>)> {
        Some(("zfs".to_owned(), vec!["noatime".to_owned()]))
    }
}

/// What a host with 32 GiB tells, each value as wide as the kernel has it.
fn ordinary() -> MadeUp {
    let int = |n: u32| n.to_ne_bytes().to_vec();
    let long = |n: u64| n.to_ne_bytes().to_vec();
    MadeUp(HashMap::from([
        ("kern.osrelease", b"15.0-RELEASE\0".to_vec()),
        ("hw.model", b"Made up\0".to_vec()),
        ("hw.ncpu", int(16)),
        ("hw.physmem", long(32 << 30)),
        ("vm.stats.vm.v_page_size", int(4096)),
        ("vm.stats.vm.v_page_count", int(8 << 18)),
        ("vm.stats.vm.v_free_count", int(1 << 18)),
        ("vm.stats.vm.v_inactive_count", int(2 << 18)),
        ("vm.stats.vm.v_laundry_count", int(1 << 17)),
        ("vm.stats.vm.v_free_reserved", int(1 << 17)),
        ("vm.stats.vm.v_wire_count", int(1 << 18)),
        ("vm.swap_total", long(4 << 30)),
        ("vm.swap_reserved", long(1 << 30)),
        ("vm.overcommit", int(0)),
        ("kern.openfiles", int(400)),
        ("kern.maxfiles", int(1_046_880)),
        ("kern.maxproc", int(34_232)),
        ("kern.maxprocperuid", int(30_808)),
    ]))
}

/// Facts of such a host, with these entries in `/dev`.
fn facts(kernel: &MadeUp, devices: &[&str]) -> Result<HostFacts, Error> {
    let root = tempfile::tempdir().unwrap();
    for device in devices {
        let path = root.path().join("dev").join(device);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    let paths = Paths {
        root: ProcRoot::at(root.path()),
        state: root.path().to_owned(),
        checkpoint: None,
    };
    read(&paths, kernel)
}

#[test]
fn an_ordinary_host_is_read() {
    let mut host = facts(&ordinary(), &[]).unwrap();
    assert_eq!((host.kernel.as_str(), host.cpu.cores), ("15.0-RELEASE", 16));
    assert_eq!(host.memory.total, Bytes::gib(32));
    assert_eq!(host.memory.available, Bytes::kib(3584 << 10));
    assert_eq!(host.memory.commit_limit, Bytes::gib(4));
    assert!(!host.never_overcommits());
    assert_eq!((host.files.open, host.files.max), (400, 1_046_880));
    assert_eq!(host.state_folder.filesystem, "zfs");
    assert_eq!(host.pids_per_guest(), 1);
    let json = serde_json::to_value(&host).unwrap();
    assert_eq!(json["vmm"]["max_machines"], serde_json::Value::Null);
    assert_eq!((host.freebsd().racct, host.freebsd().jailed), (None, false));
    let Freebsd { vmm, processes, .. } = host.freebsd();
    assert_eq!(vmm.control_errno, Some(Errno::ENOENT as i32));
    assert_eq!((vmm.max_machines, vmm.vnode_abi), (None, None));
    assert_eq!((processes.max, processes.existing), (34_232, 80));
    let of_user = if processes.user_limit_binds { 7 } else { 0 };
    assert_eq!(processes.of_user, of_user);
}

#[test]
fn vmm_and_its_modules_are_seen() {
    let mut kernel = ordinary();
    let int = |n: u32| n.to_ne_bytes().to_vec();
    kernel.0.insert("hw.vmm.maxvmms", int(64));
    kernel.0.insert("hw.vmm.vnode.abi", int(1));
    kernel.0.insert("hw.vmm.vnode.segments", int(2));
    kernel.0.insert("kern.racct.enable", int(1));
    kernel.0.insert("security.jail.jailed", int(1));
    let devices = [
        "vmmctl",
        "vmm/one",
        "vmm/two",
        "../boot/modules/vmm_vnode.ko",
    ];
    let mut host = facts(&kernel, &devices).unwrap();
    assert_eq!(
        (host.freebsd().racct, host.freebsd().jailed),
        (Some(true), true)
    );
    let owner = host.freebsd().vmm.control.unwrap();
    assert_eq!(owner.uid, getuid().as_raw());
    assert_eq!(
        host.freebsd().vmm,
        Vmm {
            control_errno: None,
            control: Some(owner),
            max_machines: Some(64),
            machines: 2,
            vnode_abi: Some(1),
            vnode_segments: Some(2),
            vnode_installed: true,
        }
    );
}

#[test]
fn memory_that_is_not_wired_counts_where_the_kernel_counts_it() {
    let mut kernel = ordinary();
    kernel
        .0
        .insert("vm.overcommit", 5_u32.to_ne_bytes().to_vec());
    let host = facts(&kernel, &[]).unwrap();
    assert!(host.never_overcommits());
    // 4 GiB of swap, and 8 GiB of pages less 1 GiB wired and 512 MiB kept back.
    assert_eq!(host.memory.commit_limit, Bytes::kib(10752 << 10));
}

#[test]
fn a_missing_or_odd_variable_is_named() {
    let mut kernel = ordinary();
    kernel.0.insert("hw.ncpu", vec![1, 2, 3]);
    let error = facts(&kernel, &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read the sysctl hw.ncpu: no number of 4 or 8 bytes"
    );
    kernel.0.remove("hw.ncpu");
    let error = facts(&kernel, &[]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot read the sysctl hw.ncpu: ")
    );
    assert!(error.hint().contains("jail"));
}
