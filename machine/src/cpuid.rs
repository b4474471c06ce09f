//! CPUID policy: what the guest's processors say that they are.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use crate::{
    cpu_template::CpuTemplate,
    error::{Error, at},
};

/// Number of the local APIC, in EBX of leaf 1.
const APIC_ID_SHIFT: u32 = 24;
/// Number of logical processors, in EBX of leaf 1.
const COUNT_SHIFT: u32 = 16;
const COUNT_MASK: u32 = 0xff << COUNT_SHIFT;
/// The timer of the local APIC that takes a time of the time stamp counter, in ECX of leaf 1.
const TSC_DEADLINE: u32 = 1 << 24;
/// The kernel has XSAVE on, in ECX of leaf 1.
const OSXSAVE: u32 = 1 << 27;
/// There is a hypervisor, in ECX of leaf 1.
const HYPERVISOR: u32 = 1 << 31;
/// Several logical processors, in EDX of leaf 1.
const SEVERAL: u32 = 1 << 28;

/// What processor `id` of `count` says: what the host's KVM supports, as far as the template has it.
pub(crate) fn of_vcpu(kvm: &Kvm, id: u8, count: u8, template: CpuTemplate) -> Result<CpuId, Error> {
    let mut table = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(at("list the processor's features"))?;
    let has_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let (id, count) = (u32::from(id), u32::from(count));
    for leaf in table.as_mut_slice() {
        match leaf.function {
            1 => {
                leaf.ebx &= !(0xff << APIC_ID_SHIFT | COUNT_MASK);
                leaf.ebx |= id << APIC_ID_SHIFT | count << COUNT_SHIFT;
                leaf.ecx |= HYPERVISOR;
                // KVM makes it in software, and leaves it to its user to say so.
                if has_deadline {
                    leaf.ecx |= TSC_DEADLINE;
                }
                if count > 1 {
                    leaf.edx |= SEVERAL;
                } else {
                    leaf.edx &= !SEVERAL;
                }
            }
            // Extended topology: one thread for each core, all cores in one package.
            0xb | 0x1f => {
                leaf.edx = id;
                match leaf.index {
                    0 => (leaf.eax, leaf.ebx, leaf.ecx) = (0, 1, 1 << 8),
                    1 => (leaf.eax, leaf.ebx, leaf.ecx) = (3, count, 2 << 8 | 1),
                    _ => {}
                }
            }
            // AMD's number of cores, and their topology.
            0x8000_0008 => leaf.ecx = 3 << 12 | (count - 1),
            0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id, 0),
            _ => {}
        }
    }
    template.cut(table)
}

/// Whether a guest with this table has XSAVE.
pub(crate) fn has_xsave(table: &[kvm_cpuid_entry2]) -> bool {
    const XSAVE: u32 = 1 << 26;
    let one = table.iter().find(|e| e.function == 1);
    one.is_some_and(|e| e.ecx & XSAVE != 0)
}

/// Register of a CPUID leaf.
type Register = fn(&kvm_cpuid_entry2) -> u32;

/// Registers with a feature in each bit: leaf, subleaf, name, the register, and the bits that depend
/// on what the guest does, or that a guest is given though KVM does not list them.
const FEATURES: [(u32, u32, &str, Register, u32); 11] = [
    (1, 0, "ecx", |e| e.ecx, TSC_DEADLINE | OSXSAVE | HYPERVISOR),
    (1, 0, "edx", |e| e.edx, SEVERAL),
    (7, 0, "ebx", |e| e.ebx, 0),
    (7, 0, "ecx", |e| e.ecx, 1 << 4),
    (7, 0, "edx", |e| e.edx, 0),
    (7, 1, "eax", |e| e.eax, 0),
    (0xd, 1, "eax", |e| e.eax, 0),
    (0x4000_0001, 0, "eax", |e| e.eax, 0),
    (0x8000_0001, 0, "ecx", |e| e.ecx, 0),
    (0x8000_0001, 0, "edx", |e| e.edx, 0),
    (0x8000_0008, 0, "ebx", |e| e.ebx, 0),
];

/// The first feature of a guest's table that a host's table does not have.
pub(crate) fn missing(guest: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Option<String> {
    let of = |table: &[kvm_cpuid_entry2], leaf, subleaf, register: Register| {
        let is_it = |e: &&kvm_cpuid_entry2| (e.function, e.index) == (leaf, subleaf);
        table.iter().find(is_it).map_or(0, register)
    };
    FEATURES
        .iter()
        .find_map(|&(leaf, subleaf, name, register, of_guest)| {
            let given = of(guest, leaf, subleaf, register) & !of_guest;
            let missing = given & !of(host, leaf, subleaf, register);
            (missing != 0).then(|| {
                let bit = missing.trailing_zeros();
                format!("CPUID leaf {leaf:#x}, subleaf {subleaf}, {name} bit {bit}")
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_that_the_host_lacks_is_named() {
        let entry = |function, ebx, ecx| kvm_cpuid_entry2 {
            function,
            ebx,
            ecx,
            ..Default::default()
        };
        let guest = [entry(1, 7, OSXSAVE | 1), entry(7, 1 << 5 | 1 << 16, 0)];
        assert_eq!(missing(&guest, &guest), None);
        let host = [entry(1, 0, 1), entry(7, 1 << 5, 0)];
        assert_eq!(
            missing(&guest, &host).unwrap(),
            "CPUID leaf 0x7, subleaf 0, ebx bit 16"
        );
        assert_eq!(missing(&guest[..1], &host), None);
        assert!(missing(&guest, &[]).unwrap().contains("leaf 0x1"));
    }
}
