//! State of a machine at rest: its processors, its interrupt controller, its clock and its devices.
//! With the guest's memory it is all that there is of the guest.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_clock_data,
    kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VmFd};
use serde::{Deserialize, Serialize};

use crate::{
    bus::{Bus, BusState},
    error::{Error, at},
    machine::Machine,
    vcpu::Vcpu,
};

/// IA32_TSC_DEADLINE: when the local APIC's timer fires. It is set last, when the counter is right.
const TSC_DEADLINE: u32 = 0x6e0;
/// IA32_TSC: the time stamp counter. It is set first.
const TSC: u32 = 0x10;

/// State of a machine.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    vcpus: Vec<VcpuState>,
    irqchip: IrqchipState,
    /// The guest's kvm-clock, in nanoseconds since its boot.
    clock_ns: u64,
    bus: BusState,
}

/// State of the interrupt controllers that all processors share.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IrqchipState(Vec<(u32, Vec<u8>)>);

/// State of a processor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    tsc_khz: u32,
}

impl MachineState {
    /// Reads the state of a machine whose processors have been called back.
    ///
    /// # Errors
    /// When KVM does not say it.
    pub fn capture(kvm: &Kvm, vm: &VmFd, vcpus: &[Vcpu], bus: &Bus) -> Result<Self, Error> {
        let vcpus = vcpus.iter().map(|vcpu| VcpuState::capture(kvm, vcpu));
        Ok(Self {
            vcpus: vcpus.collect::<Result<_, _>>()?,
            irqchip: IrqchipState::capture(vm)?,
            clock_ns: vm.get_clock().map_err(at("read the guest's clock"))?.clock,
            bus: bus.state(),
        })
    }

    /// How many processors the machine has.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    /// Gives this state to a new machine and its devices.
    ///
    /// # Errors
    /// When it is another machine's, or the host's KVM cannot take it.
    pub fn apply(&self, machine: &Machine, bus: &Bus) -> Result<(), Error> {
        if machine.vcpus.len() != self.vcpus.len() {
            return Err(Error::Refused("the state has other processors".to_owned()));
        }
        self.irqchip.apply(&machine.vm)?;
        bus.set_state(&self.bus)?;
        for (state, vcpu) in self.vcpus.iter().zip(&machine.vcpus) {
            state.apply(vcpu)?;
        }
        let clock = kvm_clock_data {
            clock: self.clock_ns,
            ..Default::default()
        };
        machine
            .vm
            .set_clock(&clock)
            .map_err(at("set the guest's clock"))
    }
}

/// Has the timer fire at once that is not set. KVM forgets the time as soon as it has come, and the
/// interrupt is nowhere in the state until the guest runs again: a processor that waits for it would
/// wait for good. One that did not wait for any takes no harm from it.
fn wake_lost_timer(msrs: &mut [(u32, u64)]) {
    let value = |wanted| {
        let found = msrs.iter().find(|&&(index, _)| index == wanted);
        found.map(|&(_, value)| value)
    };
    if let (Some(now), Some(0)) = (value(TSC), value(TSC_DEADLINE)) {
        for (index, value) in msrs {
            if *index == TSC_DEADLINE {
                *value = now.max(1);
            }
        }
    }
}

impl IrqchipState {
    const PARTS: [u32; 3] = [
        KVM_IRQCHIP_PIC_MASTER,
        KVM_IRQCHIP_PIC_SLAVE,
        KVM_IRQCHIP_IOAPIC,
    ];

    fn capture(vm: &VmFd) -> Result<Self, Error> {
        let parts = Self::PARTS.into_iter().map(|chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip)
                .map_err(at("read the interrupt controller"))?;
            // SAFETY: the dummy member is as long as the union, and all its bytes are initialised.
            let bytes = unsafe { chip.chip.dummy };
            Ok((chip_id, bytes.map(|byte| byte.to_le_bytes()[0]).to_vec()))
        });
        Ok(Self(parts.collect::<Result<_, Error>>()?))
    }

    fn apply(&self, vm: &VmFd) -> Result<(), Error> {
        for (chip_id, bytes) in &self.0 {
            let mut chip = kvm_irqchip {
                chip_id: *chip_id,
                ..Default::default()
            };
            let mut dummy = [0; 512];
            for (to, from) in dummy.iter_mut().zip(bytes) {
                *to = i8::from_le_bytes([*from]);
            }
            chip.chip.dummy = dummy;
            vm.set_irqchip(&chip)
                .map_err(at("set the interrupt controller"))?;
        }
        Ok(())
    }
}

