//! State of a machine at rest: its processors, its interrupt controller, its clock and its devices.
//! With the guest's memory it is all that there is of the guest.

use std::time::Duration;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_clock_data,
    kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msi,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use crate::{
    bus::{Bus, BusState},
    cpu_template::CpuTemplate,
    cpuid,
    error::{Error, at},
    machine::{Machine, VCPUS_MAX},
    park::{Rest, requested},
    vcpu::Vcpu,
};

/// IA32_TSC_DEADLINE: when the local APIC's timer fires. It is set last, when the counter is right.
const TSC_DEADLINE: u32 = 0x6e0;
/// IA32_TSC: the time stamp counter. It is set first.
const TSC: u32 = 0x10;

/// Register of the local APIC with its number, whose last byte that is.
const APIC_ID: usize = 0x20;
/// Address to which a message is an interrupt, and where in it the number of the local APIC is.
const MSI: u32 = 0xfee0_0000;
const MSI_TO: u32 = 12;

/// Value of [`MachineState::format`].
const FORMAT: &str = "brood-linux-machine";
/// The only version of the state that is written and read.
const VERSION: u32 = 1;
/// Most entries of a list of the state: as many as KVM's own lists may have (`KVM_MAX_MSR_ENTRIES`
/// of arch/x86/kvm/x86.c, and `KVM_MAX_CPUID_ENTRIES`).
const ENTRIES_MAX: usize = 256;

/// State of a machine, as JSON in `.ckp.kern`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    format: String,
    version: u32,
    #[serde(default)]
    template: CpuTemplate,
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
    /// The counter, and then when its timer fires.
    timer: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    tsc_khz: u32,
}

