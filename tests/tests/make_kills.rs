//! QEMU killed, and the command interrupted, while `brood checkpoint make` boots, waits, warms and
//! seals: it ends at once with what happened, and nothing is left.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use brood_tests::{Demo, Home, Ran, Running, processes_in, signal, until, until_within};
use nix::sys::signal::Signal;

/// How long a guest may take to boot and to come as far as a test wants it, on a busy machine.
const BOOT: Duration = Duration::from_secs(240);

/// A hook that the guest's agent runs for longer than anybody waits, before the seal.
const SLOW_HOOK: &str = "mkdir -p /etc/brood/suspending.d; cd /etc/brood/suspending.d; \
                         printf '#!/bin/sh\\nsleep 4711\\n' >slow; chmod +x slow";

/// Where a command is when something happens to it, what it is given to stay there, and what it has
/// said then.
const POINTS: [(&str, &[&str], &str); 5] = [
    ("boot", &[], "booting"),
    ("not ready", &["--ready", "false"], "has answered"),
    ("getting ready", &["--ready", "sleep 4711"], "has answered"),
    ("warming", &["--warm", "sleep 4711"], "has answered"),
    ("sealing", &["--warm", SLOW_HOOK], "sealing"),
];

/// A home, and the folder of the image that its checkpoint was made of.
fn home() -> Option<(Home, PathBuf)> {
    let (home, made) = Home::with_qemu()?;
    let images = Path::new(&made.path).ancestors().nth(2)?;
    Some((home, images.join("state/images")))
}

/// A `make` of a guest with a disk of its own, which is a clone of a file; it has come so far.
fn making(home: &Home, images: &Path, to: &Demo, more: &[&str], until_said: &str) -> Running {
    let source = home.path().join("data.img");
    fs::write(&source, vec![7; 1 << 20]).unwrap();
    let disk = format!("reflink-or-copy:{}", source.display());
    let words = ["checkpoint", "make", "linux", &to.path, "--disk", &disk];
    // Longer than the test waits.
    let limit = ["--timeout", "30m"];
    let mut command = home.command(&[&words[..], &limit, more].concat());
    command.env("BROOD_IMAGE_DIR", images);
    let running = Running::start(command);
    until_within(BOOT, until_said, || {
        let said = running.said();
        said.contains(until_said).then_some(())
    });
    running
}

/// The QEMU of a guest that is booted, by its record.
fn qemu(home: &Home) -> i32 {
    until("QEMU", || {
        let folders = fs::read_dir(home.run_dir()).ok()?.flatten();
        let mut pids = folders.filter_map(|folder| {
            let pid = fs::read_to_string(folder.path().join("pid")).ok()?;
            pid.trim().parse().ok()
        });
        pids.next()
    })
}

/// Names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.collect()
}

/// Nothing is left of the guest: no process, file of the run folder, draft or disk.
fn nothing_is_left(home: &Home, at: &str) {
    let processes = processes_in(&home.state());
    assert!(processes.is_empty(), "{at}: {processes:?}");
    let run = names(&home.run_dir());
    let of_guest = |name: &String| name.contains(".qemu") || name.contains(".template");
    assert!(!run.iter().any(of_guest), "{at}: {run:?}");
    assert_eq!(names(&home.checkpoints()), [""; 0], "{at}");
    let disks = names(&home.path().join("brood-disks"));
    assert_eq!(disks, [""; 0], "{at}");
}

/// Does something to a `make` at each point, and looks at what it says then.
fn at_each_point(disturb: impl Fn(&Home, &Running), look: impl Fn(&str, Ran)) {
    let Some((home, images)) = home() else {
        return;
    };
    for (at, more, said) in POINTS {
        let running = making(&home, &images, &home.named("made"), more, said);
        disturb(&home, &running);
        look(at, running.wait());
        nothing_is_left(&home, at);
    }
}

#[test]
fn qemu_is_killed_while_a_checkpoint_is_made() {
    let kill = |home: &Home, _: &Running| signal(qemu(home), Signal::SIGKILL);
    at_each_point(kill, |at, ran| {
        let ran = ran.exits(1);
        assert!(
            ran.stderr.contains("QEMU ended (signal: 9"),
            "{at}: {ran:?}"
        );
    });
}

#[test]
fn a_make_is_interrupted() {
    let interrupt = |_: &Home, running: &Running| running.signal(Signal::SIGINT);
    at_each_point(interrupt, |at, ran| {
        assert_eq!(ran.code(), Some(130), "{at}: {ran:?}");
    });
}

/// A QEMU that answers nobody keeps no command from its end.
#[test]
fn a_make_whose_qemu_stands_still_is_interrupted() {
    let interrupt = |home: &Home, running: &Running| {
        signal(qemu(home), Signal::SIGSTOP);
        running.signal(Signal::SIGINT);
    };
    at_each_point(interrupt, |at, ran| {
        assert_eq!(ran.code(), Some(130), "{at}: {ran:?}");
    });
}
