//! Pagemap of a process (proc_pid_pagemap(5)): which pages of a private mapping it has, and which of
//! them are its own.

use std::{fs::File, io, os::unix::fs::FileExt};

use crate::{checkpoint::interrupted, units::PAGE_SIZE};

/// Bit of an entry: the page is in memory.
const PRESENT: u64 = 1 << 63;
/// Bit of an entry: the page is in swap.
const SWAPPED: u64 = 1 << 62;
/// Bit of an entry: the page belongs to a file (or is shared).
const OF_FILE: u64 = 1 << 61;
/// Pages looked at in one go.
const BATCH: usize = 4096;

/// Whose a page is that a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The file's: nothing was written to it through this mapping.
    File,
    /// The process's own, in memory or in swap.
    Process,
}

/// Calls `each` with the number of every page that the process has of the mapping of `size` bytes at
/// the address `start`, ascending, and whose it is. `go_on` is asked every few MiB whether anybody
/// still wants it.
pub(crate) fn each_page(
    pagemap: &File,
    start: u64,
    size: u64,
    go_on: &dyn Fn() -> bool,
    mut each: impl FnMut(u64, Owner) -> io::Result<()>,
) -> io::Result<()> {
    let (first, pages) = (start / PAGE_SIZE, size / PAGE_SIZE);
    let mut entries = vec![0_u8; BATCH * 8];
    for batch in (0..pages).step_by(BATCH) {
        if !go_on() {
            return Err(interrupted());
        }
        let count = usize::try_from(pages - batch).map_or(BATCH, |left| left.min(BATCH));
        pagemap.read_exact_at(&mut entries[..count * 8], (first + batch) * 8)?;
        for (entry, number) in entries[..count * 8].chunks_exact(8).zip(batch..) {
            let entry = u64::from_le_bytes(entry.try_into().expect("chunks of eight"));
            if entry & (PRESENT | SWAPPED) != 0 {
                let owner = match entry & OF_FILE {
                    0 => Owner::Process,
                    _ => Owner::File,
                };
                each(number, owner)?;
            }
        }
    }
    Ok(())
}
