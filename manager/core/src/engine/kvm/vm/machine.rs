//! Virtual machine of a guest process: the VM, its vCPU, its memory and its memory slots.

#[cfg(test)]
mod tests;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::engine::kvm::{
    exit_reason::ExitReason,
    vm::{
        devices::{Devices, Flow},
        error::{KvmError, at},
        ram::Ram,
        slots::{Region, Slots},
        vcpu::{Registers, RestorePlan},
    },
};

/// Why a vCPU stopped running.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// One of the guest's devices had it wait for the host.
    Waiting,
    /// A signal, or `immediate_exit`.
    Interrupted,
    /// The guest cannot go on.
    Dead(ExitReason),
}

impl From<KvmError> for Stop {
    fn from(error: KvmError) -> Self {
        internal_error(error.to_string())
    }
}

fn internal_error(detail: String) -> Stop {
    Stop::Dead(ExitReason::InternalError { detail })
}

/// A guest at rest: its memory and registers, with no virtual machine around them.
#[derive(Debug)]
pub(crate) struct ParkedGuest {
    registers: Registers,
    ram: Ram,
}

impl ParkedGuest {
    /// Makes the virtual machine again. Until that has worked nothing is lost.
    pub(crate) fn unpark(
        self,
        kvm: &Kvm,
        regions: &[Region],
        plan: &RestorePlan,
    ) -> Result<Machine, (Self, KvmError)> {
        let Self { registers, ram } = self;
        let mut machine = match Machine::new(kvm, ram, regions) {
            Ok(machine) => machine,
            Err((ram, e)) => return Err((Self { registers, ram }, e)),
        };
        match plan.apply(&mut machine.vcpu, &registers) {
            Ok(()) => Ok(machine),
            Err(e) => Err((
                Self {
                    registers,
                    ram: machine.ram,
                },
                e,
            )),
        }
    }
}

/// A virtual machine with one vCPU.
#[derive(Debug)]
pub(crate) struct Machine {
    // Dropped in this order: the vCPU, the VM, then the memory they use.
    pub(crate) vcpu: VcpuFd,
    pub(crate) vm: VmFd,
    slots: Slots,
    pub(crate) ram: Ram,
}

impl Machine {
    /// A machine in reset state over `ram`, with slots for `regions`.
    /// When that fails, the memory is handed back.
    pub(crate) fn new(
        kvm: &Kvm,
        mut ram: Ram,
        regions: &[Region],
    ) -> Result<Self, (Ram, KvmError)> {
        let mut make = || {
            // A signal that comes meanwhile interrupts it.
            let vm = loop {
                match kvm.create_vm() {
                    Err(e) if e.errno() == libc::EINTR => {}
                    result => break result.map_err(at("create a VM"))?,
                }
            };
            let mut slots = Slots::new(ram.size());
            for region in regions {
                ram.place(*region).map_err(at("map a delta's pages"))?;
                add_slot(&vm, &ram, &mut slots, *region)?;
            }
            let vcpu = vm.create_vcpu(0).map_err(at("create a vCPU"))?;
            Ok((vcpu, vm, slots))
        };
        match make() {
            Ok((vcpu, vm, slots)) => Ok(Self {
                vcpu,
                vm,
                slots,
                ram,
            }),
            Err(e) => Err((ram, e)),
        }
    }

    /// Gives the virtual machine back to the kernel and keeps only what it takes to make it again:
    /// the guest's memory and its registers. The rest of the vCPU's state is what `plan` sets;
    /// where the guest has changed it, the machine is kept.
    pub(crate) fn park(mut self, plan: &RestorePlan) -> Result<ParkedGuest, Self> {
        match self
            .finish_exit()
            .and_then(|()| plan.registers_beyond(&self.vcpu))
        {
            Ok(Some(registers)) => {
                let Self {
                    vcpu,
                    vm,
                    slots: _,
                    ram,
                } = self;
                drop(vcpu);
                drop(vm);
                Ok(ParkedGuest { registers, ram })
            }
            Ok(None) | Err(_) => Err(self),
        }
    }

    /// Runs the guest until one of its devices has it wait, it is interrupted or cannot go on. Memory
    /// that has no slot yet gets one when the guest touches it.
    pub(crate) fn run(&mut self, devices: &mut impl Devices) -> Stop {
        loop {
            match self.run_to_exit(devices) {
                Ok(Flow::RunOn) => {}
                Ok(Flow::Wait) => return Stop::Waiting,
                Err(stop) => return stop,
            }
        }
    }

