//! State of a vCPU: captured into `.ckp.kern`, and restored with as few calls as possible.

use kvm_bindings::{
    CpuId, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, SyncReg, VcpuFd};
use serde::{Deserialize, Serialize};

use crate::engine::kvm::vm::error::{KvmError, at};

/// Value of [`VcpuState::format`].
const FORMAT: &str = "brood-kvm-vcpu";
/// The only version of the state that is written and read.
const VERSION: u32 = 1;
/// The time stamp counter's MSR.
const IA32_TSC: u32 = 0x10;
/// A step, and the field that it is for.
const CPUID: &str = "set the CPUID table (field cpuid)";
/// Most entries in a list of the state: as many as KVM's own lists may have (`KVM_MAX_MSR_ENTRIES`
/// of arch/x86/kvm/x86.c, and `KVM_MAX_CPUID_ENTRIES`).
const MAX_ENTRIES: usize = 256;

/// Everything that KVM knows of a vCPU, as JSON in `.ckp.kern`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VcpuState {
    format: String,
    version: u32,
    /// The guest was in the middle of a request: it must run until it waits before it is asked.
    pub(crate) busy: bool,
    /// Rate of the guest's time stamp counter.
    pub(crate) tsc_khz: u32,
    cpuid: Vec<kvm_cpuid_entry2>,
    regs: kvm_regs,
    // Not sregs2: that adds only the PDPTRs of PAE paging, which no long-mode guest has.
    sregs: kvm_sregs,
    debug_regs: kvm_debugregs,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
    xcrs: kvm_xcrs,
    xsave: kvm_xsave,
    msrs: Vec<Msr>,
    /// MSRs that KVM lets be read but, tried at the time of capture, not written back.
    read_only_msrs: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Msr {
    index: u32,
    value: u64,
}

/// A `.ckp.kern` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("it is not a KVM vCPU state: {0}")]
    Parse(serde_json::Error),
    #[error("it is not a KVM vCPU state: its field {field}: {source}")]
    Field {
        /// Where it is, as in `msrs[3].index`.
        field: String,
        source: serde_json::Error,
    },
    #[error(
        "its format is {format:?} version {version}; this brood reads {FORMAT:?} version {VERSION}"
    )]
    Version { format: String, version: u32 },
    #[error("its field {field} has {length} entries; KVM takes {MAX_ENTRIES} at most")]
    TooLong { field: &'static str, length: usize },
}

impl StateError {
    /// The reason why `bytes` could not be parsed, with the field. They are parsed once more for
    /// that, so that a state that can be used costs nothing more.
    fn parsing(bytes: &[u8], error: serde_json::Error) -> Self {
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        match serde_path_to_error::deserialize::<_, VcpuState>(&mut reader) {
            Err(e) if e.path().iter().next().is_some() => Self::Field {
                field: e.path().to_string(),
                source: e.into_inner(),
            },
            _ => Self::Parse(error),
        }
    }
}

