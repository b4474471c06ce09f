//! Signals of nurseries and guests' processes.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// The signal by which a guest stops itself, between two of its system calls.
///
/// SIGSTOP from outside may come while it closes its virtual machine. The kernel then stops KVM's
/// worker thread in the guest's process, whose end the close waits for (`vhost_task_stop` in
/// kernel/vhost_task.c): the process is neither stopped nor does it go on, until SIGCONT.
pub(crate) const STOP: Signal = Signal::SIGTSTP;

/// Has `handler` take a signal.
pub(crate) fn handle(signal: Signal, handler: SigHandler) {
    // No SA_RESTART: a blocking call must notice.
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handlers used here do nothing that is not async-signal-safe.
    let _ = unsafe { sigaction(signal, &action) };
}
