//! Tests of memory over chains of deltas, against a plain copy of it.

use std::{collections::BTreeSet, os::unix::fs::MetadataExt, sync::Arc};

use proptest::prelude::*;
use tempfile::tempfile;

use super::*;
use crate::{
    checkpoint::{Extent, FileStamp},
    engine::kvm::vm::{
        layers::{Plan, SealedFile},
        slots::Region,
    },
    units::Bytes,
};

const PAGES: u64 = 64;
const SIZE: u64 = PAGES * PAGE_SIZE;

fn pagemap() -> File {
    File::open("/proc/self/pagemap").unwrap()
}

fn page_of(byte: u8) -> Vec<u8> {
    vec![byte; PAGE_SIZE as usize]
}

fn at(page: u64) -> std::ops::Range<usize> {
    let offset = usize::try_from(page * PAGE_SIZE).unwrap();
    offset..offset + page_of(0).len()
}

/// A base and what lies over it, one extent for each page; of two with a page the later counts.
fn layers(files: Vec<File>, memory: u64, lists: &[Vec<u64>]) -> Arc<Layers> {
    let mut extents = std::collections::BTreeMap::new();
    for (layer, list) in (1..).zip(lists) {
        for (file_page, page) in (0..).zip(list) {
            extents.insert(
                *page,
                Extent {
                    first: *page,
                    count: 1,
                    layer,
                    file_page,
                },
            );
        }
    }
    let sealed = |file: &File| SealedFile {
        stamp: FileStamp::of(file).unwrap(),
        sha256: String::new(),
    };
    let plan = Plan {
        memory: Bytes(memory),
        sealed: files.iter().map(sealed).collect(),
        extents: extents.into_values().collect(),
    };
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    std::fs::create_dir_all(&run).unwrap();
    Arc::new(Layers::new(files, plan, &run).unwrap())
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The memory as `write_memory` has it.
fn whole(layers: &Layers, ram: &Ram) -> Vec<u8> {
    let to = tempfile().unwrap();
    to.set_len(ram.size()).unwrap();
    write_memory(layers, ram, &pagemap(), &to, &|| true).unwrap();
    contents(&to)
}

fn base(memory: u64) -> (File, Vec<u8>) {
    let file = tempfile().unwrap();
    let bytes: Vec<u8> = (0..memory / PAGE_SIZE)
        .flat_map(|page| page_of(u8::try_from(page % 251).unwrap()))
        .collect();
    file.write_all_at(&bytes, 0).unwrap();
    (file, bytes)
}

/// Written pages and, of each, the byte that fills it.
type Writes = Vec<(u64, u8)>;

proptest! {
    /// Guests that write and are suspended to deltas, one over the other: each delta has exactly
    /// the pages that changed, and memory is what a plain copy of it is.
    #[test]
    fn a_chain_of_deltas_is_the_memory_that_was_written(
        chain in prop::collection::vec(
            prop::collection::vec((0..PAGES, 0_u8..4), 0..40), 1..6,
        ),
    ) {
        let chain: Vec<Writes> = chain;
        let (first, mut model) = base(SIZE);
        let mut files = vec![first];
        let mut lists: Vec<Vec<u64>> = Vec::new();
        for writes in chain {
            let before = model.clone();
            let handles = files.iter().map(|file| file.try_clone().unwrap()).collect();
            let layers = layers(handles, SIZE, &lists);
            let mut ram = Ram::private(&layers).unwrap();
            for (page, byte) in writes {
                // A guest has slots over a few pages around the one that it touches.
                let start = page.saturating_sub(3) * PAGE_SIZE;
                let end = (page + 2).min(PAGES) * PAGE_SIZE;
                ram.place(Region { start, end }).unwrap();
                let mut found = page_of(0xff);
                prop_assert!(ram.read(page * PAGE_SIZE, &mut found));
                prop_assert_eq!(&found, &model[at(page)]);
                prop_assert!(ram.write(page * PAGE_SIZE, &page_of(byte)));
                model[at(page)].fill(byte);
            }
            prop_assert!(whole(&layers, &ram) == model);
            let to = tempfile().unwrap();
            let list = write_delta(&layers, &ram, &pagemap(), &to, &|| true).unwrap();
            let listed: Vec<u64> =
                list.ranges().iter().flat_map(|r| r.first..r.first + r.count).collect();
            let changed: Vec<u64> =
                (0..PAGES).filter(|page| before[at(*page)] != model[at(*page)]).collect();
            prop_assert_eq!(&listed, &changed);
            prop_assert_eq!(to.metadata().unwrap().len(), list.count() * PAGE_SIZE);
            files.push(to);
            lists.push(listed);
        }
        let handles = files.iter().map(|file| file.try_clone().unwrap()).collect();
        let layers = layers(handles, SIZE, &lists);
        let mut page = page_of(0xff);
        for number in 0..PAGES {
            layers.read_page(number, &mut page).unwrap();
            prop_assert_eq!(&page, &model[at(number)], "page {}", number);
        }
    }
}

#[test]
fn a_page_of_zeros_takes_no_space() {
    let (file, _) = base(SIZE);
    let layers = layers(vec![file], SIZE, &[]);
    let ram = Ram::private(&layers).unwrap();
    for page in 20..60 {
        assert!(ram.write(page * PAGE_SIZE, &page_of(0)));
    }
    let to = tempfile().unwrap();
    let list = write_delta(&layers, &ram, &pagemap(), &to, &|| true).unwrap();
    assert_eq!(list.to_string(), "20-59");
    let facts = to.metadata().unwrap();
    assert_eq!((facts.len(), facts.blocks()), (40 * PAGE_SIZE, 0));
}

#[test]
fn more_runs_than_can_be_mapped_are_copied() {
    const RUNS: u64 = 20_000;
    let (file, mut model) = base(2 * RUNS * PAGE_SIZE);
    let delta = tempfile().unwrap();
    let every_other: Vec<u64> = (0..RUNS).map(|n| 2 * n + 1).collect();
    for (n, page) in (0_u64..).zip(&every_other) {
        let byte = u8::try_from(n % 241).unwrap() + 1;
        delta.write_all_at(&page_of(byte), n * PAGE_SIZE).unwrap();
        model[at(*page)].fill(byte);
    }
    let memory = 2 * RUNS * PAGE_SIZE;
    let layers = layers(vec![file, delta], memory, &[every_other]);
    let mut ram = Ram::private(&layers).unwrap();
    let all = Region {
        start: 0,
        end: memory,
    };
    ram.place(all).unwrap();
    let mut found = vec![0; model.len()];
    assert!(ram.read(0, &mut found));
    assert!(found == model);
    // What was copied is the guest's own now, and still no page that it has written.
    let mut private = BTreeSet::new();
    each_private_page(&ram, &pagemap(), &|| true, |page| {
        private.insert(page);
        Ok(())
    })
    .unwrap();
    assert_eq!(private.len(), 20_000 - 16_384);
    let to = tempfile().unwrap();
    assert_eq!(
        write_delta(&layers, &ram, &pagemap(), &to, &|| true)
            .unwrap()
            .count(),
        0
    );
    assert_eq!(to.metadata().unwrap().len(), 0);
}
