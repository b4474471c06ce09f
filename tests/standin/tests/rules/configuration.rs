//! Command lines, configuration files, names and limits of VMs.

use brood_standin::Release;

use crate::lab::{Lab, until};

#[test]
fn options_that_bhyve_has_not() {
    let lab = Lab::new();
    lab.run("bhyve", &["-Z", "vm"])
        .refused_with(1, "bhyve: illegal option -- Z\n");
    lab.run("bhyve", &["-M", "vm"])
        .refused_with(1, "bhyve: illegal option -- M\n");
    lab.run("bhyve", &["-k"])
        .refused_with(1, "bhyve: option requires an argument -- k\n");
    lab.run("bhyve", &["one", "two"])
        .refused_with(1, "Usage: bhyve");
    lab.run("bhyve", &[]).refused_with(1, "Usage: bhyve");
    lab.run("bhyve", &["-h"]).refused_with(0, "Usage: bhyve");
    lab.run("bhyve", &["-o", "nothing", "vm"])
        .refused(64, "bhyve: invalid configuration option 'nothing'\n");
    lab.run("bhyve", &["-m", "lots", "vm"])
        .refused(64, "bhyve: invalid memsize 'lots'\n");
    lab.run("bhyve", &["-s", "40,lpc", "vm"])
        .refused(4, "Invalid PCI slot info field \"40,lpc\"\n");
    lab.run("bhyve", &["-s", "1,floppy", "vm"])
        .refused(4, "pci slot 0:1:0: unknown device \"floppy\"\n");
    lab.run("bhyve", &["-s", "1,lpc", "-s", "1,lpc", "vm"])
        .refused(4, "pci slot 0:1:0 already occupied!\n");
    lab.run("bhyve", &["-c", "2,cores=3", "vm"])
        .refused_with(4, "does not match 2 vCPUs");
    assert!(!lab.vm_exists("vm"));
}

#[test]
fn options_become_variables() {
    let lab = Lab::new();
    let arguments = [
        "-AHP",
        "-m",
        "2G",
        "-s",
        "0,hostbridge",
        "-s",
        "4:1,virtio-net,tap3,mac=02:00:00:00:00:01",
        "-s",
        "5,virtio-blk,/d.img,ro",
        "-l",
        "com1,/dev/nmdm0A",
        "-oconfig.dump=true",
        "-o",
        "uuid=1",
        "-o",
        "uuid=%(name)",
        "vm",
    ];
    let dump = lab.run("bhyve", &arguments);
    assert_eq!(dump.code, 1, "{dump:?}");
    for line in [
        "acpi_tables=true",
        "x86.vmexit_on_hlt=true",
        "x86.vmexit_on_pause=true",
        "memory.size=2G",
        "pci.0.0.0.device=hostbridge",
        "pci.0.4.1.device=virtio-net",
        "pci.0.4.1.backend=tap3",
        "pci.0.4.1.mac=02:00:00:00:00:01",
        "pci.0.5.0.path=/d.img",
        "pci.0.5.0.ro=true",
        "lpc.com1.path=/dev/nmdm0A",
        "uuid=%(name)",
        "name=vm",
    ] {
        assert!(
            dump.out.lines().any(|other| other == line),
            "no {line} in {}",
            dump.out
        );
    }
}

#[test]
fn configuration_files() {
    let lab = Lab::new();
    lab.run("bhyve", &["-k", "/no/such", "vm"]).refused(
        4,
        "bhyve: Failed to open configuration file /no/such: No such file or directory\n",
    );
    let bad = |text: &str| {
        std::fs::write(lab.path("bad"), text).expect("a file");
        lab.run("bhyve", &["-k", &lab.text("bad"), "vm"])
    };
    let path = lab.text("bad");
    bad("# a comment\n\nname\n").refused(
        4,
        &format!("bhyve: {path} line 3: invalid config option 'name'\n"),
    );
    bad("name=\n").refused(
        4,
        &format!("bhyve: {path} line 1: invalid config option 'name='\n"),
    );
    bad("a.b=1\na=2\n").refused(4, "bhyve: Attempting to add value 2 to existing node a\n");
    bad("a=1\na.b=2\n").refused(
        4,
        "bhyve: Configuration node a is a child of existing variable a\n\
         bhyve: Failed to create configuration node a\n",
    );
    bad("memory.wired=perhaps\nbootrom=rom\n")
        .refused_with(4, "Invalid value perhaps for boolean variable memory.wired");
}

