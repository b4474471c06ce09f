//! Life of a VM from boot to end: how it ends, what it leaves, what of it a restore brings back.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use brood_standin::{IASL, STOCK};
use nix::sys::signal::Signal;

use crate::lab::{Lab, field, until};

#[test]
fn a_restored_guest_is_the_one_that_was_suspended_and_has_a_generation_of_its_own() {
    let lab = Lab::new();
    let mut base = lab.boot("base");
    let before = base.ask("ping");
    assert_eq!(field(&before, "counter"), "1");
    let file = lab.text("base.ckp");
    lab.run("bhyvectl", &["--vm=base", "--suspend", &file])
        .good();
    let ended = base.end();
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    assert!(
        lab.vm_exists("base"),
        "capability mode keeps bhyve from destroying its VM"
    );

    let mut clone = lab.restore("clone", &file, &[]);
    let ready = clone.ready();
    assert_eq!(
        field(&ready, "name"),
        "clone",
        "the command line's name wins over the checkpoint's"
    );
    assert_eq!(field(&ready, "nonce"), field(&before, "nonce"));
    assert_eq!(field(&ready, "counter"), "1");
    assert_ne!(field(&ready, "generation"), field(&before, "generation"));
    let answer = clone.ask("ping");
    assert_eq!(field(&answer, "counter"), "2");
}

#[test]
fn without_a_name_the_checkpoints_name_is_used() {
    let lab = Lab::new();
    let file = lab.checkpoint();
    let config = lab.config("base", &[]);
    lab.run(
        "bhyve",
        &["-k", &config, "-r", &file, "-o", "config.dump=true"],
    )
    .refused(1, "");
    let dump = lab
        .run(
            "bhyve",
            &["-k", &config, "-r", &file, "-o", "config.dump=true"],
        )
        .out;
    assert!(dump.contains("name=base\n"), "{dump}");
    assert!(!lab.vm_exists("base"), "a dump makes no VM");
}

#[test]
fn exit_codes_are_those_of_the_guests_end() {
    for (word, code) in [("reboot", 0), ("poweroff", 1), ("halt", 2), ("fault", 3)] {
        let lab = Lab::new();
        let mut guest = lab.boot("vm");
        guest.tell(word);
        assert_eq!(guest.end().code, code, "{word}");
        assert!(lab.vm_exists("vm"), "{word}: a VM outlives its process");
        // All its virtual CPUs have stopped, so the name can be used again.
        let mut again = lab.start("vm", &["-k", &lab.text("vm.conf")]);
        again.ready();
    }
}

#[test]
fn a_poweroff_leaves_the_vm_whatever_was_asked_for() {
    let lab = Lab::new();
    let config = lab.config("vm", &[]);
    let mut guest = lab.start("vm", &["-D", "-k", &config]);
    guest.ready();
    guest.tell("poweroff");
    assert_eq!(guest.end().code, 1);
    assert!(
        lab.vm_exists("vm"),
        "capability mode keeps bhyve from destroying its VM"
    );
}

#[test]
fn sigterm_is_the_power_button_of_a_booted_guest_only() {
    let lab = Lab::new();
    let guest = lab.boot("vm");
    guest.signal(Signal::SIGTERM);
    assert_eq!(guest.end().code, 1, "a booted guest powers off");

    let file = lab.checkpoint();
    let mut clone = lab.restore("clone", &file, &[]);
    clone.ready();
    clone.signal(Signal::SIGTERM);
    assert_eq!(
        clone.end().code,
        -15,
        "a restored one's process is ended by the signal"
    );
    assert!(lab.vm_exists("clone"));
}

#[test]
fn a_hung_guest_does_not_hear_the_power_button() {
    let lab = Lab::new();
    let mut guest = lab.boot("vm");
    assert_eq!(guest.ask("hang"), "hang");
    guest.tell("ping");
    guest.signal(Signal::SIGTERM);
    lab.run("bhyvectl", &["--vm=vm", "--force-poweroff"]).good();
    assert_eq!(guest.end().code, 1);
}

