//! Interrupted commands, and commands whose writes hit a limit: they end soon with the right code,
//! leave nothing half-written, and guests go on.

use std::{
    fs,
    ops::ControlFlow,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::Path,
    thread,
    time::Duration,
};

use brood_core::{
    checkpoint::{Checkpoint, unnoted},
    engine::bhyve::{Bhyve, config::Variables},
};
use brood_tests::{Daemon, Home, Lab, Machine, PATIENCE, Running, text, until};
use nix::sys::{
    resource::{Resource, setrlimit},
    signal::Signal,
};
use reqwest::Method;
use serde_json::json;

/// Memory of guests that take long enough to be interrupted.
const LARGE: &str = "512M";

/// Names of files in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Waits until a command has read so many bytes, which is in the middle of its work.
fn in_the_middle(running: &Running, bytes: u64) {
    let pid = running.pid();
    until("the command to be in the middle of its work", || {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
        let read = io.lines().find_map(|line| line.strip_prefix("rchar: "))?;
        (read.parse::<u64>().ok()? > bytes).then_some(())
    });
}

#[track_caller]
fn interrupted(running: Running, signal: Signal) {
    running.signal(signal);
    // As timeout(1) does, which signals its command, and then the group that the command is in.
    thread::sleep(Duration::from_millis(2));
    running.signal(signal);
    let ran = running.wait().exits(130);
    assert!(ran.took < PATIENCE / 2, "{:?}", ran.took);
}

#[test]
fn a_suspend_that_is_interrupted_leaves_the_guest_answering_and_nothing_else() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", LARGE);
    home.restore(&demo, 1, "g");
    let before = names(&home.checkpoints());
    // While the guest writes its memory, and while what it wrote is read.
    for (to, signal, middle) in [
        ("first", Signal::SIGINT, 0),
        ("second", Signal::SIGTERM, 32 << 20),
    ] {
        let to = home.named(to);
        let running = home.start(&["suspend", "g-1", &to.path]);
        let written = home.checkpoints().join(format!(
            ".{}.ckp.new",
            Path::new(&to.path).file_name().unwrap().to_str().unwrap()
        ));
        until("the file to be written", || {
            (fs::metadata(&written).ok()?.len() > 0).then_some(())
        });
        in_the_middle(&running, middle);
        interrupted(running, signal);
        assert_eq!(names(&home.checkpoints()), before);
        let _ = home.ask("g-1", "ping");
    }
    // One that was paused is paused again.
    let _ = home.brood(&["pause", "g-1"]).ok();
    let running = home.start(&["suspend", "g-1", &home.named("third").path]);
    in_the_middle(&running, 32 << 20);
    interrupted(running, Signal::SIGINT);
    until("the guest to be paused again", || {
        (home.names("paused") == ["g-1"]).then_some(())
    });
    let _ = home.brood(&["resume", "g-1"]).ok();
    let small = home.named("small");
    let _ = home.brood(&["suspend", "g-1", &small.path, "--delta"]).ok();
}

#[test]
fn a_guest_whose_suspender_was_killed_answers_at_once() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", LARGE);
    home.restore(&demo, 1, "g");
    let running = home.start(&["suspend", "g-1", &home.named("to").path]);
    let written = home.checkpoints().join(".to.ckp.new");
    until("the file to be written", || {
        (fs::metadata(&written).ok()?.blocks() > 0).then_some(())
    });
    running.signal(Signal::SIGKILL);
    let _ = home.ask("g-1", "ping");
}

#[test]
fn making_flattening_and_verifying_end_when_they_are_interrupted() {
    let Some(home) = Home::with_kvm() else { return };
    let made = home.named("made");
    let running = home.start(&["checkpoint", "demo", &made.path, "--memory", LARGE]);
    until("the file to be written", || {
        let written = home.checkpoints().join(".made.ckp.new");
        (fs::metadata(written).ok()?.blocks() > 0).then_some(())
    });
    interrupted(running, Signal::SIGINT);
    assert_eq!(names(&home.checkpoints()), [] as [&str; 0]);

    let demo = home.demo("demo", LARGE);
    home.restore(&demo, 1, "g");
    let delta = home.named("delta");
    let _ = home.brood(&["suspend", "g-1", &delta.path, "--delta"]).ok();
    let before = names(&home.checkpoints());
    let flatten = [
        "checkpoint",
        "flatten",
        &delta.path,
        &home.named("flat").path,
    ];
    for (command, signal) in [
        (&flatten[..], Signal::SIGTERM),
        (&["checkpoint", "verify", &demo.path], Signal::SIGINT),
    ] {
        let running = home.start(command);
        in_the_middle(&running, 32 << 20);
        interrupted(running, signal);
        assert_eq!(names(&home.checkpoints()), before, "{command:?}");
    }
}

