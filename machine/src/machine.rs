//! Machine: the VM, its interrupt controller, its memory slots and its processors.

use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::{
    cpu_template::CpuTemplate,
    cpuid,
    error::{Error, at},
    irq::{CurrentVm, GsiLine, Irq},
    layout as l,
    memory::Memory,
    vcpu::Vcpu,
};

/// Most processors of a guest.
pub const VCPUS_MAX: u8 = 8;

/// A virtual machine whose processors have not begun.
#[derive(Debug)]
pub struct Machine {
    /// The VM.
    pub vm: Arc<VmFd>,
    /// Its processors, which a thread each runs.
    pub vcpus: Vec<Vcpu>,
    /// Its memory.
    pub ram: Memory,
    /// What its processors are.
    pub template: CpuTemplate,
    /// Where its devices find the VM.
    pub(crate) current: Arc<CurrentVm>,
}

impl Machine {
    /// Makes a machine over this memory, with processors of this template.
    ///
    /// # Errors
    /// When KVM lacks something that it takes.
    pub fn new(kvm: &Kvm, ram: Memory, vcpus: u8, template: CpuTemplate) -> Result<Self, Error> {
        Self::over(kvm, ram, vcpus, template, Arc::default())
    }

    /// Makes one whose devices, if they are there already, find its VM at `current`.
    pub(crate) fn over(
        kvm: &Kvm,
        ram: Memory,
        vcpus: u8,
        template: CpuTemplate,
        current: Arc<CurrentVm>,
    ) -> Result<Self, Error> {
        if !(1..=VCPUS_MAX).contains(&vcpus) {
            let what = format!("a guest has 1 to {VCPUS_MAX} processors");
            return Err(Error::Refused(what));
        }
        let vm = kvm.create_vm().map_err(at("create a VM"))?;
        vm.set_identity_map_address(l::KVM_IDENTITY_MAP)
            .map_err(at("place the identity map"))?;
        vm.set_tss_address(l::KVM_TSS)
            .map_err(at("place the TSS"))?;
        vm.create_irq_chip()
            .map_err(at("create the interrupt controller"))?;
        for (slot, region) in (0..).zip(ram.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the guest reaches the mapping while a processor runs, and each has a share in it.
            unsafe { vm.set_user_memory_region(slot) }.map_err(at("add a memory slot"))?;
        }
        let vcpus = (0..vcpus).map(|id| {
            let fd = vm.create_vcpu(id.into()).map_err(at("create a vCPU"))?;
            let table = cpuid::of_vcpu(kvm, id, vcpus, template)?;
            fd.set_cpuid2(&table).map_err(at("set the CPUID table"))?;
            set_local_interrupts(&fd)?;
            Ok(Vcpu::new(fd, ram.clone()))
        });
        let vcpus = vcpus.collect::<Result<_, Error>>()?;
        let vm = Arc::new(vm);
        current.set(&vm);
        Ok(Self {
            vm,
            vcpus,
            ram,
            template,
            current,
        })
    }

    /// A pin of the interrupt controller.
    #[must_use]
    pub fn line(&self, gsi: u32) -> Arc<dyn Irq> {
        Arc::new(GsiLine::new(Arc::clone(&self.current), gsi))
    }
}

/// Joins the local APIC's pins to what a processor without firmware expects: NMI on the second.
fn set_local_interrupts(vcpu: &VcpuFd) -> Result<(), Error> {
    const LINT1: usize = 0x360;
    const NMI: u8 = 4;
    let mut lapic = vcpu.get_lapic().map_err(at("read the local APIC"))?;
    // The delivery mode is three bits of the register's second byte.
    let byte = &mut lapic.regs[LINT1 + 1];
    let value = byte.to_le_bytes()[0] & !0b111 | NMI;
    *byte = i8::from_le_bytes([value]);
    vcpu.set_lapic(&lapic).map_err(at("set the local APIC"))
}
