//! Memory map of a KVM guest, read from /proc/PID/pagemap of its process
//! (Documentation/admin-guide/mm/pagemap.rst).

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
};

use super::usage::{mapped, range};
use crate::{
    engine::{MemoryMap, Process},
    units::{Bytes, PAGE_SIZE},
};

/// Bits of an entry of a page map.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// The page belongs to the file, or did and was not written.
const OF_FILE: u64 = 1 << 61;
/// Size of an entry.
const ENTRY: usize = 8;
/// Entries that are read at once.
const CHUNK: usize = 8192;

/// Reads the page map of a guest's memory, in that many cells.
pub(in crate::engine) fn read(process: Process, cells: u32) -> io::Result<MemoryMap> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", process.pid))?;
    let pages = File::open(format!("/proc/{}/pagemap", process.pid))?;
    // Layers of a delta are mapped over each other, without gaps.
    let memory = maps.lines().filter(|line| mapped(line).is_some());
    let bounds = memory.filter_map(range).reduce(|a, b| (a.0, b.1));
    let (start, end) = bounds.ok_or(io::ErrorKind::NotFound)?;
    let mut map = MemoryMap::new(Bytes(end - start), cells);
    let mut buffer = vec![0; CHUNK * ENTRY];
    let (first, last) = (start / PAGE_SIZE, end / PAGE_SIZE);
    let mut page = first;
    while page < last {
        let count = usize::try_from(last - page).map_or(CHUNK, |left| left.min(CHUNK));
        let entries = &mut buffer[..count * ENTRY];
        pages.read_exact_at(entries, page * ENTRY as u64)?;
        for entry in entries.as_chunks().0 {
            let entry = u64::from_ne_bytes(*entry);
            if entry & SWAPPED != 0 || entry & (PRESENT | OF_FILE) == PRESENT {
                map.add_private(page - first);
            } else if entry & PRESENT != 0 {
                map.add_shared(page - first);
            }
            page += 1;
        }
    }
    Ok(map)
}