    /// Runs the guest until it leaves KVM once, and does what it has left for.
    fn run_to_exit(&mut self, devices: &mut impl Devices) -> Result<Flow, Stop> {
        let missing = match self.vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                let flow = devices.write_port(port, data);
                return flow.ok_or(Stop::Dead(ExitReason::BadPort { port }));
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                let flow = devices.read_port(port, data);
                return flow.ok_or(Stop::Dead(ExitReason::BadPort { port }));
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                // The access that found no slot is done here; later ones go straight.
                let missing = missing(&self.slots, &mut self.ram, address)?;
                if !self.ram.write(address, data) {
                    let flow = devices.write_address(address, data);
                    return flow.ok_or(Stop::Dead(ExitReason::BadAddress { address }));
                }
                missing
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                let missing = missing(&self.slots, &mut self.ram, address)?;
                if !self.ram.read(address, data) {
                    let flow = devices.read_address(address, data);
                    return flow.ok_or(Stop::Dead(ExitReason::BadAddress { address }));
                }
                missing
            }
            Ok(VcpuExit::Intr) => return Err(Stop::Interrupted),
            Ok(VcpuExit::Hlt) => return Err(Stop::Dead(ExitReason::Halted)),
            Ok(VcpuExit::Shutdown) => {
                let rip = self.vcpu.get_regs().map_or(0, |r| r.rip);
                return Err(Stop::Dead(ExitReason::Shutdown { rip }));
            }
            Ok(VcpuExit::InternalError) => {
                let rip = self.vcpu.get_regs().map_or(0, |r| r.rip);
                // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, so `internal` is the
                // member of the union that KVM filled in.
                let suberror =
                    unsafe { self.vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
                return Err(internal_error(format!(
                    "internal error {suberror} at {rip:#x}"
                )));
            }
            Ok(other) => return Err(internal_error(format!("{other:?}"))),
            Err(e) if e.errno() == libc::EINTR => return Err(Stop::Interrupted),
            Err(e) => return Err(Stop::Dead(ExitReason::RunFailed { errno: e.errno() })),
        };
        // An access across two pages leaves KVM once for each, and the slot that the first one was
        // given may hold the second.
        if let Some(region) = missing {
            add_slot(&self.vm, &self.ram, &mut self.slots, region)?;
        }
        Ok(Flow::RunOn)
    }

    /// The byte that makes KVM_RUN return at once while it is not zero.
    pub(crate) fn immediate_exit(&mut self) -> *mut u8 {
        &raw mut self.vcpu.get_kvm_run().immediate_exit
    }

    /// Lets KVM finish the instruction that made the last exit, without running on, so that the
    /// registers say where the guest really is.
    pub(crate) fn finish_exit(&mut self) -> Result<(), KvmError> {
        self.vcpu.set_kvm_immediate_exit(1);
        let result = self.vcpu.run().map(|_| ());
        self.vcpu.set_kvm_immediate_exit(0);
        match result {
            Err(e) if e.errno() == libc::EINTR => Ok(()),
            Ok(()) => Ok(()),
            Err(e) => Err(at("finish the last exit")(e)),
        }
    }
}

/// The region to add so that `address` has a slot, if it has none, ready to be used.
fn missing(slots: &Slots, ram: &mut Ram, address: u64) -> Result<Option<Region>, KvmError> {
    let region = slots.missing(address);
    if let Some(region) = region {
        ram.place(region).map_err(at("map a delta's pages"))?;
    }
    Ok(region)
}

fn add_slot(vm: &VmFd, ram: &Ram, slots: &mut Slots, region: Region) -> Result<(), KvmError> {
    let slot = kvm_userspace_memory_region {
        slot: u32::try_from(slots.count()).expect("there are fewer regions than 2^32 pages"),
        flags: 0,
        guest_phys_addr: region.start,
        memory_size: region.end - region.start,
        userspace_addr: ram.host_address() + region.start,
    };
    // SAFETY: the region lies inside `ram`, which is dropped after the VM.
    unsafe { vm.set_user_memory_region(slot) }.map_err(at("add a memory slot"))?;
    slots.insert(region);
    Ok(())
}
