//! Tests of configurations: examples from bhyve's manual, and generated ones.

use std::collections::BTreeMap;

use proptest::{collection, option, prelude::*, sample};

use super::*;
use crate::engine::Identity;

/// A whole guest with one device of each model.
const EVERYTHING: &str = "\
# A comment, and a blank line.

name=web
cpus=4
sockets=2
cores=2
memory.size=1G
acpi_tables=true
x86.x2apic=true
lpc.bootrom=/usr/local/share/uefi-firmware/BHYVE_UEFI.fd
lpc.com1.path=/dev/nmdm0A
lpc.com2.path=/dev/nmdm1A
pci.0.0.0.device=hostbridge
pci.0.0.0.pcireg.vendor=0x1022
pci.0.2.0.device=virtio-blk
pci.0.2.0.path=/dev/zvol/tank/%(name)
pci.0.2.0.ser=ROOT
pci.0.3.0.device=virtio-net
pci.0.3.0.backend=tap0
pci.0.3.0.mac=58:9c:fc:00:00:01
pci.0.3.0.bridge=bridge0
pci.0.4.0.device=virtio-rnd
pci.0.5.0.device=ahci
pci.0.5.0.port.0.type=hd
pci.0.5.0.port.0.path=/vm/data.img
pci.0.5.0.port.0.ro=on
pci.0.5.0.port.1.type=cd
pci.0.5.0.port.1.path=/vm/install.iso
pci.0.5.0.port.1.ro=yes
pci.0.6.0.device=e1000
pci.0.6.0.backend=tap1
pci.0.29.0.device=fbuf
pci.0.29.0.w=1280
pci.0.29.0.h=720
pci.0.30.0.device=xhci
pci.0.30.0.slot.1.device=tablet
pci.0.31.0.device=lpc
";

fn everything() -> BhyveConfig {
    EVERYTHING.parse().unwrap()
}

/// The same without the frame buffer, which clones cannot have.
fn cloneable() -> String {
    let lines = EVERYTHING.lines();
    let kept = lines.filter(|line| !line.starts_with("pci.0.29.0."));
    kept.flat_map(|line| [line, "\n"]).collect()
}

fn identity() -> Identity {
    Identity {
        name: "web-7".to_owned(),
        generation: [0x11; 16],
        mac: [2, 0, 0, 0, 0, 7],
        seed: [0x22; 8],
        entropy: [0x33; 32],
    }
}

fn back_ends() -> BackEnds {
    BackEnds {
        bootvars: None,
        disk: None,
        vm: "brood-7".to_owned(),
        taps: vec!["tap70".to_owned(), "tap71".to_owned()],
        consoles: vec!["/dev/nmdm7c1A".to_owned(), "/dev/nmdm7c2A".to_owned()],
    }
}

#[test]
fn everything_is_understood_and_written_again() {
    let config = everything();
    assert_eq!(config.cpus.cpus(), 4);
    assert_eq!(config.memory, Bytes::gib(1));
    insta::assert_snapshot!("everything", config.render());
    assert_eq!(config.render().parse(), Ok(config));
}

#[test]
fn each_device_is_written_as_bhyve_reads_it() {
    for (address, device) in everything().devices {
        let text: String = device
            .variables()
            .into_iter()
            .map(|(key, value)| format!("{address}.{key}={value}\n"))
            .collect();
        insta::assert_snapshot!(format!("device_{}", device.model()), text);
    }
}

#[test]
fn a_clone_has_its_own_back_ends_and_the_same_model() {
    let origin: BhyveConfig = cloneable().parse().unwrap();
    let clone = origin.derive(&identity(), &back_ends()).unwrap();
    insta::assert_snapshot!("clone", clone.render());
    assert_eq!(clone.render().parse(), Ok(clone));
}

