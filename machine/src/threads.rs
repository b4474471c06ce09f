//! Threads of a machine's processors: one runs each, until one of them stops or all are called back.

use std::{
    os::unix::thread::JoinHandleExt,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::{
    pthread::pthread_kill,
    signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

use crate::{
    bus::Bus,
    error::Error,
    vcpu::{Stop, Vcpu},
};

/// The signal that calls a processor back.
const CALL: Signal = Signal::SIGUSR2;
/// How often it is sent to one that has not come yet.
const AGAIN: Duration = Duration::from_millis(5);

/// Processors that run.
#[derive(Debug)]
pub struct Running {
    threads: Vec<(JoinHandle<Vcpu>, ExitFlag)>,
    stops: mpsc::Receiver<(usize, Stop)>,
}

/// The byte by which a processor is kept from running on.
#[derive(Clone, Copy, Debug)]
struct ExitFlag(*const AtomicU8);

// SAFETY: the byte lies in the run page of a processor, which its thread keeps until it is joined;
// all access is atomic.
unsafe impl Send for ExitFlag {}

impl ExitFlag {
    fn set(self) {
        // SAFETY: as above: the thread that owns the page has not been joined.
        unsafe { (*self.0).store(1, Ordering::SeqCst) }
    }
}

extern "C" fn called(_: libc::c_int) {}

impl Running {
    /// Starts all processors.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub fn start(vcpus: Vec<Vcpu>, bus: &Arc<Bus>) -> Result<Self, Error> {
        let handler = SigHandler::Handler(called);
        let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing; it is there so that the signal ends a call.
        unsafe { sigaction(CALL, &action) }.map_err(|e| Error::Io {
            action: "handle a signal",
            source: e.into(),
        })?;
        let (told, stops) = mpsc::channel();
        let threads = vcpus.into_iter().enumerate().map(|(number, mut vcpu)| {
            let flag = ExitFlag(vcpu.exit_flag().cast());
            let (bus, told) = (Arc::clone(bus), told.clone());
            let builder = thread::Builder::new().name(format!("vcpu{number}"));
            let thread = builder.spawn(move || {
                let stop = vcpu.run(&bus);
                let _ = told.send((number, stop));
                vcpu
            });
            let thread = thread.map_err(|source| Error::Io {
                action: "start a processor's thread",
                source,
            })?;
            Ok((thread, flag))
        });
        Ok(Self {
            threads: threads.collect::<Result<_, Error>>()?,
            stops,
        })
    }

    /// Waits until a processor stops by itself; which, and why. None when none does within the limit.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> Option<(usize, Stop)> {
        self.stops.recv_timeout(limit).ok()
    }

    /// Calls all processors back. Each has finished what it left KVM for.
    pub fn stop(self) -> Vec<Vcpu> {
        for (_, flag) in &self.threads {
            flag.set();
        }
        let threads = self.threads.into_iter();
        let vcpus = threads.map(|(thread, _)| {
            while !thread.is_finished() {
                let _ = pthread_kill(thread.as_pthread_t(), CALL);
                thread::sleep(AGAIN);
            }
            let mut vcpu = thread.join().expect("a processor's thread does not panic");
            vcpu.finish_exit();
            vcpu
        });
        vcpus.collect()
    }
}
