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
                // Whoever takes the processor back then knows of it.
                if by_itself {
                    let _ = stopped.send((number, stop));
                }
                let _ = back.send(vcpu);
                if by_itself {
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

    /// Has its processor, if it has one, come back.
    fn call(&self) {
        if let Some(flag) = self.flag {
            flag.set();
            let _ = pthread_kill(self.thread.as_pthread_t(), CALL);
        }
    }

    /// Takes its processor back, which has been called, if it has one.
    fn take_back(&mut self) -> Option<Vcpu> {
        self.flag?;
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
        self.threads.iter().for_each(Worker::call);
        let threads = self.threads.iter_mut();
        threads.filter_map(Worker::take_back).collect()
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

#[cfg(test)]
mod tests {
    use std::{hint, io, sync::mpsc};

    use kvm_ioctls::Kvm;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::{
        bus::Devices,
        cpu_template::CpuTemplate,
        layout::RESET,
        machine::Machine,
        memory::{self, Backing},
        power::PowerEvent,
        virtio::{console::Console, rng::Rng},
    };

    /// A program in real mode: counts for a while, starts the machine again, and counts for ever.
    const PROGRAM: u64 = 0x1000;
    /// Where it has asked for the start.
    const ASKED: u64 = PROGRAM + 10;

    /// A machine of two processors, of which the first has a program; none without a KVM.
    fn machine() -> Option<(Machine, Arc<Bus>)> {
        let kvm = Kvm::new().ok()?;
        let ram = memory::map(64 << 20, Backing::Anonymous).unwrap();
        let [low, high] = RESET.to_le_bytes();
        let code = [
            0xb9, 40, 0, // mov cx, 40
            0xe2, 0xfe, // loop to itself
            0xba, low, high, // mov dx, RESET
            0xb0, 1,    // mov al, 1
            0xee, // out dx, al
            0xeb, 0xfe, // jmp to itself
        ];
        ram.write_slice(&code, GuestAddress(PROGRAM)).unwrap();
        let machine = Machine::new(&kvm, ram, 2, CpuTemplate::Host).ok()?;
        let devices = Devices {
            serial: Box::new(io::sink()),
            serial_wake: Arc::new(|| ()),
            console: Console::new("x", Box::new(|| ())),
            rng: Rng::new(Box::new(io::repeat(1))),
            disks: Vec::new(),
            net: None,
        };
        let bus = Bus::new(&machine, devices).unwrap();
        Some((machine, Arc::new(bus)))
    }

    fn begin(vcpu: &Vcpu) {
        let mut sregs = vcpu.fd().get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.fd().set_sregs(&sregs).unwrap();
        let mut regs = vcpu.fd().get_regs().unwrap();
        (regs.rip, regs.rflags) = (PROGRAM, 2);
        vcpu.fd().set_regs(&regs).unwrap();
    }

    /// Wherever processors are, all come back at once; and one that has stopped by itself comes after
    /// it has told so.
    #[test]
    fn a_processor_that_comes_back_has_told_of_its_end() {
        let Some((mut machine, bus)) = machine() else {
            eprintln!("skipped: no KVM");
            return;
        };
        let (tell, told) = mpsc::channel();
        let tell: Told = Arc::new(move || {
            let _ = tell.send(());
        });
        let mut threads = Threads::new(2, &bus, &tell).unwrap();
        let mut vcpus = std::mem::take(&mut machine.vcpus);
        for n in 0..500 {
            begin(&vcpus[0]);
            threads.run(vcpus);
            for _ in 0..n * 50 {
                hint::spin_loop();
            }
            vcpus = threads.call_back();
            assert_eq!(vcpus.len(), 2);
            let rip = vcpus[0].fd().get_regs().unwrap().rip;
            let end = threads.stopped();
            assert_eq!(rip > ASKED, end.is_some(), "{n} {rip:#x}");
            if end.is_some() {
                told.recv().unwrap();
            }
        }
        let _second = vcpus.pop();
        for n in 0..4000 {
            begin(&vcpus[0]);
            threads.run(vcpus);
            let first = &mut threads.threads[0];
            let back = loop {
                match first.done.try_recv() {
                    Ok(back) => break back,
                    Err(_) => hint::spin_loop(),
                }
            };
            first.flag = None;
            vcpus = vec![back];
            let end = (0, Stop::Power(PowerEvent::Reset));
            assert_eq!(threads.stopped(), Some(end), "{n}");
            told.recv().unwrap();
        }
    }
}
