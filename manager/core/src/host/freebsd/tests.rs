//! Tests of FreeBSD's facts on a fake kernel.

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

    fn mounted(&self, _: &Path) -> Option<MountedOn> {
        Some(MountedOn {
            filesystem: "zfs".to_owned(),
            options: vec!["noatime".to_owned()],
            point: "/tank".into(),
        })
    }

    fn machines_of_user(&self) -> Option<u64> {
        Some(300)
    }

    fn bhyve(&self) -> Option<PathBuf> {
        None
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
    assert_eq!(vmm.user_machines, Some(300));
    assert!(!vmm.loaded);
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
            loaded: true,
            control_errno: None,
            control: Some(owner),
            max_machines: Some(64),
            user_machines: Some(300),
            machines: 2,
            vnode_abi: Some(1),
            vnode_segments: Some(2),
            vnode_installed: true,
        }
    );
}

/// FreeBSD 15.0 has no `hw.vmm.maxvmms`, so its absence says nothing about vmm.
#[test]
fn vmm_is_loaded_when_its_device_or_a_variable_of_its_own_is_there() {
    let mut host = facts(&ordinary(), &["vmmctl"]).unwrap();
    let vmm = &host.freebsd().vmm;
    assert!(vmm.loaded && vmm.max_machines.is_none());
    // A devfs(8) ruleset may hide the device.
    let mut kernel = ordinary();
    kernel
        .0
        .insert("hw.vmm.maxcpu", 16_u32.to_ne_bytes().to_vec());
    let mut host = facts(&kernel, &[]).unwrap();
    assert!(host.freebsd().vmm.loaded && host.freebsd().vmm.control.is_none());
    assert!(!facts(&ordinary(), &[]).unwrap().freebsd().vmm.loaded);
}

/// Guest memory is charged to no swap, whatever the kernel is set to.
#[test]
fn overcommit_says_nothing_about_guests() {
    let mut kernel = ordinary();
    for mode in [0_u32, 1, 5] {
        let value = mode.to_ne_bytes().to_vec();
        kernel.0.insert("vm.overcommit", value);
        let host = facts(&kernel, &[]).unwrap();
        assert!(!host.never_overcommits(), "{mode}");
        assert_eq!(host.memory.overcommit_mode, u64::from(mode));
    }
}

#[test]
fn a_bhyve_that_maps_checkpoints_is_told_from_a_stock_one() {
    let folder = tempfile::tempdir().unwrap();
    let bhyve = folder.path().join("bhyve");
    assert_eq!(maps_checkpoints(&bhyve), None);
    fs::write(&bhyve, b"\x7fELF\0snapshot.vnode_restor\0\xff").unwrap();
    assert_eq!(maps_checkpoints(&bhyve), Some(false));
    fs::write(&bhyve, b"\x7fELF\0\0snapshot.vnode_restore\0\xff").unwrap();
    assert_eq!(maps_checkpoints(&bhyve), Some(true));
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
