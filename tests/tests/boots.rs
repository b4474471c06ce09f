//! Boots of the host: a guest lives whatever id of the boot a command sees, and a process of a later
//! boot is not taken for the guest whose number and start it has.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use brood_core::engine::{Process, ProcessState};
use brood_tests::{EngineKind, Home, namespaces, signal, text, until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Guests `g-1`, `g-2` and `g-3`.
fn scene(engine: EngineKind) -> Option<Home> {
    let (home, checkpoint) = match engine {
        EngineKind::Qemu => Home::with_qemu()?,
        other => {
            let home = Home::on(other)?;
            let demo = home.demo("demo", "4M");
            (home, demo)
        }
    };
    home.restore(&checkpoint, 3, "g");
    Some(home)
}

/// The process of a guest.
fn process_of(home: &Home, guest: &str) -> Process {
    let process = Process::with_pid(home.pid(guest)).unwrap();
    process.expect("it lives")
}

fn lives(process: Process) -> bool {
    process.state().unwrap() != ProcessState::Gone
}

fn a_guest_lives_whatever_id_of_the_boot_a_command_sees(engine: EngineKind) {
    let Some(home) = scene(engine) else { return };
    if !namespaces("-m") {
        return;
    }
    // As systemd-nspawn has it for all but some services.
    fs::write(
        home.path().join("id"),
        "00000000-0000-4000-8000-000000000000\n",
    )
    .unwrap();
    let other = "mount --bind id /proc/sys/kernel/random/boot_id";
    let inside = |args: &[&str]| home.after(&["unshare", "-m"], other, args).ok();
    let there = inside(&["list", "--json"]).json();
    let running = |guest: &Value| guest["state"] == "running";
    let guests = there.as_array().unwrap();
    assert!(guests.len() == 3 && guests.iter().all(running), "{there}");
    let _ = inside(&["ask", "g-1", "ping"]);
    let _ = inside(&["pause", "g-1"]);
    assert_eq!(home.names("paused"), ["g-1"]);
    let _ = inside(&["resume", "g-1"]);
    assert_eq!(home.names("running"), ["g-1", "g-2", "g-3"]);
    let processes = ["g-1", "g-2", "g-3"].map(|guest| process_of(&home, guest));
    let _ = inside(&["destroy", "g-1"]);
    assert_eq!(home.names("running"), ["g-2", "g-3"]);
    let _ = inside(&["destroy", "--all"]);
    assert_eq!(home.list(), [] as [Value; 0]);
    assert!(!processes.into_iter().any(lives), "{processes:?}");
}

/// A process that ends with its standard input, and has nothing to do with brood.
fn foreign() -> (Child, Process) {
    let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let process = Process::with_pid(child.id().cast_signed()).unwrap();
    (child, process.expect("it waits"))
}

/// Has all that is recorded of a guest, which has ended, say that its process is this one, and that
/// it was restored in an earlier boot.
fn record(home: &Home, guest: &str, process: Process) {
    let shown = home.json(&["show", guest]);
    let database = rusqlite::Connection::open(home.state().join("brood.sqlite")).unwrap();
    let changed = database.execute(
        "UPDATE guest SET pid = ?1, start_time = ?2, boot = 'an earlier one', state = 'running', \
         reason = NULL WHERE name = ?3",
        (process.pid, process.start_time.cast_signed(), guest),
    );
    assert_eq!(changed.unwrap(), 1);
    let folder = match home.engine() {
        // A socket is no file that says a number.
        EngineKind::Kvm => return,
        EngineKind::Qemu => "qemu",
        EngineKind::Bhyve => "bhyve",
    };
    let folder = home
        .run_dir()
        .join(format!("{}.{folder}", text(&shown["id"])));
    let ready = folder.join("ready");
    assert!(ready.is_file(), "{ready:?}");
    fs::write(&ready, serde_json::to_vec(&process).unwrap()).unwrap();
}

fn a_process_of_a_later_boot_is_not_taken_for_a_guest(engine: EngineKind) {
    let Some(home) = scene(engine) else { return };
    let foreign = ["g-1", "g-2"].map(|guest| {
        signal(home.pid(guest), Signal::SIGKILL);
        until("the guest to be dead", || {
            let dead = home.names("dead");
            dead.iter().any(|name| name == guest).then_some(())
        });
        let (child, process) = foreign();
        record(&home, guest, process);
        child
    });
    assert_eq!(home.names("dead"), ["g-1", "g-2"]);
    assert_eq!(home.names("running"), ["g-3"]);
    let shown = home.json(&["show", "g-1"]);
    assert_eq!(shown["reason"], "the host was rebooted");
    let _ = home.brood(&["ask", "g-1", "ping"]).exits(1);
    let _ = home.brood(&["destroy", "g-1"]).ok();
    if engine != EngineKind::Kvm {
        // By its process and what is in the run folder it is none either.
        for ending in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(home.state().join(format!("brood.sqlite{ending}")));
        }
        assert_eq!(home.list().len(), 1);
        let _ = home.brood(&["destroy", "--strays"]).ok();
    }
    home.destroy_all();
    for mut child in foreign {
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success(), "it was killed");
    }
}

/// Runs each of these functions as a test on each engine.
macro_rules! on_each_engine {
    ($($test:ident),* $(,)?) => {
        mod kvm { $(#[test] fn $test() { super::$test(super::EngineKind::Kvm); })* }
        mod bhyve { $(#[test] fn $test() { super::$test(super::EngineKind::Bhyve); })* }
        mod qemu { $(#[test] fn $test() { super::$test(super::EngineKind::Qemu); })* }
    };
}

on_each_engine!(
    a_guest_lives_whatever_id_of_the_boot_a_command_sees,
    a_process_of_a_later_boot_is_not_taken_for_a_guest,
);
