//! Fault points: each fails where it says, in each way, and leaves what the real step would have
//! left.

use std::{collections::BTreeSet, fs};

use nix::sys::signal::Signal;

use crate::lab::{Lab, until};

/// Points of a restore before there is a VM, after which there is one, and of the running guest.
const BEFORE: [&str; 3] = ["restore.options", "restore.load", "restore.create"];
const AFTER: [&str; 13] = [
    "restore.created",
    "restore.memory",
    "restore.attached",
    "restore.devices",
    "restore.tap",
    "restore.disk",
    "restore.console",
    "restore.vcpus",
    "restore.contents",
    "restore.device-state",
    "restore.kern",
    "restore.socket",
    "restore.run",
];
const RUNNING: [&str; 2] = ["guest.ready", "guest.answer"];
const SUSPEND: [&str; 8] = [
    "suspend.received",
    "suspend.files",
    "suspend.paused",
    "suspend.halfway",
    "suspend.memory",
    "suspend.kern",
    "suspend.meta",
    "suspend.complete",
];
const OTHERS: [&str; 21] = [
    "suspend.connect",
    "suspend.sent",
    "suspend.destroyed",
    "bhyvectl.opened",
    "bhyvectl.destroyed",
    "ifconfig.create",
    "ifconfig.created",
    "ifconfig.addm",
    "ifconfig.destroy",
    "rctl.add",
    "rctl.added",
    "zfs.snapshot",
    "zfs.snapshotted",
    "zfs.clone",
    "zfs.cloned",
    "zfs.destroy",
    "zfs.destroyed",
    "zfs.hold",
    "zfs.held",
    "zfs.release",
    "zfs.released",
];

/// A guest with one of each kind of back end.
const DEVICES: [&str; 4] = [
    "pci.0.4.0.device=virtio-net",
    "pci.0.4.0.backend=tap1",
    "pci.0.3.0.device=virtio-blk",
    "snapshot.vnode_restore=true",
];

fn lines(lab: &Lab) -> Vec<String> {
    fs::write(lab.path("disk"), "data").expect("a disk");
    let mut lines: Vec<String> = DEVICES.map(str::to_owned).into();
    lines.push(format!("pci.0.3.0.path={}", lab.text("disk")));
    lines
}

fn checkpoint(lab: &Lab) -> (String, String) {
    let lines = lines(lab);
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let config = lab.config("vm", &lines);
    let mut guest = lab.start("vm", &["-k", &config]);
    guest.ready();
    let file = lab.text("vm.ckp");
    lab.run("bhyvectl", &["--vm=vm", "--suspend", &file]).good();
    assert_eq!(guest.end().code, 0);
    lab.run("bhyvectl", &["--vm=vm", "--destroy"]).good();
    (config, file)
}

#[test]
fn the_list_is_whole() {
    let lab = Lab::new();
    let listed = lab.run("standin", &["points"]).good();
    let listed: BTreeSet<&str> = listed
        .lines()
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    let tested = [&BEFORE[..], &AFTER, &RUNNING, &SUSPEND, &OTHERS].concat();
    let tested: BTreeSet<&str> = tested.into_iter().collect();
    assert_eq!(listed, tested);
    lab.run_failing("restore.nowhere", "bhyve", &["vm"])
        .refused_with(
            70,
            "\"restore.nowhere\" is not point[:nth][:kill|error|hang|slow]",
        );
    lab.run_failing("restore.run:soon", "bhyve", &["vm"])
        .refused_with(70, "is not point");
}

#[test]
fn a_restore_can_fail_or_be_killed_at_each_step() {
    let lab = Lab::new();
    let (config, file) = checkpoint(&lab);
    for point in [&BEFORE[..], &AFTER].concat() {
        for (action, killed) in [("error", false), ("kill", true)] {
            let fault = format!("{point}:{action}");
            let guest = lab.start_failing(Some(&fault), "vm", &["-k", &config, "-r", &file]);
            let ended = guest.end();
            if killed {
                assert_eq!(ended.code, -9, "{fault}: {ended:?}");
            } else {
                assert!(
                    ended.code > 0 && !ended.err.is_empty(),
                    "{fault}: {ended:?}"
                );
            }
            let left = !BEFORE.contains(&point);
            assert_eq!(lab.vm_exists("vm"), left, "{fault}");
            if left {
                lab.run("bhyvectl", &["--vm=vm", "--destroy"]).good();
            }
        }
    }
    let mut guest = lab.start("vm", &["-k", &config, "-r", &file]);
    guest.ready();
}

#[test]
fn a_running_guest_can_fail() {
    let lab = Lab::new();
    for (n, point) in RUNNING.iter().enumerate() {
        let name = format!("vm{n}");
        let config = lab.config(&name, &[]);
        let mut guest = lab.start_failing(Some(point), &name, &["-k", &config]);
        if *point == "guest.answer" {
            guest.ready();
            guest.tell("ping");
        }
        guest.end().refused(4, "vm_run error -1, errno 5\n");
    }
}

