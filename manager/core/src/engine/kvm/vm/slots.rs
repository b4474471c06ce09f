//! Memory slots: the parts of guest memory that KVM knows.
//!
//! KVM keeps about 2.5 KiB for each MiB of memory slot, whether the guest touches it or not: 650
//! KiB for a 256 MiB guest. So a restored guest starts with one slot over its working set, and gets
//! more as it touches more. New slots grow with what the guest already has, so a guest that walks
//! through all its memory needs tens of slots, not thousands.

/// Smallest region added when the guest touches memory that has no slot, and its alignment.
const STEP: u64 = 2 << 20;
/// Slots added at one size before the next ones are twice as large.
const SLOTS_PER_SIZE: usize = 8;

/// A contiguous part of guest memory: `[start, end)`, page-aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// The regions that have slots, in ascending order; the slot number is the order of addition.
#[derive(Debug)]
pub(crate) struct Slots {
    memory_size: u64,
    regions: Vec<Region>,
}

impl Slots {
    pub(crate) fn new(memory_size: u64) -> Self {
        Self {
            memory_size,
            regions: Vec::new(),
        }
    }

    /// How many slots there are, which is the number of the next one.
    pub(crate) fn count(&self) -> usize {
        self.regions.len()
    }

    /// Notes that `region` has a slot now.
    pub(crate) fn insert(&mut self, region: Region) {
        let at = self.regions.partition_point(|r| r.start < region.start);
        self.regions.insert(at, region);
    }

    /// The region to add so that `address` has a slot: `None` when the address lies outside memory
    /// or has a slot already.
    pub(crate) fn missing(&self, address: u64) -> Option<Region> {
        if address >= self.memory_size {
            return None;
        }
        let next = self.regions.partition_point(|r| r.start <= address);
        let floor = match next.checked_sub(1).map(|i| self.regions[i]) {
            Some(before) if address < before.end => return None,
            Some(before) => before.end,
            None => 0,
        };
        let ceiling = self.regions.get(next).map_or(self.memory_size, |r| r.start);
        let size = STEP << (self.count() / SLOTS_PER_SIZE).min(9);
        let start = address - address % size;
        Some(Region {
            start: start.max(floor),
            end: (start + size).min(ceiling),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is touched in whatever order: the new region holds the address, overlaps none,
        /// stays in memory and is page-aligned; and the number of slots stays small.
        #[test]
        fn regions_never_overlap(
            pages in 1024_u64..(3 << 18),
            touched in prop::collection::vec(any::<u64>(), 1..400),
        ) {
            let memory = pages * 4096;
            let mut slots = Slots::new(memory);
            slots.insert(Region { start: 0, end: 0x1_0000 });
            for address in touched.into_iter().map(|a| a % memory) {
                if let Some(new) = slots.missing(address) {
                    prop_assert!(new.start <= address && address < new.end && new.end <= memory);
                    prop_assert!(new.start % 4096 == 0 && new.end % 4096 == 0);
                    prop_assert!(slots.regions.iter().all(|r| r.end <= new.start || new.end <= r.start));
                    slots.insert(new);
                }
                prop_assert_eq!(slots.missing(address), None);
            }
            prop_assert_eq!(slots.missing(memory), None);
            prop_assert!(slots.count() < 100, "{}", slots.count());
        }
    }

    #[test]
    fn walking_through_3_gib_takes_tens_of_slots() {
        let mut slots = Slots::new(3 << 30);
        for address in (0..3 << 30).step_by(4096) {
            if let Some(new) = slots.missing(address) {
                slots.insert(new);
            }
        }
        assert!(slots.count() < 70, "{}", slots.count());
    }
}
