//! Values and modules of the kernel, and the binary itself.

use std::process::Command;

use brood_standin::Release;

use crate::lab::Lab;

#[test]
fn values() {
    let lab = Lab::new();
    lab.run("sysctl", &["hw.vmm.maxvmms"])
        .refused(1, "sysctl: unknown oid 'hw.vmm.maxvmms'\n");
    lab.world.set_release(Release::FifteenOne).expect("a world");
    assert_eq!(
        lab.run("sysctl", &["-n", "kern.osrelease"]).good(),
        "15.1-RELEASE\n"
    );
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
    lab.world.set_loaded(&["kernel"]).expect("modules");
    lab.run("sysctl", &["-n", "hw.vmm.maxcpu"])
        .refused(1, "sysctl: unknown oid 'hw.vmm.maxcpu'\n");
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

#[test]
fn memory_is_less_by_what_vms_take() {
    let lab = Lab::new();
    let number = |name: &str| -> u64 {
        let told = lab.run("sysctl", &["-n", name]).good();
        told.trim().parse().expect("a number")
    };
    let names = [
        "vm.stats.vm.v_free_count",
        "vm.stats.vm.v_wire_count",
        "vm.pmap.user_pt_page_count",
        "vm.uma_kmem_total",
        "kern.maxproc",
    ];
    let before = names.map(number);
    lab.run("bhyvectl", &["--vm=a", "--create"]).good();
    let after = names.map(number);
    assert_eq!(after[0] + 85, before[0]);
    assert_eq!(after[1], before[1] + 85);
    assert_eq!(after[2], before[2] + 20);
    assert_eq!(after[3], before[3] + 45 * 4096);
    assert_eq!(after[4], before[4]);
    assert_eq!(
        lab.run(
            "sysctl",
            &["-i", "-e", "kern.osrelease", "no.such", "hw.ncpu"]
        )
        .good(),
        "kern.osrelease=15.0-RELEASE\nhw.ncpu=2\n"
    );
    lab.run("sysctl", &["kern.osrelease=16"])
        .refused(1, "sysctl: oid 'kern.osrelease' is read only\n");
    lab.run("sysctl", &["kern.racct.enable=1"]).refused(
        1,
        "sysctl: oid 'kern.racct.enable' is a read only tunable\n",
    );
}

#[test]
fn rules_are_a_processs_own() {
    let lab = Lab::new();
    let mut sleeper = Command::new("sleep").arg("600").spawn().expect("sleep");
    let pid = sleeper.id();
    let rule = |rest: &str| format!("process:{pid}:{rest}");
    lab.run("rctl", &["-a", &rule("pcpu:deny=50")]).refused(
        1,
        "rctl: RACCT/RCTL present, but disabled; enable using kern.racct.enable=1 tunable\n",
    );
    lab.world
        .set_tunable("kern.racct.enable", 1)
        .expect("a tunable");
    assert_eq!(lab.run("rctl", &[]).good(), "");
    lab.run(
        "rctl",
        &["-a", &rule("pcpu:deny=50"), &rule("writebps:throttle=1m")],
    )
    .good();
    // Of two that deny the same the last one counts.
    lab.run("rctl", &["-a", &rule("pcpu:deny=60")]).good();
    let (pcpu, writes) = (rule("pcpu:deny=60"), rule("writebps:throttle=1048576"));
    assert_eq!(lab.run("rctl", &[]).good(), format!("{writes}\n{pcpu}\n"));
    for (bad, why) in [
        ("pcpu:deny=", "Invalid argument"),
        ("pcpus:deny=1", "Invalid argument"),
        ("pcpu:forbid=1", "Invalid argument"),
        ("cputime:deny=1", "Operation not supported"),
        ("pcpu:throttle=1", "Operation not supported"),
        ("nthr:throttle=1", "Operation not supported"),
        ("swapuse:deny=1", "Operation not supported"),
    ] {
        let rule = rule(bad);
        lab.run("rctl", &["-a", &rule])
            .refused(1, &format!("rctl: failed to add rule '{rule}': {why}\n"));
    }
    lab.run("rctl", &["-a", "process:999999999:pcpu:deny=1"])
        .refused(
            1,
            "rctl: failed to add rule 'process:999999999:pcpu:deny=1': No such process\n",
        );
    let odd = rule("pcpu:deny=much");
    lab.run("rctl", &["-a", &odd, "nonsense"]).refused(
        2,
        &format!(
            "rctl: malformed rule '{odd}': invalid numeric value 'much'\n\
             rctl: malformed rule 'nonsense': missing subject\n"
        ),
    );
    lab.run("rctl", &["-a"]).refused_with(1, "usage: rctl");
    lab.run("rctl", &["-a", "-r", "::"])
        .refused_with(1, "at most one of");
    lab.run("rctl", &["-a", "user:joe:pcpu:deny=1"])
        .refused_with(70, "only rules of processes");
    lab.run("rctl", &["-r", &rule("writebps")]).good();
    lab.run("rctl", &["-r", &rule("writebps")])
        .refused_with(1, "No such process");
    assert_eq!(lab.run("rctl", &[]).good(), format!("{pcpu}\n"));
    // The rule goes with its process.
    sleeper.kill().expect("a signal");
    sleeper.wait().expect("its end");
    assert_eq!(lab.run("rctl", &[]).good(), "");
    // A step that fails or is interrupted leaves its effects.
    for (point, there) in [("rctl.add", false), ("rctl.added", true)] {
        for action in ["error", "kill"] {
            let mut sleeper = Command::new("sleep").arg("600").spawn().expect("sleep");
            let rule = format!("process:{}:pcpu:deny=5", sleeper.id());
            let fault = format!("{point}:{action}");
            let ran = lab.run_failing(&fault, "rctl", &["-a", &rule]);
            assert_ne!(ran.code, 0, "{fault}");
            assert_eq!(
                lab.run("rctl", &[]).good().contains(&rule),
                there,
                "{fault}"
            );
            sleeper.kill().expect("a signal");
            sleeper.wait().expect("its end");
        }
    }
}