#[test]
fn what_a_killed_bhyve_leaves_behind() {
    let lab = Lab::new();
    lab.run("ifconfig", &["tap7", "create"]).good();
    let config = lab.config(
        "vm",
        &["pci.0.4.0.device=virtio-net", "pci.0.4.0.backend=tap7"],
    );
    let mut guest = lab.start("vm", &["-k", &config]);
    guest.ready();
    guest.signal(Signal::SIGKILL);
    assert_eq!(guest.end().code, -9);
    assert!(lab.vm_exists("vm"), "the VM stays");
    assert!(
        lab.world.path("var/run/bhyve/vm").exists(),
        "so does its socket"
    );
    assert!(
        lab.run("ifconfig", &["tap7"])
            .good()
            .contains("status: no carrier"),
        "the tap is free"
    );

    lab.run(
        "bhyvectl",
        &["--vm=vm", &format!("--suspend={}", lab.text("x"))],
    )
    .refused(61, "connect() failed: Connection refused\n");
    lab.run("bhyve", &["-k", &config, "vm"])
        .refused(4, "bhyve: vm_openf: Device busy\n");
    lab.run("bhyvectl", &["--vm=vm", "--destroy"]).good();
    assert!(!lab.vm_exists("vm"));
    let mut again = lab.start("vm", &["-k", &config]);
    again.ready();
}

#[test]
fn a_stopped_bhyve_can_be_destroyed_and_ends_when_it_goes_on() {
    let lab = Lab::new();
    let mut guest = lab.boot("vm");
    guest.ask("ping");
    guest.signal(Signal::SIGSTOP);
    lab.run("bhyvectl", &["--vm=vm", "--destroy"]).good();
    assert!(!lab.vm_exists("vm"));
    guest.signal(Signal::SIGCONT);
    guest.end().refused(4, "vm_run error -1, errno 6\n");
}

#[test]
fn a_stopped_bhyve_answers_when_it_goes_on() {
    let lab = Lab::new();
    let mut guest = lab.boot("vm");
    guest.signal(Signal::SIGSTOP);
    guest.tell("ping");
    guest.signal(Signal::SIGCONT);
    assert_eq!(field(&guest.line(), "counter"), "1");
}

#[test]
fn a_checkpoint_without_suspend_leaves_the_guest_running() {
    let lab = Lab::new();
    let mut guest = lab.boot("vm");
    let file = lab.path("vm.ckp");
    lab.run(
        "bhyvectl",
        &["--vm=vm", &format!("--checkpoint={}", file.display())],
    )
    .good();
    // bhyvectl does not wait, and nothing reports the end of the suspend.
    until("the description", || {
        let text = std::fs::read(lab.path("vm.ckp.meta")).ok()?;
        serde_json::from_slice::<serde_json::Value>(&text).ok()
    });
    assert_eq!(std::fs::metadata(&file).expect("memory").len(), 1024 * 1024);
    assert_eq!(field(&guest.ask("ping"), "counter"), "1");
}

#[test]
fn a_guest_is_told_to_end_once() {
    let lab = Lab::new();
    let guest = lab.boot("vm");
    guest.signal(Signal::SIGSTOP);
    lab.run("bhyvectl", &["--vm=vm", "--force-reset"]).good();
    let second = lab.run("bhyvectl", &["--vm=vm", "--force-poweroff"]);
    assert_eq!((second.code, second.out.as_str()), (255, "errno = 37\n"));
    guest.signal(Signal::SIGCONT);
    assert_eq!(guest.end().code, 0);
}

