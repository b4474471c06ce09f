//! Pre-fault: KVM maps a guest's memory before a processor touches it.
//!
//! A processor that touches memory for the first time leaves the guest for the kernel, page by page.
//! A call maps many pages at once, and nothing waits for it while the machine waits for its guest.

use std::{ops::Range, os::fd::AsRawFd};

use kvm_bindings::{KVMIO, kvm_pre_fault_memory};
use nix::errno::Errno;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::{machine::Machine, memory::parts};

mod ioctl {
    use super::{KVMIO, kvm_pre_fault_memory};

    // `KVM_PRE_FAULT_MEMORY` of linux/kvm.h, from Linux 6.11 on.
    nix::ioctl_readwrite!(pre_fault_memory, KVMIO, 0xd5, kvm_pre_fault_memory);
}

impl Machine {
    /// Has KVM map these parts of memory (offsets, aligned to pages), as a read of each page would.
    /// `false` where it cannot: before Linux 6.11, and without paging by the processor. The guest's
    /// own touch maps them then.
    #[must_use]
    pub fn prefault(&self, memory: impl IntoIterator<Item = Range<u64>>) -> bool {
        let Some(vcpu) = self.vcpus.first() else {
            return false;
        };
        let fd = vcpu.fd().as_raw_fd();
        let size = self.ram.iter().map(GuestMemoryRegion::len).sum();
        let wanted = memory.into_iter().flat_map(|range| in_guest(size, &range));
        for (address, length) in wanted {
            let mut rest = kvm_pre_fault_memory {
                gpa: address,
                size: length,
                ..kvm_pre_fault_memory::default()
            };
            // KVM moves the beginning on when it has mapped a part and is to be asked again.
            while rest.size > 0 {
                // SAFETY: the descriptor is a vCPU's, and the structure is what the call takes. It
                // maps memory of the machine's slots, and so nothing that the guest may not reach.
                match unsafe { ioctl::pre_fault_memory(fd, &raw mut rest) } {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(_) => return false,
                }
            }
        }
        true
    }
}

/// Where a part of memory lies for the guest: addresses and lengths.
fn in_guest(size: u64, wanted: &Range<u64>) -> Vec<(u64, u64)> {
    let parts = parts(size)
        .into_iter()
        .filter_map(|(address, offset, length)| {
            let start = wanted.start.max(offset);
            let end = wanted.end.min(offset + length);
            (start < end).then(|| (address + (start - offset), end - start))
        });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{HIGH_START, LOW_END};

    #[test]
    fn what_lies_above_the_hole_is_mapped_there() {
        let size = LOW_END + (8 << 20);
        assert_eq!(in_guest(size, &(0x1000..0x3000)), [(0x1000, 0x2000)]);
        let across = LOW_END - 0x1000..LOW_END + 0x2000;
        assert_eq!(
            in_guest(size, &across),
            [(LOW_END - 0x1000, 0x1000), (HIGH_START, 0x2000)]
        );
        let beyond = size - 0x1000..size + 0x5000;
        assert_eq!(
            in_guest(size, &beyond),
            [(HIGH_START + (8 << 20) - 0x1000, 0x1000)]
        );
        assert_eq!(in_guest(size, &(size..size + 0x1000)), []);
    }
}