#[test]
fn a_vm_needs_a_boot_rom_or_somebody_who_created_it() {
    let lab = Lab::new();
    lab.run("bhyve", &["vm"])
        .refused(4, "bhyve: no bootrom was configured\n");
    lab.run("bhyvectl", &["--create", "--vm=vm"]).good();
    assert!(lab.vm_exists("vm"));
    let mut guest = lab.start(
        "vm",
        &["-s", "31,lpc", "-l", "com1,/dev/nmdm-vm-A", "-m", "1M"],
    );
    guest.ready();

    lab.run("bhyve", &["-o", "bootrom=/no/rom", "-m", "1M", "other"])
        .refused_with(
            4,
            "Error opening bootrom \"/no/rom\": No such file or directory\n",
        );
    assert!(lab.vm_exists("other"), "it had been created by then");
    for length in [0, 100, 16 * 1024 * 1024 + 4096] {
        std::fs::write(lab.path("rom"), vec![0; length]).expect("a boot ROM");
        let config = lab.config("third", &[]);
        lab.run("bhyve", &["-k", &config, "third"])
            .refused_with(4, &format!("Invalid bootrom size {length}\n"));
    }
}

#[test]
fn without_a_folder_for_sockets() {
    let lab = Lab::new();
    std::fs::remove_dir(lab.world.path("var/run/bhyve")).expect("a folder");
    let config = lab.config("vm", &[]);
    lab.run("bhyve", &["-k", &config, "vm"]).refused(
        71,
        "Failed to bind socket \"/var/run/bhyve/vm\": No such file or directory\n\n\
         bhyve: Failed to start checkpoint thread\n",
    );
    assert!(lab.vm_exists("vm"));
}

#[test]
fn names_of_vms() {
    let lab = Lab::new();
    let longest = "n".repeat(229);
    lab.run("bhyvectl", &["--create", &format!("--vm={longest}")])
        .good();
    let longer = "n".repeat(230);
    lab.run("bhyvectl", &["--create", &format!("--vm={longer}")])
        .refused(
            1,
            &format!("vm_open: {longer} could not be opened: File name too long\n"),
        );
    lab.run("bhyvectl", &["--create", "--vm=a/b"])
        .refused(1, "vm_open: a/b could not be opened: Invalid argument\n");
}

#[test]
fn a_long_name_is_cut_off_in_its_socket() {
    let lab = Lab::new();
    let name = "n".repeat(100);
    let config = lab.config("long", &[]);
    let mut arguments = vec!["-k", &config];
    let console = format!("lpc.com1.path=/dev/nmdm-{name}-A");
    arguments.extend(["-o", &console]);
    let mut guest = lab.start(&name, &arguments);
    guest.ready();
    assert!(lab.world.path("var/run/bhyve").join(&name[..88]).exists());
    let file = lab.text("x.ckp");
    lab.run(
        "bhyvectl",
        &[&format!("--vm={name}"), &format!("--suspend={file}")],
    )
    .good();
    assert_eq!(guest.end().code, 0);
}

#[test]
fn a_vm_that_runs_cannot_be_taken_by_another_bhyve() {
    let lab = Lab::new();
    let mut guest = lab.boot("vm");
    lab.run("bhyve", &["-k", &lab.text("vm.conf"), "vm"])
        .refused(4, "bhyve: vm_openf: Device busy\n");
    guest.ask("ping");
}

#[test]
fn no_more_vms_than_maxvmms() {
    let lab = Lab::new();
    lab.world.set_release(Release::FifteenOne).expect("a world");
    assert_eq!(lab.run("sysctl", &["-n", "hw.vmm.maxvmms"]).good(), "8\n");
    for n in 0..8 {
        lab.run("bhyvectl", &["--create", &format!("--vm=vm{n}")])
            .good();
    }
    let config = lab.config("ninth", &[]);
    lab.run("bhyve", &["-k", &config, "ninth"])
        .refused(4, "bhyve: vm_openf: Cannot allocate memory\n");
    assert!(!lab.vm_exists("ninth"));
    lab.run("bhyvectl", &["--destroy", "--vm=vm3"]).good();
    let mut guest = lab.start("ninth", &["-k", &config]);
    guest.ready();
}

