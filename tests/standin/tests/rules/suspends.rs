//! Suspends: what they write, and when they fail.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::net::UnixStream,
};

use brood_core::{checkpoint::meta::Meta, units::Bytes};

use crate::lab::{Lab, until};

#[test]
fn brood_reads_the_description() {
    let lab = Lab::new();
    let file = lab.checkpoint();
    let path = lab.path("base.ckp.meta");
    let kern = fs::metadata(format!("{file}.kern")).expect("state").len();
    let meta = Meta::parse(&path, &fs::read(&path).expect("a description"), Bytes(kern));
    let meta = meta.expect("a description that brood reads");
    assert_eq!((meta.ncpus, meta.vmname.as_str()), (1, "base"));
    assert_eq!(
        meta.memsize,
        Bytes(fs::metadata(&file).expect("memory").len())
    );
    let names = |parts: &[brood_core::checkpoint::meta::Part]| {
        parts
            .iter()
            .map(|part| part.name.clone())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(
        names(&meta.structs),
        "vhpet vm vioapic vlapic vmcx vatpit vatpic vpmtmr vrtc"
    );
    assert_eq!(
        names(&meta.devices),
        "hostbridge@pci.0.0.0 lpc@pci.0.31.0 atkbdc"
    );
    let end = meta
        .devices
        .last()
        .map(|part| part.file_offset + part.size.0);
    assert_eq!(end, Some(kern), "the parts fill the file");
}

/// Structures, devices, lengths, offsets and their order are those of the bhyve that ran.
#[test]
fn the_description_is_the_one_that_bhyve_wrote() {
    const REAL: &str = include_str!("../../../fixtures/checkpoint/freebsd-14.2.meta");
    let lab = Lab::new();
    let file = lab.checkpoint();
    let text = fs::read_to_string(format!("{file}.meta")).expect("a description");
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
    let (ours, real) = (parse(&text), parse(REAL));
    assert_eq!(ours["kern_structs"], real["kern_structs"]);
    assert_eq!(ours["devices"], real["devices"]);
    for name in ["", ".kern", ".meta"] {
        let meta = fs::metadata(format!("{file}{name}")).expect("a file");
        let mode = std::os::unix::fs::PermissionsExt::mode(&meta.permissions());
        assert_eq!(mode & 0o777, 0o700, "{file}{name}");
    }
}

#[test]
fn progress_comes_at_the_end_and_after_the_reason() {
    let lab = Lab::new();
    let file = lab.checkpoint();
    let config = lab.config("vm", &["pci.0.9.0.device=virtio-rnd"]);
    let log = File::create(lab.path("log")).expect("a log");
    let status = lab
        .command("bhyve", &["-k", &config, "-r", &file, "clone"])
        .stdout(log.try_clone().expect("the same file"))
        .stderr(log)
        .status()
        .expect("bhyve");
    assert_eq!(status.code(), Some(1));
    let log = fs::read_to_string(lab.path("log")).expect("a log");
    let lines: Vec<&str> = log
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    assert_eq!(
        lines,
        [
            "Failed to lookup dev: virtio-rnd@pci.0.9.0",
            "Failed to restore PCI device state.",
            "Pausing pci devs...",
            "Restoring vm mem...",
            "Restoring pci devs...",
        ]
    );
}

#[test]
fn a_device_that_cannot_be_saved_keeps_the_guest_from_being_suspended() {
    let lab = Lab::new();
    let config = lab.config("vm", &["pci.0.6.0.device=virtio-console"]);
    let mut guest = lab.start("vm", &["-k", &config]);
    guest.ready();
    lab.run("bhyvectl", &["--vm=vm", "--suspend", &lab.text("x.ckp")])
        .good();
    until("its attempt", || fs::metadata(lab.path("x.ckp.meta")).ok());
    guest.ask("ping");
    guest.tell("poweroff");
    let ended = guest.end();
    assert_eq!(ended.code, 1);
    let words = "Failed to snapshot virtio-console@pci.0.6.0; ret=45\r\n\
                 Failed to snapshot device state.\n";
    assert_eq!(ended.err, words);
}

/// Seen with bhyve 14.2: the ports hold addresses that the guest's driver sets; until then the
/// suspend fails, the guest goes on, and the description is cut off after the host bridge.
#[test]
fn ahci_is_saved_only_after_a_driver_has_programmed_it() {
    let lab = Lab::new();
    let disk = lab.text("disk");
    fs::write(&disk, [0; 4096]).expect("a disk");
    let ahci = [
        "pci.0.4.0.device=ahci",
        "pci.0.4.0.port.0.type=hd",
        &format!("pci.0.4.0.port.0.path={disk}"),
    ];
    let config = lab.config("vm", &ahci);
    let mut guest = lab.start("vm", &["-k", &config]);
    guest.ready();
    let file = lab.text("x.ckp");
    let suspend = || {
        lab.run("bhyvectl", &["--vm=vm", "--suspend", &file]).good();
    };
    suspend();
    let meta = || fs::read_to_string(format!("{file}.meta")).unwrap_or_default();
    until("what it writes", || (!meta().is_empty()).then_some(()));
    guest.ask("ping");
    assert!(meta().ends_with("\"size\": 452\n    }"), "{}", meta());
    let length = |name: &str| fs::metadata(format!("{file}{name}")).expect("a file").len();
    assert_eq!((length(""), length(".kern")), (1 << 20, 6811));
    guest.ask("drive");
    suspend();
    let ended = guest.end();
    assert_eq!(ended.code, 0);
    let words = "pci_ahci_snapshot: invalid address: port->cmd_lst\r\n\
                 Failed to snapshot ahci@pci.0.4.0; ret=14\r\n\
                 Failed to snapshot device state.\n";
    assert_eq!(ended.err, words);
    // A clone's driver is the one that was saved.
    let mut clone = lab.restore("clone", &file, &ahci);
    clone.ready();
    lab.run("bhyvectl", &["--vm=clone", "--suspend", &lab.text("y.ckp")])
        .good();
    assert_eq!(clone.end().code, 0);
}

#[test]
fn what_is_not_a_request_is_passed_over() {
    let lab = Lab::new();
    let mut guest = lab.boot("vm");
    let mut socket = UnixStream::connect(lab.world.path("var/run/bhyve/vm")).expect("its socket");
    socket
        .write_all(b"not an nvlist, but long enough for a header")
        .expect("words");
    drop(socket);
    guest.ask("ping");
    lab.run("bhyvectl", &["--vm=vm", "--suspend", &lab.text("x.ckp")])
        .good();
    let ended = guest.end();
    assert_eq!(ended.code, 0);
    assert!(ended.err.contains("nvlist_recv() failed: "), "{ended:?}");
}

#[test]
fn requests_wait_for_one_another() {
    let lab = Lab::new();
    let mut guest = lab.boot("vm");
    guest.ask("ping");
    for n in 0..4 {
        lab.run(
            "bhyvectl",
            &["--vm=vm", "--checkpoint", &lab.text(&format!("{n}.ckp"))],
        )
        .good();
    }
    lab.run("bhyvectl", &["--vm=vm", "--suspend", &lab.text("last.ckp")])
        .good();
    assert_eq!(guest.end().code, 0);
    for n in ["0", "1", "2", "3", "last"] {
        let mut clone = lab.restore("clone", &lab.text(&format!("{n}.ckp")), &[]);
        clone.ready();
        clone.tell("poweroff");
        clone.end();
        lab.run("bhyvectl", &["--vm=clone", "--destroy"]).good();
    }
}
