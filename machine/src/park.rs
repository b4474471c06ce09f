//! Parking: a machine at rest gives its VM back to the kernel, with all that the kernel holds for it,
//! and gets one again when there is something to do. Its memory and its devices stay.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED, kvm_lapic_state, kvm_mp_state,
};
use kvm_ioctls::Kvm;

use crate::{
    bus::Bus,
    cpu_template::CpuTemplate,
    error::{Error, at},
    irq::CurrentVm,
    machine::Machine,
    memory::Memory,
    state::{self, MachineState},
    vcpu::Vcpu,
};

/// A machine without a VM.
#[derive(Debug)]
pub struct ParkedMachine {
    state: MachineState,
    ram: Memory,
    template: CpuTemplate,
    current: Arc<CurrentVm>,
    since: Instant,
    /// When a timer of the guest fires, if one is set.
    wake_at: Option<Instant>,
}

/// What became of a machine that was to be parked.
#[derive(Debug)]
pub enum Parking {
    /// It has no VM any more.
    Parked(Box<ParkedMachine>),
    /// A processor does something, or waits for what only its VM can tell it.
    Busy(Machine, Vec<Vcpu>),
}

/// When a processor that rests has to run again, or the first of all processors of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// When it is interrupted.
    UntilInterrupt,
    /// When it is interrupted, and at the latest after this time.
    For(Duration),
    /// Now, or nobody but its VM can tell.
    No,
}

/// Registers of the local APIC, each 16 bytes from the next: which interrupts it has been sent and has
/// not given its processor.
const REQUESTS: std::ops::RangeInclusive<usize> = 0x200..=0x270;
/// How its timer interrupts, and from where it counts down.
const LVT_TIMER: usize = 0x320;
const INITIAL_COUNT: usize = 0x380;
/// Bits of the former: no interrupt comes; it comes at a value of the time stamp counter.
const MASKED: u32 = 1 << 16;
const MODE: u32 = 0b11 << 17;
const DEADLINE: u32 = 0b10 << 17;

impl Rest {
    /// Of a processor that is in this state, whose timer, if it goes by the time stamp counter, fires
    /// in this time.
    pub(crate) fn of(state: kvm_mp_state, lapic: &kvm_lapic_state, fires_in: Duration) -> Self {
        let timer = register(lapic, LVT_TIMER);
        match state.mp_state {
            // The guest has not started it.
            KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => Self::UntilInterrupt,
            // It has been interrupted, by one that was called back after it.
            KVM_MP_STATE_HALTED if requested(lapic).is_some() => Self::No,
            KVM_MP_STATE_HALTED if timer & MASKED != 0 => Self::UntilInterrupt,
            // One that has fired has woken the processor, or is about to.
            KVM_MP_STATE_HALTED if timer & MODE == DEADLINE && !fires_in.is_zero() => {
                Self::For(fires_in)
            }
            // KVM does not tell how far it has counted.
            KVM_MP_STATE_HALTED
                if timer & MODE != DEADLINE && register(lapic, INITIAL_COUNT) == 0 =>
            {
                Self::UntilInterrupt
            }
            _ => Self::No,
        }
    }

    /// Of a processor that has been called back from its thread. Costs little beside the whole state.
    fn of_vcpu(vcpu: &Vcpu) -> Result<Self, Error> {
        let fd = vcpu.fd();
        // Pending work is put into what the calls below read: this one comes first.
        let mp_state = fd.get_mp_state().map_err(at("read the MP state"))?;
        if mp_state.mp_state == KVM_MP_STATE_RUNNABLE {
            return Ok(Self::No);
        }
        let lapic = fd.get_lapic().map_err(at("read the local APIC"))?;
        let fires_in = state::timer_fires_in(fd)?;
        Ok(Self::of(mp_state, &lapic, fires_in))
    }

    /// Of a machine one of whose processors rests so, and another one so.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::For(one), Self::For(other)) => Self::For(one.min(other)),
            (Self::For(time), Self::UntilInterrupt) | (Self::UntilInterrupt, Self::For(time)) => {
                Self::For(time)
            }
            (Self::UntilInterrupt, Self::UntilInterrupt) => Self::UntilInterrupt,
        }
    }
}

/// An interrupt that a local APIC has been sent and has not given its processor.
pub(crate) fn requested(lapic: &kvm_lapic_state) -> Option<u8> {
    let first = (0..).zip(REQUESTS.step_by(16)).find_map(|(word, at)| {
        let bits = register(lapic, at);
        (bits != 0).then(|| word * 32 + bits.trailing_zeros())
    });
    first.and_then(|vector| u8::try_from(vector).ok())
}

fn register(lapic: &kvm_lapic_state, offset: usize) -> u32 {
    let bytes = std::array::from_fn(|n| lapic.regs[offset + n].to_le_bytes()[0]);
    u32::from_le_bytes(bytes)
}

impl Machine {
    /// How long all processors, which have been called back from their threads, wait for an interrupt.
    ///
    /// # Errors
    /// When KVM does not say what they do.
    pub fn rest(vcpus: &[Vcpu]) -> Result<Rest, Error> {
        let mut rest = Rest::UntilInterrupt;
        for vcpu in vcpus {
            rest = rest.and(Rest::of_vcpu(vcpu)?);
            // One that is busy costs no more than this.
            if rest == Rest::No {
                break;
            }
        }
        Ok(rest)
    }

