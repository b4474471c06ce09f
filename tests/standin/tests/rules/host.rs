//! Values and modules of the kernel, and the binary itself.

use std::process::Command;

use crate::lab::Lab;

#[test]
fn values() {
    let lab = Lab::new();
    assert_eq!(
        lab.run("sysctl", &["hw.vmm.maxvmms"]).good(),
        "hw.vmm.maxvmms: 8\n"
    );
    assert_eq!(
        lab.run("sysctl", &["-e", "hw.vmm.maxvmms"]).good(),
        "hw.vmm.maxvmms=8\n"
    );
    assert_eq!(
        lab.run("sysctl", &["-n", "hw.ncpu", "hw.vmm.maxvmms"])
            .good(),
        "2\n8\n"
    );
    assert_eq!(
        lab.run("sysctl", &["hw.vmm.maxvmms=1000"]).good(),
        "hw.vmm.maxvmms: 8 -> 1000\n"
    );
    assert_eq!(
        lab.run("sysctl", &["-n", "hw.vmm.maxvmms"]).good(),
        "1000\n"
    );
    lab.run("sysctl", &["hw.vmm.maxvmm"])
        .refused(1, "sysctl: unknown oid 'hw.vmm.maxvmm'\n");
    lab.run("sysctl", &["-q", "hw.vmm.maxvmm"]).refused(1, "");
    assert_eq!(lab.run("sysctl", &["-i", "hw.vmm.maxvmm"]).good(), "");
    lab.run("sysctl", &["hw.ncpu=64"])
        .refused(1, "sysctl: oid 'hw.ncpu' is read only\n");
    lab.run("sysctl", &["hw.vmm.maxcpu=64"])
        .refused_with(1, "sysctl: oid 'hw.vmm.maxcpu' is a read only tunable\n");
    lab.run("sysctl", &["hw.vmm.maxvmms=many"])
        .refused(1, "sysctl: invalid integer 'many'\n");
    lab.run("sysctl", &[]).refused_with(1, "usage: sysctl");
    // One that is unknown does not keep the others from being told.
    let ran = lab.run("sysctl", &["-n", "no.such", "hw.ncpu"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, "2\n"));
}

#[test]
fn values_of_the_module_are_there_while_it_is() {
    let lab = Lab::new();
    lab.run("sysctl", &["-n", "hw.vmm.vnode.abi"])
        .refused(1, "sysctl: unknown oid 'hw.vmm.vnode.abi'\n");
    lab.world
        .set_loaded(&["kernel", "vmm", "vmm_vnode"])
        .expect("modules");
    assert_eq!(lab.run("sysctl", &["-n", "hw.vmm.vnode.abi"]).good(), "1\n");
}

#[test]
fn modules() {
    let lab = Lab::new();
    assert_eq!(lab.run("kldstat", &["-q", "-n", "vmm.ko"]).good(), "");
    assert_eq!(lab.run("kldstat", &["-q", "-m", "vmm"]).good(), "");
    lab.run("kldstat", &["-q", "-m", "vmm_vnode"])
        .refused(1, "");
    lab.run("kldstat", &["-m", "vmm_vnode"]).refused(
        1,
        "kldstat: can't find module vmm_vnode: No such file or directory\n",
    );
    lab.run("kldstat", &["-n", "vmm_vnode"]).refused(
        1,
        "kldstat: can't find file vmm_vnode: No such file or directory\n",
    );
    let table = lab.run("kldstat", &[]).good();
    assert!(
        table.lines().count() == 4 && table.contains(" vmm.ko\n"),
        "{table}"
    );
}

#[test]
fn a_world_is_needed() {
    let lab = Lab::new();
    let mut command = Command::new(lab.world.bin().join("bhyve"));
    let ran = command
        .env_remove(brood_standin::ROOT)
        .output()
        .expect("a command");
    assert_eq!(ran.status.code(), Some(70));
    lab.run("standin", &["init", &lab.text("other")]).good();
    assert!(lab.path("other/bin/bhyvectl").exists());
    lab.run("standin", &["init", &lab.text("other")])
        .refused_with(70, "cannot make a world");
    lab.run("standin", &["dance"])
        .refused_with(64, "usage: standin");
}

#[test]
fn commands_are_noted() {
    let lab = Lab::new();
    lab.run("sysctl", &["-n", "hw.ncpu"]).good();
    lab.run("kldstat", &["-q", "-m", "vmm"]).good();
    let log = std::fs::read_to_string(lab.world.path("commands")).expect("a log");
    let lines: Vec<&str> = log
        .lines()
        .filter_map(|line| Some(line.split_once(' ')?.1))
        .collect();
    assert_eq!(lines, ["sysctl -n hw.ncpu", "kldstat -q -m vmm"]);
}
