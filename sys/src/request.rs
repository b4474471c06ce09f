//! Requests of vmm(4) and vmm_vnode(4): one table, each with the type of its argument.
//!
//! A request's number holds its direction, group, number and the size of its argument (`_IOC` in
//! FreeBSD's `sys/ioccom.h`). This module computes the numbers on any platform, and asserts that
//! each equals what the C compiler made of the macro of the same name in FreeBSD's headers, and
//! that its argument has the type that the macro names.

use core::{ffi::c_int, marker::PhantomData, mem::size_of};

use crate::abi;

const VOID: u32 = 0x2000_0000;
const OUT: u32 = 0x4000_0000;
const IN: u32 = 0x8000_0000;

/// A request whose argument is a `T`.
#[derive(Debug)]
pub struct Request<T> {
    name: &'static str,
    number: u32,
    argument: PhantomData<fn(&mut T)>,
}

impl<T> Clone for Request<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Request<T> {}

impl<T> Request<T> {
    const fn new(name: &'static str, direction: u32, group: u8, number: u32) -> Self {
        // IOCPARM_MAX; the number has one byte.
        assert!(size_of::<T>() < 1 << 13 && number <= 0xff);
        #[allow(clippy::cast_possible_truncation, reason = "asserted above")]
        let size = size_of::<T>() as u32;
        Self {
            name,
            number: direction | size << 16 | (group as u32) << 8 | number,
            argument: PhantomData,
        }
    }

    /// The macro's name in FreeBSD's headers.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// What ioctl(2) takes. Its upper half is zero on 64-bit platforms.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }
}

macro_rules! requests {
    (@type) => { () };
    (@type $type:ty) => { $type };
    ($(
        #[doc = $doc:literal]
        $name:ident = ($direction:expr, $group:expr, $number:expr $(, $type:ty)?), $header:expr;
    )*) => {
        $(
            #[doc = $doc]
            pub const $name: Request<requests!(@type $($type)?)> =
                Request::new(stringify!($name), $direction, $group, $number);
            const _: () = assert!($name.number as u64 == $header);
            $(const _: fn(&abi::request_arguments) -> &$type = |headers| &headers.$name;)?
        )*

        /// Name and number of each request of the table, in its order.
        pub const ALL: &[(&str, u32)] = &[$((stringify!($name), $name.number)),*];
    };
}

