//! Guest memory mapped into this process's address space.

use std::{io, num::NonZeroUsize, ptr::NonNull, sync::atomic::AtomicU8};

use nix::{
    errno::Errno,
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
};

use super::Vm;
use crate::Error;

/// A range of a guest's system memory, mapped shared: what one side writes, the other reads.
///
/// The guest may write at any time, so the bytes are atomics. The memory stays as long as the
/// mapping does, even when the machine is destroyed; what of it was a checkpoint's is no longer
/// protected from changes then (vmm_vnode(4), CAVEATS).
#[derive(Debug)]
pub struct GuestMapping {
    start: NonNull<AtomicU8>,
    length: NonZeroUsize,
}

// SAFETY: it owns its mapping, and the memory is reached through atomics only.
unsafe impl Send for GuestMapping {}
// SAFETY: as above; nothing changes the mapping itself before it is dropped.
unsafe impl Sync for GuestMapping {}

impl Vm {
    /// Maps `length` bytes of system memory at the guest-physical `address` into this process
    /// (mmap(2) of the machine's device). Both must be multiples of the page size, and the range
    /// must lie within one [`Mapping`](super::Mapping) of a system memory segment.
    ///
    /// On FreeBSD the range is kept out of core dumps, as bhyve(8) does it.
    ///
    /// # Errors
    /// [`Error::Memory`]: `EINVAL` if there is no such range.
    pub fn map_memory(&self, address: u64, length: usize) -> Result<GuestMapping, Error> {
        let error = |errno: Errno| {
            self.device
                .memory_error("map", address, length, io::Error::from(errno))
        };
        let length = NonZeroUsize::new(length).ok_or_else(|| error(Errno::EINVAL))?;
        let offset = i64::try_from(address).map_err(|_| error(Errno::EINVAL))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        #[cfg(target_os = "freebsd")]
        let flags = MapFlags::MAP_SHARED | MapFlags::from_bits_retain(libc::MAP_NOCORE);
        #[cfg(not(target_os = "freebsd"))]
        let flags = MapFlags::MAP_SHARED;
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing.
        let start = unsafe { mmap(None, length, protection, flags, &self.device, offset) }
            .map_err(error)?;
        Ok(GuestMapping {
            start: start.cast(),
            length,
        })
    }
}

impl GuestMapping {
    /// The memory, byte by byte.
    #[must_use]
    pub fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: the mapping is that long, readable and writable, lives as long as `self`, and
        // any value is an `AtomicU8`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length.get()) }
    }
}

impl Drop for GuestMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nothing borrows from it any more.
        let result = unsafe { munmap(self.start.cast(), self.length.get()) };
        debug_assert_eq!(result, Ok(()), "the range is a mapping");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;
    use crate::made_up::Kernel;

    /// Of the largest page that is likely to be the unit.
    const PAGE: usize = 65536;

    #[test]
    fn a_mapping_is_the_memory() {
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(2 * PAGE as u64).unwrap();
        let vm = Vm::made_up(Kernel::new(), memory);
        vm.write_memory(PAGE as u64 + 5, &[42]).unwrap();

        let mapping = vm.map_memory(PAGE as u64, PAGE).unwrap();
        assert_eq!(mapping.bytes().len(), PAGE);
        assert_eq!(mapping.bytes()[5].load(Relaxed), 42);

        mapping.bytes()[PAGE - 1].store(7, Relaxed);
        let mut read = [0];
        vm.read_memory(2 * PAGE as u64 - 1, &mut read).unwrap();
        assert_eq!(read, [7]);
    }

    #[test]
    fn ranges_that_cannot_be_are_refused() {
        let vm = Vm::made_up(Kernel::new(), tempfile::tempfile().unwrap());
        for (address, length) in [(0, 0), (u64::MAX, PAGE), (1, PAGE)] {
            let error = vm.map_memory(address, length).unwrap_err();
            assert!(
                matches!(error, Error::Memory { action: "map", .. }),
                "{error}"
            );
        }
    }
}
