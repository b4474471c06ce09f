//! Shared orders: memory in which spares receive their orders, shared with the nursery.
//!
//! A spare may be killed after it received an order and before it told the nursery. By then the
//! kernel has written the order to this memory; so the nursery, which waits for its ended children,
//! still finds whose order it was. A spare that becomes a guest unmaps this memory before the guest
//! runs.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::{OwnedFd, RawFd},
    ptr::NonNull,
    slice,
};

use nix::{
    fcntl::OFlag,
    sys::{
        mman::{MapFlags, ProtFlags, mmap_anonymous, munmap},
        socket::MsgFlags,
    },
    unistd::pipe2,
};
use zerocopy::{FromZeros, IntoBytes};

use super::descriptors::own;
use crate::engine::kvm::wire::{Order, receive_message};

/// Places for one order each, shared by a process and those that it forks from then on. Lives as
/// long as the process, or until it is unmapped.
#[derive(Debug)]
pub(crate) struct Desk {
    start: NonNull<Order>,
    places: usize,
}

impl Desk {
    /// A desk with so many empty places.
    pub(crate) fn new(places: usize) -> io::Result<Self> {
        let length = NonZeroUsize::new(places * size_of::<Order>())
            .ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { mmap_anonymous(None, length, protection, flags) }?;
        Ok(Self {
            start: start.cast(),
            places,
        })
    }

    /// Receives an order from `socket` at `place`; `None` at the end of the conversation.
    ///
    /// # Safety
    /// Nobody else, in this process or in another one, may use the place meanwhile.
    pub(crate) unsafe fn receive(&self, place: usize, socket: RawFd) -> Option<Order> {
        // SAFETY: nobody else uses the place now, as the caller warrants.
        let order = unsafe { &mut self.place(place)[0] };
        // Touched first: a process that is being killed may not fault pages in any more.
        order.zero();
        match receive_message(socket, order, MsgFlags::empty()) {
            Ok(true) => Some(*order),
            Ok(false) | Err(_) => None,
        }
    }

    /// Takes the order at `place`. The place is empty from then on.
    ///
    /// # Safety
    /// Nobody else, in this process or in another one, may use the place meanwhile.
    pub(crate) unsafe fn take(&self, place: usize) -> Option<Order> {
        // SAFETY: nobody else uses the place now, as the caller warrants.
        let order = unsafe { &mut self.place(place)[0] };
        let taken = *order;
        order.zero();
        taken
            .as_bytes()
            .iter()
            .any(|byte| *byte != 0)
            .then_some(taken)
    }

    /// Takes the desk from this process, which has its order: by what lies there it could give
    /// orders to its siblings.
    ///
    /// # Safety
    /// This process may not use the desk any more.
    pub(crate) unsafe fn unmap(&self) {
        let length = self.places * size_of::<Order>();
        // SAFETY: the mapping is this value's, and nothing will use it, as the caller warrants.
        let _ = unsafe { munmap(self.start.cast(), length) };
    }

    /// # Safety
    /// No other process may use the place as long as the reference lives, nor may this one by
    /// another reference.
    #[expect(
        clippy::mut_from_ref,
        reason = "the memory is the kernel's to share out"
    )]
    unsafe fn place(&self, place: usize) -> &mut [Order] {
        assert!(place < self.places);
        // SAFETY: inside the mapping, which is aligned to a page, is there as long as the desk is
        // used, and in which any bytes make an order.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr().add(place), 1) }
    }
}

/// The pipe by which spares tell the nursery that they took an order.
pub(super) struct Pipe {
    pub(super) taken: OwnedFd,
    pub(super) take: OwnedFd,
}

impl Pipe {
    pub(super) fn new() -> nix::Result<Self> {
        let (taken, take) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok(Self {
            taken: own(taken)?,
            take: own(take)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;
    use crate::engine::kvm::wire::send_message;

    #[test]
    fn what_was_received_stays_until_it_is_taken() {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::empty(),
        )
        .unwrap();
        let desk = Desk::new(3).unwrap();
        let order = Order {
            seq: 0,
            id: [7; 8],
            ..Order::new_zeroed()
        };
        send_message(ours.as_raw_fd(), &order).unwrap();
        // SAFETY: no other process has this desk, and no call here is made during another one.
        let receive = |place| unsafe { desk.receive(place, theirs.as_raw_fd()) };
        // SAFETY: as above.
        let take = |place| unsafe { desk.take(place) };
        assert_eq!(receive(2).unwrap().id, [7; 8]);
        assert_eq!(take(2).unwrap().id, [7; 8]);
        assert!(take(2).is_none());
        assert!(take(0).is_none());
        drop(ours);
        assert!(receive(1).is_none());
    }
}