impl MachineState {
    /// Reads the state of a machine; its processors have been called back from their threads.
    ///
    /// # Errors
    /// When KVM does not say it.
    pub fn capture(kvm: &Kvm, machine: &Machine, vcpus: &[Vcpu], bus: &Bus) -> Result<Self, Error> {
        let (vm, template) = (&machine.vm, machine.template);
        let vcpus = vcpus
            .iter()
            .map(|vcpu| VcpuState::capture(kvm, vcpu, template));
        Ok(Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            template,
            vcpus: vcpus.collect::<Result<_, _>>()?,
            irqchip: IrqchipState::capture(vm)?,
            clock_ns: vm.get_clock().map_err(at("read the guest's clock"))?.clock,
            bus: bus.state(),
        })
    }

    /// Reads the output of [`Self::to_bytes`]. Only KVM judges the values of registers.
    ///
    /// # Errors
    /// When it is none, or of a version that is not read.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let refused = |why: String| Error::Refused(format!("it is no state of a machine: {why}"));
        let state: Self = serde_json::from_slice(bytes).map_err(|e| refused(e.to_string()))?;
        if state.format != FORMAT || state.version != VERSION {
            return Err(refused(format!(
                "its format is {:?} version {}; this brood reads {FORMAT:?} version {VERSION}",
                state.format, state.version
            )));
        }
        if !(1..=usize::from(VCPUS_MAX)).contains(&state.vcpus.len()) {
            return Err(refused(format!(
                "it has {} processors; 1 to {VCPUS_MAX} are possible",
                state.vcpus.len()
            )));
        }
        let long = |vcpu: &VcpuState| {
            vcpu.msrs.len().max(vcpu.timer.len()).max(vcpu.cpuid.len()) > ENTRIES_MAX
        };
        if state.vcpus.iter().any(long) {
            return Err(refused(format!(
                "a list of a processor has more than {ENTRIES_MAX} entries"
            )));
        }
        Ok(state)
    }

    /// The state as it stands in `.ckp.kern`.
    ///
    /// # Panics
    /// Never: the state is plain numbers and lists.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("the state is plain numbers and lists")
    }

    /// A feature of the processor that the guest was given, and that this host's KVM does not
    /// have; none when it has all.
    ///
    /// # Errors
    /// When KVM does not say what it has.
    pub fn missing_feature(&self, kvm: &Kvm) -> Result<Option<String>, Error> {
        let supported = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES);
        let supported = supported.map_err(at("read the CPUID table that KVM supports"))?;
        let mut vcpus = self.vcpus.iter();
        Ok(vcpus.find_map(|vcpu| cpuid::missing(&vcpu.cpuid, supported.as_slice())))
    }

    /// What its processors are.
    #[must_use]
    pub fn template(&self) -> CpuTemplate {
        self.template
    }

    /// How many processors the machine has.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    /// Gives this state, but for the time, to a new machine and its devices.
    ///
    /// # Errors
    /// When it is another machine's, or the host's KVM cannot take it.
    pub fn apply(&self, machine: &Machine, bus: &Bus) -> Result<(), Error> {
        if machine.vcpus.len() != self.vcpus.len() {
            return Err(Error::Refused("the state has other processors".to_owned()));
        }
        bus.set_state(&self.bus)?;
        self.apply_processors(machine)
    }

    /// Gives this state, but for the time, to a new machine whose devices have theirs.
    pub(crate) fn apply_processors(&self, machine: &Machine) -> Result<(), Error> {
        self.irqchip.apply(&machine.vm)?;
        for (state, vcpu) in self.vcpus.iter().zip(&machine.vcpus) {
            state.apply(vcpu)?;
        }
        self.request_again(machine);
        Ok(())
    }

    /// Sends each processor an interrupt once more that it has been sent and has not taken. That
    /// changes nothing in its local APIC; but KVM of Linux 5.17 to 6.12 does not look there for what
    /// KVM_SET_LAPIC has set, where the processor does not do that itself (`irr_pending` in
    /// kvm_apic_update_apicv()), until another interrupt comes: a processor that waits for an answer
    /// to this one would wait for good.
    fn request_again(&self, machine: &Machine) {
        for state in &self.vcpus {
            let Some(vector) = requested(&state.lapic) else {
                continue;
            };
            let [.., id] = [0, 1, 2, 3].map(|n| state.lapic.regs[APIC_ID + n].to_le_bytes()[0]);
            let message = kvm_msi {
                address_lo: MSI | u32::from(id) << MSI_TO,
                data: vector.into(),
                ..Default::default()
            };
            // One that is off takes none.
            let _ = machine.vm.signal_msi(message);
        }
    }

    /// When the first processor has to run again.
    pub(crate) fn rest(&self) -> Rest {
        let rests = self.vcpus.iter().map(VcpuState::rest);
        rests.fold(Rest::UntilInterrupt, Rest::and)
    }

    /// Has the guest's time go on from this state. Comes right before its processors run.
    ///
    /// # Errors
    /// When the host's KVM cannot take it.
    pub fn set_time(&self, machine: &Machine) -> Result<(), Error> {
        self.set_time_after(machine, Duration::ZERO)
    }

    /// Has the guest's time go on from what it is `passed` after this state.
    pub(crate) fn set_time_after(&self, machine: &Machine, passed: Duration) -> Result<(), Error> {
        for (state, vcpu) in self.vcpus.iter().zip(&machine.vcpus) {
            let mut timer = state.timer.clone();
            if let Some((_, counter)) = timer.iter_mut().find(|(index, _)| *index == TSC) {
                *counter = counter.wrapping_add(ticks(passed, state.tsc_khz));
            }
            set_msrs(vcpu.fd(), &timer)?;
        }
        let passed = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
        let clock = kvm_clock_data {
            clock: self.clock_ns.saturating_add(passed),
            ..Default::default()
        };
        machine
            .vm
            .set_clock(&clock)
            .map_err(at("set the guest's clock"))
    }
}

