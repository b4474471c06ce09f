//! Interfaces.

use std::{process::Stdio, thread};

use crate::lab::{Lab, until};

#[test]
fn interfaces_are_made_and_destroyed() {
    let lab = Lab::new();
    lab.run("ifconfig", &["tap0"])
        .refused(1, "ifconfig: interface tap0 does not exist\n");
    lab.run("ifconfig", &["tap0", "up"])
        .refused(1, "ifconfig: interface tap0 does not exist\n");
    assert_eq!(lab.run("ifconfig", &["tap0", "create"]).good(), "");
    assert_eq!(lab.run("ifconfig", &["tap", "create"]).good(), "tap1\n");
    lab.run("ifconfig", &["tap0", "create"])
        .refused(1, "ifconfig: SIOCIFCREATE2 (tap0): File exists\n");
    lab.run("ifconfig", &["wifi0", "create"])
        .refused(1, "ifconfig: SIOCIFCREATE2 (wifi0): Invalid argument\n");
    let options = [
        "tap2",
        "create",
        "mtu",
        "9000",
        "description",
        "a guest",
        "group",
        "vms",
        "up",
    ];
    assert_eq!(lab.run("ifconfig", &options).good(), "");
    let shown = lab.run("ifconfig", &["tap2"]).good();
    for part in [
        "<UP,",
        "mtu 9000",
        "description: a guest",
        "groups: tap vms",
    ] {
        assert!(shown.contains(part), "no {part} in {shown}");
    }
    assert_eq!(lab.run("ifconfig", &["-l"]).good(), "tap0 tap1 tap2\n");
    assert_eq!(lab.run("ifconfig", &["-g", "vms"]).good(), "tap2\n");
    lab.run("ifconfig", &["tap1", "destroy"]).good();
    assert_eq!(lab.run("ifconfig", &["tap", "create"]).good(), "tap1\n");
    lab.run("ifconfig", &["tap1", "mtu"])
        .refused(1, "ifconfig: 'mtu' requires argument\n");
    lab.run("ifconfig", &["tap1", "sideways"])
        .refused(1, "ifconfig: sideways: bad value\n");
}

#[test]
fn members_of_bridges() {
    let lab = Lab::new();
    for name in ["bridge0", "bridge1", "tap0", "tap1"] {
        lab.run("ifconfig", &[name, "create"]).good();
    }
    let refused = |arguments: &[&str], words: &str| {
        lab.run("ifconfig", arguments)
            .refused(1, &format!("ifconfig: {words}\n"));
    };
    lab.run(
        "ifconfig",
        &["bridge0", "addm", "tap0", "addm", "tap1", "up"],
    )
    .good();
    refused(&["bridge0", "addm", "tap0"], "BRDGADD tap0: File exists");
    refused(&["bridge1", "addm", "tap0"], "BRDGADD tap0: Device busy");
    refused(
        &["bridge1", "addm", "tap9"],
        "BRDGADD tap9: No such file or directory",
    );
    refused(
        &["bridge1", "addm", "bridge0"],
        "BRDGADD bridge0: Invalid argument",
    );
    refused(&["tap0", "addm", "tap1"], "BRDGADD tap1: Invalid argument");
    lab.run("ifconfig", &["bridge0", "deletem", "tap0"]).good();
    refused(
        &["bridge0", "deletem", "tap0"],
        "BRDGDEL tap0: No such file or directory",
    );
    lab.run("ifconfig", &["tap1", "name", "web1"]).good();
    assert!(
        lab.run("ifconfig", &["bridge0"])
            .good()
            .contains("member: web1 ")
    );
    lab.run("ifconfig", &["web1", "destroy"]).good();
    assert!(
        !lab.run("ifconfig", &["bridge0"]).good().contains("member"),
        "a member that goes leaves"
    );
}

#[test]
fn a_renamed_tap_keeps_its_device() {
    let lab = Lab::new();
    lab.run("ifconfig", &["tap0", "create", "name", "web0"])
        .good();
    lab.run("sysctl", &["net.link.tap.devfs_cloning=0"]).good();
    let by_name = lab.config(
        "a",
        &[
            "pci.0.4.0.device=virtio-net",
            "pci.0.4.0.type=tap",
            "pci.0.4.0.backend=web0",
        ],
    );
    lab.run("bhyve", &["-k", &by_name, "a"])
        .refused_with(4, "open of tap device /dev/web0 failed");
    let by_device = lab.config(
        "b",
        &["pci.0.4.0.device=virtio-net", "pci.0.4.0.backend=tap0"],
    );
    let mut guest = lab.start("b", &["-k", &by_device]);
    guest.ready();
}

#[test]
fn destroying_an_open_tap_waits_until_it_is_closed() {
    let lab = Lab::new();
    let config = lab.config(
        "vm",
        &["pci.0.4.0.device=virtio-net", "pci.0.4.0.backend=tap0"],
    );
    lab.run("ifconfig", &["tap0", "create"]).good();
    let mut guest = lab.start("vm", &["-k", &config]);
    guest.ready();
    let mut destroy = lab.command("ifconfig", &["tap0", "destroy"]);
    let mut destroy = destroy.stderr(Stdio::piped()).spawn().expect("ifconfig");
    // While it waits the tap cannot be opened or destroyed by anybody else.
    until("it to wait", || {
        let second = lab.run("bhyvectl", &["--vm=vm", "--get-stats"]);
        let dying = lab.run("kldstat", &["-q", "-m", "vmm"]).code == 0 && second.code == 0;
        let shown = std::fs::read_to_string(lab.world.path("net/tap0")).ok()?;
        (dying && shown.contains("\"dying\":true")).then_some(())
    });
    assert!(destroy.try_wait().expect("its state").is_none());
    let other = lab.config(
        "other",
        &["pci.0.4.0.device=virtio-net", "pci.0.4.0.backend=tap0"],
    );
    lab.run("bhyve", &["-k", &other, "other"])
        .refused_with(4, "Device emulation initialization error: Device busy\n");
    guest.tell("poweroff");
    assert_eq!(guest.end().code, 1);
    let waited = thread::spawn(move || destroy.wait().expect("its end"));
    assert!(waited.join().expect("a thread").success());
    lab.run("ifconfig", &["tap0"])
        .refused_with(1, "does not exist");
}
