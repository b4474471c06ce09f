//! Chaos: kills, stops and replaces guests, nurseries and daemons at random.

use std::{fs::File, io::Write, process::Command, thread, time::Duration};

use brood_tests::{Daemon, Random, Running, processes_in, signal, until};
use nix::sys::signal::Signal;

use super::scene::{Counts, Scene, lock};

/// No command takes longer than this unless it waits for another process.
const LONG: Duration = Duration::from_secs(60);

/// Kills until the soak is over; a daemon is there then.
pub(crate) fn run(scene: &Scene, mut random: Random) {
    while !scene.is_done() {
        thread::sleep(Duration::from_millis(100 + random.below(700)));
        let doing = scene.doing();
        match random.below(20) {
            0..4 => replace_killed(scene, &mut random),
            4..6 => replace_alive(scene),
            6 => replace_ended(scene),
            7..9 => kill_nurseries(scene),
            9 => stop_nurseries(scene, &mut random),
            11 => restore_silent(scene),
            12 => stop_a_command(scene, &mut random),
            13 => starve_daemon(scene, &mut random),
            14 => fill_disk(scene, &mut random),
            10 if random.below(3) == 0 => kill_all(scene),
            _ => kill_a_guest(scene, &mut random),
        }
        drop(doing);
    }
}

/// The daemon is killed, and some time later there is another.
fn replace_killed(scene: &Scene, random: &mut Random) {
    let mut daemon = lock(&scene.daemon);
    if let Some(killed) = daemon.take() {
        killed.signal(Signal::SIGKILL);
        let _ = killed.wait();
    }
    thread::sleep(Duration::from_millis(random.below(300)));
    start(scene, &mut daemon);
}

/// Another takes over from the daemon.
fn replace_alive(scene: &Scene) {
    let mut daemon = lock(&scene.daemon);
    let old = daemon.take();
    start(scene, &mut daemon);
    if let Some(old) = old {
        let ran = old.wait();
        assert_eq!(ran.code(), Some(0), "{ran:?}");
    }
}

/// Ends the daemon by a signal, then starts another.
fn replace_ended(scene: &Scene) {
    let mut daemon = lock(&scene.daemon);
    if let Some(old) = daemon.take() {
        old.signal(Signal::SIGTERM);
        let ran = old.wait();
        assert_eq!(ran.code(), Some(0), "{ran:?}");
    }
    start(scene, &mut daemon);
}

fn start(scene: &Scene, daemon: &mut Option<Daemon>) {
    Counts::add(&scene.counts.daemons);
    *daemon = Some(Daemon::start(&scene.home));
}

fn kill_nurseries(scene: &Scene) {
    for nursery in scene.home.nurseries() {
        scene.kill(nursery.pid);
    }
}

/// Nurseries are stopped for a while, in which the daemon may be killed, too.
fn stop_nurseries(scene: &Scene, random: &mut Random) {
    let nurseries = scene.home.nurseries();
    for nursery in &nurseries {
        signal(nursery.pid, Signal::SIGSTOP);
    }
    if random.below(2) == 0 {
        replace_killed(scene, random);
    } else {
        thread::sleep(Duration::from_millis(random.below(300)));
    }
    for nursery in &nurseries {
        signal(nursery.pid, Signal::SIGCONT);
    }
}

/// Guests that never answer: their restore ends in time, and leaves nothing.
fn restore_silent(scene: &Scene) {
    let Some(silent) = &scene.silent else { return };
    let restore = [
        // A daemon has no fault in its environment.
        "--no-daemon",
        "restore",
        &silent.checkpoint,
        "-n",
        "2",
        "-c",
        "2",
        "--prefix",
        "silent",
        "--timeout",
        "1",
    ];
    let mut command = scene.home.command(&restore);
    if let Some(fault) = silent.fault {
        command.env("BROOD_STANDIN_FAIL", fault);
    }
    let ran = Running::start(command).wait();
    assert_ne!(ran.code(), Some(0), "{ran:?}");
    assert!(ran.took < LONG, "{ran:?}");
    Counts::add(&scene.counts.hangs);
}

/// A command that fills a pool is stopped for a while, and may be killed then.
fn stop_a_command(scene: &Scene, random: &mut Random) {
    let pool = random.choose(&scene.pools).name;
    let command = scene.home.command(&["--no-daemon", "pool", "fill", pool]);
    let command = Running::start(command);
    thread::sleep(Duration::from_millis(random.below(60)));
    command.signal(Signal::SIGSTOP);
    thread::sleep(Duration::from_millis(random.below(1500)));
    if random.below(2) == 0 {
        command.signal(Signal::SIGKILL);
    }
    command.signal(Signal::SIGCONT);
    let ran = command.wait();
    assert!(ran.took < LONG, "{ran:?}");
    Counts::add(&scene.counts.hangs);
}

/// The daemon can open nothing more for a while.
fn starve_daemon(scene: &Scene, random: &mut Random) {
    let daemon = lock(&scene.daemon);
    let Some(pid) = daemon.as_ref().map(Daemon::pid) else {
        return;
    };
    let limit = |limit: &str| {
        let set = Command::new("prlimit")
            .args([format!("--pid={pid}"), format!("--nofile={limit}:")])
            .status();
        set.is_ok_and(|status| status.success())
    };
    if limit("12") {
        thread::sleep(Duration::from_millis(random.below(700)));
        assert!(limit("1024"), "the daemon has its descriptors again");
        Counts::add(&scene.counts.hangs);
    }
}

/// The file system of the state has no room for a while.
fn fill_disk(scene: &Scene, random: &mut Random) {
    let Some(storage) = &scene.storage else {
        return;
    };
    let filler = storage.folder().join("filler");
    if let Ok(mut file) = File::create(&filler) {
        let block = vec![0; 1 << 20];
        while file.write_all(&block).is_ok() {}
        Counts::add(&scene.counts.hangs);
    }
    thread::sleep(Duration::from_millis(random.below(500)));
    std::fs::remove_file(&filler).expect("the filler is there");
}

/// As when the host's memory is gone: all guests at once.
fn kill_all(scene: &Scene) {
    let mut daemon = lock(&scene.daemon);
    if let Some(killed) = daemon.take() {
        killed.signal(Signal::SIGKILL);
        let _ = killed.wait();
    }
    until("everything to be killed", || {
        let all = processes_in(&scene.home.state());
        for process in &all {
            scene.kill(process.pid);
        }
        all.is_empty().then_some(())
    });
    start(scene, &mut daemon);
}

/// A guest that is claimed, waits, or is a spare.
fn kill_a_guest(scene: &Scene, random: &mut Random) {
    let guests = scene.home.guests();
    if !guests.is_empty() {
        scene.kill(random.choose(&guests).pid);
    }
}
