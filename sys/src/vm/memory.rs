//! Guest-physical memory: where parts of segments lie in it, and what they hold.

use std::os::unix::fs::FileExt;

use nix::errno::Errno;

use super::{SegmentId, Vm};
use crate::{Error, abi, request};

/// What a guest may do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// Read it.
    pub read: bool,
    /// Write it.
    pub write: bool,
    /// Run code in it.
    pub execute: bool,
}

impl Protection {
    /// As system memory has it.
    pub const ALL: Self = Self {
        read: true,
        write: true,
        execute: true,
    };

    fn bits(self) -> i32 {
        let bit = |set, bit| if set { bit } else { 0 };
        bit(self.read, libc::PROT_READ)
            | bit(self.write, libc::PROT_WRITE)
            | bit(self.execute, libc::PROT_EXEC)
    }

    fn from_bits(bits: i32) -> Self {
        Self {
            read: bits & libc::PROT_READ != 0,
            write: bits & libc::PROT_WRITE != 0,
            execute: bits & libc::PROT_EXEC != 0,
        }
    }
}

/// Where a part of a segment is in guest-physical memory (`struct vm_memmap` of
/// `machine/vmm_dev.h`). All numbers are in bytes and multiples of the page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Guest-physical address.
    pub address: u64,
    /// The segment.
    pub segment: SegmentId,
    /// Where the part starts in the segment.
    pub offset: u64,
    /// Its length.
    pub length: usize,
    /// What the guest may do with it.
    pub protection: Protection,
    /// Whether all of it is held in memory, as passed-through devices need it. Segments of
    /// vmm_vnode(4) cannot be wired: `EOPNOTSUPP`.
    pub wired: bool,
}

impl Vm {
    /// Makes a part of a segment appear in guest-physical memory (`VM_MMAP_MEMSEG`). All virtual
    /// CPUs must have exited, or not have run yet.
    ///
    /// # Errors
    /// [`Error::Request`]: `EINVAL` if the part is not in the segment, or a number is not a
    /// multiple of the page size; `EFAULT` if something is mapped there; `ENOSPC` if the machine
    /// has as many mappings as it can have.
    pub fn map_segment(&self, mapping: &Mapping) -> Result<(), Error> {
        #[allow(clippy::cast_possible_wrap, reason = "it is one bit")]
        let flags = if mapping.wired {
            abi::VM_MEMMAP_F_WIRED as i32
        } else {
            0
        };
        let mut memmap = abi::vm_memmap {
            gpa: mapping.address,
            segid: mapping.segment.number(),
            segoff: mapping.offset,
            len: mapping.length,
            prot: mapping.protection.bits(),
            flags,
        };
        let action = "map a memory segment";
        // SAFETY: the argument holds no pointers.
        unsafe {
            self.device
                .request(action, request::VM_MMAP_MEMSEG, &mut memmap)
        }
    }

    /// Removes a mapping of just this address and length (`VM_MUNMAP_MEMSEG`).
    ///
    /// # Errors
    /// [`Error::Request`]: `EINVAL` if there is none.
    pub fn unmap_segment(&self, address: u64, length: usize) -> Result<(), Error> {
        let mut munmap = abi::vm_munmap {
            gpa: address,
            len: length,
        };
        let action = "unmap a memory segment";
        // SAFETY: the argument holds no pointers.
        unsafe {
            self.device
                .request(action, request::VM_MUNMAP_MEMSEG, &mut munmap)
        }
    }

    /// All mappings, by ascending address (`VM_MMAP_GETNEXT`).
    ///
    /// # Errors
    /// [`Error::Request`]: `ENXIO` if the machine is destroyed.
    pub fn mappings(&self) -> Result<Vec<Mapping>, Error> {
        let mut mappings = Vec::new();
        let mut next = Some(0);
        while let Some(address) = next {
            let mut memmap = abi::vm_memmap {
                gpa: address,
                ..Default::default()
            };
            let action = "list the memory mappings";
            // SAFETY: the argument holds no pointers.
            let result = unsafe {
                self.device
                    .request(action, request::VM_MMAP_GETNEXT, &mut memmap)
            };
            match result {
                Err(Error::Request {
                    errno: Errno::ENOENT,
                    ..
                }) => break,
                result => result?,
            }
            #[allow(clippy::cast_sign_loss, reason = "a set of bits")]
            let flags = memmap.flags as u32;
            mappings.push(Mapping {
                address: memmap.gpa,
                segment: SegmentId::from_number(memmap.segid),
                offset: memmap.segoff,
                length: memmap.len,
                protection: Protection::from_bits(memmap.prot),
                wired: flags & abi::VM_MEMMAP_F_WIRED != 0,
            });
            // Past the end of the address space nothing is left to ask for.
            next = memmap
                .gpa
                .checked_add(memmap.len as u64)
                .filter(|end| *end > address);
        }
        Ok(mappings)
    }

