//! Tests of the safe types on the vmm(4) of this host. On other systems than FreeBSD they are
//! ignored by name; on FreeBSD they need root and the vmm module, and a test that is skipped says
//! so.

use std::{
    fs::File,
    io::{ErrorKind, Write},
    sync::atomic::Ordering::Relaxed,
};

use nix::errno::Errno;
use vmm_sys::{
    Error, Feature, Lifetime, Limits, Mapping, Protection, Segment, SegmentId, SuspendReason, Vm,
    VmName, VmmCtl, VnodeTotals,
};

const MEMORY: usize = 4 << 20;

const MAPPING: Mapping = Mapping {
    address: 0,
    segment: SegmentId::SYSTEM,
    offset: 0,
    length: MEMORY,
    protection: Protection::ALL,
    wired: false,
};

/// A machine of this process's own, which is gone when it is dropped.
struct Machine {
    control: VmmCtl,
    name: VmName,
    vm: Vm,
}

impl Machine {
    /// `None` if the test is skipped, which is said then.
    fn new(test: &str) -> Option<Self> {
        let control = match VmmCtl::open() {
            Err(
                error @ Error::Unsupported {
                    what: Feature::Vmm, ..
                },
            ) => return skip(test, &error),
            Err(Error::Open { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
                return skip(test, &"not root");
            }
            result => result.unwrap(),
        };
        let name: VmName = format!("brood-{test}-{}", std::process::id())
            .parse()
            .unwrap();
        let vm = match control.create(&name, Lifetime::UntilClosed) {
            Err(Error::Unsupported {
                what: Feature::DestroyOnClose,
                ..
            }) => control.create(&name, Lifetime::UntilDestroyed).unwrap(),
            result => result.unwrap(),
        };
        Some(Self { control, name, vm })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It is gone already where a test destroyed it.
        let _ = self.control.destroy(&self.name);
    }
}

fn skip<T>(test: &str, why: &dyn std::fmt::Display) -> Option<T> {
    // Not by eprintln!, which test runners keep to themselves when a test passes.
    let line = format!("skipped: {test}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    None
}

fn errno(error: &Error) -> Option<Errno> {
    match error {
        Error::Request { errno, .. } => Some(*errno),
        _ => None,
    }
}

#[test]
#[cfg_attr(not(target_os = "freebsd"), ignore = "needs FreeBSD's vmm(4)")]
fn a_machine_has_memory_until_it_is_destroyed() {
    let Some(machine) = Machine::new("memory") else {
        return;
    };
    let vm = &machine.vm;
    let limits = Limits::read().unwrap();
    assert!(limits.max_vms != Some(0) && limits.max_vcpus > 0 && limits.max_processes > 0);

    assert_eq!(vm.segment(SegmentId::SYSTEM).unwrap(), None);
    vm.allocate_segment(SegmentId::SYSTEM, MEMORY).unwrap();
    let segment = Segment {
        length: MEMORY,
        name: None,
    };
    assert_eq!(vm.segment(SegmentId::SYSTEM).unwrap(), Some(segment));
    let again = vm.allocate_segment(SegmentId::SYSTEM, MEMORY).unwrap_err();
    assert_eq!(errno(&again), Some(Errno::EEXIST));

    assert_eq!(vm.mappings().unwrap(), []);
    vm.map_segment(&MAPPING).unwrap();
    assert_eq!(vm.mappings().unwrap(), [MAPPING]);

    vm.write_memory(4094, b"brood").unwrap();
    let memory = vm.map_memory(0, MEMORY).unwrap();
    assert_eq!(memory.bytes()[4094].load(Relaxed), b'b');
    memory.bytes()[MEMORY - 1].store(7, Relaxed);
    let mut last = [0; 2];
    vm.read_memory(MEMORY as u64 - 2, &mut last).unwrap();
    assert_eq!(last, [0, 7]);

    let topology = vm.topology().unwrap();
    assert!(topology.max_cpus >= 1);
    assert!(!vm.statistics(0).unwrap().is_empty());

    vm.suspend(SuspendReason::PowerOff).unwrap();
    let again = vm.suspend(SuspendReason::PowerOff).unwrap_err();
    assert_eq!(errno(&again), Some(Errno::EALREADY));

    machine.control.destroy(&machine.name).unwrap();
    assert!(vm.topology().is_err(), "the machine is gone");
    let gone = Vm::open(&machine.name).unwrap_err();
    assert!(matches!(gone, Error::Open { source, .. } if source.kind() == ErrorKind::NotFound));
}

#[test]
#[cfg_attr(
    not(target_os = "freebsd"),
    ignore = "needs FreeBSD's vmm(4) with vmm_vnode(4)"
)]
fn what_a_machine_writes_to_a_checkpoint_is_its_own() {
    let Some(machine) = Machine::new("vnode") else {
        return;
    };
    let vm = &machine.vm;
    let provider = match vm.vnode_provider() {
        Err(
            error @ Error::Unsupported {
                what: Feature::VnodeProvider,
                ..
            },
        ) => {
            skip::<()>("vnode", &error);
            return;
        }
        result => result.unwrap(),
    };
    let checkpoint = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(checkpoint.path(), vec![42; MEMORY]).unwrap();
    let path = checkpoint.into_temp_path();

    let file = File::open(&path).unwrap();
    provider
        .attach(SegmentId::SYSTEM, &file, 0, MEMORY as u64)
        .unwrap();
    vm.map_segment(&MAPPING).unwrap();
    let page = provider.capabilities().page_size;
    let books = provider.books(SegmentId::SYSTEM).unwrap();
    assert_eq!((books.offset, books.pages), (0, MEMORY as u64 / page));
    assert_eq!(books.private_resident, 0);

    let memory = vm.map_memory(0, MEMORY).unwrap();
    assert!(memory.bytes().iter().all(|byte| byte.load(Relaxed) == 42));
    memory.bytes()[5].store(7, Relaxed);
    assert_eq!(
        provider.books(SegmentId::SYSTEM).unwrap().private_resident,
        1
    );
    assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 42));

    let write = File::options().write(true).open(&path).unwrap_err();
    assert_eq!(write.kind(), ErrorKind::ExecutableFileBusy);
    assert!(VnodeTotals::read().unwrap().segments >= 1);
}

#[test]
#[cfg_attr(not(target_os = "freebsd"), ignore = "needs FreeBSD's vmm(4)")]
fn a_machine_can_go_with_its_control_device() {
    // One machine shows that this test can run, another one is of a second control device.
    let Some(machine) = Machine::new("close") else {
        return;
    };
    let control = VmmCtl::open().unwrap();
    let name: VmName = format!("{}-2", machine.name).parse().unwrap();
    match control.create(&name, Lifetime::UntilClosed) {
        Err(
            error @ Error::Unsupported {
                what: Feature::DestroyOnClose,
                ..
            },
        ) => {
            skip::<()>("close", &error);
        }
        result => {
            let vm = result.unwrap();
            drop(control);
            assert!(vm.topology().is_err(), "the machine is gone");
            assert!(Vm::open(&name).is_err());
        }
    }
}