    /// Gives the VM back if all processors, which have been called back from their threads, wait for
    /// an interrupt.
    ///
    /// # Errors
    /// When KVM does not say what they do. The machine is lost then.
    pub fn park(self, kvm: &Kvm, vcpus: Vec<Vcpu>, bus: &Bus) -> Result<Parking, Error> {
        let state = MachineState::capture(kvm, &self, &vcpus, bus)?;
        let since = Instant::now();
        // A timer may have fired since they were asked.
        let wake_at = match state.rest() {
            Rest::UntilInterrupt => None,
            Rest::For(time) => Some(since + time),
            Rest::No => return Ok(Parking::Busy(self, vcpus)),
        };
        let Self {
            ram,
            template,
            current,
            ..
        } = self;
        Ok(Parking::Parked(Box::new(ParkedMachine {
            state,
            ram,
            template,
            current,
            since,
            wake_at,
        })))
    }
}

impl ParkedMachine {
    /// How long it may stay parked; for ever, when there is no limit.
    #[must_use]
    pub fn may_rest(&self) -> Option<Duration> {
        let at = self.wake_at?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// A machine in the state of this one, with the time that has passed since.
    ///
    /// # Errors
    /// When KVM makes no VM; this can be tried again.
    pub fn unpark(&self, kvm: &Kvm) -> Result<Machine, Error> {
        let Self {
            state,
            ram,
            template,
            current,
            ..
        } = self;
        let vcpus = u8::try_from(state.vcpus()).unwrap_or(u8::MAX);
        let machine = Machine::over(kvm, ram.clone(), vcpus, *template, Arc::clone(current))?;
        state.apply_processors(&machine)?;
        state.set_time_after(&machine, self.since.elapsed())?;
        Ok(machine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lapic(timer: u32, initial_count: u32) -> kvm_lapic_state {
        let mut lapic = kvm_lapic_state::default();
        for (offset, value) in [(LVT_TIMER, timer), (INITIAL_COUNT, initial_count)] {
            for (to, from) in lapic.regs[offset..].iter_mut().zip(value.to_le_bytes()) {
                *to = i8::from_le_bytes([from]);
            }
        }
        lapic
    }

    #[test]
    fn a_machine_rests_until_its_first_processor_runs() {
        let [short, long] = [3, 7].map(|ms| Rest::For(Duration::from_millis(ms)));
        let table = [
            (short, long, short),
            (long, Rest::UntilInterrupt, long),
            (
                Rest::UntilInterrupt,
                Rest::UntilInterrupt,
                Rest::UntilInterrupt,
            ),
            (short, Rest::No, Rest::No),
            (Rest::UntilInterrupt, Rest::No, Rest::No),
        ];
        for (one, other, both) in table {
            assert_eq!(one.and(other), both, "{one:?} {other:?}");
            assert_eq!(other.and(one), both, "{other:?} {one:?}");
        }
    }

    #[test]
    fn a_processor_rests_until_its_timer_fires_if_that_can_be_told() {
        let (soon, never) = (Duration::from_millis(7), Duration::ZERO);
        let table = [
            (KVM_MP_STATE_RUNNABLE, MASKED, 0, soon, Rest::No),
            (
                KVM_MP_STATE_UNINITIALIZED,
                0,
                9,
                never,
                Rest::UntilInterrupt,
            ),
            (KVM_MP_STATE_HALTED, DEADLINE, 0, soon, Rest::For(soon)),
            // It has fired, and the processor has not heard of it.
            (KVM_MP_STATE_HALTED, DEADLINE, 0, never, Rest::No),
            (
                KVM_MP_STATE_HALTED,
                DEADLINE | MASKED,
                0,
                never,
                Rest::UntilInterrupt,
            ),
            // It counts down, once or again and again.
            (KVM_MP_STATE_HALTED, 0, 1, never, Rest::No),
            (KVM_MP_STATE_HALTED, 1 << 17, 1, never, Rest::No),
            (KVM_MP_STATE_HALTED, 0, 0, never, Rest::UntilInterrupt),
        ];
        // It has been interrupted meanwhile.
        for vector in [0x20_usize, 0xfd] {
            let mut lapic = lapic(MASKED, 0);
            lapic.regs[0x200 + vector / 32 * 16 + vector % 32 / 8] = 1 << (vector % 8);
            let halted = kvm_mp_state {
                mp_state: KVM_MP_STATE_HALTED,
            };
            assert_eq!(Rest::of(halted, &lapic, never), Rest::No, "{vector:#x}");
            assert_eq!(requested(&lapic).map(usize::from), Some(vector));
        }
        assert_eq!(requested(&lapic(MASKED, 0)), None);
        for (mp_state, timer, count, fires_in, rest) in table {
            let found = Rest::of(kvm_mp_state { mp_state }, &lapic(timer, count), fires_in);
            assert_eq!(found, rest, "{mp_state} {timer:#x} {count}");
        }
    }
}
