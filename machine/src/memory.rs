//! Guest memory: one mapping of this process, of which the part above 3 GiB lies above 4 GiB for the
//! guest.

use std::{fs::File, sync::Arc};

use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, mmap::MmapRegionBuilder,
};

use crate::{
    error::{Error, memory},
    layout::{HIGH_START, LOW_END},
};

/// Guest memory as devices see it.
pub type Memory = GuestMemoryMmap<()>;

/// Least memory of a guest, in bytes.
pub const LEAST: u64 = 64 << 20;
/// Most memory of a guest, in bytes.
pub const MOST: u64 = 64 << 30;

/// How a guest's memory is backed.
#[derive(Clone, Copy, Debug)]
pub enum Backing<'a> {
    /// No file: memory of this process.
    Anonymous,
    /// What the guest writes reaches the file.
    Shared(&'a File),
    /// The file's pages are shared until they are written.
    Private(&'a File),
}

/// The parts of `size` bytes of memory: guest address, offset in the file, length.
#[must_use]
pub fn parts(size: u64) -> Vec<(u64, u64, u64)> {
    let low = size.min(LOW_END);
    let mut parts = vec![(0, 0, low)];
    if size > low {
        parts.push((HIGH_START, low, size - low));
    }
    parts
}

/// Refuses a size of memory that no guest can have.
///
/// # Errors
/// With the sizes that one can have.
pub fn check_size(size: u64) -> Result<(), Error> {
    if (LEAST..=MOST).contains(&size) && size.is_multiple_of(2 << 20) {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "a guest has {} MiB to {} GiB of memory, in steps of 2 MiB",
        LEAST >> 20,
        MOST >> 30
    )))
}

/// Maps `size` bytes of guest memory.
///
/// # Errors
/// When the size is none that a guest can have, or the mapping fails.
pub fn map(size: u64, backing: Backing<'_>) -> Result<Memory, Error> {
    check_size(size)?;
    let flags = match backing {
        Backing::Shared(_) => libc::MAP_SHARED,
        Backing::Anonymous => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        Backing::Private(_) => libc::MAP_PRIVATE,
    };
    let file = match backing {
        Backing::Anonymous => None,
        Backing::Shared(file) | Backing::Private(file) => {
            let file = file.try_clone().map_err(memory("map guest memory"))?;
            Some(Arc::new(file))
        }
    };
    of_parts(size, |offset, length| {
        let mut mapping = MmapRegionBuilder::new(length)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags | libc::MAP_NORESERVE);
        if let Some(file) = &file {
            mapping = mapping.with_file_offset(FileOffset::from_arc(Arc::clone(file), offset));
        }
        mapping
    })
}

/// Guest memory that lies in a mapping of `size` bytes, which another has made: its own pages are
/// private to this process. It is not unmapped with this value.
///
/// # Errors
/// When the size is none that a guest can have.
///
/// # Safety
/// The mapping, readable and writable, must be there as long as this value and all that comes of it,
/// and nobody may have a reference into it.
pub unsafe fn over(start: *mut u8, size: u64) -> Result<Memory, Error> {
    check_size(size)?;
    of_parts(size, |offset, length| {
        let offset = usize::try_from(offset).expect("it lies in the address space");
        let builder = MmapRegionBuilder::new(length)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE);
        // SAFETY: the offset lies in the mapping, which stays, as the caller warrants.
        unsafe { builder.with_raw_mmap_pointer(start.add(offset)) }
    })
}

/// Memory of which `mapping` makes the part at an offset, so long.
fn of_parts(
    size: u64,
    mut mapping: impl FnMut(u64, usize) -> MmapRegionBuilder,
) -> Result<Memory, Error> {
    let regions = parts(size).into_iter().map(|(address, offset, length)| {
        let length = usize::try_from(length).map_err(memory("map guest memory"))?;
        let mapping = mapping(offset, length).build();
        let mapping = mapping.map_err(memory("map guest memory"))?;
        GuestRegionMmap::new(mapping, GuestAddress(address)).ok_or_else(|| Error::Memory {
            action: "map guest memory",
            reason: "it does not fit into the address space".to_owned(),
        })
    });
    let regions: Vec<_> = regions.collect::<Result<_, Error>>()?;
    GuestMemoryMmap::from_regions(regions).map_err(memory("map guest memory"))
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::*;

    #[test]
    fn memory_beyond_three_gib_lies_above_the_hole() {
        assert_eq!(parts(64 << 20), [(0, 0, 64 << 20)]);
        assert_eq!(parts(LOW_END), [(0, 0, LOW_END)]);
        let more = LOW_END + (2 << 20);
        assert_eq!(
            parts(more),
            [(0, 0, LOW_END), (HIGH_START, LOW_END, 2 << 20)]
        );
        let memory = map(more, Backing::Anonymous).unwrap();
        memory
            .write_slice(&[7; 16], GuestAddress(HIGH_START + (2 << 20) - 16))
            .unwrap();
        let hole = memory.write_slice(&[7; 16], GuestAddress(LOW_END - 8));
        assert!(hole.is_err(), "the hole is no memory");
        assert_eq!(memory.num_regions(), 2);
    }

    #[test]
    fn sizes_that_no_guest_can_have_are_refused() {
        for size in [0, 4096, LEAST - 1, LEAST + 4096, MOST + (2 << 20)] {
            assert!(map(size, Backing::Anonymous).is_err(), "{size}");
        }
    }
}
