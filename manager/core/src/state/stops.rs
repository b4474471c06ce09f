//! Stops by a terminal (Ctrl-Z, SIGTSTP): a stop in the middle of a change waits until the change
//! is made, because the database is locked for all commands meanwhile. SIGSTOP cannot wait.

use std::sync::{
    Once,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use nix::{
    errno::Errno,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction},
};

/// Changes under way in this process.
static CHANGES: AtomicUsize = AtomicUsize::new(0);
/// Whether a stop waits for their end.
static WAITS: AtomicBool = AtomicBool::new(false);

/// A change of the database. A stop waits until it is dropped.
#[derive(Debug)]
pub(super) struct Change(());

impl Change {
    pub(super) fn begin() -> Self {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(install);
        CHANGES.fetch_add(1, SeqCst);
        Self(())
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        CHANGES.fetch_sub(1, SeqCst);
        stop_if_wanted();
    }
}

fn install() {
    // An ignored signal stays ignored.
    if let Ok(before) = set(SigHandler::Handler(on_stop))
        && matches!(before.handler(), SigHandler::SigIgn)
    {
        let _ = set(SigHandler::SigIgn);
    }
}

fn set(handler: SigHandler) -> nix::Result<SigAction> {
    // Not blocked in its own handler, so that it stops the process from there.
    let flags = SaFlags::SA_RESTART | SaFlags::SA_NODEFER;
    let action = SigAction::new(handler, flags, SigSet::empty());
    // SAFETY: the handler does nothing but what is async-signal-safe: atomics, sigaction(2),
    // raise(3).
    unsafe { sigaction(Signal::SIGTSTP, &action) }
}

extern "C" fn on_stop(_: libc::c_int) {
    let errno = Errno::last_raw();
    WAITS.store(true, SeqCst);
    stop_if_wanted();
    Errno::set_raw(errno);
}

/// Stops this process as if it had no handler, when that is wanted and no change is under way.
fn stop_if_wanted() {
    if CHANGES.load(SeqCst) == 0 && WAITS.swap(false, SeqCst) {
        // The kernel's default action: it stops no process whose shell is gone, which could not
        // continue it.
        let _ = set(SigHandler::SigDfl);
        let _ = raise(Signal::SIGTSTP);
        let _ = set(SigHandler::Handler(on_stop));
    }
}
