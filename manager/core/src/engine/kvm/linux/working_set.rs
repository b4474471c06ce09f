//! Working set of a checkpoint's clones: the pages that a clone reads and writes before it is handed
//! out.
//!
//! Until they are handed out, clones of one checkpoint do the same, on the same pages to one or two
//! in a hundred. So a nursery learns the pages from the first guest that is handed out, and its
//! later spares take them before their order comes: a restore then waits for few page faults of its
//! process, and of its virtual machine. The set is bounded, because a client may be faster than the
//! nursery.

use std::{fs::File, io};

use brood_machine::machine::Machine;

use crate::{
    engine::kvm::vm::{
        pagemap::{self, Owner},
        ram::Ram,
        slots::Region,
    },
    units::{Bytes, PAGE_SIZE},
};

/// Most that a spare writes ahead: each that stands by holds it.
const WRITTEN_MAX: Bytes = Bytes::mib(4);
/// Most that a spare reads ahead, which costs time alone.
const READ_MAX: Bytes = Bytes::mib(64);

/// Regions of guest memory, ascending.
#[derive(Debug, Default)]
pub(super) struct WorkingSet {
    /// What a clone writes, and what it only reads. Around a page that is read the kernel maps what
    /// else it has in memory of the file, so the latter is some five times of what is used.
    written: Vec<Region>,
    read: Vec<Region>,
    /// Both, for KVM.
    both: Vec<Region>,
}

impl WorkingSet {
    /// What a process uses of the guest memory that it has mapped at an address.
    pub(super) fn of(pagemap: &File, start: u64, size: Bytes) -> io::Result<Self> {
        let mut set = Self::default();
        let (mut written, mut read) = (WRITTEN_MAX.0 / PAGE_SIZE, READ_MAX.0 / PAGE_SIZE);
        pagemap::each_page(pagemap, start, size.0, &|| true, |number, owner| {
            let (regions, left) = match owner {
                Owner::Process => (&mut set.written, &mut written),
                Owner::File => (&mut set.read, &mut read),
            };
            if *left > 0 {
                *left -= 1;
                add(regions, number);
                add(&mut set.both, number);
            }
            Ok(())
        })?;
        Ok(set)
    }

    /// Has a spare's process and its machine use these pages. What the clone will write is its own
    /// from then on, if `writes` says so. A page that cannot be had is had at its first use.
    pub(super) fn take(&self, ram: &Ram, machine: &Machine, writes: bool) {
        let populate = |regions: &[Region], own| {
            let populated = regions.iter().map(|region| ram.populate(*region, own));
            // Where one cannot be had (Linux before 5.14, or want of memory), no other can.
            let _ = populated.collect::<io::Result<()>>();
        };
        if writes {
            populate(&self.written, true);
        }
        let both = self.both.iter().map(|region| region.start..region.end);
        if !machine.prefault(both) {
            populate(&self.read, false);
        }
    }
}

/// Adds the next page.
fn add(regions: &mut Vec<Region>, number: u64) {
    let start = number * PAGE_SIZE;
    let end = start + PAGE_SIZE;
    match regions.last_mut() {
        Some(last) if last.end == start => last.end = end,
        _ => regions.push(Region { start, end }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        checkpoint::FileStamp,
        engine::kvm::vm::layers::{Layers, Plan, SealedFile},
    };

    const SIZE: Bytes = Bytes::mib(64);

    fn pagemap() -> File {
        File::open("/proc/self/pagemap").unwrap()
    }

    fn region(first: u64, pages: u64) -> Region {
        let start = first * PAGE_SIZE;
        Region {
            start,
            end: start + pages * PAGE_SIZE,
        }
    }

    /// Memory over a file of this size, without pages.
    fn memory(size: Bytes) -> Ram {
        let dir = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(size.0).unwrap();
        let plan = Plan {
            memory: size,
            sealed: vec![SealedFile {
                stamp: FileStamp::of(&file).unwrap(),
                sha256: String::new(),
            }],
            extents: Vec::new(),
        };
        let layers = Layers::new(vec![file], plan, dir.path()).unwrap();
        Ram::private(&Arc::new(layers)).unwrap()
    }

    fn of(ram: &Ram) -> WorkingSet {
        WorkingSet::of(&pagemap(), ram.host_address(), Bytes(ram.size())).unwrap()
    }

    #[test]
    fn what_a_process_writes_and_reads_is_told_apart() {
        let ram = memory(SIZE);
        let none = of(&ram);
        assert_eq!(
            (none.written, none.read, none.both),
            (vec![], vec![], vec![])
        );
        for page in [7, 8, 1000] {
            assert!(ram.write(page * PAGE_SIZE, &[1]));
        }
        assert!(ram.read(5000 * PAGE_SIZE, &mut [0]));
        let used = of(&ram);
        assert_eq!(used.written, [region(7, 2), region(1000, 1)]);
        // The kernel has mapped what lies around it, too.
        let [read] = used.read[..] else {
            panic!("{:?}", used.read);
        };
        let wanted = region(5000, 1);
        assert!(
            read.start <= wanted.start && wanted.end <= read.end,
            "{read:?}"
        );
        assert_eq!(used.both, [region(7, 2), region(1000, 1), read]);
    }

    #[test]
    fn a_region_that_is_populated_is_used() {
        let ram = memory(SIZE);
        assert!(ram.write(40 * PAGE_SIZE, b"guest"));
        ram.populate(region(40, 3), true).unwrap();
        ram.populate(region(200, 16), false).unwrap();
        let used = of(&ram);
        assert_eq!(used.written, [region(40, 3)]);
        let read = used.read.iter().find(|read| read.start <= 200 * PAGE_SIZE);
        assert!(
            read.is_some_and(|read| read.end >= 216 * PAGE_SIZE),
            "{used:?}"
        );
        let mut kept = [0; 5];
        assert!(ram.read(40 * PAGE_SIZE, &mut kept));
        assert_eq!(&kept, b"guest");
        let outside = ram.populate(region(SIZE.0 / PAGE_SIZE - 1, 2), false);
        assert_eq!(outside.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_set_is_bounded() {
        let ram = memory(Bytes::mib(128));
        let pages = ram.size() / PAGE_SIZE;
        // Every other page, so that no page is told for another.
        for page in (0..pages / 2).step_by(2) {
            assert!(ram.write(page * PAGE_SIZE, &[1]));
        }
        ram.populate(region(pages / 2, pages / 2), false).unwrap();
        let used = of(&ram);
        let bytes = |regions: &[Region]| {
            Bytes(regions.iter().map(|region| region.end - region.start).sum())
        };
        assert_eq!(bytes(&used.written), WRITTEN_MAX);
        assert!(bytes(&used.read) <= READ_MAX);
        assert_eq!(bytes(&used.both), bytes(&used.written) + bytes(&used.read));
    }
}
