//! CPU templates: the processor that a guest sees, where it is to be the same on hosts with different
//! processors. A checkpoint of one is restored on each host of one vendor that has its features.

use std::{fmt, str::FromStr};

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The processor that a guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuTemplate {
    /// All that the host's KVM supports.
    #[default]
    Host,
    /// The features of x86-64-v2 (psABI), of 2009 and later: SSE4.2, POPCNT, CMPXCHG16B.
    V2,
    /// Those of x86-64-v3, of 2015 and later: AVX2, BMI2, FMA; and what each processor of that level
    /// has: SMEP, FSGSBASE, RDRAND.
    V3,
}

impl CpuTemplate {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Host, Self::V2, Self::V3];
}

impl fmt::Display for CpuTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Host => "host",
            Self::V2 => "v2",
            Self::V3 => "v3",
        })
    }
}

impl FromStr for CpuTemplate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let named = Self::ALL.into_iter().find(|one| one.to_string() == text);
        named.ok_or_else(|| {
            Error::Refused(format!("there is no CPU template {text:?}: host, v2 or v3"))
        })
    }
}

/// Bits of a register.
const fn bits(numbers: &[u32]) -> u32 {
    let mut all = 0;
    let mut at = 0;
    while at < numbers.len() {
        all |= 1 << numbers[at];
        at += 1;
    }
    all
}

/// What KVM makes in software, so that each host has it: x2APIC, the timer by deadline and "there is
/// a hypervisor", in ECX of leaf 1.
const BY_KVM_1_ECX: u32 = bits(&[21, 24, 31]);
/// FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE-36, CLFSH,
/// MMX, FXSR, SSE, SSE2, in EDX of leaf 1.
const BASE_1_EDX: u32 = bits(&[
    0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26,
]);
/// Whether there are several processors, in EDX of leaf 1. It is no feature of the host.
const SEVERAL: u32 = 1 << 28;
/// SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT, in ECX of leaf 1.
const V2_1_ECX: u32 = bits(&[0, 9, 13, 19, 20, 23]);
/// FMA, MOVBE, XSAVE, AVX, F16C, RDRAND, in ECX of leaf 1.
const V3_1_ECX: u32 = bits(&[12, 22, 26, 28, 29, 30]);
/// OSXSAVE, in ECX of leaf 1: it follows what the guest's kernel does.
const OSXSAVE: u32 = 1 << 27;
/// FSGSBASE, BMI1, AVX2, SMEP, BMI2, in EBX of leaf 7.
const V3_7_EBX: u32 = bits(&[0, 3, 5, 7, 8]);
/// SYSCALL, NX, long mode, in EDX of leaf 0x8000_0001.
const BASE_EXTENDED_EDX: u32 = bits(&[11, 20, 29]);
/// What AMD repeats there of leaf 1, but for VME.
const AMD_REPEATS: u32 = 0x0183_f3fd;
/// LAHF and SAHF in long mode, in ECX of leaf 0x8000_0001.
const V2_EXTENDED_ECX: u32 = bits(&[0]);
/// LZCNT, there.
const V3_EXTENDED_ECX: u32 = bits(&[5]);
/// Size of an XSAVE area with AVX's part.
const AVX_AREA: u32 = 576 + 256;
/// x87, SSE and AVX, in EAX of leaf 0xd.
const AVX_PARTS: u32 = 0b111;
/// The clock (old and new, and that it is steady), no delay of ports, stolen time, end of interrupt:
/// in EAX of KVM's own leaf.
const OF_KVM: u32 = bits(&[0, 1, 3, 5, 6, 24]);
/// ARAT, in EAX of leaf 6: the timer of the local APIC runs always.
const ARAT: u32 = 1 << 2;
/// The highest leaf of either range.
const LEAF_MAX: u32 = 0xd;
const EXTENDED_MAX: u32 = 0x8000_001e;

impl CpuTemplate {
    /// Cuts a table down to this template.
    pub(crate) fn cut(self, table: CpuId) -> Result<CpuId, Error> {
        if self == Self::Host {
            return Ok(table);
        }
        let entries = table.as_slice().iter().copied();
        let entries: Vec<_> = entries.filter_map(|entry| self.entry(entry)).collect();
        let lacking = self
            .required()
            .into_iter()
            .find_map(|of| of.lacking(&entries));
        if let Some(lacking) = lacking {
            return Err(Error::Refused(format!(
                "the processor of this host is less than the CPU template {self}: it has no {lacking}"
            )));
        }
        CpuId::from_entries(&entries)
            .map_err(|_| Error::Refused("the CPUID table is too long".to_owned()))
    }

    fn is_v3(self) -> bool {
        self == Self::V3
    }