    /// Reads guest-physical memory into `buffer` by read(2), page by page; a hole below the end
    /// of system memory reads as zero (`vmmdev_rw` of FreeBSD's `sys/dev/vmm/vmm_dev.c`).
    ///
    /// # Errors
    /// [`Error::Memory`]: `EFAULT` if the range goes past the guest's memory.
    pub fn read_memory(&self, address: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let length = buffer.len();
        self.device
            .file()
            .read_exact_at(buffer, address)
            .map_err(|source| self.device.memory_error("read", address, length, source))
    }

    /// Writes `bytes` to guest-physical memory by write(2). Pages of a checkpoint that are
    /// written become the guest's own.
    ///
    /// # Errors
    /// [`Error::Memory`]: `EFAULT` if the guest has no writable memory there.
    pub fn write_memory(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.device
            .file()
            .write_all_at(bytes, address)
            .map_err(|source| {
                self.device
                    .memory_error("write", address, bytes.len(), source)
            })
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

    /// Memory above 4 GiB lies at another offset in its segment than its address.
    const MAPPINGS: [Mapping; 2] = [
        Mapping {
            address: 0,
            segment: SegmentId::SYSTEM,
            offset: 0,
            length: 3 << 30,
            protection: Protection::ALL,
            wired: false,
        },
        Mapping {
            address: 4 << 30,
            segment: SegmentId::BOOT_ROM,
            offset: 3 << 30,
            length: MIB,
            protection: Protection {
                read: true,
                write: false,
                execute: true,
            },
            wired: true,
        },
    ];

    #[test]
    fn what_was_mapped_is_listed() {
        let maps = std::rc::Rc::new(std::cell::RefCell::new(Vec::<abi::vm_memmap>::new()));
        let (mapped, unmapped) = (maps.clone(), maps.clone());
        let kernel = Kernel::new()
            .on(request::VM_MMAP_MEMSEG, move |memmap| {
                mapped.borrow_mut().push(*memmap);
                Ok(())
            })
            .on(request::VM_MUNMAP_MEMSEG, move |munmap| {
                unmapped
                    .borrow_mut()
                    .retain(|m| (m.gpa, m.len) != (munmap.gpa, munmap.len));
                Ok(())
            })
            .on(request::VM_MMAP_GETNEXT, move |memmap| {
                let maps = maps.borrow();
                let next = maps
                    .iter()
                    .filter(|m| m.gpa >= memmap.gpa)
                    .min_by_key(|m| m.gpa);
                *memmap = *next.ok_or(Errno::ENOENT)?;
                Ok(())
            });
        let vm = vm(kernel);
        assert_eq!(vm.mappings().unwrap(), []);
        for mapping in MAPPINGS.iter().rev() {
            vm.map_segment(mapping).unwrap();
        }
        assert_eq!(vm.mappings().unwrap(), MAPPINGS);
        vm.unmap_segment(0, 3 << 30).unwrap();
        assert_eq!(vm.mappings().unwrap(), MAPPINGS[1..]);
    }

    /// A kernel that never says that there are no more must not be asked for ever.
    #[test]
    fn a_list_that_does_not_advance_ends() {
        let kernel = Kernel::new().on(request::VM_MMAP_GETNEXT, |memmap| {
            memmap.gpa = 0;
            memmap.len = 4096;
            Ok(())
        });
        assert_eq!(vm(kernel).mappings().unwrap().len(), 2);
    }

    #[test]
    fn memory_is_read_and_written_at_its_address() {
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(8192).unwrap();
        let vm = Vm::made_up(Kernel::new(), memory);
        vm.write_memory(4094, b"brood").unwrap();
        let mut read = [0xff; 7];
        vm.read_memory(4093, &mut read).unwrap();
        assert_eq!(&read, b"\0brood\0");
        let error = vm.read_memory(8190, &mut read).unwrap_err().to_string();
        let start = "cannot read 7 bytes of guest memory at 0x1ffe on /dev/vmm/g1: ";
        assert!(error.starts_with(start), "{error}");
    }
}