impl VcpuState {
    /// Reads the state of a vCPU that is not running and has no exit to finish.
    pub(crate) fn capture(kvm: &Kvm, vcpu: &VcpuFd, busy: bool) -> Result<Self, KvmError> {
        let indices = kvm.get_msr_index_list().map_err(at("list the MSRs"))?;
        let mut msrs = Vec::with_capacity(indices.as_slice().len());
        let mut read_only_msrs = Vec::new();
        for &index in indices.as_slice() {
            let entry = kvm_msr_entry {
                index,
                ..Default::default()
            };
            let mut one = Msrs::from_entries(&[entry]).expect("one entry fits");
            if vcpu.get_msrs(&mut one).map_err(at("read an MSR"))? != 1 {
                continue;
            }
            let value = one.as_slice()[0].data;
            if vcpu.set_msrs(&one).map_err(at("try an MSR"))? == 1 {
                msrs.push(Msr { index, value });
            } else {
                read_only_msrs.push(index);
            }
        }
        let cpuid = vcpu
            .get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(at("read the CPUID table"))?;
        Ok(Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            busy,
            tsc_khz: vcpu.get_tsc_khz().map_err(at("read the TSC rate"))?,
            cpuid: cpuid.as_slice().to_vec(),
            regs: vcpu.get_regs().map_err(at("read the registers"))?,
            sregs: vcpu.get_sregs().map_err(at("read the system registers"))?,
            debug_regs: vcpu
                .get_debug_regs()
                .map_err(at("read the debug registers"))?,
            events: vcpu
                .get_vcpu_events()
                .map_err(at("read the pending events"))?,
            mp_state: vcpu.get_mp_state().map_err(at("read the MP state"))?,
            xcrs: vcpu.get_xcrs().map_err(at("read the XCRs"))?,
            xsave: vcpu.get_xsave().map_err(at("read the XSAVE area"))?,
            msrs,
            read_only_msrs,
        })
    }

    /// Reads the output of [`Self::to_bytes`]. Only KVM judges the values of registers.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let state: Self =
            serde_json::from_slice(bytes).map_err(|e| StateError::parsing(bytes, e))?;
        if state.format != FORMAT || state.version != VERSION {
            return Err(StateError::Version {
                format: state.format,
                version: state.version,
            });
        }
        for (field, length) in [("msrs", state.msrs.len()), ("cpuid", state.cpuid.len())] {
            if length > MAX_ENTRIES {
                return Err(StateError::TooLong { field, length });
            }
        }
        Ok(state)
    }

    /// The state as it stands in `.ckp.kern`.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("the state is plain numbers and lists")
    }
}

/// State that a guest changes whenever it runs: its registers and its time stamp counter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registers {
    regs: kvm_regs,
    sregs: kvm_sregs,
    tsc: u64,
    /// The host's own counter when the guest's stood at `tsc`; none when the guest's is to go on
    /// from there, as after a checkpoint.
    host_tsc: Option<u64>,
}

/// The calls that turn a fresh vCPU into the captured one.
///
/// Most of a tiny guest's state is what a fresh vCPU has anyway. What differs is found once, on a
/// fresh vCPU of the same kernel, and only that is set in each clone.
#[derive(Debug)]
pub(crate) struct RestorePlan {
    cpuid: Option<CpuId>,
    tsc_khz: Option<u32>,
    xcrs: Option<kvm_xcrs>,
    /// Whether the XSAVE area differs from a fresh one.
    xsave: bool,
    msrs: Msrs,
    events: Option<kvm_vcpu_events>,
    debug_regs: Option<kvm_debugregs>,
    mp_state: Option<kvm_mp_state>,
    /// The whole state that it leads to.
    state: VcpuState,
}

impl RestorePlan {
    /// Compares `state` with `fresh`, a vCPU that has never run. Sets the CPUID table of `fresh`.
    pub(crate) fn new(kvm: &Kvm, state: VcpuState, fresh: &VcpuFd) -> Result<Self, KvmError> {
        let cpuid = (!state.cpuid.is_empty())
            .then(|| CpuId::from_entries(&state.cpuid).expect("the table's length was checked"));
        if let Some(cpuid) = &cpuid {
            fresh.set_cpuid2(cpuid).map_err(at(CPUID))?;
        }
        let blank = VcpuState::capture(kvm, fresh, false)?;
        let msrs: Vec<_> = state
            .msrs
            .iter()
            .filter(|msr| msr.index != IA32_TSC && !blank.msrs.contains(msr))
            .map(|msr| kvm_msr_entry {
                index: msr.index,
                data: msr.value,
                ..Default::default()
            })
            .collect();
        Ok(Self {
            cpuid,
            tsc_khz: (state.tsc_khz != blank.tsc_khz).then_some(state.tsc_khz),
            xcrs: (state.xcrs != blank.xcrs).then_some(state.xcrs),
            xsave: state.xsave.region != blank.xsave.region,
            msrs: Msrs::from_entries(&msrs).expect("the list's length was checked"),
            events: (state.events != blank.events).then_some(state.events),
            debug_regs: (state.debug_regs != blank.debug_regs).then_some(state.debug_regs),
            mp_state: (state.mp_state != blank.mp_state).then_some(state.mp_state),
            state,
        })
    }