/// Ticks of a counter of this rate, in a time.
fn ticks(time: Duration, khz: u32) -> u64 {
    let ticks = time.as_nanos() * u128::from(khz) / 1_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// The time from one value of a counter of this rate to another.
fn from_ticks(from: u64, to: u64, khz: u32) -> Duration {
    let ticks = to.saturating_sub(from);
    Duration::from_micros(ticks.saturating_mul(1000) / u64::from(khz.max(1)))
}

/// In which time the timer of a processor fires that goes by its time stamp counter; none is left
/// when it is not set.
pub(crate) fn timer_fires_in(fd: &VcpuFd) -> Result<Duration, Error> {
    let entry = |index| kvm_msr_entry {
        index,
        ..Default::default()
    };
    let mut msrs = Msrs::from_entries(&[entry(TSC), entry(TSC_DEADLINE)]).expect("two entries fit");
    // KVM reads a list up to the first one that the processor does not have.
    if fd.get_msrs(&mut msrs).map_err(at("read the timer"))? < 2 {
        return Ok(Duration::ZERO);
    }
    let khz = fd.get_tsc_khz().map_err(at("read the TSC rate"))?;
    let [now, deadline] = [0, 1].map(|n| msrs.as_slice()[n].data);
    Ok(from_ticks(now, deadline, khz))
}

/// Has the timer fire at once that is not set. KVM forgets the time as soon as it has come, and the
/// interrupt is nowhere in the state until the guest runs again: a processor that waits for it would
/// wait for good. One that did not wait for any takes no harm from it.
fn wake_lost_timer(timer: &mut [(u32, u64)]) {
    let value = |wanted| {
        let found = timer.iter().find(|&&(index, _)| index == wanted);
        found.map(|&(_, value)| value)
    };
    if let (Some(now), Some(0)) = (value(TSC), value(TSC_DEADLINE)) {
        for (index, value) in timer {
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
    fn capture(kvm: &Kvm, vcpu: &Vcpu, template: CpuTemplate) -> Result<Self, Error> {
        let fd = vcpu.fd();
        // Pending work is put into what the calls below read: this one comes first.
        let mp_state = fd.get_mp_state().map_err(at("read the MP state"))?;
        let indices = kvm.get_msr_index_list().map_err(at("list the MSRs"))?;
        let mut msrs = Vec::new();
        for &index in indices.as_slice().iter().filter(|&&i| template.has_msr(i)) {
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
        let is_timer = |&(index, _): &(u32, u64)| matches!(index, TSC | TSC_DEADLINE);
        let (mut timer, msrs): (Vec<_>, Vec<_>) = msrs.into_iter().partition(is_timer);
        timer.sort_unstable();
        wake_lost_timer(&mut timer);
        let cpuid = fd.get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES);
        let cpuid = cpuid.map_err(at("read the CPUID table"))?;
        let xcrs = if cpuid::has_xsave(cpuid.as_slice()) {
            fd.get_xcrs().map_err(at("read the XCRs"))?
        } else {
            kvm_xcrs::default()
        };
        Ok(Self {
            cpuid: cpuid.as_slice().to_vec(),
            mp_state,
            regs: fd.get_regs().map_err(at("read the registers"))?,
            sregs: fd.get_sregs().map_err(at("read the system registers"))?,
            xsave: fd.get_xsave().map_err(at("read the XSAVE area"))?,
            xcrs,
            debug_regs: fd
                .get_debug_regs()
                .map_err(at("read the debug registers"))?,
            lapic: fd.get_lapic().map_err(at("read the local APIC"))?,
            msrs,
            timer,
            events: fd
                .get_vcpu_events()
                .map_err(at("read the pending events"))?,
            tsc_khz: fd.get_tsc_khz().map_err(at("read the TSC rate"))?,
        })
    }

    /// When it has to run again.
    fn rest(&self) -> Rest {
        let value = |wanted| {
            let found = self.timer.iter().find(|&&(index, _)| index == wanted);
            found.map_or(0, |&(_, value)| value)
        };
        let fires_in = from_ticks(value(TSC), value(TSC_DEADLINE), self.tsc_khz);
        Rest::of(self.mp_state, &self.lapic, fires_in)
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
        // A host whose processor has no XSAVE has none of these registers.
        if cpuid::has_xsave(&self.cpuid) {
            fd.set_xcrs(&self.xcrs).map_err(at("set the XCRs"))?;
        }
        // SAFETY: no dynamic feature was enabled for this process (arch_prctl), so KVM reads no more
        // than the 4,096 bytes that `kvm_xsave` has.
        unsafe { fd.set_xsave(&self.xsave) }.map_err(at("set the XSAVE area"))?;
        fd.set_debug_regs(&self.debug_regs)
            .map_err(at("set the debug registers"))?;
        fd.set_lapic(&self.lapic)
            .map_err(at("set the local APIC"))?;
        set_msrs(fd, &self.msrs)?;
        fd.set_vcpu_events(&self.events)
            .map_err(at("set the pending events"))
    }
}

/// Sets MSRs by one call, in their order.
fn set_msrs(fd: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), Error> {
    let entries = msrs.iter().map(|&(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let entries: Vec<_> = entries.collect();
    let list = Msrs::from_entries(&entries)
        .map_err(|_| Error::Refused("the state has too many MSRs".to_owned()))?;
    let set = fd.set_msrs(&list).map_err(at("set the MSRs"))?;
    match msrs.get(set) {
        // KVM sets a list up to the first one that it refuses.
        Some((index, data)) => Err(Error::Refused(format!(
            "this host's KVM does not take {data:#x} for MSR {index:#x}"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_is_behind_has_no_time_left() {
        assert_eq!(from_ticks(10, 2_000_010, 1_000), Duration::from_secs(2));
        assert_eq!(from_ticks(10, 9, 1_000), Duration::ZERO);
        assert_eq!(from_ticks(0, u64::MAX, 0).as_micros(), u128::from(u64::MAX));
    }

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
