//! Writer of a guest's memory: all of it, or only the private pages that differ from its
//! checkpoint.

#[cfg(test)]
mod tests;

use std::{fs::File, io, os::unix::fs::FileExt};

use crate::engine::kvm::vm::{
    layers::Layers,
    pagemap::{self, Owner},
    ram::Ram,
};
use crate::{checkpoint::PageList, units::PAGE_SIZE};

/// Bytes written in one go.
const CHUNK: usize = 256 << 10;

/// Writes all of `ram`, a private mapping of `layers`, to `to`, which has its size already.
///
/// Pages that the guest never wrote are copied file to file, which costs nothing on filesystems
/// that share extents. `pagemap` is this process's (proc_pid_pagemap(5)). `go_on` is asked every few MiB whether anybody still wants it.
pub(crate) fn write_memory(
    layers: &Layers,
    ram: &Ram,
    pagemap: &File,
    to: &File,
    go_on: &dyn Fn() -> bool,
) -> io::Result<()> {
    layers.copy_to(to, go_on)?;
    let mut page = vec![0_u8; PAGE_SIZE as usize];
    each_private_page(ram, pagemap, go_on, |number| {
        ram.read(number * PAGE_SIZE, &mut page);
        to.write_all_at(&page, number * PAGE_SIZE)
    })
}

/// Writes the pages of `ram` that differ from `layers` to `to`, which is empty, one after the
/// other, and says which they are.
///
/// Leaves out pages that were written and have their old content again. A page of zeros becomes a
/// hole. `go_on` is as in [`write_memory`].
pub(crate) fn write_delta(
    layers: &Layers,
    ram: &Ram,
    pagemap: &File,
    to: &File,
    go_on: &dyn Fn() -> bool,
) -> io::Result<PageList> {
    let mut page = vec![0_u8; PAGE_SIZE as usize];
    let mut before = page.clone();
    let mut pages = PageList::default();
    let mut packed = PageRun {
        to,
        start: 0,
        chunk: Vec::with_capacity(CHUNK),
    };
    each_private_page(ram, pagemap, go_on, |number| {
        ram.read(number * PAGE_SIZE, &mut page);
        layers.read_page(number, &mut before)?;
        if page == before {
            return Ok(());
        }
        if page.iter().any(|byte| *byte != 0) {
            packed.add(pages.count() * PAGE_SIZE, &page)?;
        }
        pages.push(number).map_err(io::Error::other)
    })?;
    packed.write()?;
    to.set_len(pages.count() * PAGE_SIZE)?;
    Ok(pages)
}

/// Pages to be written to a file; adjacent ones are written together.
struct PageRun<'a> {
    to: &'a File,
    start: u64,
    chunk: Vec<u8>,
}

impl PageRun<'_> {
    fn add(&mut self, offset: u64, page: &[u8]) -> io::Result<()> {
        if offset != self.start + self.chunk.len() as u64 || self.chunk.len() >= CHUNK {
            self.write()?;
            self.start = offset;
        }
        self.chunk.extend_from_slice(page);
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        self.to.write_all_at(&self.chunk, self.start)?;
        self.chunk.clear();
        Ok(())
    }
}

/// Calls `each` with the number of every page that the guest has to itself, ascending.
fn each_private_page(
    ram: &Ram,
    pagemap: &File,
    go_on: &dyn Fn() -> bool,
    mut each: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let (start, size) = (ram.host_address(), ram.size());
    pagemap::each_page(pagemap, start, size, go_on, |number, owner| match owner {
        Owner::Process => each(number),
        Owner::File => Ok(()),
    })
}
