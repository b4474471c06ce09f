//! Memory map of a guest: how many private and shared pages lie in each part of its memory, coarse
//! enough for a picture.

use crate::units::{Bytes, PAGE_SIZE};

/// Where a guest's memory is private and where shared: counts of pages in cells of equal size, from
/// address 0 on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    /// Pages of 4 KiB in a cell; the last one may have fewer.
    pub cell_pages: u64,
    /// In each cell, pages that the guest has to itself.
    pub private: Vec<u64>,
    /// In each cell, pages that it has touched and shares.
    pub shared: Vec<u64>,
}

impl MemoryMap {
    /// A map of so much memory, in which nothing was touched, of at most so many cells.
    #[must_use]
    pub fn new(memory: Bytes, cells: u32) -> Self {
        let pages = memory.0.div_ceil(PAGE_SIZE);
        let cell_pages = pages.div_ceil(u64::from(cells.max(1))).max(1);
        let cells = usize::try_from(pages.div_ceil(cell_pages)).unwrap_or(0);
        Self {
            cell_pages,
            private: vec![0; cells],
            shared: vec![0; cells],
        }
    }

    /// Counts a page that is the guest's own.
    #[cfg(any(test, target_os = "linux"))]
    pub(crate) fn add_private(&mut self, page: u64) {
        add(&mut self.private, page / self.cell_pages);
    }

    /// Counts a page that is shared.
    #[cfg(any(test, target_os = "linux"))]
    pub(crate) fn add_shared(&mut self, page: u64) {
        add(&mut self.shared, page / self.cell_pages);
    }

    /// Memory that is the guest's own.
    #[must_use]
    pub fn private_bytes(&self) -> Bytes {
        Bytes(self.private.iter().sum::<u64>() * PAGE_SIZE)
    }

    /// Memory that it has touched and shares.
    #[must_use]
    pub fn shared_bytes(&self) -> Bytes {
        Bytes(self.shared.iter().sum::<u64>() * PAGE_SIZE)
    }
}

#[cfg(any(test, target_os = "linux"))]
fn add(cells: &mut [u64], cell: u64) {
    let cell = usize::try_from(cell).ok();
    if let Some(count) = cell.and_then(|cell| cells.get_mut(cell)) {
        *count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_falls_into_one_cell() {
        for (pages, cells, expected, cell_pages) in [
            (1024, 64, 64, 16),
            (1000, 64, 63, 16),
            (3, 64, 3, 1),
            (1, 1, 1, 1),
        ] {
            let mut map = MemoryMap::new(Bytes(pages * PAGE_SIZE), cells);
            assert_eq!((map.private.len(), map.cell_pages), (expected, cell_pages));
            for page in 0..pages {
                map.add_private(page);
            }
            map.add_shared(pages - 1);
            assert_eq!(map.private_bytes(), Bytes(pages * PAGE_SIZE));
            assert_eq!(map.shared.last(), Some(&1));
            assert!(map.private.iter().all(|&n| (1..=cell_pages).contains(&n)));
        }
    }
}