#[test]
fn the_guests_words() {
    let lab = Lab::new();
    let mut guest = lab.boot("vm");
    let answer = guest.ask("@7 identity name=other seed=1");
    assert!(answer.starts_with("!7 identity "), "{answer}");
    assert_eq!(
        (field(&answer, "name"), field(&answer, "counter")),
        ("other", "1")
    );
    assert_eq!(guest.ask("poke 0x2008 77"), "poke");
    assert_eq!(guest.ask("@8 peek 8200"), "!8 peek value=77");
    assert_eq!(guest.ask("private"), "private 2");
    for outside in ["peek 8201", "peek 1048576", "poke 0x2008", "poke here 1"] {
        assert_eq!(
            guest.ask(outside),
            "error: there is no word at that address"
        );
    }
    assert_eq!(guest.ask("dirty 256"), "error: 255 pages at most");
    assert_eq!(
        guest.ask("@9 sing"),
        "!9 error: sing is not a word of this guest"
    );
    guest.tell("@10 crash");
    assert_eq!(guest.end().code, 3);
}

#[test]
fn memory_without_a_guest_is_a_triple_fault() {
    let lab = Lab::new();
    let file = lab.checkpoint();
    std::fs::write(&file, vec![0; 1024 * 1024]).expect("zeroes");
    assert_eq!(lab.restore_refused("clone", &file, &[]).code, 3);
}

#[test]
fn all_that_runs_ends_with_the_worlds_owner() {
    let lab = Lab::new();
    let owner = lab.world.own().expect("nobody's world");
    let guest = lab.boot("vm");
    let config = lab.config("other", &[]);
    let held_up = lab.start_failing(Some("restore.devices:hang"), "other", &["-k", &config]);
    until("the other VM", || lab.vm_exists("other").then_some(()));
    drop(owner);
    assert_eq!(guest.end().code, 71);
    assert_eq!(held_up.end().code, 70);
    // Nor does one that comes too late live.
    let config = lab.config("late", &[]);
    assert_eq!(lab.start("late", &["-k", &config]).end().code, 71);
}

/// Seen with bhyve 14.2: a shell and iasl at each start with `-A`, and SIGABRT when they fail.
#[test]
fn tables_are_compiled_at_each_start_but_not_by_the_patched_bhyve_in_a_restore() {
    let lab = Lab::new();
    let compiled = || {
        let commands = fs::read_to_string(lab.world.path("commands")).expect("commands");
        let programs = commands.lines().filter_map(|line| line.split(' ').nth(1));
        programs.filter(|program| *program == "iasl").count()
    };
    let file = lab.checkpoint();
    assert_eq!(compiled(), 1);
    let left = fs::read_dir(lab.world.path("tmp"))
        .expect("a folder")
        .count();
    assert_eq!(left, 0, "both files are removed");
    let config = lab.config("stock", &[]);
    let stock = |name: &str| {
        let arguments = ["-k", &config, "-r", &file, "-o", "config.dump=false", name];
        let mut command = lab.command("bhyve", &arguments);
        command.env(STOCK, "1").output().expect("bhyve")
    };
    fs::remove_file(lab.world.path(IASL)).expect("a link");
    let ended = stock("a");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(
        ended.status.code().is_none() && said.contains("Assertion failed: (error == 0)"),
        "{ended:?}"
    );
    assert!(lab.vm_exists("a"), "the VM is left behind");
    // It had restored the guest before.
    assert!(String::from_utf8_lossy(&ended.stdout).contains("Resuming pci devs..."));
    let mut clone = lab.restore("clone", &file, &[]);
    clone.ready();
    lab.run("bhyve", &["-k", &lab.config("new", &[]), "new"])
        .refused_with(-6, "Assertion failed: (error == 0)");
}

/// Seen with bhyve 14.2.
#[test]
fn a_running_bhyve_has_a_title_and_a_device_of_its_owners() {
    let lab = Lab::new();
    let guest = lab.boot("vm");
    let mut ps = Command::new("ps");
    ps.args(["-ww", "-o", "args=", "-p", &guest.pid().to_string()]);
    let shown = ps.output().expect("ps").stdout;
    assert_eq!(
        String::from_utf8_lossy(&shown).trim_end(),
        "bhyve: vm (bhyve)"
    );
    let device = fs::metadata(lab.world.path("dev/vmm/vm")).expect("a device");
    assert_eq!(device.permissions().mode() & 0o777, 0o600);
}