#[test]
fn clones_that_would_be_in_each_others_way_are_refused() {
    for (from, to, key) in [
        ("pci.0.5.0.port.0.ro=on\n", "", "pci.0.5.0.port.0.path"),
        ("tank/%(name)", "tank/root", "pci.0.2.0.path"),
        (
            "pci.0.30.0.device=xhci",
            "pci.0.30.0.device=fbuf",
            "pci.0.30.0.rfb",
        ),
    ] {
        let text = cloneable().replace("pci.0.30.0.slot.1.device=tablet\n", "");
        let text = text.replace(from, to);
        let config: BhyveConfig = text.parse().unwrap();
        let refusal = config.derive(&identity(), &back_ends()).unwrap_err();
        assert!(refusal.to_string().starts_with(key), "{refusal}");
        assert!(!refusal.hint().is_empty());
    }
    let mut few = back_ends();
    few.taps.pop();
    let origin: BhyveConfig = cloneable().parse().unwrap();
    let refusal = origin.derive(&identity(), &few).unwrap_err();
    let key = "pci.0.6.0.backend".to_owned();
    assert_eq!(refusal, DeriveError::NoBackEnd { key });
}

#[test]
fn a_meta_of_other_devices_is_noticed() {
    let names = |config: &BhyveConfig| -> Vec<String> {
        config
            .devices
            .iter()
            .map(|(address, device)| format!("{}@{address}", device.model()))
            .chain(["atkbdc".to_owned()])
            .collect()
    };
    let saved = names(&everything());
    let matches = |saved: &[String]| everything().matches_saved(saved.iter().map(String::as_str));
    assert_eq!(matches(&saved), Ok(()));
    assert_eq!(matches(&saved[1..]).unwrap_err().key, "pci.0.0.0.device");
    let mut more = saved.clone();
    more.push("virtio-rnd@pci.0.9.0".to_owned());
    assert_eq!(matches(&more).unwrap_err().key, "pci.0.9.0.device");
}

#[test]
fn what_cannot_be_restored_is_refused_by_its_key() {
    for (line, key) in [
        ("pci.0.8.0.device=nvme", "pci.0.8.0.device"),
        ("pci.0.8.0.device=passthru", "pci.0.8.0.device"),
        ("pci.0.8.0.device=virtio-console", "pci.0.8.0.device"),
        ("pci.0.32.0.device=virtio-rnd", "pci.0.32.0.device"),
        ("pci.0.08.0.device=virtio-rnd", "pci.0.08.0.device"),
        ("pci.0.8.0.device=lpc", "pci.0.31.0.device"),
        ("pci.0.8.0.device=virtio-blk", "pci.0.8.0.path"),
        ("memory.wired=true", "memory.wired"),
        ("memory.size=1000000000", "memory.size"),
        ("memory.size=99999999999T", "memory.size"),
        ("cpus=3", "cpus"),
        ("lpc.com1.path=stdio", "lpc.com1.path"),
        ("pci.0.29.0.wait=true", "pci.0.29.0.wait"),
        ("pci.0.2.0.ser=123456789012345678901", "pci.0.2.0.ser"),
        ("surprise=1", "surprise"),
        ("lpc.tpm.type=passthru", "lpc.tpm.type"),
        ("key = value", "key "),
        ("no value", "line 38"),
        ("empty=", "line 38"),
    ] {
        let refusal = format!("{EVERYTHING}{line}\n")
            .parse::<BhyveConfig>()
            .unwrap_err();
        assert!(refusal.to_string().contains(key), "{line}: {refusal}");
        assert!(!refusal.hint().is_empty());
    }
}

#[test]
fn sizes_are_read_as_bhyve_reads_them() {
    for (text, bytes) in [
        ("256", Bytes::mib(256)),
        ("256M", Bytes::mib(256)),
        ("1g", Bytes::gib(1)),
        ("1048576", Bytes::mib(1)),
        ("2048K", Bytes::mib(2)),
    ] {
        let config: BhyveConfig = format!("memory.size={text}").parse().unwrap();
        assert_eq!(config.memory, bytes, "{text}");
    }
    assert_eq!("".parse::<BhyveConfig>().unwrap().memory, Bytes::mib(256));
}

fn word() -> impl Strategy<Value = String> {
    "[A-Za-z0-9/._:%()-]{1,20}"
}

fn disk() -> impl Strategy<Value = Disk> {
    (
        word(),
        any::<[bool; 4]>(),
        option::of(word()),
        option::of(word()),
        option::of(any::<u32>()),
    )
        .prop_map(|(path, flags, sectorsize, serial, bootindex)| Disk {
            path,
            read_only: flags[0],
            nocache: flags[1],
            sync: flags[2],
            nodelete: flags[3],
            sectorsize,
            serial,
            bootindex,
        })
}

