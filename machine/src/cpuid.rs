//! CPUID policy: what the guest's processors say that they are.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use crate::error::{Error, at};

/// Number of the local APIC, in EBX of leaf 1.
const APIC_ID_SHIFT: u32 = 24;
/// Number of logical processors, in EBX of leaf 1.
const COUNT_SHIFT: u32 = 16;
const COUNT_MASK: u32 = 0xff << COUNT_SHIFT;
/// The timer of the local APIC that takes a time of the time stamp counter, in ECX of leaf 1.
const TSC_DEADLINE: u32 = 1 << 24;
/// There is a hypervisor, in ECX of leaf 1.
const HYPERVISOR: u32 = 1 << 31;
/// Several logical processors, in EDX of leaf 1.
const SEVERAL: u32 = 1 << 28;

/// What processor `id` of `count` says: all that the host's KVM supports.
pub(crate) fn of_vcpu(kvm: &Kvm, id: u8, count: u8) -> Result<CpuId, Error> {
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
    Ok(table)
}
