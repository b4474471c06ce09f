//! Durability: a record is on the disk before brood acts on it or reports it. No system call by
//! which a command does something comes between a write to the database's journal and the sync of
//! it.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use brood_tests::{Call, Home, Ran, Then, text, traced};
use nix::libc;

/// What a command did, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It wrote to the journal.
    Recorded,
    /// It brought the journal to the disk.
    Synced,
    /// It sent a signal to a guest, or spoke to it.
    Acted,
    /// It printed.
    Told,
}

impl Step {
    fn of(call: &Call) -> Option<Self> {
        match (call.number, call.result) {
            (libc::SYS_write | libc::SYS_pwrite64, Some(1..)) if to(call, "brood.sqlite-wal") => {
                Some(Self::Recorded)
            }
            (libc::SYS_fdatasync | libc::SYS_fsync, Some(0)) if to(call, "brood.sqlite-wal") => {
                Some(Self::Synced)
            }
            (libc::SYS_write, None) if call.arguments[0] == 1 => Some(Self::Told),
            (libc::SYS_pidfd_send_signal | libc::SYS_connect, None) => Some(Self::Acted),
            _ => None,
        }
    }
}

/// Whether the file of a call is named like this.
fn to(call: &Call, name: &str) -> bool {
    let file = fs::read_link(format!("/proc/{}/fd/{}", call.pid, call.arguments[0]));
    file.is_ok_and(|file| file.ends_with(name))
}

/// Runs a command; returns what it did.
fn steps_of(home: &Home, args: &[&str]) -> (Ran, Vec<Step>) {
    let steps = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&steps);
    let (ran, _) = traced(&home.command(args), home.path(), move |call| {
        let mut seen = seen.lock().expect("a tracer that goes on");
        seen.extend(Step::of(call));
        Then::GoOn
    });
    let steps = steps.lock().expect("a tracer that went on").clone();
    (ran, steps)
}

fn assert_synced(what: &str, steps: &[Step]) {
    let mut unsynced = false;
    for step in steps {
        match step {
            Step::Recorded => unsynced = true,
            Step::Synced => unsynced = false,
            Step::Acted | Step::Told => {
                assert!(!unsynced, "{what}: {step:?} before the sync: {steps:?}");
            }
        }
    }
    assert!(!unsynced, "{what}: not synced at the end: {steps:?}");
    for must in [Step::Recorded, Step::Acted, Step::Told] {
        assert!(steps.contains(&must), "{what}: no {must:?}: {steps:?}");
    }
}

#[test]
fn whose_a_guest_is_is_on_the_disk_before_it_is_acted_on_or_told() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let _ = home.json(&["pool", "create", "p", &demo.path, "--hot", "2"]);
    let run = |args: &[&str]| {
        let (ran, steps) = steps_of(&home, args);
        let ran = ran.ok();
        assert_synced(&args.join(" "), &steps);
        ran
    };
    let hot = run(&["pool", "claim", "p", "--json"]).json();
    assert_eq!(hot["tier"], "hot");
    let token = text(&hot["token"]).to_owned();
    let _ = run(&["pool", "suspend", &token]);
    let _ = run(&["pool", "resume", &token]);
    let _ = run(&["pool", "release", &token]);
    let _ = run(&["pool", "evict", "p", "--entries", "9"]);
    let cold = run(&["pool", "claim", "p", "--json"]).json();
    assert_eq!(cold["tier"], "cold");
    let _ = run(&["pool", "release", text(&cold["token"])]);
    let _ = home.brood(&["pool", "remove", "p"]).ok();
}
