//! Kills, stops and replaces whatever there is.

use std::{thread, time::Duration};

use brood_tests::{Daemon, Random, processes_in, signal, until};
use nix::sys::signal::Signal;

use super::scene::{Counts, Scene, lock};

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

/// The daemon is told to end, and then there is another.
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

/// One that is somebody's, waits, or is there to become one.
fn kill_a_guest(scene: &Scene, random: &mut Random) {
    let guests = scene.home.guests();
    if !guests.is_empty() {
        scene.kill(random.choose(&guests).pid);
    }
}
