//! Pages of a guest: those that it has to itself, by its process's page map
//! (Documentation/admin-guide/mm/pagemap.rst of Linux), and their content.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
};

use crate::{
    checkpoint::PageList,
    engine::{
        Process,
        kvm::usage::{mapped, range},
    },
    units::PAGE_SIZE,
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
/// Pages that are copied at once.
const COPY: u64 = 256;

/// A guest's memory in its process.
#[derive(Debug)]
pub(super) struct Memory {
    /// Where it is mapped.
    start: u64,
    content: File,
    /// Pages that the guest has to itself.
    pub(super) private: PageList,
}

impl Memory {
    /// Looks at the memory of a guest that stands still.
    pub(super) fn of(process: Process) -> io::Result<Self> {
        let of_process = |name: &str| format!("/proc/{}/{name}", process.pid);
        let maps = fs::read_to_string(of_process("maps"))?;
        let memory = maps.lines().filter(|line| mapped(line).is_some());
        let bounds = memory.filter_map(range).reduce(|a, b| (a.0, b.1));
        let (start, end) = bounds.ok_or(io::ErrorKind::NotFound)?;
        let map = File::open(of_process("pagemap"))?;
        let mut private = PageList::default();
        let mut buffer = vec![0; CHUNK * ENTRY];
        let (first, last) = (start / PAGE_SIZE, end / PAGE_SIZE);
        let mut page = first;
        while page < last {
            let count = usize::try_from(last - page).map_or(CHUNK, |left| left.min(CHUNK));
            let entries = &mut buffer[..count * ENTRY];
            map.read_exact_at(entries, page * ENTRY as u64)?;
            for entry in entries.as_chunks().0 {
                let entry = u64::from_ne_bytes(*entry);
                if entry & SWAPPED != 0 || entry & (PRESENT | OF_FILE) == PRESENT {
                    private.push(page - first).map_err(io::Error::other)?;
                }
                page += 1;
            }
        }
        Ok(Self {
            start,
            content: File::open(of_process("mem"))?,
            private,
        })
    }

    /// Writes each private page to a file, at the place that `place` has for the first page of a
    /// range, given how many pages came before it.
    pub(super) fn write_private(
        &self,
        to: &File,
        place: impl Fn(u64, u64) -> u64,
        go_on: &dyn Fn() -> bool,
    ) -> io::Result<()> {
        let mut buffer = vec![0; usize::try_from(COPY * PAGE_SIZE).map_err(io::Error::other)?];
        let mut before = 0;
        for range in self.private.ranges() {
            let at = place(range.first, before) * PAGE_SIZE;
            let mut done = 0;
            while done < range.count {
                if !go_on() {
                    return Err(crate::checkpoint::interrupted());
                }
                let count = COPY.min(range.count - done);
                let length = usize::try_from(count * PAGE_SIZE).map_err(io::Error::other)?;
                let pages = &mut buffer[..length];
                let from = self.start + (range.first + done) * PAGE_SIZE;
                self.content.read_exact_at(pages, from)?;
                to.write_all_at(pages, at + done * PAGE_SIZE)?;
                done += count;
            }
            before += range.count;
        }
        Ok(())
    }
}
