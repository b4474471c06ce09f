//! Guest memory as this process sees it: one mapping, private over a checkpoint or shared with the
//! file that a checkpoint is being made in.

use std::{fs::File, io, num::NonZeroUsize, os::fd::AsFd, ptr::NonNull};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::units::Bytes;

/// A mapping of guest memory, unmapped on drop.
#[derive(Debug)]
pub(super) struct Ram {
    start: NonNull<u8>,
    size: usize,
}

impl Ram {
    /// Maps the first `size` bytes of a checkpoint: reads come from the file's pages, which all
    /// mappings share; a page that is written becomes this process's own.
    pub(super) fn private(file: &File, size: Bytes) -> io::Result<Self> {
        Self::map(file, size, MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE)
    }

    /// Maps the first `size` bytes of `file`: what is written reaches the file.
    pub(super) fn shared(file: &File, size: Bytes) -> io::Result<Self> {
        Self::map(file, size, MapFlags::MAP_SHARED)
    }

    /// Memory of no file, zeroed.
    pub(super) fn anonymous(size: Bytes) -> io::Result<Self> {
        let length = length(size)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }?;
        Ok(Self {
            start: start.cast(),
            size: length.get(),
        })
    }

    fn map(file: &File, size: Bytes, flags: MapFlags) -> io::Result<Self> {
        let length = length(size)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { mmap(None, length, protection, flags, file.as_fd(), 0) }?;
        Ok(Self {
            start: start.cast(),
            size: length.get(),
        })
    }

    pub(super) fn size(&self) -> u64 {
        self.size as u64
    }

    /// Host address of guest-physical 0.
    pub(super) fn host_address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Copies `bytes` to guest-physical `address`; `false` when they do not fit in memory.
    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> bool {
        let Some(offset) = self.offset(address, bytes.len()) else {
            return false;
        };
        // SAFETY: the range is inside the mapping, which lives as long as `self`. The guest may
        // access the same memory; no reference to it is ever made, only raw copies.
        unsafe {
            self.start
                .add(offset)
                .copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
        };
        true
    }

    /// Copies from guest-physical `address` into `bytes`; `false` when they do not lie in memory.
    pub(super) fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        let Some(offset) = self.offset(address, bytes.len()) else {
            return false;
        };
        // SAFETY: as in `write`.
        unsafe {
            self.start
                .add(offset)
                .copy_to_nonoverlapping(NonNull::from(&mut *bytes).cast(), bytes.len());
        };
        true
    }

    fn offset(&self, address: u64, length: usize) -> Option<usize> {
        let offset = usize::try_from(address).ok()?;
        (offset.checked_add(length)? <= self.size).then_some(offset)
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and no reference into it exists.
        let _ = unsafe { munmap(self.start.cast(), self.size) };
    }
}

fn length(size: Bytes) -> io::Result<NonZeroUsize> {
    usize::try_from(size.0)
        .ok()
        .and_then(NonZeroUsize::new)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}