requests! {
    /// Creates a virtual machine (control device).
    VMMCTL_VM_CREATE = (IN | OUT, b'V', 0, abi::vmmctl_vm_create), abi::REQUEST_VMMCTL_VM_CREATE;
    /// Destroys a virtual machine (control device).
    VMMCTL_VM_DESTROY = (IN | OUT, b'V', 1, abi::vmmctl_vm_destroy), abi::REQUEST_VMMCTL_VM_DESTROY;
    /// Runs a virtual CPU until it exits to its process.
    VM_RUN = (IN, b'v', abi::IOCNUM_RUN, abi::vm_run), abi::REQUEST_VM_RUN;
    /// Makes all virtual CPUs exit, for the reason given.
    VM_SUSPEND = (IN, b'v', abi::IOCNUM_SUSPEND, abi::vm_suspend), abi::REQUEST_VM_SUSPEND;
    /// Puts the machine back to its state after creation; its system memory stays.
    VM_REINIT = (VOID, b'v', abi::IOCNUM_REINIT), abi::REQUEST_VM_REINIT;
    /// Creates a memory segment.
    VM_ALLOC_MEMSEG = (IN, b'v', abi::IOCNUM_ALLOC_MEMSEG, abi::vm_memseg), abi::REQUEST_VM_ALLOC_MEMSEG;
    /// Length and name of a memory segment; its length is 0 if there is none.
    VM_GET_MEMSEG = (IN | OUT, b'v', abi::IOCNUM_GET_MEMSEG, abi::vm_memseg), abi::REQUEST_VM_GET_MEMSEG;
    /// Maps a part of a segment into guest-physical memory.
    VM_MMAP_MEMSEG = (IN, b'v', abi::IOCNUM_MMAP_MEMSEG, abi::vm_memmap), abi::REQUEST_VM_MMAP_MEMSEG;
    /// The mapping with the lowest address that is not below the one given.
    VM_MMAP_GETNEXT = (IN | OUT, b'v', abi::IOCNUM_MMAP_GETNEXT, abi::vm_memmap), abi::REQUEST_VM_MMAP_GETNEXT;
    /// Removes a mapping.
    VM_MUNMAP_MEMSEG = (IN, b'v', abi::IOCNUM_MUNMAP_MEMSEG, abi::vm_munmap), abi::REQUEST_VM_MUNMAP_MEMSEG;
    /// Sets a register of a virtual CPU.
    VM_SET_REGISTER = (IN, b'v', abi::IOCNUM_SET_REGISTER, abi::vm_register), abi::REQUEST_VM_SET_REGISTER;
    /// Reads a register of a virtual CPU.
    VM_GET_REGISTER = (IN | OUT, b'v', abi::IOCNUM_GET_REGISTER, abi::vm_register), abi::REQUEST_VM_GET_REGISTER;
    /// Sets a segment register with its hidden part.
    VM_SET_SEGMENT_DESCRIPTOR = (IN, b'v', abi::IOCNUM_SET_SEGMENT_DESCRIPTOR, abi::vm_seg_desc), abi::REQUEST_VM_SET_SEGMENT_DESCRIPTOR;
    /// Reads a segment register with its hidden part.
    VM_GET_SEGMENT_DESCRIPTOR = (IN | OUT, b'v', abi::IOCNUM_GET_SEGMENT_DESCRIPTOR, abi::vm_seg_desc), abi::REQUEST_VM_GET_SEGMENT_DESCRIPTOR;
    /// Sets several registers.
    VM_SET_REGISTER_SET = (IN, b'v', abi::IOCNUM_SET_REGISTER_SET, abi::vm_register_set), abi::REQUEST_VM_SET_REGISTER_SET;
    /// Reads several registers.
    VM_GET_REGISTER_SET = (IN | OUT, b'v', abi::IOCNUM_GET_REGISTER_SET, abi::vm_register_set), abi::REQUEST_VM_GET_REGISTER_SET;
    /// Writes to a device that the kernel emulates, at a guest-physical address.
    VM_SET_KERNEMU_DEV = (IN, b'v', abi::IOCNUM_SET_KERNEMU_DEV, abi::vm_readwrite_kernemu_device), abi::REQUEST_VM_SET_KERNEMU_DEV;
    /// Reads from a device that the kernel emulates, at a guest-physical address.
    VM_GET_KERNEMU_DEV = (IN | OUT, b'v', abi::IOCNUM_GET_KERNEMU_DEV, abi::vm_readwrite_kernemu_device), abi::REQUEST_VM_GET_KERNEMU_DEV;
    /// Raises an exception in a virtual CPU.
    VM_INJECT_EXCEPTION = (IN, b'v', abi::IOCNUM_INJECT_EXCEPTION, abi::vm_exception), abi::REQUEST_VM_INJECT_EXCEPTION;
    /// Raises an edge-triggered interrupt in the local APIC.
    VM_LAPIC_IRQ = (IN, b'v', abi::IOCNUM_LAPIC_IRQ, abi::vm_lapic_irq), abi::REQUEST_VM_LAPIC_IRQ;
    /// Raises an interrupt of the local vector table.
    VM_LAPIC_LOCAL_IRQ = (IN, b'v', abi::IOCNUM_LAPIC_LOCAL_IRQ, abi::vm_lapic_irq), abi::REQUEST_VM_LAPIC_LOCAL_IRQ;
    /// Delivers a message-signalled interrupt.
    VM_LAPIC_MSI = (IN, b'v', abi::IOCNUM_LAPIC_MSI, abi::vm_lapic_msi), abi::REQUEST_VM_LAPIC_MSI;
    /// Asserts a pin of the I/O APIC.
    VM_IOAPIC_ASSERT_IRQ = (IN, b'v', abi::IOCNUM_IOAPIC_ASSERT_IRQ, abi::vm_ioapic_irq), abi::REQUEST_VM_IOAPIC_ASSERT_IRQ;
    /// Releases a pin of the I/O APIC.
    VM_IOAPIC_DEASSERT_IRQ = (IN, b'v', abi::IOCNUM_IOAPIC_DEASSERT_IRQ, abi::vm_ioapic_irq), abi::REQUEST_VM_IOAPIC_DEASSERT_IRQ;
    /// Asserts and releases a pin of the I/O APIC.
    VM_IOAPIC_PULSE_IRQ = (IN, b'v', abi::IOCNUM_IOAPIC_PULSE_IRQ, abi::vm_ioapic_irq), abi::REQUEST_VM_IOAPIC_PULSE_IRQ;
    /// Number of pins of the I/O APIC.
    VM_IOAPIC_PINCOUNT = (OUT, b'v', abi::IOCNUM_IOAPIC_PINCOUNT, c_int), abi::REQUEST_VM_IOAPIC_PINCOUNT;
    /// Asserts an ISA interrupt.
    VM_ISA_ASSERT_IRQ = (IN, b'v', abi::IOCNUM_ISA_ASSERT_IRQ, abi::vm_isa_irq), abi::REQUEST_VM_ISA_ASSERT_IRQ;
    /// Releases an ISA interrupt.
    VM_ISA_DEASSERT_IRQ = (IN, b'v', abi::IOCNUM_ISA_DEASSERT_IRQ, abi::vm_isa_irq), abi::REQUEST_VM_ISA_DEASSERT_IRQ;
    /// Asserts and releases an ISA interrupt.
    VM_ISA_PULSE_IRQ = (IN, b'v', abi::IOCNUM_ISA_PULSE_IRQ, abi::vm_isa_irq), abi::REQUEST_VM_ISA_PULSE_IRQ;
    /// Makes an ISA interrupt edge- or level-triggered.
    VM_ISA_SET_IRQ_TRIGGER = (IN, b'v', abi::IOCNUM_ISA_SET_IRQ_TRIGGER, abi::vm_isa_irq_trigger), abi::REQUEST_VM_ISA_SET_IRQ_TRIGGER;
    /// Turns an optional capability of a virtual CPU on or off.
    VM_SET_CAPABILITY = (IN, b'v', abi::IOCNUM_SET_CAPABILITY, abi::vm_capability), abi::REQUEST_VM_SET_CAPABILITY;
    /// Whether an optional capability of a virtual CPU is on.
    VM_GET_CAPABILITY = (IN | OUT, b'v', abi::IOCNUM_GET_CAPABILITY, abi::vm_capability), abi::REQUEST_VM_GET_CAPABILITY;
    /// Gives a PCI device of the host to the guest.
    VM_BIND_PPTDEV = (IN, b'v', abi::IOCNUM_BIND_PPTDEV, abi::vm_pptdev), abi::REQUEST_VM_BIND_PPTDEV;
    /// Takes a PCI device of the host back.
    VM_UNBIND_PPTDEV = (IN, b'v', abi::IOCNUM_UNBIND_PPTDEV, abi::vm_pptdev), abi::REQUEST_VM_UNBIND_PPTDEV;
    /// Maps a passed-through device's memory.
    VM_MAP_PPTDEV_MMIO = (IN, b'v', abi::IOCNUM_MAP_PPTDEV_MMIO, abi::vm_pptdev_mmio), abi::REQUEST_VM_MAP_PPTDEV_MMIO;
    /// Sets up a passed-through device's MSI.
    VM_PPTDEV_MSI = (IN, b'v', abi::IOCNUM_PPTDEV_MSI, abi::vm_pptdev_msi), abi::REQUEST_VM_PPTDEV_MSI;
    /// Sets up a vector of a passed-through device's MSI-X.
    VM_PPTDEV_MSIX = (IN, b'v', abi::IOCNUM_PPTDEV_MSIX, abi::vm_pptdev_msix), abi::REQUEST_VM_PPTDEV_MSIX;
    /// Disables a passed-through device's MSI-X.
    VM_PPTDEV_DISABLE_MSIX = (IN, b'v', abi::IOCNUM_PPTDEV_DISABLE_MSIX, abi::vm_pptdev), abi::REQUEST_VM_PPTDEV_DISABLE_MSIX;
    /// Unmaps a passed-through device's memory.
    VM_UNMAP_PPTDEV_MMIO = (IN, b'v', abi::IOCNUM_UNMAP_PPTDEV_MMIO, abi::vm_pptdev_mmio), abi::REQUEST_VM_UNMAP_PPTDEV_MMIO;
    /// Raises a non-maskable interrupt.
    VM_INJECT_NMI = (IN, b'v', abi::IOCNUM_INJECT_NMI, abi::vm_nmi), abi::REQUEST_VM_INJECT_NMI;
    /// Statistics of a virtual CPU, up to `MAX_VM_STATS` from an index on.
    VM_STATS = (IN | OUT, b'v', abi::IOCNUM_VM_STATS, abi::vm_stats), abi::REQUEST_VM_STATS;
    /// Name of the statistic of an index.
    VM_STAT_DESC = (IN | OUT, b'v', abi::IOCNUM_VM_STAT_DESC, abi::vm_stat_desc), abi::REQUEST_VM_STAT_DESC;
    /// Turns x2APIC of a virtual CPU on or off.
    VM_SET_X2APIC_STATE = (IN, b'v', abi::IOCNUM_SET_X2APIC_STATE, abi::vm_x2apic), abi::REQUEST_VM_SET_X2APIC_STATE;
    /// Whether x2APIC of a virtual CPU is on.
    VM_GET_X2APIC_STATE = (IN | OUT, b'v', abi::IOCNUM_GET_X2APIC_STATE, abi::vm_x2apic), abi::REQUEST_VM_GET_X2APIC_STATE;
    /// Capabilities register of the HPET.
    VM_GET_HPET_CAPABILITIES = (OUT, b'v', abi::IOCNUM_GET_HPET_CAPABILITIES, abi::vm_hpet_cap), abi::REQUEST_VM_GET_HPET_CAPABILITIES;
    /// Sets sockets, cores and threads.
    VM_SET_TOPOLOGY = (IN, b'v', abi::IOCNUM_SET_TOPOLOGY, abi::vm_cpu_topology), abi::REQUEST_VM_SET_TOPOLOGY;
    /// Reads sockets, cores and threads.
    VM_GET_TOPOLOGY = (OUT, b'v', abi::IOCNUM_GET_TOPOLOGY, abi::vm_cpu_topology), abi::REQUEST_VM_GET_TOPOLOGY;
    /// Page table entries of a guest-physical address.
    VM_GET_GPA_PMAP = (IN | OUT, b'v', abi::IOCNUM_GET_GPA_PMAP, abi::vm_gpa_pte), abi::REQUEST_VM_GET_GPA_PMAP;
    /// Translates a guest-linear address, and raises its faults in the guest.
    VM_GLA2GPA = (IN | OUT, b'v', abi::IOCNUM_GLA2GPA, abi::vm_gla2gpa), abi::REQUEST_VM_GLA2GPA;
    /// Translates a guest-linear address without effect on the guest.
    VM_GLA2GPA_NOFAULT = (IN | OUT, b'v', abi::IOCNUM_GLA2GPA_NOFAULT, abi::vm_gla2gpa), abi::REQUEST_VM_GLA2GPA_NOFAULT;
    /// Activates a virtual CPU.
    VM_ACTIVATE_CPU = (IN, b'v', abi::IOCNUM_ACTIVATE_CPU, abi::vm_activate_cpu), abi::REQUEST_VM_ACTIVATE_CPU;
    /// Set of the virtual CPUs that are active, suspended or in the debugger.
    VM_GET_CPUS = (IN, b'v', abi::IOCNUM_GET_CPUSET, abi::vm_cpuset), abi::REQUEST_VM_GET_CPUS;
    /// Stops a virtual CPU, or with -1 all of them.
    VM_SUSPEND_CPU = (IN, b'v', abi::IOCNUM_SUSPEND_CPU, abi::vm_activate_cpu), abi::REQUEST_VM_SUSPEND_CPU;
    /// Lets a virtual CPU, or with -1 all of them, go on.
    VM_RESUME_CPU = (IN, b'v', abi::IOCNUM_RESUME_CPU, abi::vm_activate_cpu), abi::REQUEST_VM_RESUME_CPU;
    /// Sets what was pending when an exit interrupted the delivery of an event.
    VM_SET_INTINFO = (IN, b'v', abi::IOCNUM_SET_INTINFO, abi::vm_intinfo), abi::REQUEST_VM_SET_INTINFO;
    /// Reads what was pending when an exit interrupted the delivery of an event.
    VM_GET_INTINFO = (IN | OUT, b'v', abi::IOCNUM_GET_INTINFO, abi::vm_intinfo), abi::REQUEST_VM_GET_INTINFO;
    /// Writes to the memory of the real-time clock.
    VM_RTC_WRITE = (IN, b'v', abi::IOCNUM_RTC_WRITE, abi::vm_rtc_data), abi::REQUEST_VM_RTC_WRITE;
    /// Reads from the memory of the real-time clock.
    VM_RTC_READ = (IN | OUT, b'v', abi::IOCNUM_RTC_READ, abi::vm_rtc_data), abi::REQUEST_VM_RTC_READ;
    /// Sets the real-time clock, in seconds since 1970.
    VM_RTC_SETTIME = (IN, b'v', abi::IOCNUM_RTC_SETTIME, abi::vm_rtc_time), abi::REQUEST_VM_RTC_SETTIME;
    /// Reads the real-time clock, in seconds since 1970.
    VM_RTC_GETTIME = (OUT, b'v', abi::IOCNUM_RTC_GETTIME, abi::vm_rtc_time), abi::REQUEST_VM_RTC_GETTIME;
    /// Has a virtual CPU execute its last instruction again.
    VM_RESTART_INSTRUCTION = (IN, b'v', abi::IOCNUM_RESTART_INSTRUCTION, c_int), abi::REQUEST_VM_RESTART_INSTRUCTION;
    /// Saves or restores one kind of kernel state (kernels with `BHYVE_SNAPSHOT`).
    VM_SNAPSHOT_REQ = (IN | OUT, b'v', abi::IOCNUM_SNAPSHOT_REQ, abi::vm_snapshot_meta), abi::REQUEST_VM_SNAPSHOT_REQ;
    /// Sets the clocks of the guest on after a restore (kernels with `BHYVE_SNAPSHOT`).
    VM_RESTORE_TIME = (IN | OUT, b'v', abi::IOCNUM_RESTORE_TIME, c_int), abi::REQUEST_VM_RESTORE_TIME;
    /// Backs a new system memory segment by a file (vmm_vnode(4)).
    VM_VNODE_ATTACH = (IN, b'v', 120, abi::vm_vnode_attach), abi::REQUEST_VM_VNODE_ATTACH;
    /// What the vmm_vnode(4) module can do.
    VM_VNODE_CAPS = (OUT, b'v', 124, abi::vm_vnode_caps), abi::REQUEST_VM_VNODE_CAPS;
    /// The books of a segment that is backed by a file (vmm_vnode(4)).
    VM_VNODE_STATS = (IN | OUT, b'v', 125, abi::vm_vnode_stats), abi::REQUEST_VM_VNODE_STATS;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// From `_Static_assert`s that clang held against the headers of 15.0, not from the generator.
    #[cfg(not(feature = "host-headers"))]
    #[test]
    fn numbers_are_the_kernels() {
        let golden = [
            (VM_RUN.number(), 0x8020_7601),
            (VM_REINIT.number(), 0x2000_7605),
            (VM_ALLOC_MEMSEG.number(), 0x8038_760e),
            (VM_MMAP_MEMSEG.number(), 0x8028_7610),
            (VM_STATS.number(), 0xc220_7632),
            (VM_STAT_DESC.number(), 0xc084_7633),
            (VM_IOAPIC_PINCOUNT.number(), 0x4004_7626),
            (VM_GET_TOPOLOGY.number(), 0x4008_7640),
            (VM_SNAPSHOT_REQ.number(), 0xc040_7671),
            (VMMCTL_VM_CREATE.number(), 0xc128_5600),
            (VM_VNODE_ATTACH.number(), 0x8040_7678),
            (VM_VNODE_CAPS.number(), 0x4040_767c),
            (VM_VNODE_STATS.number(), 0xc058_767d),
        ];
        for (number, expected) in golden {
            assert_eq!(number, expected, "{number:#x} {expected:#x}");
        }
    }

    #[test]
    fn the_table_has_each_request_of_the_headers() {
        let headers: BTreeSet<&str> = include_str!("generated/freebsd_15_0.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("pub const REQUEST_")?.split(':').next())
            .collect();
        let table: BTreeSet<&str> = ALL.iter().map(|(name, _)| *name).collect();
        assert_eq!(table, headers);
        assert_eq!(table.len(), ALL.len());
    }
}
