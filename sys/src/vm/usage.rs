//! What a guest takes of the host's memory.

use super::{SegmentId, Vm};
use crate::Error;

/// Memory of a guest that shares a checkpoint, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestMemory {
    /// Written by this guest, in memory or in swap.
    pub private: u64,
    /// The checkpoint's, and in the guest's page tables.
    pub shared: u64,
}

impl Vm {
    /// Counts the memory of the guest, with two requests and no other program: `VM_VNODE_CAPS` and
    /// `VM_VNODE_STATS` (vmm_vnode(4)). This walks the guest's pages.
    ///
    /// # Errors
    /// Those of [`VnodeProvider::of`](crate::VnodeProvider::of), so [`Error::Unsupported`] where
    /// the module is not loaded; [`Error::Request`]: `ENOENT` if the guest's memory is not the
    /// module's, and so all its own.
    pub fn guest_memory(&self) -> Result<GuestMemory, Error> {
        let provider = self.vnode_provider()?;
        let page = provider.capabilities().page_size;
        let books = provider.books(SegmentId::SYSTEM)?;
        // A page can be in memory and in swap at once, and no guest has more than it has.
        let private =
            (books.private_resident.saturating_add(books.private_swapped)).min(books.pages);
        let shared = books.guest_mapped.saturating_sub(books.private_resident);
        Ok(GuestMemory {
            private: private.saturating_mul(page),
            shared: shared.min(books.pages - private).saturating_mul(page),
        })
    }
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
        assert_eq!(counted(kernel(3, 1, 50)).unwrap(), (4, 47));
        assert_eq!(counted(kernel(0, 0, 0)).unwrap(), (0, 0));
        // Nothing is counted twice, and nothing past the guest's end.
        assert_eq!(counted(kernel(100, 100, 100)).unwrap(), (100, 0));
        assert_eq!(counted(kernel(60, 30, 100)).unwrap(), (90, 10));
        assert_eq!(counted(kernel(5, 0, 2)).unwrap(), (5, 0));
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
