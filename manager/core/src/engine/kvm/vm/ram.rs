//! Guest memory as a mapping of this process: private over a checkpoint, or shared with the file
//! that a checkpoint is being made in.
//!
//! Over a delta, the mapping is the full checkpoint's file with the delta's pages mapped over it,
//! run by run. A thousand runs would cost every guest 4 ms and 400 KiB of kernel memory before it
//! has touched any of them. So a guest maps them one region at a time, just before it first uses
//! that region.

use std::{
    fs::File, io, num::NonZeroUsize, os::fd::AsFd, os::unix::fs::FileExt, ptr::NonNull, sync::Arc,
};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use crate::engine::kvm::vm::{layers::Layers, slots::Region};
use crate::{
    checkpoint::Extent,
    units::{Bytes, PAGE_SIZE},
};

/// Runs of delta pages that are mapped, at most; further ones are copied. Each may split another
/// mapping in two, and a process may have 65,530 (vm.max_map_count).
const MAPPED_MAX: usize = 16_384;

/// Pages are shared until they are written.
const PRIVATE: MapFlags = MapFlags::MAP_PRIVATE.union(MapFlags::MAP_NORESERVE);

/// A mapping of guest memory, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Ram {
    start: NonNull<u8>,
    size: usize,
    deltas: Option<Deltas>,
}

/// The deltas' pages to be mapped over the full checkpoint's file.
#[derive(Debug)]
struct Deltas {
    layers: Arc<Layers>,
    /// Which of the extents are in place.
    placed: Vec<bool>,
    mapped: usize,
}

impl Ram {
    /// Maps a checkpoint: reads come from the files' pages, which all mappings share; a page that
    /// is written becomes this process's own. A region has the right content only after
    /// [`Self::place`].
    pub(crate) fn private(layers: &Arc<Layers>) -> io::Result<Self> {
        let mut ram = Self::map(layers.base(), layers.memory(), PRIVATE)?;
        if !layers.extents().is_empty() {
            ram.deltas = Some(Deltas {
                layers: Arc::clone(layers),
                placed: vec![false; layers.extents().len()],
                mapped: 0,
            });
        }
        Ok(ram)
    }

    /// Lays the deltas' pages over a region, where that was not done before. Comes before anything
    /// in the region is used.
    ///
    /// An extent that reaches out of the region is laid down whole: none of its pages can have been
    /// used yet, or it would be in place.
    pub(crate) fn place(&mut self, region: Region) -> io::Result<()> {
        let Some(mut deltas) = self.deltas.take() else {
            return Ok(());
        };
        let placed = self.place_in(&mut deltas, region);
        self.deltas = Some(deltas);
        placed
    }

    fn place_in(&self, deltas: &mut Deltas, region: Region) -> io::Result<()> {
        let layers = &deltas.layers;
        let (first, end) = (region.start / PAGE_SIZE, region.end.div_ceil(PAGE_SIZE));
        for n in layers.extents_in(first, end) {
            if deltas.placed[n] {
                continue;
            }
            let extent = &layers.extents()[n];
            if deltas.mapped < MAPPED_MAX {
                self.map_extent(layers, extent)?;
                deltas.mapped += 1;
            } else {
                self.copy_extent(layers, extent)?;
            }
            deltas.placed[n] = true;
        }
        Ok(())
    }

    fn map_extent(&self, layers: &Layers, extent: &Extent) -> io::Result<()> {
        let [at, from, size] =
            [extent.first, extent.file_page, extent.count].map(|pages| pages * PAGE_SIZE);
        let length = length(Bytes(size))?;
        let offset = self
            .offset(at, length.get())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the offset lies inside the mapping.
        let address = unsafe { self.start.add(offset) }.addr();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = PRIVATE | MapFlags::MAP_FIXED;
        let from = i64::try_from(from).map_err(io::Error::other)?;
        let file = layers.file(extent).as_fd();
        // SAFETY: the range is inside this value's own mapping, which is replaced there by another
        // that is unmapped with it. Nothing has used that part yet, and no reference into it
        // exists.
        unsafe { mmap(Some(address), length, protection, flags, file, from) }?;
        Ok(())
    }

    fn copy_extent(&self, layers: &Layers, extent: &Extent) -> io::Result<()> {
        let mut page = vec![0; PAGE_SIZE as usize];
        for n in 0..extent.count {
            layers
                .file(extent)
                .read_exact_at(&mut page, (extent.file_page + n) * PAGE_SIZE)?;
            self.write((extent.first + n) * PAGE_SIZE, &page);
        }
        Ok(())
    }

    /// Maps the first `size` bytes of `file`, shared: writes reach the file.
    pub(crate) fn shared(file: &File, size: Bytes) -> io::Result<Self> {
        Self::map(file, size, MapFlags::MAP_SHARED)
    }

    /// Memory of no file, zeroed.
    pub(crate) fn anonymous(size: Bytes) -> io::Result<Self> {
        let length = length(size)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }?;
        Ok(Self {
            start: start.cast(),
            size: length.get(),
            deltas: None,
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
            deltas: None,
        })
    }

    /// Maps the pages of a region ahead of their first use, as reading each would, or writing to it
    /// what it has: then they are this process's own.
    pub(crate) fn populate(&self, region: Region, own: bool) -> io::Result<()> {
        let size = length(Bytes(region.end - region.start))?;
        let offset = self
            .offset(region.start, size.get())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let advice = match own {
            true => MmapAdvise::MADV_POPULATE_WRITE,
            false => MmapAdvise::MADV_POPULATE_READ,
        };
        // SAFETY: the range is inside the mapping, whose content stays as it is.
        unsafe { madvise(self.start.add(offset).cast(), size.get(), advice) }?;
        Ok(())
    }

    pub(crate) fn size(&self) -> u64 {
        self.size as u64
    }

    /// Host address of guest-physical 0.
    pub(crate) fn host_address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Copies `bytes` to guest-physical `address`; `false` when they do not fit in memory.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> bool {
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
    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
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