    /// A leaf as the template has it; none when it has no such leaf.
    fn entry(self, mut e: kvm_cpuid_entry2) -> Option<kvm_cpuid_entry2> {
        let v3 = |bits: u32| if self.is_v3() { bits } else { 0 };
        match (e.function, e.index) {
            (0, _) => e.eax = e.eax.min(LEAF_MAX),
            (1, _) => {
                e.ecx &= V2_1_ECX | BY_KVM_1_ECX | v3(V3_1_ECX | OSXSAVE);
                e.edx &= BASE_1_EDX | SEVERAL;
            }
            (6, _) => (e.eax, e.ebx, e.ecx, e.edx) = (e.eax & ARAT, 0, 0, 0),
            (7, 0) => (e.eax, e.ebx, e.ecx, e.edx) = (0, e.ebx & v3(V3_7_EBX), 0, 0),
            (0xd, 0) if self.is_v3() => {
                (e.eax, e.ebx, e.ecx, e.edx) = (e.eax & AVX_PARTS, AVX_AREA, AVX_AREA, 0);
            }
            (0xd, 1) if self.is_v3() => (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, 0),
            (0x4000_0001, _) => (e.eax, e.ebx, e.ecx, e.edx) = (e.eax & OF_KVM, 0, 0, 0),
            (0x8000_0000, _) => e.eax = e.eax.min(EXTENDED_MAX),
            (0x8000_0001, _) => {
                e.ecx &= V2_EXTENDED_ECX | v3(V3_EXTENDED_ECX);
                e.edx &= BASE_EXTENDED_EDX | AMD_REPEATS;
            }
            // The sizes of addresses, and on AMD the number of processors.
            (0x8000_0008, _) => (e.ebx, e.edx) = (0, 0),
            // Caches, topology, names.
            (
                2 | 4 | 0xb | 0x4000_0000 | 0x8000_0002..=0x8000_0006 | 0x8000_001d..=0x8000_001e,
                _,
            ) => {}
            // AVX's part of the XSAVE area.
            (0xd, 2) if self.is_v3() => {}
            _ => return None,
        }
        Some(e)
    }

    /// What a host has to have.
    fn required(self) -> Vec<Required> {
        let ecx = |e: &kvm_cpuid_entry2| e.ecx;
        let edx = |e: &kvm_cpuid_entry2| e.edx;
        let ebx = |e: &kvm_cpuid_entry2| e.ebx;
        let of = |leaf, name, register, bits| Required {
            leaf,
            name,
            register,
            bits,
        };
        let mut all = vec![
            of(1, "edx", edx as Register, BASE_1_EDX),
            of(1, "ecx", ecx, V2_1_ECX),
            of(0x8000_0001, "edx", edx, BASE_EXTENDED_EDX),
            of(0x8000_0001, "ecx", ecx, V2_EXTENDED_ECX),
        ];
        if self.is_v3() {
            all.push(of(1, "ecx", ecx, V3_1_ECX));
            all.push(of(7, "ebx", ebx, V3_7_EBX));
            all.push(of(0x8000_0001, "ecx", ecx, V3_EXTENDED_ECX));
        }
        all
    }

    /// Whether a state of this template has this MSR. Those of a feature that the guest does not
    /// see hold what the host's processor is, and another's takes no such value.
    pub(crate) fn has_msr(self, index: u32) -> bool {
        /// MSRs of every x86-64 (Intel SDM, volume 4, architectural MSRs) and of KVM's clock,
        /// stolen time and end of interrupt.
        const PLAIN: [u32; 21] = [
            0x10,        // IA32_TIME_STAMP_COUNTER
            0x11,        // MSR_KVM_WALL_CLOCK
            0x12,        // MSR_KVM_SYSTEM_TIME
            0x1b,        // IA32_APIC_BASE
            0x174,       // IA32_SYSENTER_CS
            0x175,       // IA32_SYSENTER_ESP
            0x176,       // IA32_SYSENTER_EIP
            0x1a0,       // IA32_MISC_ENABLE
            0x277,       // IA32_PAT
            0x2ff,       // IA32_MTRR_DEF_TYPE
            0x6e0,       // IA32_TSC_DEADLINE
            0x4b56_4d00, // MSR_KVM_WALL_CLOCK_NEW
            0x4b56_4d01, // MSR_KVM_SYSTEM_TIME_NEW
            0x4b56_4d03, // MSR_KVM_STEAL_TIME
            0x4b56_4d04, // MSR_KVM_EOI_EN
            0xc000_0081, // STAR
            0xc000_0082, // LSTAR
            0xc000_0083, // CSTAR
            0xc000_0084, // SFMASK
            0xc000_0102, // KERNEL_GS_BASE
            0xc000_0080, // EFER
        ];
        self == Self::Host
            || PLAIN.contains(&index)
            // MTRRs, variable and fixed.
            || (0x200..0x210).contains(&index)
            || matches!(index, 0x250 | 0x258 | 0x259 | 0x268..=0x26f)
    }
}