fn nic(with_mtu: bool) -> impl Strategy<Value = Nic> {
    let text = || option::of(word());
    (text(), text(), option::of(any::<u16>()), text()).prop_map(
        move |(backend, mac, mtu, bridge)| Nic {
            backend,
            mac,
            mtu: mtu.filter(|_| with_mtu),
            bridge,
        },
    )
}

fn device() -> impl Strategy<Value = BhyveDevice> {
    let port = (any::<bool>(), disk()).prop_map(|(optical, disk)| Port {
        kind: if optical {
            PortKind::Optical
        } else {
            PortKind::Disk
        },
        disk,
    });
    let ids = collection::btree_map(
        sample::select(vec!["vendor", "device", "revid"]).prop_map(str::to_owned),
        word(),
        0..3,
    );
    let size = || option::of(any::<u16>());
    prop_oneof![
        ids.prop_map(|ids| BhyveDevice::HostBridge { ids }),
        disk().prop_map(BhyveDevice::VirtioBlk),
        nic(true).prop_map(BhyveDevice::VirtioNet),
        Just(BhyveDevice::VirtioRnd),
        collection::vec(port, 0..5).prop_map(BhyveDevice::Ahci),
        nic(false).prop_map(BhyveDevice::E1000),
        (
            option::of(word()),
            option::of(word()),
            size(),
            size(),
            option::of(word())
        )
            .prop_map(|(rfb, password, width, height, vga)| BhyveDevice::Fbuf {
                rfb,
                password,
                width,
                height,
                vga
            }),
        (0_u8..=8).prop_map(|tablets| BhyveDevice::Xhci { tablets }),
    ]
}

fn address() -> impl Strategy<Value = PciAddress> {
    (any::<u8>(), 0_u8..31, 0_u8..8).prop_map(|(bus, slot, function)| PciAddress {
        bus,
        slot,
        function,
    })
}

