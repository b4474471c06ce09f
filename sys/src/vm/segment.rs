//! Memory segments: the memory that belongs to a virtual machine.
//!
//! System memory is the guest's RAM, which a process can map, read and write through the machine's
//! device; the other segments hold what devices show. A segment appears in guest-physical memory
//! where a [`Mapping`](super::Mapping) puts a part of it.

use std::fmt;

use super::Vm;
use crate::{Error, abi, name, request};

/// Number of a memory segment (`dev/vmm/vmm_mem.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(i32);

#[allow(clippy::cast_possible_wrap, reason = "the numbers are small")]
impl SegmentId {
    /// System memory of a guest without NUMA domains.
    pub const SYSTEM: Self = Self(abi::VM_SYSMEM as i32);
    /// The boot ROM.
    pub const BOOT_ROM: Self = Self(abi::VM_BOOTROM as i32);
    /// The frame buffer.
    pub const FRAME_BUFFER: Self = Self(abi::VM_FRAMEBUFFER as i32);
    /// The option ROM of a passed-through device.
    pub const PCI_ROM: Self = Self(abi::VM_PCIROM as i32);

    /// System memory of a NUMA domain of the guest, 0 to 7.
    ///
    /// ```
    /// use vmm_sys::SegmentId;
    ///
    /// assert_eq!(SegmentId::system(0), Some(SegmentId::SYSTEM));
    /// assert_eq!(SegmentId::system(8), None);
    /// ```
    #[must_use]
    pub const fn system(domain: u8) -> Option<Self> {
        if (domain as u32) < abi::VM_MAXSYSMEM {
            Some(Self(domain as i32))
        } else {
            None
        }
    }

    pub(super) const fn from_number(number: i32) -> Self {
        Self(number)
    }

    pub(crate) const fn number(self) -> i32 {
        self.0
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A memory segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Bytes.
    pub length: usize,
    /// Name of the device memory; `None` for system memory.
    pub name: Option<String>,
}

impl Vm {
    /// A segment, or `None` if the machine has none of that number (`VM_GET_MEMSEG`).
    ///
    /// # Errors
    /// [`Error::Request`]: `ENXIO` if the machine is destroyed.
    pub fn segment(&self, segment: SegmentId) -> Result<Option<Segment>, Error> {
        let mut memseg = abi::vm_memseg {
            segid: segment.number(),
            ..Default::default()
        };
        let action = "look at a memory segment";
        // SAFETY: the kernel does not use the one pointer, to a set of domains, when it reports.
        unsafe {
            self.device
                .request(action, request::VM_GET_MEMSEG, &mut memseg)?;
        };
        let name = name::text(&memseg.name);
        let name = (!name.is_empty()).then_some(name);
        Ok((memseg.len != 0).then_some(Segment {
            length: memseg.len,
            name,
        }))
    }

    /// Creates a system memory segment of `length` bytes that reads as zero
    /// (`VM_ALLOC_MEMSEG`). For one that reads as a checkpoint see
    /// [`VnodeProvider::attach`](crate::VnodeProvider::attach).
    ///
    /// # Errors
    /// [`Error::Request`]: `EEXIST` if there is one of that number and length, `EINVAL` if there
    /// is one of another length, or if the length is not a multiple of the page size, or zero.
    pub fn allocate_segment(&self, segment: SegmentId, length: usize) -> Result<(), Error> {
        let mut memseg = abi::vm_memseg {
            segid: segment.number(),
            len: length,
            ..Default::default()
        };
        let action = "create a memory segment";
        // SAFETY: the one pointer, to a set of domains, is null, which is none.
        unsafe {
            self.device
                .request(action, request::VM_ALLOC_MEMSEG, &mut memseg)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up::Kernel;

    const MIB: usize = 1 << 20;

    fn vm(kernel: Kernel) -> Vm {
        Vm::made_up(kernel, tempfile::tempfile().unwrap())
    }

    #[test]
    fn a_segment_of_length_zero_is_none() {
        let kernel = Kernel::new().on(request::VM_GET_MEMSEG, |memseg| {
            (memseg.len, memseg.name) = match memseg.segid {
                0 => (256 * MIB, name::c_string("")),
                8 => (16 * MIB, name::c_string("bootrom")),
                _ => (0, name::c_string("")),
            };
            Ok(())
        });
        let vm = vm(kernel);
        let system = vm.segment(SegmentId::SYSTEM).unwrap().unwrap();
        assert_eq!(
            system,
            Segment {
                length: 256 * MIB,
                name: None
            }
        );
        let rom = vm.segment(SegmentId::BOOT_ROM).unwrap().unwrap();
        assert_eq!(
            rom,
            Segment {
                length: 16 * MIB,
                name: Some("bootrom".into())
            }
        );
        assert_eq!(vm.segment(SegmentId::system(7).unwrap()).unwrap(), None);
    }

    #[test]
    fn a_new_segment_is_nameless_system_memory_of_any_domain() {
        let kernel = Kernel::new().on(request::VM_ALLOC_MEMSEG, |memseg| {
            assert_eq!((memseg.segid, memseg.len), (3, MIB));
            assert_eq!(memseg.name, [0; 16]);
            assert!(memseg.ds_mask.is_null());
            assert_eq!((memseg.ds_mask_size, memseg.ds_policy), (0, 0));
            Ok(())
        });
        vm(kernel)
            .allocate_segment(SegmentId::system(3).unwrap(), MIB)
            .unwrap();
    }
}