/// FreeBSD 15.0 counts no VMs.
#[test]
fn nothing_limits_the_vms_of_15_0() {
    let lab = Lab::new();
    for n in 0..9 {
        lab.run("bhyvectl", &["--create", &format!("--vm=vm{n}")])
            .good();
    }
}

#[test]
fn without_vmm_there_are_no_vms() {
    let lab = Lab::new();
    std::fs::remove_file(lab.world.path("dev/vmmctl")).expect("a device");
    lab.run("bhyve", &["-k", &lab.config("vm", &[]), "vm"])
        .refused(4, "bhyve: vm_openf: No such file or directory\n");
}

#[test]
fn memory_of_another_length_than_before() {
    let lab = Lab::new();
    let mut guest = lab.boot("vm");
    guest.tell("poweroff");
    assert_eq!(guest.end().code, 1);
    let config = lab.text("vm.conf");
    lab.run("bhyve", &["-k", &config, "-m", "2M", "vm"])
        .refused(4, "Unable to setup memory (22)\n");
    lab.run("bhyve", &["-k", &config, "-c", "3", "-m", "1M", "vm"])
        .refused(4, "3 vCPUs requested but only 2 available\n");
}

#[test]
fn what_bhyvectl_refuses() {
    let lab = Lab::new();
    lab.run("bhyvectl", &["--destroy"])
        .refused_with(1, "Usage: bhyvectl");
    lab.run("bhyvectl", &["--vm=vm", "--eject"])
        .refused_with(1, "bhyvectl: unrecognized option `--eject'\n");
    lab.run("bhyvectl", &["--vm"])
        .refused_with(1, "bhyvectl: option `--vm' requires an argument\n");
    lab.run("bhyvectl", &["--vm=vm", "--destroy"]).refused(
        1,
        "vm_open: vm could not be opened: No such file or directory\n",
    );
    lab.run("bhyvectl", &["--create", "--vm=vm"]).good();
    lab.run("bhyvectl", &["--vm=vm", "--suspend=/a", "--checkpoint=/b"])
        .refused_with(1, "Usage: bhyvectl");
    lab.run("bhyvectl", &["--vm=vm", "--suspend=/proc/version/file"])
        .refused(20, "");
    lab.run("bhyvectl", &["--vm=vm", "--suspend=/no/such/file"])
        .refused(2, "");
    lab.run(
        "bhyvectl",
        &["--vm=vm", &format!("--suspend={}", lab.text("x"))],
    )
    .refused(2, "connect() failed: No such file or directory\n");
}

#[test]
fn statistics_count_what_the_guest_wrote() {
    let lab = Lab::new();
    let file = lab.checkpoint();
    let mut guest = lab.restore("vm", &file, &["snapshot.vnode_restore=true"]);
    guest.ready();
    let resident = || {
        let stats = lab.run("bhyvectl", &["--vm=vm", "--get-stats"]).good();
        let line = stats
            .lines()
            .find(|line| line.starts_with("Resident memory"))
            .map(str::to_owned);
        let value = line
            .expect("the line")
            .split_whitespace()
            .last()
            .map(str::parse::<u64>);
        value.expect("a value").expect("a number")
    };
    assert_eq!(resident(), 0);
    assert_eq!(guest.ask("dirty 10"), "dirty 10");
    assert_eq!(resident(), 10 * 4096);
    assert_eq!(guest.ask("private"), "private 10");
    let list = lab.run("sysctl", &["-n", "hw.vmm.vnode.list"]).good();
    assert!(
        list.starts_with("vm segid=0 offset=0 pages=256 private_resident=10 "),
        "{list}"
    );
    guest.tell("poweroff");
    guest.end();
    // The segment lives as long as the VM.
    assert_eq!(
        lab.run("sysctl", &["-n", "hw.vmm.vnode.segments"]).good(),
        "1\n"
    );
    lab.run("bhyvectl", &["--vm=vm", "--destroy"]).good();
    until("the segment's end", || {
        (lab.run("sysctl", &["-n", "hw.vmm.vnode.segments"]).good() == "0\n").then_some(())
    });
}
