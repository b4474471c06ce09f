//! Commands stopped in the middle of a change of the record: a terminal's stop waits for the end of
//! the change, commands that wait for one stopped otherwise name it, and guests are seen and ended
//! meanwhile.

use std::{fs, path::Path, process::Command, sync::mpsc::channel, thread, time::Duration};

use brood_tests::{Home, Lab, Running, Then, signal, traced, until};
use nix::{libc, sys::signal::Signal};

/// Holds the database's lock for writing, and is stopped.
const HOLD: &str = "import os, signal, sqlite3, sys
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute('BEGIN IMMEDIATE')
os.kill(os.getpid(), signal.SIGSTOP)";

fn is_stopped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| rest.starts_with(['T', 't']))
}

fn python() -> bool {
    let there = Command::new("python3")
        .args(["-c", "import sqlite3"])
        .status();
    let there = there.is_ok_and(|status| status.success());
    if !there {
        brood_tests::skip("no python3 with sqlite3");
    }
    there
}

#[test]
fn a_stopped_holder_of_the_database_is_named() {
    if !python() {
        return;
    }
    let (lab, web) = Lab::with_checkpoint();
    let _ = lab.restore(&web, 1);
    let mut command = Command::new("python3");
    let database = lab.home.state().join("brood.sqlite");
    command.args(["-c", HOLD]).arg(&database);
    let holder = Running::start(command);
    let pid = holder.pid();
    until("it to be stopped", || is_stopped(pid).then_some(()));
    // What only looks does not wait.
    assert_eq!(lab.list().len(), 1);
    let ran = lab
        .brood(&["restore", &web.to_string(), "-n", "1"])
        .exits(1);
    assert!(ran.took < Duration::from_secs(25), "{:?}", ran.took);
    let _ = ran.says(&[
        &format!("process {pid} works at the state, and is stopped"),
        &format!("kill -CONT {pid}"),
    ]);
    holder.signal(Signal::SIGCONT);
    let _ = holder.wait();
    let _ = lab.brood(&["restore", &web.to_string(), "-n", "1"]).ok();
    lab.destroy_all();
}

/// Holds it, says so by a file, and goes on until it is killed.
const KEEP: &str = "import pathlib, sqlite3, sys, time
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute('BEGIN IMMEDIATE')
held.execute('UPDATE guest SET reason = reason')
pathlib.Path(sys.argv[2]).touch()
time.sleep(600)";

#[test]
fn guests_are_seen_and_ended_while_another_process_has_the_record() {
    let Some(home) = Home::with_kvm().filter(|_| python()) else {
        return;
    };
    let demo = home.demo("demo", "4M");
    let restored = home.json(&["restore", &demo.path, "-n", "3", "--prefix", "a"]);
    assert_eq!(restored["restored"], 3);
    let doomed = home.pid("a-2");
    let mut command = Command::new("python3");
    let has_it = home.path().join("has-it");
    command
        .args(["-c", KEEP])
        .arg(home.state().join("brood.sqlite"));
    let holder = Running::start({
        command.arg(&has_it);
        command
    });
    until("it to have the record", || has_it.exists().then_some(()));
    for args in [
        &["list"][..],
        &["show", "a-1"],
        &["ask", "a-1", "ping"],
        &["pause", "a-1"],
        &["resume", "a-1"],
        &["destroy", "a-2"],
        &["list"],
    ] {
        let _ = home.brood(args).ok();
    }
    assert!(!Path::new(&format!("/proc/{doomed}")).exists());
    assert_eq!(home.names("running"), ["a-1", "a-3"]);
    holder.signal(Signal::SIGKILL);
    let _ = holder.wait();
    assert_eq!(home.names("running"), ["a-1", "a-3"]);
    home.destroy_all();
}

/// Whether a process is about to write into the journal of the database, which it has locked then.
fn changes(call: &brood_tests::Call) -> bool {
    let to = format!("/proc/{}/fd/{}", call.pid, call.arguments[0]);
    let to = fs::read_link(to).unwrap_or_default();
    call.result.is_none()
        && call.number == libc::SYS_pwrite64
        && to.extension() == Some(std::ffi::OsStr::new("sqlite-wal"))
}

#[test]
fn a_command_that_a_terminal_stops_in_a_change_is_stopped_after_it() {
    let (lab, web) = Lab::with_checkpoint();
    // The tables are there, and each write is one of a change.
    assert!(lab.list().is_empty());
    let (tell, told) = channel();
    thread::scope(|scope| {
        let command = lab.command(&["restore", &web.to_string(), "-n", "2", "--prefix", "g"]);
        let folder: &Path = lab.home.path();
        let stopped = scope.spawn(move || {
            let mut once = false;
            traced(&command, folder, move |call| {
                if !once && changes(call) {
                    once = true;
                    signal(call.pid, Signal::SIGTSTP);
                    let _ = tell.send(call.pid);
                }
                Then::GoOn
            })
        });
        let pid = told.recv().expect("it changes something");
        until("it to be stopped", || is_stopped(pid).then_some(()));
        let other = lab.brood(&["restore", &web.to_string(), "-n", "1", "--prefix", "other"]);
        let stays = is_stopped(pid);
        signal(pid, Signal::SIGCONT);
        let (ran, _) = stopped.join().unwrap();
        let _ = other.ok();
        assert!(stays, "it was stopped all the while");
        let _ = ran.ok();
    });
    assert_eq!(lab.list().len(), 3);
    lab.destroy_all();
}