    /// The state that the plan leads to.
    pub(crate) fn state(&self) -> &VcpuState {
        &self.state
    }

    /// The registers that the checkpoint was taken with.
    pub(crate) fn registers(&self) -> Registers {
        let VcpuState { regs, sregs, .. } = self.state;
        let tsc = self.state.msrs.iter().find(|msr| msr.index == IA32_TSC);
        Registers {
            regs,
            sregs,
            tsc: tsc.map_or(0, |msr| msr.value),
            host_tsc: None,
        }
    }

    /// The registers of a vCPU that ran on from this plan, if they are all in which it differs
    /// from the plan; none if the guest has changed anything else.
    pub(crate) fn registers_beyond(&self, vcpu: &VcpuFd) -> Result<Option<Registers>, KvmError> {
        if self.tsc_khz.is_some() {
            return Ok(None);
        }
        let entry = |msr: &Msr| kvm_msr_entry {
            index: msr.index,
            ..Default::default()
        };
        let entries: Vec<_> = self.state.msrs.iter().map(entry).collect();
        let mut msrs = Msrs::from_entries(&entries).expect("the list's length was checked");
        let read = vcpu.get_msrs(&mut msrs).map_err(at("read the MSRs"))?;
        let host_tsc = host_tsc();
        let tsc = msrs
            .as_slice()
            .iter()
            .find(|msr| msr.index == IA32_TSC)
            .map_or(0, |msr| msr.data);
        let same_msr =
            |(is, was): (&kvm_msr_entry, &Msr)| is.index == IA32_TSC || is.data == was.value;
        let same = read == entries.len()
            && msrs.as_slice().iter().zip(&self.state.msrs).all(same_msr)
            && same_extended(
                &vcpu.get_xsave().map_err(at("read the XSAVE area"))?,
                &self.state.xsave,
            )
            && vcpu.get_xcrs().map_err(at("read the XCRs"))? == self.state.xcrs
            && vcpu
                .get_debug_regs()
                .map_err(at("read the debug registers"))?
                == self.state.debug_regs
            && vcpu
                .get_vcpu_events()
                .map_err(at("read the pending events"))?
                == self.state.events
            && vcpu.get_mp_state().map_err(at("read the MP state"))? == self.state.mp_state;
        if !same {
            return Ok(None);
        }
        Ok(Some(Registers {
            regs: vcpu.get_regs().map_err(at("read the registers"))?,
            sregs: vcpu.get_sregs().map_err(at("read the system registers"))?,
            tsc,
            host_tsc: Some(host_tsc),
        }))
    }

