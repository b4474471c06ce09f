//! Processor of the guest: from the kernel's entry to whatever stops it.

use std::{thread, time::Duration};

use kvm_bindings::{kvm_fpu, kvm_mp_state, kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Address, GuestAddress};

use crate::{
    bus::Bus,
    error::{Error, at},
    layout as l,
    memory::Memory,
    power::PowerEvent,
};

/// When a processor is tried again that could not be run.
const REFUSED: Duration = Duration::from_millis(1);

/// Why a processor stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest has turned itself off, or starts again.
    Power(PowerEvent),
    /// The processor was called back.
    Interrupted,
    /// The processor shut down: a fault in the handler of a fault in the handler of a fault.
    TripleFault,
    /// KVM does not know how to go on.
    Failed(String),
}

/// A processor.
#[derive(Debug)]
pub struct Vcpu {
    // Dropped in this order: no processor runs without its memory.
    fd: VcpuFd,
    _ram: Memory,
}

impl Vcpu {
    pub(crate) fn new(fd: VcpuFd, ram: Memory) -> Self {
        Self { fd, _ram: ram }
    }

    /// KVM's own, for whoever saves or sets its state.
    #[must_use]
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Sets the registers with which a kernel begins. The other processors wait until it starts them.
    ///
    /// # Errors
    /// When KVM refuses them.
    pub fn begin_at(&self, entry: GuestAddress) -> Result<(), Error> {
        const CR0: u64 = 1 << 31 | 1 << 5 | 1;
        const PAE: u64 = 1 << 5;
        const LONG_MODE: u64 = 1 << 8 | 1 << 10;
        let mut sregs = self
            .fd
            .get_sregs()
            .map_err(at("read the system registers"))?;
        let code = segment(0x10, 0xb, true);
        let data = segment(0x18, 0x3, false);
        sregs.cs = code;
        for register in [
            &mut sregs.ds,
            &mut sregs.es,
            &mut sregs.fs,
            &mut sregs.gs,
            &mut sregs.ss,
        ] {
            *register = data;
        }
        sregs.gdt.base = l::GDT;
        sregs.gdt.limit = 4 * 8 - 1;
        sregs.cr3 = l::PML4;
        sregs.cr4 |= PAE;
        sregs.cr0 |= CR0;
        sregs.efer |= LONG_MODE;
        self.fd
            .set_sregs(&sregs)
            .map_err(at("set the system registers"))?;
        let regs = kvm_regs {
            rip: entry.raw_value(),
            rsi: l::ZERO_PAGE,
            rsp: l::ZERO_PAGE,
            rflags: 2,
            ..Default::default()
        };
        self.fd.set_regs(&regs).map_err(at("set the registers"))?;
        let fpu = kvm_fpu {
            fcw: 0x37f,
            mxcsr: 0x1f80,
            ..Default::default()
        };
        self.fd.set_fpu(&fpu).map_err(at("set the FPU"))?;
        let runs = kvm_mp_state { mp_state: 0 };
        self.fd.set_mp_state(runs).map_err(at("set the MP state"))
    }

    /// Runs until the guest stops, or the processor is called back.
    pub fn run(&mut self, bus: &Bus) -> Stop {
        let flag = self.exit_flag();
        // SAFETY: the byte lies in the processor's run page, which is mapped as long as `self` is
        // there. Another thread may write it, so the read is volatile.
        let is_called = || unsafe { flag.read_volatile() != 0 };
        loop {
            match self.fd.run() {
                Ok(VcpuExit::IoOut(port, data)) => {
                    if let Some(event) = bus.write_port(port, data) {
                        return Stop::Power(event);
                    }
                }
                Ok(VcpuExit::IoIn(port, data)) => bus.read_port(port, data),
                Ok(VcpuExit::MmioWrite(address, data)) => bus.write_address(address, data),
                Ok(VcpuExit::MmioRead(address, data)) => bus.read_address(address, data),
                Ok(VcpuExit::Intr) if is_called() => return Stop::Interrupted,
                // The process was stopped and goes on, or another signal came.
                Ok(VcpuExit::Intr) => {}
                Ok(VcpuExit::Shutdown) => return Stop::TripleFault,
                Ok(VcpuExit::InternalError) => return self.internal_error(),
                Ok(VcpuExit::FailEntry(reason, cpu)) => {
                    let what = format!("it cannot be entered: reason {reason:#x} on {cpu}");
                    return Stop::Failed(what);
                }
                Ok(other) => return Stop::Failed(format!("{other:?}")),
                Err(e) if e.errno() == libc::EINTR => {
                    if is_called() {
                        return Stop::Interrupted;
                    }
                }
                // Another processor has not been started yet; or the host has no process id left for
                // a thread that KVM needs.
                Err(e) if e.errno() == libc::EAGAIN => thread::sleep(REFUSED),
                Err(e) => return Stop::Failed(format!("KVM_RUN: {e}")),
            }
        }
    }

    /// The byte that keeps KVM_RUN from running the guest while it is not zero.
    pub(crate) fn exit_flag(&mut self) -> *mut u8 {
        &raw mut self.fd.get_kvm_run().immediate_exit
    }

    /// Has KVM finish the access that it was left for, so that the registers say where the guest is.
    pub(crate) fn finish_exit(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        // It says that it was interrupted, which it was.
        let _ = self.fd.run();
        self.fd.set_kvm_immediate_exit(0);
    }

    fn internal_error(&mut self) -> Stop {
        let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
        // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, so `internal` is the member of the
        // union that KVM filled in.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        Stop::Failed(format!("internal error {} at {rip:#x}", internal.suberror))
    }
}

/// A flat segment of this selector and type.
fn segment(selector: u16, kind: u8, is_code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: (!is_code).into(),
        s: 1,
        l: is_code.into(),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}
