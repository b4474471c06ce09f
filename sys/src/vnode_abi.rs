//! The ABI of vmm_vnode(4), as `kmod/vmm_vnode.h` has it.
//!
//! The C header and this file assert the same sizes, offsets and request numbers at compile
//! time, so that they cannot drift apart unseen. Requests go to the descriptor of the virtual
//! machine, `/dev/vmm/NAME`; the wrappers that issue them are not here.

use core::mem::{offset_of, size_of};

/// Version that this crate speaks. The module answers another one with `EOPNOTSUPP`.
pub const VM_VNODE_ABI: u32 = 1;

/// [`VmVnodeCaps::features`]: segments can be attached.
pub const VM_VNODE_F_ATTACH: u32 = 0x1;
/// [`VmVnodeCaps::features`]: the books of a segment can be read.
pub const VM_VNODE_F_STATS: u32 = 0x2;
/// [`VmVnodeCaps::features`]: [`VmVnodeStats::private_swapped`] is counted.
pub const VM_VNODE_F_SWAPPED: u32 = 0x4;
/// [`VmVnodeCaps::features`]: guest and host see each other's writes. Without it the kernel lacks
/// the fix of FreeBSD-SA-22:11.vm, and guest memory must not be backed by a file.
pub const VM_VNODE_F_COHERENT: u32 = 0x8;

/// What the module can do (`VM_VNODE_CAPS`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmVnodeCaps {
    /// Out: ABI version of the module.
    pub version: u32,
    /// Out: `VM_VNODE_F_*`.
    pub features: u32,
    /// Out: bytes in a page, the unit of all offsets, lengths and counts.
    pub page_size: u64,
    /// Out: zero.
    pub reserved: [u64; 6],
}

/// Back a new system memory segment by a file (`VM_VNODE_ATTACH`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmVnodeAttach {
    /// In: [`VM_VNODE_ABI`].
    pub version: u32,
    /// In: zero.
    pub flags: u32,
    /// In: system memory segment, 0 to 7.
    pub segid: i32,
    /// In: descriptor of the file, open for reading.
    pub fd: i32,
    /// In: where the segment starts in the file, in bytes, page-aligned.
    pub offset: i64,
    /// In: bytes, page-aligned.
    pub len: u64,
    /// In: zero.
    pub reserved: [u64; 4],
}

/// The books of one segment, in pages (`VM_VNODE_STATS`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmVnodeStats {
    /// In: [`VM_VNODE_ABI`].
    pub version: u32,
    /// In: system memory segment.
    pub segid: i32,
    /// Out: where the segment starts in the file, in bytes.
    pub offset: i64,
    /// Out: length of the segment.
    pub pages: u64,
    /// Out: written by this guest and in memory.
    pub private_resident: u64,
    /// Out: written by this guest and in swap.
    pub private_swapped: u64,
    /// Out: pages of the whole file in memory, shared by all its guests.
    pub file_resident: u64,
    /// Out: in the guest's page tables.
    pub guest_mapped: u64,
    /// In and out: zero.
    pub reserved: [u64; 4],
}

const IOC_OUT: u64 = 0x4000_0000;
const IOC_IN: u64 = 0x8000_0000;

/// A request number of group `v` (`_IOC`, `sys/ioccom.h`): the size is part of it.
const fn request(direction: u64, number: u8, size: usize) -> u64 {
    assert!(size < 1 << 13, "IOCPARM_MAX");
    direction | (size as u64) << 16 | (b'v' as u64) << 8 | number as u64
}

/// Request number of [`VmVnodeAttach`].
pub const VM_VNODE_ATTACH: u64 = request(IOC_IN, 120, size_of::<VmVnodeAttach>());
/// Request number of [`VmVnodeCaps`].
pub const VM_VNODE_CAPS: u64 = request(IOC_OUT, 124, size_of::<VmVnodeCaps>());
/// Request number of [`VmVnodeStats`].
pub const VM_VNODE_STATS: u64 = request(IOC_IN | IOC_OUT, 125, size_of::<VmVnodeStats>());

const _: () = {
    assert!(size_of::<VmVnodeCaps>() == 64);
    assert!(offset_of!(VmVnodeCaps, features) == 4);
    assert!(offset_of!(VmVnodeCaps, page_size) == 8);
    assert!(offset_of!(VmVnodeCaps, reserved) == 16);

    assert!(size_of::<VmVnodeAttach>() == 64);
    assert!(offset_of!(VmVnodeAttach, flags) == 4);
    assert!(offset_of!(VmVnodeAttach, segid) == 8);
    assert!(offset_of!(VmVnodeAttach, fd) == 12);
    assert!(offset_of!(VmVnodeAttach, offset) == 16);
    assert!(offset_of!(VmVnodeAttach, len) == 24);
    assert!(offset_of!(VmVnodeAttach, reserved) == 32);

    assert!(size_of::<VmVnodeStats>() == 88);
    assert!(offset_of!(VmVnodeStats, segid) == 4);
    assert!(offset_of!(VmVnodeStats, offset) == 8);
    assert!(offset_of!(VmVnodeStats, pages) == 16);
    assert!(offset_of!(VmVnodeStats, private_resident) == 24);
    assert!(offset_of!(VmVnodeStats, private_swapped) == 32);
    assert!(offset_of!(VmVnodeStats, file_resident) == 40);
    assert!(offset_of!(VmVnodeStats, guest_mapped) == 48);
    assert!(offset_of!(VmVnodeStats, reserved) == 56);

    assert!(VM_VNODE_ATTACH == 0x8040_7678);
    assert!(VM_VNODE_CAPS == 0x4040_767c);
    assert!(VM_VNODE_STATS == 0xc058_767d);
};
