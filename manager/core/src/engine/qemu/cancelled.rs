//! Watch over the QEMU of a command that may be cancelled: then QEMU is killed. Whatever the command
//! waits for just then, the agent in the guest or QEMU's monitor, ends with QEMU's sockets; so no wait
//! need look at the flag itself.

use std::{
    io,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::engine::process::{self, Handle};

/// How often the flag is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Does something that waits for a QEMU, which is killed when `cancelled` is set.
pub(super) fn kill_when<T>(
    cancelled: &AtomicBool,
    qemu: &Handle,
    work: impl FnOnce() -> T,
) -> io::Result<T> {
    thread::scope(|scope| {
        let (done, over) = mpsc::channel::<()>();
        let watch = move || {
            while over.recv_timeout(POLL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                if cancelled.load(Ordering::Relaxed) {
                    // It may have ended by itself.
                    let _ = process::send(qemu, Signal::SIGKILL);
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("cancelled".to_owned())
            .spawn_scoped(scope, watch)?;
        let result = work();
        // The thread ends by that.
        drop(done);
        Ok(result)
    })
}