    /// Carries the plan out on a fresh vCPU, with these registers.
    pub(crate) fn apply(&self, vcpu: &mut VcpuFd, registers: &Registers) -> Result<(), KvmError> {
        if let Some(cpuid) = &self.cpuid {
            vcpu.set_cpuid2(cpuid).map_err(at(CPUID))?;
        }
        if let Some(khz) = self.tsc_khz {
            vcpu.set_tsc_khz(khz)
                .map_err(at("set the TSC rate (field tsc_khz)"))?;
        }
        if let Some(xcrs) = &self.xcrs {
            vcpu.set_xcrs(xcrs)
                .map_err(at("set the XCRs (field xcrs)"))?;
        }
        if self.xsave {
            // SAFETY: no dynamic feature was enabled for this process (arch_prctl), so KVM reads
            // no more than the 4,096 bytes that `kvm_xsave` has.
            unsafe { vcpu.set_xsave(&self.state.xsave) }
                .map_err(at("set the XSAVE area (field xsave)"))?;
        }
        self.set_msrs(vcpu, &self.msrs)?;
        // While the guest had no vCPU, its counter went on all the same. Counters of unequal rates
        // are never compared: such a guest is not parked.
        let passed = registers
            .host_tsc
            .map_or(0, |then| host_tsc().wrapping_sub(then));
        let tsc = kvm_msr_entry {
            index: IA32_TSC,
            data: registers.tsc.wrapping_add(passed),
            ..Default::default()
        };
        self.set_msrs(vcpu, &Msrs::from_entries(&[tsc]).expect("one entry fits"))?;
        if let Some(events) = &self.events {
            vcpu.set_vcpu_events(events)
                .map_err(at("set the pending events (field events)"))?;
        }
        if let Some(debug_regs) = &self.debug_regs {
            vcpu.set_debug_regs(debug_regs)
                .map_err(at("set the debug registers (field debug_regs)"))?;
        }
        if let Some(mp_state) = self.mp_state {
            vcpu.set_mp_state(mp_state)
                .map_err(at("set the MP state (field mp_state)"))?;
        }
        // Registers travel in the run page with the first KVM_RUN: no call of their own.
        let sync = vcpu.sync_regs_mut();
        sync.regs = registers.regs;
        sync.sregs = registers.sregs;
        vcpu.set_sync_dirty_reg(SyncReg::Register);
        vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
        Ok(())
    }

    /// Carries the plan out on a vCPU that no guest gets, so that what KVM refuses is found once,
    /// and not by each guest.
    pub(crate) fn try_on(&self, vcpu: &mut VcpuFd) -> Result<(), KvmError> {
        self.apply(vcpu, &self.registers())?;
        // These would travel with the first KVM_RUN, which would refuse them all in one.
        let VcpuState { regs, sregs, .. } = &self.state;
        vcpu.set_sregs(sregs)
            .map_err(at("set the system registers (field sregs)"))?;
        vcpu.set_regs(regs)
            .map_err(at("set the registers (field regs)"))
    }

    fn set_msrs(&self, vcpu: &VcpuFd, msrs: &Msrs) -> Result<(), KvmError> {
        let entries = msrs.as_slice();
        if entries.is_empty() {
            return Ok(());
        }
        let set = vcpu
            .set_msrs(msrs)
            .map_err(at("set the MSRs (field msrs)"))?;
        match entries.get(set) {
            Some(refused) => Err(self.refused(refused)),
            None => Ok(()),
        }
    }

    /// KVM sets a list up to the first MSR that it refuses, and this is that one.
    #[cold]
    fn refused(&self, entry: &kvm_msr_entry) -> KvmError {
        let is_it = |msr: &Msr| msr.index == entry.index && msr.value == entry.data;
        KvmError::Msr {
            index: entry.index,
            value: entry.data,
            place: self.state.msrs.iter().position(is_it).unwrap_or(0),
        }
    }
}

/// Whether two XSAVE areas hold the same state. Their headers need not say the same: whether a part
/// in its initial state is marked as in use is the host processor's choice each time (Intel SDM
/// volume 1, 13.6), and KVM writes the initial values out either way.
fn same_extended(one: &kvm_xsave, other: &kvm_xsave) -> bool {
    /// The 64-bit XSTATE_BV, in 32-bit words.
    const IN_USE: std::ops::Range<usize> = 512 / 4..512 / 4 + 2;
    let words = one.region.iter().zip(&other.region).enumerate();
    words
        .filter(|(at, _)| !IN_USE.contains(at))
        .all(|(_, (is, was))| is == was)
}

/// The host's own time stamp counter.
fn host_tsc() -> u64 {
    // SAFETY: RDTSC only reads the counter, and every x86-64 processor has it.
    unsafe { std::arch::x86_64::_rdtsc() }
}
