//! Host memory that a guest uses.

use super::{SegmentId, Vm};
use crate::Error;

/// Memory of a guest that shares a checkpoint, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestMemory {
    /// The guest's own, in memory or in swap.
    pub private: u64,
    /// The checkpoint's, and in the guest's page tables, whose own pages are taken off.
    pub shared: u64,
}

impl Vm {
    /// Counts the memory of the guest, with two requests and no other program: `VM_VNODE_CAPS` and
    /// `VM_VNODE_STATS` (vmm_vnode(4)). This walks the guest's pages in swap.
    ///
    /// # Errors
    /// Those of [`VnodeProvider::of`](crate::VnodeProvider::of), so [`Error::Unsupported`] where
    /// the module is not loaded; [`Error::Request`]: `ENOENT` if the guest's memory is not the
    /// module's, and so all its own.
    pub fn guest_memory(&self) -> Result<GuestMemory, Error> {
        let provider = self.vnode_provider()?;
        let page = provider.capabilities().page_size;
        let books = provider.books(SegmentId::SYSTEM)?;
        let private = books.private_resident.saturating_add(books.private_swapped);
        // No guest has more pages than it has, mapped or not.
        let shared = mapped_pages(books.guest_mapped)
            .saturating_sub(books.private_resident)
            .min(books.pages.saturating_sub(private));
        Ok(GuestMemory {
            private: private.saturating_mul(page),
            shared: shared.saturating_mul(page),
        })
    }
}

/// Entries in one page of the page tables of amd64.
const ENTRIES: u64 = 512;

/// What of `counted` pages is not page tables, if the rest lies as closely as it can: each table
/// of the lowest level maps 512 pages, and above them are one directory for each 512 tables and
/// one that holds the directories. pmap counts all of them but the root (seen: 1,028 or 1,029 for
/// a guest of 1,024 pages).
fn mapped_pages(counted: u64) -> u64 {
    let tables = |pages: u64| {
        let lowest = pages.div_ceil(ENTRIES);
        lowest + lowest.div_ceil(ENTRIES) + 1
    };
    // The most pages that fit with their tables, by closing in on it from above.
    let mut pages = counted;
    for _ in 0..4 {
        pages = counted.saturating_sub(tables(counted.saturating_sub(tables(pages))));
    }
    while pages > 0 && pages + tables(pages) > counted {
        pages -= 1;
    }
    pages
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::{error::Feature, made_up::Kernel, request};

    fn kernel(resident: u64, swapped: u64, mapped: u64) -> Kernel {
        Kernel::new()
            .on(request::VM_VNODE_CAPS, |caps| {
                (caps.version, caps.features, caps.page_size) = (1, 0xf, 4096);
                Ok(())
            })
            .on(request::VM_VNODE_STATS, move |stats| {
                assert_eq!(stats.segid, 0);
                stats.pages = 100;
                stats.private_resident = resident;
                stats.private_swapped = swapped;
                stats.guest_mapped = mapped;
                Ok(())
            })
    }

    fn counted(kernel: Kernel) -> Result<(u64, u64), Error> {
        let vm = Vm::made_up(kernel, tempfile::tempfile().unwrap());
        let memory = vm.guest_memory()?;
        Ok((memory.private / 4096, memory.shared / 4096))
    }

    #[test]
    fn private_and_shared_pages_are_told_apart() {
        // 50 pages and three of page tables.
        assert_eq!(counted(kernel(3, 1, 53)).unwrap(), (4, 47));
        assert_eq!(counted(kernel(0, 0, 0)).unwrap(), (0, 0));
        // Nothing past the guest's end.
        assert_eq!(counted(kernel(60, 30, 103)).unwrap(), (90, 10));
        assert_eq!(counted(kernel(100, 0, 103)).unwrap(), (100, 0));
        // More written by device models than the guest has mapped.
        assert_eq!(counted(kernel(5, 0, 2)).unwrap(), (5, 0));
    }

    #[test]
    fn page_tables_are_not_mapped_pages() {
        for (pages, counted) in [(0, 0), (1, 4), (512, 515), (513, 517), (1024, 1028)] {
            assert_eq!(mapped_pages(counted), pages, "{counted}");
        }
        // As the kernel told it of a guest of 1,024 pages that had read all of them.
        assert_eq!(mapped_pages(1029), 1024);
        // 1 GiB: 512 tables and one directory; a page more takes one of each.
        assert_eq!(mapped_pages(512 * 512 + 514), 512 * 512);
        assert_eq!(mapped_pages(512 * 512 + 517), 512 * 512 + 1);
        // Of numbers that cannot be, none is more than what was counted.
        for counted in (0..4000).chain([u64::MAX / 2]) {
            assert!(mapped_pages(counted) <= counted);
        }
    }

    #[test]
    fn what_the_kernel_lacks_is_told_by_its_type() {
        let unsupported = counted(Kernel::new()).unwrap_err();
        let missing = matches!(
            unsupported,
            Error::Unsupported {
                what: Feature::VnodeProvider,
                ..
            }
        );
        assert!(missing, "{unsupported}");
        let own = kernel(0, 0, 0).on(request::VM_VNODE_STATS, |_| Err(Errno::ENOENT));
        let own = counted(own).unwrap_err();
        assert!(
            matches!(
                own,
                Error::Request {
                    errno: Errno::ENOENT,
                    ..
                }
            ),
            "{own}"
        );
    }
}
