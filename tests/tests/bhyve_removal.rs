//! Removal of bhyve guests by several processes at once, and by processes that are killed at any
//! step: the next process finishes it, and no process removes what belongs to another guest.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use brood_tests::{Lab, Running, Then, array, signal, text, traced, until};
use nix::sys::signal::Signal;

const DESTROY: [&str; 3] = ["destroy", "--all", "--force"];

/// Waits until a remover runs a command that destroys something.
fn at_it(lab: &Lab) {
    until("a command that destroys something", || {
        let commands = lab.machine.held_up().into_iter();
        let mut lines = commands.map(|pid| fs::read(format!("/proc/{pid}/cmdline")));
        let is_one = |line: std::io::Result<Vec<u8>>| {
            line.is_ok_and(|line| line.windows(7).any(|word| word == b"destroy"))
        };
        lines.any(is_one).then_some(())
    });
}

/// Each of them has the same list of guests before any of them has removed one.
#[test]
fn many_processes_remove_the_same_guests_at_once() {
    let (lab, web) = Lab::with_checkpoint();
    for _ in 0..3 {
        let _ = lab.restore(&web, 4);
        let removers: Vec<Running> = (0..6)
            .map(|_| Running::start(lab.command(&DESTROY)))
            .collect();
        for remover in removers {
            let _ = remover.wait().ok();
        }
        assert!(lab.list().is_empty());
        lab.nothing_is_left();
    }
}

/// The first of them has looked at the tap, and destroys it three seconds later.
#[test]
fn of_two_removers_one_waits_for_the_other() {
    let (lab, web) = Lab::with_checkpoint();
    for point in ["ifconfig.destroy", "bhyvectl.opened", "bhyvectl.destroyed"] {
        let _ = lab.restore(&web, 1);
        let first = lab.failing(&format!("{point}:1:slow"), &DESTROY);
        at_it(&lab);
        let _ = lab.brood(&DESTROY).ok();
        lab.nothing_is_left();
        let _ = first.wait().ok();
        lab.nothing_is_left();
    }
}

/// A command that outlives its remover would destroy a tap that has become another guest's.
#[test]
fn a_command_of_a_killed_remover_has_ended_when_the_next_one_has_removed_the_guest() {
    let (lab, web) = Lab::with_checkpoint();
    for point in ["ifconfig.destroy", "bhyvectl.opened"] {
        let _ = lab.restore(&web, 1);
        let mut first = lab.failing(&format!("{point}:1:slow"), &DESTROY);
        at_it(&lab);
        first.signal(Signal::SIGKILL);
        until("it to be dead", || first.ended().then_some(()));
        let _ = lab.brood(&DESTROY).ok();
        assert_eq!(lab.machine.held_up(), Vec::<i32>::new(), "{point}");
        lab.nothing_is_left();
    }
}

/// Killed before each system call by which it changes something, with another beside it.
#[test]
fn removers_are_killed_at_each_step() {
    let (lab, web) = Lab::with_checkpoint();
    for nth in 1.. {
        let _ = lab.restore(&web, 1);
        let count = Arc::new(AtomicU64::new(0));
        let (ran, fate) = traced(&lab.command(&DESTROY), lab.home.path(), move |call| {
            if call.is_step() && count.fetch_add(1, Ordering::Relaxed) + 1 == nth {
                return Then::Kill;
            }
            Then::GoOn
        });
        let last = fate.is_none();
        if last {
            let _ = ran.ok();
        }
        let removers = [(); 2].map(|()| Running::start(lab.command(&DESTROY)));
        for remover in removers {
            let ran = remover.wait();
            assert_eq!(ran.code(), Some(0), "at {fate:?}: {}", ran.stderr);
        }
        assert!(lab.list().is_empty(), "at {fate:?}");
        lab.nothing_is_left();
        if last {
            assert!(nth > 20, "{nth}");
            return;
        }
    }
}

#[test]
fn a_stopped_remover_is_named() {
    let (lab, web) = Lab::with_checkpoint();
    let _ = lab.restore(&web, 1);
    let first = lab.failing("ifconfig.destroy:1:slow", &DESTROY);
    at_it(&lab);
    first.signal(Signal::SIGSTOP);
    let ran = lab.brood(&DESTROY).exits(1);
    let pid = first.pid();
    let _ = ran.says(&[
        &format!("process {pid} removes it and is stopped"),
        &format!("kill -CONT {pid}"),
    ]);
    first.signal(Signal::SIGCONT);
    let _ = first.wait().ok();
    lab.nothing_is_left();
}

