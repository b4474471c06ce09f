//! Guard: ends the soak after the first panic of any thread, after far too long a time, and at a
//! signal. It kills every process that the soak started, and removes its folders.

use std::{
    fs, panic, process,
    sync::{
        Mutex, Weak,
        atomic::{AtomicI32, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use brood_tests::{Storage, processes_of, signal, until};
use nix::{
    libc,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

use super::scene::Scene;

/// Extra time beyond the soak's own, for its start and its last audit.
const SLACK: Duration = Duration::from_secs(400);
/// How long other threads may go on after the first panic: what they say may tell more.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often it is looked for a signal.
const GLANCE: Duration = Duration::from_millis(50);

/// Why the soak ends.
enum End {
    Panic,
    Signal(Signal),
}

/// What is to be cleaned up, as soon as it is there.
static SCENE: Mutex<Weak<Scene>> = Mutex::new(Weak::new());

/// The signal that ends the soak, once there is one.
static SIGNALLED: AtomicI32 = AtomicI32::new(0);

extern "C" fn on_signal(which: libc::c_int) {
    SIGNALLED.store(which, Ordering::Relaxed);
}

/// Notes the signals that end this process. They are not blocked: whatever it starts would be deaf
/// to them, too.
pub(crate) fn note_signals() {
    for which in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let handler = SigHandler::Handler(on_signal);
        let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler stores a number, and does nothing else.
        unsafe { sigaction(which, &action) }.expect("these can be handled");
    }
}

fn wait_for_signal() -> Signal {
    loop {
        if let Ok(which) = Signal::try_from(SIGNALLED.load(Ordering::Relaxed)) {
            return which;
        }
        thread::sleep(GLANCE);
    }
}

/// Watches over a soak of so many seconds.
pub(crate) fn watch(scene: Weak<Scene>, seconds: u64) {
    *SCENE.lock().expect("nobody panics with it") = scene;
    let (sender, receiver) = channel();
    tell_of_panics(sender.clone());
    thread::spawn(move || sender.send(End::Signal(wait_for_signal())));
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