#[test]
fn reading_a_checkpoint_before_a_restore_ends_when_it_is_interrupted() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", LARGE);
    for command in [
        &["restore", &demo.path, "-n", "1"][..],
        &["pool", "create", "p", &demo.path, "--hot", "1"],
    ] {
        let running = home.start(command);
        in_the_middle(&running, 32 << 20);
        interrupted(running, Signal::SIGINT);
        assert!(home.list().is_empty());
    }
    assert_eq!(home.json(&["pool", "list"]), json!([]));
}

#[test]
fn an_import_that_is_interrupted_leaves_what_bhyve_wrote() {
    let lab = Lab::new();
    let raw = lab.home.checkpoints().join("first");
    lab.machine.suspend_to(&raw);
    let before = names(&lab.home.checkpoints());
    let guest = Machine::guest_of(&lab.machine.config());
    let _: &Variables = &Variables(guest.config.clone());
    let web = lab.bundle("web");
    let error = Bhyve::new()
        .import(&raw, &web, guest.clone(), &mut unnoted, &|_| {
            ControlFlow::Break(())
        })
        .unwrap_err();
    assert!(error.is_interrupted(), "{error}");
    assert_eq!(names(&lab.home.checkpoints()), before);
    let whole = &brood_core::checkpoint::unwatched;
    Bhyve::new()
        .import(&raw, &web, guest, &mut unnoted, whole)
        .unwrap();
    Checkpoint::open(&web).unwrap();
}

/// Starts `brood` with a limit on the size of files.
fn limited(home: &Home, args: &[&str], bytes: u64) -> Running {
    let mut command = home.command(args);
    // SAFETY: setrlimit(2) is all that happens between fork and exec.
    unsafe {
        command.pre_exec(move || {
            setrlimit(Resource::RLIMIT_FSIZE, bytes, bytes)?;
            Ok(())
        })
    };
    Running::start(command)
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_and_leaves_nothing() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "64M");
    home.restore(&demo, 2, "g");
    let delta = home.named("delta");
    let _ = home.brood(&["suspend", "g-2", &delta.path, "--delta"]).ok();
    let before = names(&home.checkpoints());
    let new = home.named("new");
    for command in [
        &["suspend", "g-1", &new.path][..],
        &["checkpoint", "demo", &new.path, "--memory", "64M"],
        &["checkpoint", "flatten", &delta.path, &new.path],
    ] {
        let _ = limited(&home, command, 8 << 20)
            .wait()
            .exits(1)
            .says(&["too large", "ulimit -f"]);
        assert_eq!(names(&home.checkpoints()), before, "{command:?}");
    }
    let _ = home.ask("g-1", "ping");
    // A guest that was restored under the limit.
    let restore = ["restore", &demo.path, "-n", "1", "--prefix", "small"];
    let _ = limited(&home, &restore, 8 << 20).wait().ok();
    let _ = home
        .brood(&["suspend", "small-1", &new.path])
        .exits(1)
        .says(&["too large", "ulimit -f"]);
    assert_eq!(names(&home.checkpoints()), before);
    let _ = home.ask("small-1", "ping");
}

#[test]
fn a_daemon_outlives_a_limit_on_the_size_of_files() {
    let Some(home) = Home::with_kvm() else { return };
    let daemon = Daemon::start(&home);
    let limit = libc::rlimit {
        rlim_cur: 8 << 20,
        rlim_max: 8 << 20,
    };
    // SAFETY: the limit is read, and nothing is written.
    let set = unsafe {
        libc::prlimit(
            daemon.pid(),
            libc::RLIMIT_FSIZE,
            &raw const limit,
            std::ptr::null_mut(),
        )
    };
    assert_eq!(set, 0);
    let problem = daemon.post(
        "/api/v1/checkpoints/new/demo",
        &json!({ "memory_bytes": 64 << 20 }),
        500,
    );
    assert!(text(&problem["hint"]).contains("LimitFSIZE"), "{problem}");
    assert_eq!(names(&home.checkpoints()), [] as [&str; 0]);
    let _ = daemon.send(Method::GET, "/health", 200);
}
