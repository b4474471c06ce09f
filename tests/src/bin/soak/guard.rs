//! Ends the soak by itself: after the first panic of any thread, when it takes far too long, and when
//! somebody ends it by a signal. Whatever it has started is killed, and its folders are removed.

use std::{
    fs, panic, process,
    sync::{
        Mutex, Weak,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use brood_tests::{Storage, processes_of, signal, until};
use nix::sys::signal::{SigSet, Signal};

use super::scene::Scene;

/// How much longer than it is told a soak may take: it begins, and comes to rest.
const SLACK: Duration = Duration::from_secs(400);
/// How long other threads may go on after the first panic: what they say may tell more.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why the soak ends.
enum End {
    Panic,
    Signal(Signal),
}

/// What is to be cleaned up, as soon as it is there.
static SCENE: Mutex<Weak<Scene>> = Mutex::new(Weak::new());

/// Blocks the signals that end this process, for all of its threads: one of them waits for those.
pub(crate) fn block_signals() -> SigSet {
    let mut signals = SigSet::empty();
    for which in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(which);
    }
    signals.thread_block().expect("signals can be blocked");
    signals
}

/// Watches over a soak of so many seconds.
pub(crate) fn watch(scene: Weak<Scene>, signals: SigSet, seconds: u64) {
    *SCENE.lock().expect("nobody panics with it") = scene;
    let (sender, receiver) = channel();
    tell_of_panics(sender.clone());
    thread::spawn(move || {
        if let Ok(which) = signals.wait() {
            let _ = sender.send(End::Signal(which));
        }
    });
    thread::spawn(move || end(&receiver, Duration::from_secs(seconds) + SLACK));
}

fn tell_of_panics(sender: Sender<End>) {
    let usual = panic::take_hook();
    let sender = Mutex::new(sender);
    panic::set_hook(Box::new(move |panic| {
        usual(panic);
        if let Ok(sender) = sender.lock() {
            let _ = sender.send(End::Panic);
        }
    }));
}

fn end(why: &Receiver<End>, limit: Duration) {
    let code = match why.recv_timeout(limit) {
        Ok(End::Panic) => {
            thread::sleep(LAST_WORDS);
            eprintln!("soak: FAILED: the panic above says of what");
            1
        }
        Ok(End::Signal(which)) => {
            eprintln!("soak: ended by {which}");
            128 + which as i32
        }
        Err(RecvTimeoutError::Timeout) => {
            eprintln!("soak: FAILED: it did not end within {} s", limit.as_secs());
            1
        }
        Err(RecvTimeoutError::Disconnected) => return,
    };
    let scene = SCENE.lock().expect("nobody panics with it").upgrade();
    if let Some(scene) = scene {
        scene.tell_of_daemon();
        kill_all(&scene);
        let _ = fs::remove_dir_all(scene.home.path());
        if let Some(Storage::Files(files)) = &scene.storage {
            files.remove();
        }
        for folder in scene.home.other_folders() {
            let _ = fs::remove_dir_all(folder);
        }
    }
    process::exit(code);
}

/// Kills daemons, commands, nurseries and guests, and those that they start meanwhile.
fn kill_all(scene: &Scene) {
    let begin = Instant::now();
    let ended = panic::catch_unwind(panic::AssertUnwindSafe(|| {
        until("all processes of the soak to be gone", || {
            let all = processes_of(&scene.home);
            for process in &all {
                signal(process.pid, Signal::SIGKILL);
            }
            all.is_empty().then_some(())
        });
    }));
    if ended.is_err() {
        let took = begin.elapsed().as_secs();
        eprintln!(
            "soak: processes are left after {took} s: {:?}",
            processes_of(&scene.home)
        );
    }
}
