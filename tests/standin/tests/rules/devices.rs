//! Needs of devices from the host.

use std::net::TcpListener;

use crate::lab::{Lab, until};

fn initialization(words: &str, error: &str) -> String {
    format!("{words}\nDevice emulation initialization error: {error}\n")
}

#[test]
fn taps_that_are_missing_or_in_use() {
    let lab = Lab::new();
    let net = ["pci.0.4.0.device=virtio-net", "pci.0.4.0.backend=tap3"];
    let first = lab.config("first", &net);
    lab.run("sysctl", &["net.link.tap.devfs_cloning=0"]).good();
    lab.run("bhyve", &["-k", &first, "first"]).refused(
        4,
        &initialization(
            "open of tap device /dev/tap3 failed",
            "No such file or directory",
        ),
    );
    assert!(lab.vm_exists("first"), "the VM had been created");

    lab.run("ifconfig", &["tap3", "create"]).good();
    let mut guest = lab.start("first", &["-k", &first]);
    guest.ready();
    assert!(
        lab.run("ifconfig", &["tap3"])
            .good()
            .contains("status: active")
    );
    let second = lab.config("second", &net);
    lab.run("bhyve", &["-k", &second, "second"]).refused(
        4,
        &initialization("open of tap device /dev/tap3 failed", "Device busy"),
    );
}

#[test]
fn a_missing_tap_is_made_while_cloning_is_on() {
    let lab = Lab::new();
    let config = lab.config(
        "vm",
        &["pci.0.4.0.device=virtio-net", "pci.0.4.0.backend=tap5"],
    );
    let mut guest = lab.start("vm", &["-k", &config]);
    guest.ready();
    assert!(
        lab.run("ifconfig", &["tap5"]).good().contains("<UP,"),
        "in no bridge, but there and up"
    );
}

#[test]
fn backends_and_addresses_that_are_none() {
    let lab = Lab::new();
    let refused = |name: &str, lines: &[&str]| {
        let config = lab.config(name, lines);
        lab.run("bhyve", &["-k", &config, name])
    };
    refused(
        "a",
        &["pci.0.4.0.device=virtio-net", "pci.0.4.0.backend=string0"],
    )
    .refused(
        4,
        "Device emulation initialization error: Invalid argument\n",
    );
    refused(
        "b",
        &[
            "pci.0.4.0.device=virtio-net",
            "pci.0.4.0.mac=01:00:00:00:00:01",
        ],
    )
    .refused(
        4,
        &initialization("Invalid MAC 01:00:00:00:00:01", "Invalid argument"),
    );
    refused("c", &["pci.0.5.0.path=/x"]).refused(
        4,
        &initialization(
            "pci slot 0:5:0: missing \"device\" value",
            "Invalid argument",
        ),
    );
    refused("d", &["pci.0.5.0.device=ahci-hd"]).refused(
        4,
        &initialization(
            "pci slot 0:5:0: legacy device \"ahci-hd\", use \"ahci\" instead",
            "Invalid argument",
        ),
    );
    refused("f", &["pci.1.0.0.device=lpc"]).refused_with(4, "Only one LPC bridge is allowed.");
    lab.run(
        "bhyve",
        &[
            "-m",
            "1M",
            "-l",
            &format!("bootrom,{}", lab.text("rom")),
            "-s",
            "1:0:0,lpc",
            "g",
        ],
    )
    .refused_with(4, "LPC bridge can be present only on bus 0.");
    refused("e", &["pci.0.30.0.device=lpc"]).refused_with(4, "Only one LPC bridge is allowed.");
}

#[test]
fn disks() {
    let lab = Lab::new();
    let blk = |path: &str| {
        lab.config(
            "vm",
            &[
                "pci.0.3.0.device=virtio-blk",
                &format!("pci.0.3.0.path={path}"),
            ],
        )
    };
    lab.run("bhyve", &["-k", &blk("/no/disk"), "vm"]).refused(
        4,
        "bhyve: Could not open backing file: /no/disk: No such file or directory\n\
         Could not open backing file: No such file or directory\n\
         Device emulation initialization error: No such file or directory\n",
    );
    let config = lab.config("bare", &["pci.0.3.0.device=virtio-blk"]);
    lab.run("bhyve", &["-k", &config, "bare"])
        .refused_with(4, "Missing \"path\" for block device.");
    // Two VMs may have one disk: nothing keeps them from it.
    std::fs::write(lab.path("disk"), "data").expect("a disk");
    let config = blk(&lab.text("disk"));
    let mut one = lab.start("vm", &["-k", &config]);
    one.ready();
    let other = lab.config(
        "other",
        &[
            "pci.0.3.0.device=virtio-blk",
            &format!("pci.0.3.0.path={}", lab.text("disk")),
        ],
    );
    let mut two = lab.start("other", &["-k", &other]);
    two.ready();
}

#[test]
fn consoles_in_use() {
    let lab = Lab::new();
    let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = holder.local_addr().expect("its address").port();
    let backend = format!("tcp=127.0.0.1:{port}");
    let config = lab.config("vm", &[]);
    let console = format!("lpc.com1.path={backend}");
    lab.run("bhyve", &["-k", &config, "-o", &console, "vm"])
        .refused(
            4,
            &format!(
                "bhyve: bind(127.0.0.1:{port}): Address already in use\n\
             Unable to initialize backend '{backend}' for LPC device com1\n\
             Device emulation initialization error: Address already in use\n"
            ),
        );
    let mut guest = lab.boot("one");
    guest.ask("ping");
    let config = lab.config("two", &["lpc.com1.path=/dev/nmdm-one-A"]);
    lab.run("bhyve", &["-k", &config, "two"]).refused_with(
        4,
        "Unable to initialize backend '/dev/nmdm-one-A' for LPC device com1\n",
    );
    let config = lab.config("three", &["lpc.com1.path=/dev/ttyu9"]);
    lab.run("bhyve", &["-k", &config, "three"])
        .refused_with(4, "Unable to initialize backend '/dev/ttyu9'");
    lab.world.set_loaded(&["kernel", "vmm"]).expect("modules");
    let config = lab.config("four", &[]);
    lab.run("bhyve", &["-k", &config, "four"])
        .refused_with(4, "Unable to initialize backend '/dev/nmdm-four-A'");
}

#[test]
fn a_tcp_console_has_one_peer() {
    use std::io::{BufRead, BufReader, Read, Write};
    let lab = Lab::new();
    // A port that was free a moment ago; another process may take it, then this is tried again.
    let (guest, port) = until("a free port", || {
        let free = TcpListener::bind("127.0.0.1:0")
            .ok()?
            .local_addr()
            .ok()?
            .port();
        let config = lab.config("vm", &[&format!("lpc.com1.path=tcp=127.0.0.1:{free}")]);
        let guest = lab.start("vm", &["-k", &config]);
        let socket = lab.world.path("var/run/bhyve/vm");
        until("its socket", || socket.exists().then_some(()));
        Some((guest, free))
    });
    let connect = || std::net::TcpStream::connect(("127.0.0.1", port)).expect("a console");
    let mut first = connect();
    first.write_all(b"ping\n").expect("a line");
    let mut reader = BufReader::new(first.try_clone().expect("a copy"));
    let mut line = String::new();
    // Words of the guest from before the listener came may be lost.
    while !line.starts_with("pong") {
        line.clear();
        reader.read_line(&mut line).expect("a line");
    }
    let mut second = connect();
    let mut text = String::new();
    second.read_to_string(&mut text).expect("an answer");
    assert_eq!(text, "Socket already connected\n\0");
    drop(guest);
}