#[test]
fn a_suspend_can_fail_at_each_step_and_the_guest_goes_on() {
    let lab = Lab::new();
    for (n, point) in SUSPEND.iter().enumerate() {
        let name = format!("s{n}");
        let config = lab.config(&name, &[]);
        let fault = format!("{point}:1");
        let mut guest = lab.start_failing(Some(&fault), &name, &["-k", &config]);
        guest.ready();
        let vm = format!("--vm={name}");
        let file = lab.text(&format!("{name}.ckp"));
        lab.run("bhyvectl", &[&vm, "--suspend", &file]).good();
        // Requests are dealt with in order: when the next one is done, this one has failed.
        let next = lab.text(&format!("{name}-next.ckp"));
        lab.run("bhyvectl", &[&vm, "--checkpoint", &next]).good();
        until("the next checkpoint", || {
            let text = fs::read(format!("{next}.meta")).ok()?;
            serde_json::from_slice::<serde_json::Value>(&text).ok()
        });
        assert!(lab.vm_exists(&name), "{point}");
        guest.ask("ping");
        lab.run("bhyvectl", &[&format!("--vm={name}"), "--force-poweroff"])
            .good();
        let ended = guest.end();
        assert_eq!(ended.code, 1, "{point}: {ended:?}");
        assert!(!ended.err.is_empty(), "{point}");
        lab.run("bhyvectl", &[&format!("--vm={name}"), "--destroy"])
            .good();
    }
}

#[test]
fn a_suspend_that_is_killed_leaves_the_vm_and_half_a_checkpoint() {
    let lab = Lab::new();
    let length = |name: &str| fs::metadata(lab.path(name)).map_or(u64::MAX, |meta| meta.len());
    for (n, point) in SUSPEND.iter().enumerate() {
        let name = format!("k{n}");
        let config = lab.config(&name, &[]);
        let fault = format!("{point}:kill");
        let mut guest = lab.start_failing(Some(&fault), &name, &["-k", &config]);
        guest.ready();
        let file = lab.text(&format!("{name}.ckp"));
        lab.run("bhyvectl", &[&format!("--vm={name}"), "--suspend", &file])
            .good();
        assert_eq!(guest.end().code, -9, "{point}");
        assert!(lab.vm_exists(&name), "{point}");
        let meta = length(&format!("{name}.ckp.meta"));
        match *point {
            "suspend.received" => assert_eq!(meta, u64::MAX),
            "suspend.complete" => assert!(meta > 0 && meta < u64::MAX),
            _ => assert_eq!(meta, 0, "{point}"),
        }
        lab.run("bhyvectl", &[&format!("--vm={name}"), "--destroy"])
            .good();
    }
}

#[test]
fn the_rest_of_a_suspend_and_a_destroy() {
    let lab = Lab::new();
    let config = lab.config("vm", &[]);
    let mut guest = lab.start_failing(Some("suspend.destroyed:kill"), "vm", &["-k", &config]);
    guest.ready();
    let file = lab.text("vm.ckp");
    let suspend = ["--vm=vm", "--suspend", &file];
    lab.run_failing("suspend.connect", "bhyvectl", &suspend)
        .refused(61, "connect() failed: Connection refused\n");
    lab.run_failing("bhyvectl.opened:kill", "bhyvectl", &suspend)
        .refused(-9, "");
    assert!(!lab.path("vm.ckp").exists(), "neither reached the guest");
    lab.run_failing("suspend.sent:kill", "bhyvectl", &suspend)
        .refused(-9, "");
    assert_eq!(guest.end().code, -9, "killed when all was done");
    assert!(lab.vm_exists("vm"), "capability mode keeps bhyve from it");
    let mut clone = lab.restore("clone", &file, &[]);
    clone.ready();
    lab.run_failing(
        "bhyvectl.destroyed:kill",
        "bhyvectl",
        &["--vm=clone", "--destroy"],
    )
    .refused(-9, "");
    assert!(!lab.vm_exists("clone"));
}

#[test]
fn interfaces_can_fail() {
    let lab = Lab::new();
    lab.run_failing("ifconfig.create", "ifconfig", &["tap0", "create"])
        .refused_with(1, "ifconfig: ");
    lab.run("ifconfig", &["tap0"])
        .refused_with(1, "does not exist");
    lab.run_failing("ifconfig.created:kill", "ifconfig", &["tap", "create"])
        .refused(-9, "");
    lab.run("ifconfig", &["tap0"]).good();
    lab.run("ifconfig", &["bridge0", "create"]).good();
    lab.run_failing(
        "ifconfig.addm:kill",
        "ifconfig",
        &["bridge0", "addm", "tap0"],
    )
    .refused(-9, "");
    assert!(!lab.run("ifconfig", &["bridge0"]).good().contains("member"));
    lab.run_failing("ifconfig.destroy:kill", "ifconfig", &["tap0", "destroy"])
        .refused(-9, "");
    lab.run("ifconfig", &["tap0"]).good();
}

#[test]
fn a_step_can_hang_and_be_killed() {
    let lab = Lab::new();
    let (config, file) = checkpoint(&lab);
    let arguments = ["-k", &config, "-r", &file];
    let guest = lab.start_failing(Some("restore.contents:hang"), "vm", &arguments);
    until("the VM", || lab.vm_exists("vm").then_some(()));
    guest.signal(Signal::SIGKILL);
    assert_eq!(guest.end().code, -9);
}

#[test]
fn the_nth_passage_is_counted_across_processes() {
    let lab = Lab::new();
    let create = |name: &str| {
        lab.run_failing("ifconfig.create:3", "ifconfig", &[name, "create"])
            .code
    };
    let codes: Vec<i32> = ["tap0", "tap1", "tap2", "tap3"].map(create).into();
    assert_eq!(codes, [0, 0, 1, 0]);
}
