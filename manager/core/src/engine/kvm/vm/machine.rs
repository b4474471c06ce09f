//! Virtual machine of a guest process: the VM, its vCPU, its memory and its memory slots.

use std::{fmt, io};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use crate::engine::kvm::{
    demo::layout,
    vm::{
        ram::Ram,
        slots::{Region, Slots},
        vcpu::{Registers, RestorePlan},
    },
};

/// What KVM refused, and its answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KvmError {
    #[error("KVM refused to {step}: {source}")]
    Step {
        /// The step, as in "refused to ...".
        step: &'static str,
        source: io::Error,
    },
    /// KVM gives no reason: it only tells how many of a list it has set.
    #[error(
        "KVM refused to set MSR {index:#x} to {value:#x} (field msrs[{place}]): this host has no such MSR, or the MSR does not take this value"
    )]
    Msr {
        index: u32,
        value: u64,
        /// Where it stands in the state's list.
        place: usize,
    },
}

/// Names the step in an error of KVM's.
pub(crate) fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> KvmError {
    move |source| KvmError::Step {
        step,
        source: source.into(),
    }
}

/// Why a vCPU stopped running.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The guest rang the doorbell: it has answered, and waits for a request.
    Doorbell,
    /// A signal, or `immediate_exit`.
    Interrupted,
    /// The guest cannot go on.
    Dead(ExitReason),
}

/// Why a guest cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum ExitReason {
    /// The processor shut down: a triple fault, as after an exception that nothing handles.
    Shutdown {
        /// Instruction pointer at that moment.
        rip: u64,
    },
    /// The guest halted with interrupts off: nothing can ever wake it.
    Halted,
    /// The guest used an address that is neither memory nor a device.
    BadAddress {
        /// The guest-physical address.
        address: u64,
    },
    /// The guest used an I/O port that no device has.
    BadPort {
        /// The port.
        port: u16,
    },
    /// KVM gave up on the guest.
    InternalError {
        /// What KVM said of it.
        detail: String,
    },
    /// KVM_RUN failed.
    RunFailed {
        /// The error number.
        errno: i32,
    },
    /// The checkpoint file was changed while the guest used it, so that its memory is no longer
    /// what was sealed.
    CheckpointChanged {
        /// What changed.
        detail: String,
    },
    /// The guest's process was killed.
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// The kernel killed the guest's process for want of memory.
    OutOfMemory {
        /// The control group whose counter says so; none when only the host's does.
        group: Option<String>,
    },
    /// Its nursery ended it: it had not answered when its manager was gone.
    NotAnswered,
    /// The guest's process ended by itself.
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// The process is gone and nothing could see why: its keeper was gone too.
    Unknown,
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown { rip } => write!(
                f,
                "the guest's processor shut down (triple fault) at {rip:#x}"
            ),
            Self::Halted => f.write_str("the guest halted for good"),
            Self::BadAddress { address } => {
                write!(
                    f,
                    "the guest used address {address:#x}, which is neither memory nor a device"
                )
            }
            Self::BadPort { port } => {
                write!(f, "the guest used I/O port {port:#x}, which no device has")
            }
            Self::InternalError { detail } => write!(f, "KVM gave up on the guest: {detail}"),
            Self::RunFailed { errno } => {
                write!(
                    f,
                    "KVM could not run the guest: {}",
                    io::Error::from_raw_os_error(*errno)
                )
            }
            Self::CheckpointChanged { detail } => {
                write!(f, "its checkpoint was changed while in use: {detail}")
            }
            Self::Killed { signal } => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(name) => write!(f, "its process was killed by {name}"),
                Err(_) => write!(f, "its process was killed by signal {signal}"),
            },
            Self::OutOfMemory { group: Some(group) } => write!(
                f,
                "the kernel killed its process for want of memory (control group {group})"
            ),
            Self::OutOfMemory { group: None } => f.write_str(
                "its process was killed by SIGKILL, probably for want of memory: the kernel counted such a kill",
            ),
            Self::NotAnswered => {
                f.write_str("it had not answered when the command that restored it was gone")
            }
            Self::Exited { code } => write!(f, "its process ended with code {code}"),
            Self::Unknown => f.write_str("its process is gone; nothing was left to see why"),
        }
    }
}

/// A guest at rest: its memory and registers, with no virtual machine around them.
#[derive(Debug)]
pub(crate) struct Parked {
    registers: Registers,
    ram: Ram,
}

impl Parked {
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
    pub(crate) fn park(mut self, plan: &RestorePlan) -> Result<Parked, Self> {
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
                Ok(Parked { registers, ram })
            }
            Ok(None) | Err(_) => Err(self),
        }
    }

    /// Runs the guest until it rings the doorbell, is interrupted or cannot go on. Memory that has
    /// no slot yet gets one when the guest touches it.
    pub(crate) fn run(&mut self) -> Stop {
        loop {
            let (address, region, inside) = match self.vcpu.run() {
                Ok(VcpuExit::IoOut(layout::DOORBELL, _)) => return Stop::Doorbell,
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    // The access that found no slot is done here; later ones go straight.
                    let region = missing(&self.slots, &mut self.ram, address);
                    let inside = region.is_ok() && self.ram.write(address, data);
                    (address, region, inside)
                }
                Ok(VcpuExit::MmioRead(address, data)) => {
                    let region = missing(&self.slots, &mut self.ram, address);
                    let inside = region.is_ok() && self.ram.read(address, data);
                    (address, region, inside)
                }
                Ok(VcpuExit::IoOut(port, _) | VcpuExit::IoIn(port, _)) => {
                    return Stop::Dead(ExitReason::BadPort { port });
                }
                Ok(VcpuExit::Intr) => return Stop::Interrupted,
                Ok(VcpuExit::Hlt) => return Stop::Dead(ExitReason::Halted),
                Ok(VcpuExit::Shutdown) => {
                    let rip = self.vcpu.get_regs().map_or(0, |r| r.rip);
                    return Stop::Dead(ExitReason::Shutdown { rip });
                }
                Ok(VcpuExit::InternalError) => {
                    let rip = self.vcpu.get_regs().map_or(0, |r| r.rip);
                    // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, so `internal` is the
                    // member of the union that KVM filled in.
                    let suberror =
                        unsafe { self.vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
                    let detail = format!("internal error {suberror} at {rip:#x}");
                    return Stop::Dead(ExitReason::InternalError { detail });
                }
                Ok(other) => {
                    return Stop::Dead(ExitReason::InternalError {
                        detail: format!("{other:?}"),
                    });
                }
                Err(e) if e.errno() == libc::EINTR => return Stop::Interrupted,
                Err(e) => return Stop::Dead(ExitReason::RunFailed { errno: e.errno() }),
            };
            let added = match region {
                Ok(_) if !inside => return Stop::Dead(ExitReason::BadAddress { address }),
                Ok(Some(region)) => add_slot(&self.vm, &self.ram, &mut self.slots, region),
                // An access across two pages leaves KVM once for each, and the slot that the first
                // one was given may hold the second.
                Ok(None) => Ok(()),
                Err(e) => Err(e),
            };
            if let Err(e) = added {
                return Stop::Dead(ExitReason::InternalError {
                    detail: e.to_string(),
                });
            }
        }
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