/// A record that cannot be read is not one that is not there: nothing is removed by it.
#[test]
fn a_guest_whose_record_cannot_be_read_stays_and_one_whose_record_is_damaged_goes() {
    let (lab, web) = Lab::with_checkpoint();
    let _ = lab.restore(&web, 1);
    let id = text(&lab.list()[0]["id"]).to_owned();
    let record = lab.home.run_dir().join(format!("{id}.bhyve/guest.json"));
    let aside = lab.home.path().join("aside");
    fs::rename(&record, &aside).unwrap();
    fs::create_dir(&record).unwrap();
    let _ = lab.brood(&DESTROY).exits(1).says(&["guest.json"]);
    assert_eq!(lab.list().len(), 1);
    assert!(!lab.machine.leftovers().is_empty());
    // What a crash of the host leaves of a file says nothing of taps: they are found by their
    // guest.
    fs::remove_dir(&record).unwrap();
    fs::write(&record, "").unwrap();
    lab.destroy_all();
}

#[test]
fn strays_are_found_and_ended_when_the_state_folder_is_lost() {
    let (lab, web) = Lab::with_checkpoint();
    let _ = lab.restore(&web, 2);
    let pids: Vec<i64> = lab
        .list()
        .iter()
        .map(|g| g["pid"].as_i64().unwrap())
        .collect();
    assert_eq!(lab.json(&["list", "--strays"]), serde_json::json!([]));
    fs::remove_dir_all(lab.home.state()).unwrap();
    let strays = lab.json(&["list", "--strays"]);
    let mut found: Vec<i64> = array(&strays)
        .iter()
        .map(|stray| stray["pid"].as_i64().unwrap())
        .collect();
    found.sort_unstable();
    let mut expected = pids;
    expected.sort_unstable();
    assert_eq!(found, expected, "{strays}");
    for stray in array(&strays) {
        assert!(text(&stray["name"]).starts_with("brood-"), "{stray}");
        // bhyve's title has the name of the virtual machine, and no words of its command line.
        assert_eq!(stray["checkpoint"], serde_json::Value::Null, "{stray}");
    }
    // Guests of another state folder are none of its own.
    let other = lab.home.path().join("other");
    let mut of_other = lab.command(&["list", "--strays", "--json"]);
    of_other.env("BROOD_STATE_DIR", &other);
    let none = Running::start(of_other).wait().ok().json();
    assert_eq!(none, serde_json::json!([]));
    // One that is stopped ends as well.
    signal(i32::try_from(found[0]).unwrap(), Signal::SIGSTOP);
    let _ = lab.brood(&["destroy", "--strays"]).ok();
    lab.nothing_is_left();
    assert_eq!(lab.json(&["list", "--strays"]), serde_json::json!([]));
}

/// The database is lost, guests have ended meanwhile, and of one even the folder is gone: their
/// virtual machines and taps are all that tells of them.
#[test]
fn what_dead_guests_left_is_found_when_their_record_is_lost() {
    let (lab, web) = Lab::with_checkpoint();
    let _ = lab.restore(&web, 3);
    let guests = lab.list();
    for guest in &guests {
        let pid = guest["pid"].as_i64().unwrap();
        signal(i32::try_from(pid).unwrap(), Signal::SIGKILL);
    }
    until("them to end", || {
        lab.machine.processes().is_empty().then_some(())
    });
    // Those that are recorded are no strays, dead as they are.
    assert_eq!(lab.json(&["list", "--strays"]), serde_json::json!([]));
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(lab.home.state().join(format!("brood.sqlite{end}")));
    }
    let lost = text(&guests[0]["id"]);
    fs::remove_dir_all(lab.home.run_dir().join(format!("{lost}.bhyve"))).unwrap();
    // One that is restored now, on a new record, is none either.
    let report = lab.json(&["restore", &web.to_string(), "-n", "1", "--prefix", "new"]);
    assert_eq!(report["restored"], 1, "{report}");
    let strays = lab.json(&["list", "--strays"]);
    let mut names: Vec<&str> = array(&strays).iter().map(|s| text(&s["name"])).collect();
    names.sort_unstable();
    let nameless = format!("brood-{lost}");
    let mut expected = vec![
        nameless.as_str(),
        text(&guests[1]["name"]),
        text(&guests[2]["name"]),
    ];
    expected.sort_unstable();
    assert_eq!(names, expected, "{strays}");
    for stray in array(&strays) {
        assert_eq!(stray["pid"], serde_json::Value::Null, "{stray}");
        let by_folder = stray["name"] != nameless;
        assert_eq!(by_folder, stray["checkpoint"] == web.to_string(), "{stray}");
    }
    let told = lab.brood(&["list", "--strays"]).ok().stdout;
    assert_eq!(told.matches(" ended").count(), 3, "{told}");
    let _ = lab.brood(&["destroy", "--strays"]).ok();
    assert_eq!(lab.json(&["list", "--strays"]), serde_json::json!([]));
    assert_eq!(lab.list().len(), 1, "the new one lives");
    lab.destroy_all();
}
