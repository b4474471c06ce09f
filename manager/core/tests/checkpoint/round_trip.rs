//! Round trip: every bundle that can be written is read back as it was written.

use std::os::unix::fs::FileExt;

use brood_core::{
    checkpoint::{
        BundlePath, Checkpoint, Description, Writer,
        manifest::{Device, DiskProvider, DiskSnapshot, EngineKind, Memory, PageRange, Segment},
    },
    units::{Bytes, PAGE_SIZE},
};
use proptest::prelude::*;
use tempfile::TempDir;

/// Names as users write them: no control characters, short.
fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9 _.:/@\"\\\\äß漢🦀-]{1,25}"
}

/// Segments with gaps between them in the guest, in any order in the file.
fn memory() -> impl Strategy<Value = Memory> {
    let parts = prop::collection::vec((1_u64..16, 0_u64..1 << 20), 1..5);
    (parts, any::<prop::sample::Index>()).prop_map(|(parts, turn)| {
        let mut segments = Vec::new();
        let mut address = 0;
        for (pages, gap) in parts {
            address += gap * PAGE_SIZE;
            let size = Bytes(pages * PAGE_SIZE);
            segments.push(Segment {
                guest_address: address,
                size,
                file_offset: 0,
            });
            address += size.0;
        }
        let first = turn.index(segments.len());
        let mut offset = 0;
        for n in 0..segments.len() {
            let at = (first + n) % segments.len();
            segments[at].file_offset = offset;
            offset += segments[at].size.0;
        }
        Memory {
            size: Bytes(offset),
            segments,
        }
    })
}

fn description() -> impl Strategy<Value = Description> {
    let devices = prop::collection::btree_map(name(), (name(), prop::option::of(name())), 0..4);
    let ranges = prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index)>(), 0..9);
    (name(), name(), memory(), 1_u32..=1024, devices, ranges).prop_map(
        |(guest, engine_version, memory, vcpus, devices, ranges)| {
            let pages = usize::try_from(memory.size.pages()).unwrap();
            let range = |(first, count): (prop::sample::Index, prop::sample::Index)| {
                let first = first.index(pages);
                let count = 1 + count.index(pages - first);
                PageRange {
                    first: first as u64,
                    count: count as u64,
                }
            };
            let disk = |(name, (_, snapshot)): (&String, &(String, Option<String>))| {
                // A file beside the bundle.
                let snapshot = snapshot.as_ref()?.replace(['/', '.'], "_");
                Some(DiskSnapshot {
                    device: Some(name.clone()),
                    provider: DiskProvider::Reflink,
                    source: format!("/{name}"),
                    snapshot,
                    identity: "0f".repeat(32),
                })
            };
            Description {
                guest,
                engine: EngineKind::Kvm,
                engine_version,
                working_set: ranges.into_iter().map(range).collect(),
                disks: devices.iter().filter_map(disk).collect(),
                devices: devices
                    .into_iter()
                    .map(|(name, (model, _))| Device { name, model })
                    .collect(),
                memory,
                vcpus,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_bundle_is_read_as_it_was_written(
        described in description(),
        page in prop::collection::vec(any::<u8>(), 4096),
        kern in prop::collection::vec(any::<u8>(), 1..5000),
        at in any::<prop::sample::Index>(),
        seconds in 0_i64..4_000_000_000,
    ) {
        let dir = TempDir::new().unwrap();
        let path = BundlePath::new(&dir.path().join("any")).unwrap();
        let mut writer = Writer::create(&path, described.memory.size).unwrap();
        let offset = at.index(usize::try_from(described.memory.size.pages()).unwrap()) * 4096;
        writer.memory().write_all_at(&page, offset as u64).unwrap();
        writer.write_kern(b"replaced by the second call").unwrap();
        writer.write_kern(&kern).unwrap();
        let created_at = jiff::Timestamp::from_second(seconds).unwrap();
        let manifest = writer.seal(described.clone(), created_at, &brood_core::checkpoint::unwatched).unwrap();

        let checkpoint = Checkpoint::open(&path).unwrap();
        checkpoint.verify_memory(&brood_core::checkpoint::unwatched).unwrap();
        prop_assert_eq!(checkpoint.manifest(), &manifest);
        prop_assert_eq!(checkpoint.kern(), &kern);
        let mut read = vec![0; 4096];
        checkpoint.memory_file().read_exact_at(&mut read, offset as u64).unwrap();
        prop_assert_eq!(read, page);
        prop_assert_eq!(manifest.created_at.parse::<jiff::Timestamp>().unwrap(), created_at);
        let again = Description {
            guest: manifest.guest,
            engine: manifest.engine,
            engine_version: manifest.engine_version,
            memory: manifest.memory,
            vcpus: manifest.vcpus,
            devices: manifest.devices,
            disks: manifest.disks,
            working_set: manifest.working_set,
        };
        prop_assert_eq!(again, described);
    }
}
