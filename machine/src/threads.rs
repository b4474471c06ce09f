//! Threads of a machine's processors: each runs one, until it stops or is called back. The threads
//! stay, so that a process that may make no more threads can have its processors run on.

use std::{
    os::unix::thread::JoinHandleExt,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
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
/// Stack of a thread, in bytes. Only what is touched takes memory.
const STACK: usize = 256 << 10;

/// Called when a processor has stopped by itself.
pub type Told = Arc<dyn Fn() + Send + Sync>;

/// Threads, and the processors that run in them.
#[derive(Debug)]
pub struct Threads {
    threads: Vec<Worker>,
    stops: Receiver<(usize, Stop)>,
}

/// One thread.
#[derive(Debug)]
struct Worker {
    /// Takes a processor to run. None when the thread is to end.
    work: Option<Sender<Vcpu>>,
    /// Gives it back when it has stopped.
    done: Receiver<Vcpu>,
    thread: JoinHandle<()>,
    /// Of the processor that it has.
    flag: Option<ExitFlag>,
}

/// The byte by which a processor is kept from running on.
#[derive(Clone, Copy, Debug)]
struct ExitFlag(*const AtomicU8);

// SAFETY: the byte lies in the run page of a processor, which its thread, or the channel back from
// it, keeps until the worker's flag is taken; all access is atomic.
unsafe impl Send for ExitFlag {}

impl ExitFlag {
    fn set(self) {
        // SAFETY: as above: the processor that owns the page has not been taken back.
        unsafe { (*self.0).store(1, Ordering::SeqCst) }
    }
}

extern "C" fn called(_: libc::c_int) {}

impl Worker {
    fn start(
        number: usize,
        bus: &Arc<Bus>,
        stopped: &Sender<(usize, Stop)>,
        told: &Told,
    ) -> Result<Self, Error> {
        let (work, todo) = channel::<Vcpu>();
        let (begin, begun) = channel();
        let (back, done) = channel();
        let (bus, stopped, told) = (Arc::clone(bus), stopped.clone(), Arc::clone(told));
        let builder = thread::Builder::new().name(format!("vcpu{number}"));
        let thread = builder.stack_size(STACK).spawn(move || {
            let _ = begin.send(());
            for mut vcpu in todo {
                let stop = vcpu.run(&bus);
                let by_itself = stop != Stop::Interrupted;
                let _ = back.send(vcpu);
                if by_itself {
                    let _ = stopped.send((number, stop));
                    told();
                }
            }
        });
        let thread = thread.map_err(|source| Error::Io {
            action: "start a processor's thread",
            source,
        })?;
        // A thread begins by system calls (rseq(2)) that it may not be able to make any more when its
        // process has confined itself.
        let _ = begun.recv();
        Ok(Self {
            work: Some(work),
            done,
            thread,
            flag: None,
        })
    }

    /// Takes its processor back, if it has one.
    fn call_back(&mut self) -> Option<Vcpu> {
        self.flag?.set();
        loop {
            match self.done.recv_timeout(AGAIN) {
                Ok(mut vcpu) => {
                    self.flag = None;
                    vcpu.finish_exit();
                    return Some(vcpu);
                }
                // It may have been about to enter the guest when the signal came.
                Err(RecvTimeoutError::Timeout) => {
                    let _ = pthread_kill(self.thread.as_pthread_t(), CALL);
                }
                // The thread has panicked, and the processor is gone with it.
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }
}

impl Threads {
    /// Makes so many threads; none has a processor yet. `told` is called by a thread whose
    /// processor has stopped by itself.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub fn new(count: usize, bus: &Arc<Bus>, told: &Told) -> Result<Self, Error> {
        let handler = SigHandler::Handler(called);
        let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing; it is there so that the signal ends a call.
        unsafe { sigaction(CALL, &action) }.map_err(|e| Error::Io {
            action: "handle a signal",
            source: e.into(),
        })?;
        let (stopped, stops) = channel();
        let threads = (0..count).map(|number| Worker::start(number, bus, &stopped, told));
        Ok(Self {
            threads: threads.collect::<Result<_, Error>>()?,
            stops,
        })
    }

    /// Has each processor run in a thread of its own.
    pub fn run(&mut self, vcpus: Vec<Vcpu>) {
        for (thread, mut vcpu) in self.threads.iter_mut().zip(vcpus) {
            thread.flag = Some(ExitFlag(vcpu.exit_flag().cast()));
            if let Some(work) = &thread.work {
                let _ = work.send(vcpu);
            }
        }
    }

    /// Waits until a processor stops by itself; which, and why. None when none does within the limit.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> Option<(usize, Stop)> {
        self.stops.recv_timeout(limit).ok()
    }

    /// Which processor has stopped by itself, and why.
    #[must_use]
    pub fn stopped(&self) -> Option<(usize, Stop)> {
        self.stops.try_recv().ok()
    }

    /// Calls all processors back. Each has finished what it left KVM for.
    pub fn call_back(&mut self) -> Vec<Vcpu> {
        for flag in self.threads.iter().filter_map(|thread| thread.flag) {
            flag.set();
        }
        let threads = self.threads.iter_mut();
        threads.filter_map(Worker::call_back).collect()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        drop(self.call_back());
        for Worker { work, thread, .. } in self.threads.drain(..) {
            drop(work);
            let _ = thread.join();
        }
    }
}