type Register = fn(&kvm_cpuid_entry2) -> u32;

/// Features of one register.
struct Required {
    leaf: u32,
    name: &'static str,
    register: Register,
    bits: u32,
}

impl Required {
    /// The first of them that a table lacks.
    fn lacking(&self, table: &[kvm_cpuid_entry2]) -> Option<String> {
        let entry = table
            .iter()
            .find(|e| (e.function, e.index) == (self.leaf, 0));
        let lacking = self.bits & !entry.map_or(0, self.register);
        let bit = lacking.trailing_zeros();
        (lacking != 0).then(|| format!("CPUID leaf {:#x}, {} bit {bit}", self.leaf, self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, value: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: value,
            ebx: value,
            ecx: value,
            edx: value,
            ..Default::default()
        }
    }

    /// A processor that has every feature there is, and subleaves of the XSAVE area to 19.
    fn everything() -> CpuId {
        let plain = (0..0x20)
            .chain(0x8000_0000..0x8000_0030)
            .chain(0x4000_0000..0x4000_0002);
        let entries = plain.map(|function| leaf(function, 0, u32::MAX));
        let parts = (1..20).map(|index| leaf(0xd, index, u32::MAX));
        let entries: Vec<_> = entries.chain(parts).chain([leaf(7, 1, u32::MAX)]).collect();
        CpuId::from_entries(&entries).unwrap()
    }

    fn find(table: &CpuId, function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
        let mut entries = table.as_slice().iter();
        entries
            .find(|e| (e.function, e.index) == (function, index))
            .copied()
    }

    #[test]
    fn a_template_is_the_same_of_any_processor_that_has_it() {
        // Features of later processors: AVX-512, AMX, shadow stacks, protection keys.
        for template in [CpuTemplate::V2, CpuTemplate::V3] {
            let of_all = template.cut(everything()).unwrap();
            let again = template.cut(of_all.clone()).unwrap();
            assert_eq!(of_all.as_slice(), again.as_slice(), "{template}");
            assert_eq!(find(&of_all, 7, 1), None);
            assert_eq!(find(&of_all, 0x12, 0), None);
            let seven = find(&of_all, 7, 0).unwrap();
            assert_eq!((seven.eax, seven.ecx, seven.edx), (0, 0, 0));
            assert_eq!(find(&of_all, 0xd, 9), None);
        }
        let v2 = CpuTemplate::V2.cut(everything()).unwrap();
        let v3 = CpuTemplate::V3.cut(everything()).unwrap();
        assert_eq!(find(&v2, 7, 0).unwrap().ebx, 0);
        assert_eq!(find(&v2, 0xd, 0), None);
        // SSE4.2 in both, AVX in one.
        let ecx = |table| find(table, 1, 0).unwrap().ecx;
        assert_eq!((ecx(&v2) >> 20 & 1, ecx(&v2) >> 28 & 1), (1, 0));
        assert_eq!((ecx(&v3) >> 20 & 1, ecx(&v3) >> 28 & 1), (1, 1));
        assert_eq!(find(&v3, 0xd, 0).unwrap().eax, 7);
        let host = CpuTemplate::Host.cut(everything()).unwrap();
        assert_eq!(host.as_slice(), everything().as_slice());
    }

    #[test]
    fn a_processor_that_is_less_is_refused_by_what_it_lacks() {
        let v2 = CpuTemplate::V2.cut(everything()).unwrap();
        let refused = CpuTemplate::V3.cut(v2).unwrap_err().to_string();
        assert!(
            refused.contains("v3: it has no CPUID leaf 0x1, ecx bit 12"),
            "{refused}"
        );
        let none = CpuId::from_entries(&[leaf(0, 0, 1)]).unwrap();
        assert!(CpuTemplate::V2.cut(none).is_err());
    }

    #[test]
    fn a_template_has_one_name() {
        for template in CpuTemplate::ALL {
            assert_eq!(
                template.to_string().parse::<CpuTemplate>().unwrap(),
                template
            );
            let json = serde_json::to_string(&template).unwrap();
            assert_eq!(json, format!("\"{template}\""));
        }
        assert!("v4".parse::<CpuTemplate>().is_err());
    }

    #[test]
    fn registers_of_hidden_features_are_no_part_of_a_template() {
        // Model-specific ones: capabilities, microcode, XSS, performance counters.
        for index in [0x10a, 0x8b, 0xda0, 0x186, 0xc001_0015, 0x48] {
            assert!(!CpuTemplate::V3.has_msr(index) && CpuTemplate::Host.has_msr(index));
        }
        assert!(CpuTemplate::V2.has_msr(0xc000_0082));
    }
}
