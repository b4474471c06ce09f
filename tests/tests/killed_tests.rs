//! Tests that are killed: nothing of theirs stays.

use std::{
    env,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use brood_tests::{Home, processes_in, until};
use nix::sys::signal::Signal;

/// A test that never ends, with guests of this engine, as a process group of its own.
struct Endless(Child);

impl Endless {
    /// Starts it; its home. None where it was skipped.
    fn start(engine: &str) -> Option<(Endless, PathBuf)> {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--ignored", "--exact", "endless", "--nocapture"])
            .env("BROOD_TEST_ENGINE", engine)
            .stdout(Stdio::piped())
            .process_group(0);
        let mut test = Endless(command.spawn().unwrap());
        let output = BufReader::new(test.0.stdout.take().unwrap());
        let mut lines = output.lines().map(Result::unwrap);
        let home = lines.find_map(|line| line.strip_prefix("home: ").map(PathBuf::from))?;
        Some((test, home))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the tests below start and kill.
#[test]
#[ignore = "run by the tests below, which kill it: it never ends"]
fn endless() {
    let engine = env::var("BROOD_TEST_ENGINE").unwrap_or_default();
    let home = if engine == "kvm" {
        let Some(home) = Home::with_kvm() else { return };
        let demo = home.demo("demo", "32M");
        home.restore(&demo, 3, "k");
        home
    } else {
        let Some((home, linux)) = Home::with_qemu() else {
            return;
        };
        home.restore(&linux, 2, "q");
        home
    };
    let _asks = home.start(&["top"]);
    println!("home: {}", home.path().display());
    loop {
        std::thread::park();
    }
}

fn nothing_is_left_of(engine: &str) {
    let Some((test, home)) = Endless::start(engine) else {
        return;
    };
    let state = home.join("state");
    assert!(processes_in(&state).len() >= 2, "its guests run");
    let group = nix::unistd::Pid::from_raw(test.0.id().cast_signed());
    nix::sys::signal::killpg(group, Signal::SIGKILL).unwrap();
    until("its guests to be ended", || {
        processes_in(&state).is_empty().then_some(())
    });
    until("its folder to be removed", || {
        (!home.exists()).then_some(())
    });
    // The last to go is what removed the folder.
    until("its watcher to end", || {
        named(&home).is_empty().then_some(())
    });
}

/// Processes whose command line or environment names this folder.
fn named(folder: &Path) -> Vec<i32> {
    let folder = folder.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let names = |pid: &i32| {
        ["cmdline", "environ"].iter().any(|file| {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&text).contains(folder)
        })
    };
    processes.filter(names).collect()
}

#[test]
fn guests_of_a_killed_test_end() {
    nothing_is_left_of("kvm");
}

#[test]
fn qemus_of_a_killed_test_end() {
    nothing_is_left_of("qemu");
}

/// One that ends by itself is not taken for one that was killed.
#[test]
fn a_test_that_ends_keeps_nobody_waiting() {
    let home = Home::bare();
    let path = home.path().to_owned();
    // The kernel shows a new program's words a moment after its start was told.
    until("it to be watched", || {
        (named(&path).len() == 1).then_some(())
    });
    drop(home);
    assert_eq!(named(&path), Vec::<i32>::new());
}
