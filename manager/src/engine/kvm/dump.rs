//! Writes a guest's memory to a file: the checkpoint it came from, with the pages it has written.

use std::{fs::File, io, os::unix::fs::FileExt};

use nix::fcntl::copy_file_range;

use super::ram::Ram;
use crate::units::PAGE_SIZE;

/// Bit of a pagemap entry: the page is in memory.
const PRESENT: u64 = 1 << 63;
/// Bit of a pagemap entry: the page is in swap.
const SWAPPED: u64 = 1 << 62;
/// Bit of a pagemap entry: the page belongs to a file (or is shared), so it is the checkpoint's.
const OF_FILE: u64 = 1 << 61;
/// Pages looked at in one go.
const BATCH: usize = 4096;

/// Writes all of `ram`, a private mapping of `checkpoint`, to `to`, which has its size already.
///
/// Pages that the guest never wrote are copied file to file, which costs nothing on filesystems
/// that share extents.
pub(super) fn write_memory(checkpoint: &File, ram: &Ram, to: &File) -> io::Result<()> {
    copy(checkpoint, to, ram.size())?;
    let pagemap = File::open("/proc/self/pagemap")?;
    let first = ram.host_address() / PAGE_SIZE;
    let pages = ram.size() / PAGE_SIZE;
    let mut entries = vec![0_u8; BATCH * 8];
    let mut page = vec![0_u8; PAGE_SIZE as usize];
    for start in (0..pages).step_by(BATCH) {
        let count = usize::try_from(pages - start).map_or(BATCH, |left| left.min(BATCH));
        pagemap.read_exact_at(&mut entries[..count * 8], (first + start) * 8)?;
        for (entry, number) in entries[..count * 8].chunks_exact(8).zip(start..) {
            let entry = u64::from_le_bytes(entry.try_into().expect("chunks of eight"));
            if entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0 {
                ram.read(number * PAGE_SIZE, &mut page);
                to.write_all_at(&page, number * PAGE_SIZE)?;
            }
        }
    }
    Ok(())
}

fn copy(from: &File, to: &File, size: u64) -> io::Result<()> {
    let (mut from_offset, mut to_offset) = (0, 0);
    loop {
        let left = size.saturating_sub(u64::try_from(from_offset).unwrap_or(size));
        if left == 0 {
            return Ok(());
        }
        let length = usize::try_from(left).unwrap_or(usize::MAX);
        match copy_file_range(
            from,
            Some(&mut from_offset),
            to,
            Some(&mut to_offset),
            length,
        ) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Ok(_) | Err(nix::Error::EINTR) => {}
            // Not on this filesystem, or not across the two: through memory then.
            Err(
                nix::Error::EXDEV
                | nix::Error::EINVAL
                | nix::Error::ENOSYS
                | nix::Error::EOPNOTSUPP,
            ) => {
                return copy_through_memory(
                    from,
                    to,
                    u64::try_from(from_offset).unwrap_or(0),
                    size,
                );
            }
            Err(e) => return Err(e.into()),
        }
    }
}

fn copy_through_memory(from: &File, to: &File, start: u64, size: u64) -> io::Result<()> {
    let mut chunk = vec![0_u8; 1 << 20];
    let mut offset = start;
    while offset < size {
        let length =
            usize::try_from(size - offset).map_or(chunk.len(), |left| left.min(chunk.len()));
        from.read_exact_at(&mut chunk[..length], offset)?;
        to.write_all_at(&chunk[..length], offset)?;
        offset += length as u64;
    }
    Ok(())
}