impl VcpuState {
    fn capture(kvm: &Kvm, vcpu: &Vcpu) -> Result<Self, Error> {
        let fd = vcpu.fd();
        // Pending work is put into what the calls below read: this one comes first.
        let mp_state = fd.get_mp_state().map_err(at("read the MP state"))?;
        let indices = kvm.get_msr_index_list().map_err(at("list the MSRs"))?;
        let mut msrs = Vec::new();
        for &index in indices.as_slice() {
            let entry = kvm_msr_entry {
                index,
                ..Default::default()
            };
            let mut one = Msrs::from_entries(&[entry]).expect("one entry fits");
            // Some can be listed and not read, and some read and not written.
            if fd.get_msrs(&mut one).map_err(at("read an MSR"))? == 1
                && fd.set_msrs(&one).map_err(at("try an MSR"))? == 1
            {
                msrs.push((index, one.as_slice()[0].data));
            }
        }
        wake_lost_timer(&mut msrs);
        msrs.sort_by_key(|&(index, _)| match index {
            TSC => (0, index),
            TSC_DEADLINE => (2, index),
            _ => (1, index),
        });
        let cpuid = fd.get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES);
        Ok(Self {
            cpuid: cpuid
                .map_err(at("read the CPUID table"))?
                .as_slice()
                .to_vec(),
            mp_state,
            regs: fd.get_regs().map_err(at("read the registers"))?,
            sregs: fd.get_sregs().map_err(at("read the system registers"))?,
            xsave: fd.get_xsave().map_err(at("read the XSAVE area"))?,
            xcrs: fd.get_xcrs().map_err(at("read the XCRs"))?,
            debug_regs: fd
                .get_debug_regs()
                .map_err(at("read the debug registers"))?,
            lapic: fd.get_lapic().map_err(at("read the local APIC"))?,
            msrs,
            events: fd
                .get_vcpu_events()
                .map_err(at("read the pending events"))?,
            tsc_khz: fd.get_tsc_khz().map_err(at("read the TSC rate"))?,
        })
    }

    fn apply(&self, vcpu: &Vcpu) -> Result<(), Error> {
        let fd = vcpu.fd();
        let cpuid = kvm_bindings::CpuId::from_entries(&self.cpuid)
            .map_err(|_| Error::Refused("the state has too many CPUID leaves".to_owned()))?;
        fd.set_cpuid2(&cpuid).map_err(at("set the CPUID table"))?;
        if fd.get_tsc_khz().map_err(at("read the TSC rate"))? != self.tsc_khz {
            fd.set_tsc_khz(self.tsc_khz)
                .map_err(at("set the TSC rate"))?;
        }
        fd.set_mp_state(self.mp_state)
            .map_err(at("set the MP state"))?;
        fd.set_regs(&self.regs).map_err(at("set the registers"))?;
        fd.set_sregs(&self.sregs)
            .map_err(at("set the system registers"))?;
        fd.set_xcrs(&self.xcrs).map_err(at("set the XCRs"))?;
        // SAFETY: no dynamic feature was enabled for this process (arch_prctl), so KVM reads no more
        // than the 4,096 bytes that `kvm_xsave` has.
        unsafe { fd.set_xsave(&self.xsave) }.map_err(at("set the XSAVE area"))?;
        fd.set_debug_regs(&self.debug_regs)
            .map_err(at("set the debug registers"))?;
        fd.set_lapic(&self.lapic)
            .map_err(at("set the local APIC"))?;
        for &(index, data) in &self.msrs {
            let entry = kvm_msr_entry {
                index,
                data,
                ..Default::default()
            };
            let one = Msrs::from_entries(&[entry]).expect("one entry fits");
            if fd.set_msrs(&one).map_err(at("set an MSR"))? != 1 {
                return Err(Error::Refused(format!(
                    "this host's KVM does not take {data:#x} for MSR {index:#x}"
                )));
            }
        }
        fd.set_vcpu_events(&self.events)
            .map_err(at("set the pending events"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_that_is_not_set_fires_and_one_that_is_set_stays() {
        let mut msrs = vec![(TSC, 77), (1, 0), (TSC_DEADLINE, 0)];
        wake_lost_timer(&mut msrs);
        assert_eq!(msrs, [(TSC, 77), (1, 0), (TSC_DEADLINE, 77)]);
        let mut msrs = vec![(TSC, 77), (TSC_DEADLINE, 99)];
        wake_lost_timer(&mut msrs);
        assert_eq!(msrs, [(TSC, 77), (TSC_DEADLINE, 99)]);
    }
}
