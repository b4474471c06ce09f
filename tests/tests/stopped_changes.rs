//! Commands stopped in the middle of a change of the record: a terminal's stop waits for the end of
//! the change, and commands that wait for one stopped otherwise name it.

use std::{fs, path::Path, process::Command, sync::mpsc::channel, thread, time::Duration};

use brood_tests::{Lab, Running, Then, signal, traced, until};
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