prop_compose! {
    fn config()(
        name in option::of(word()),
        uuid in option::of(word()),
        (sockets, cores, threads) in (1_u16..32, 1_u16..32, 1_u16..8),
        pages in (1_u64..1 << 20).prop_map(|n| n + 256),
        bootrom in option::of(word()),
        com in collection::btree_map((1_u8..=4).prop_map(|n| Com::new(n).unwrap()), "/dev/[a-z0-9]{1,9}", 0..4),
        mut devices in collection::btree_map(address(), device(), 0..6),
        settings in collection::btree_map(
            sample::select(vec!["acpi_tables", "x86.mptable", "bios.vendor", "system.sku"]).prop_map(str::to_owned),
            word(),
            0..4,
        ),
    ) -> BhyveConfig {
        // The bridge is in a place of its own, which the others leave free.
        devices.insert(PciAddress { bus: 0, slot: 31, function: 0 }, BhyveDevice::Lpc);
        BhyveConfig {
            bootvars: None,
            name, uuid, cpus: Topology { sockets, cores, threads }, memory: Bytes(pages * 4096),
            bootrom, com, devices, settings,
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_as_it_was(config in config()) {
        prop_assert_eq!(config.render().parse(), Ok(config));
    }

    #[test]
    fn no_text_is_taken_wrongly(text in "([a-z.0-9]{0,12}=?[ -~]{0,12}\n){0,8}") {
        // Whatever is accepted is written and read again as it was.
        if let Ok(config) = text.parse::<BhyveConfig>() {
            prop_assert_eq!(config.render().parse(), Ok(config));
        }
    }

    #[test]
    fn settings_are_kept_in_order_of_their_keys(pairs in collection::btree_map("[a-z]{1,5}", word(), 0..9)) {
        let variables = Variables(pairs);
        prop_assert_eq!(variables.to_string().parse::<Variables>(), Ok(variables.clone()));
        let keys: Vec<_> = variables.0.keys().collect();
        let sorted: BTreeMap<_, _> = keys.iter().map(|key| (*key, ())).collect();
        prop_assert_eq!(keys, sorted.into_keys().collect::<Vec<_>>());
    }
}

/// A guest with disks: a CD and a disk on AHCI, and these lines.
fn with_disks(lines: &str) -> BhyveConfig {
    let text = format!(
        "memory.size=4M\npci.0.0.0.device=hostbridge\n\
         pci.0.5.0.device=ahci\npci.0.5.0.port.0.type=cd\npci.0.5.0.port.0.path=/a.iso\n\
         pci.0.5.0.port.0.ro=true\n{lines}"
    );
    BhyveConfig::try_from(text.parse::<Variables>().unwrap()).unwrap()
}

#[test]
fn the_one_disk_that_is_written_to_is_each_clones_own() {
    const SHARED: &str = "pci.0.2.0.device=virtio-blk\npci.0.2.0.path=/shared\npci.0.2.0.ro=true\n";
    const NAMED: &str = "pci.0.6.0.device=virtio-blk\npci.0.6.0.path=/vm/%(name)\n";
    const WRITTEN: &str = "pci.0.3.0.device=virtio-blk\npci.0.3.0.path=/base\n";
    const PORT: &str = "pci.0.5.0.port.1.type=hd\npci.0.5.0.port.1.path=/base\n";
    let one = with_disks(&[SHARED, NAMED, WRITTEN].concat());
    assert_eq!(one.own_disk(None).unwrap(), "pci.0.3.0");
    assert_eq!(one.device_of("pci.0.3.0").unwrap(), "virtio-blk@pci.0.3.0");
    let port = with_disks(&[SHARED, PORT].concat());
    assert_eq!(port.own_disk(None).unwrap(), "pci.0.5.0.port.1");
    assert_eq!(
        port.device_of("pci.0.5.0.port.1").unwrap(),
        "ahci@pci.0.5.0"
    );
    assert_eq!(port.disk_path("pci.0.5.0.port.1"), Some("/base"));

    let both = with_disks(&[WRITTEN, PORT].concat());
    let refusal = both.own_disk(None).unwrap_err();
    assert!(matches!(refusal, DeriveError::OwnDisks { .. }), "{refusal}");
    // What was sealed says which.
    for (sealed, key) in [
        ("virtio-blk@pci.0.3.0", "pci.0.3.0"),
        ("ahci@pci.0.5.0", "pci.0.5.0.port.1"),
    ] {
        assert_eq!(both.own_disk(Some(sealed)).unwrap(), key);
    }
    for sealed in ["virtio-blk@pci.0.2.0", "virtio-blk@pci.0.5.0", "nonsense"] {
        let refusal = both.own_disk(Some(sealed)).unwrap_err();
        assert!(
            matches!(refusal, DeriveError::NoSuchDisk { .. }),
            "{refusal}"
        );
    }
    let none = with_disks(&[SHARED, NAMED].concat());
    assert_eq!(none.own_disk(None), Err(DeriveError::NoOwnDisk));

    let back_ends = |path: &str| BackEnds {
        disk: Some(("pci.0.5.0.port.1".to_owned(), path.to_owned())),
        ..BackEnds::default()
    };
    let clone = port
        .derive(&identity(), &back_ends("/dev/zvol/tank/vm/a"))
        .unwrap();
    assert_eq!(
        clone.disk_path("pci.0.5.0.port.1"),
        Some("/dev/zvol/tank/vm/a")
    );
    assert_eq!(clone.disk_path("pci.0.2.0"), Some("/shared"));
    let refusal = port.derive(&identity(), &back_ends("/a%(b)")).unwrap_err();
    assert!(matches!(refusal, DeriveError::Percent { .. }), "{refusal}");
    // The other that is written to is still all clones'.
    let refusal = both.derive(&identity(), &back_ends("/a")).unwrap_err();
    assert!(matches!(refusal, DeriveError::SharedDisk { key, .. } if key == "pci.0.3.0.path"));
}

/// What is taken is what its text says, so that the configuration that was checked is the one that
/// bhyve gets.
#[test]
fn values_that_a_line_cannot_have_are_refused() {
    for value in [
        "a\nlpc.bootrom=/x",
        "a\r",
        "\0",
        "\u{1b}[2J",
        "\u{2028}",
        "",
    ] {
        let mut variables: Variables = cloneable().parse().unwrap();
        variables
            .0
            .insert("system.serial".to_owned(), value.to_owned());
        let refused = BhyveConfig::try_from(variables).expect_err(value);
        assert!(refused.to_string().contains("system.serial"), "{refused}");
    }
    // At the end of a file a carriage return is a part of the value.
    let refused = "system.serial=a\r".parse::<BhyveConfig>();
    assert!(refused.is_err(), "{refused:?}");
}
