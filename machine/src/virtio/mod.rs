//! Virtio devices: what all have in common.
//!
//! A device is a state machine without threads or files of its own: its driver in the guest notifies
//! it ([`Device::notify`]), or its other end on the host has something for the guest. Both happen
//! under the lock of the device's transport.
//!
//! Everything in a queue comes from a hostile guest. Chains of descriptors end after as many steps as
//! the queue has descriptors, and addresses outside guest memory are refused where they are used.

pub mod balloon;
pub mod block;
pub mod console;
#[cfg(test)]
mod driver;
pub mod mmio;
pub mod net;
pub mod rng;
pub mod state;
#[cfg(test)]
mod tests;

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::memory::Memory;

/// Whether the driver is to be interrupted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used(pub bool);

impl std::ops::BitOrAssign for Used {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// A device's driver has broken the rules. The device stops until it is reset, as the standard has it
/// (DEVICE_NEEDS_RESET).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub &'static str);

/// A kind of virtio device.
pub trait Device: Send {
    /// Device ID of the standard.
    fn id(&self) -> u32;

    /// Features that it offers, beside those of the transport.
    fn features(&self) -> u64;

    /// Most descriptors of each of its queues.
    fn queues(&self) -> &[u16];

    /// Its configuration space.
    fn config(&self) -> &[u8];

    /// The driver has set it up, with these features.
    fn activate(&mut self, _features: u64) {}

    /// The driver starts anew.
    fn reset(&mut self);

    /// The driver has put something into queue `index`.
    ///
    /// # Errors
    /// When the driver has broken the rules.
    fn notify(&mut self, index: usize, queues: &mut [Queue], ram: &Memory) -> Result<Used, Broken>;

    /// Something has happened at its other end: moves what can be moved.
    ///
    /// # Errors
    /// When the driver has broken the rules.
    fn serve(&mut self, _queues: &mut [Queue], _ram: &Memory) -> Result<Used, Broken> {
        Ok(Used(false))
    }
}

/// Takes the next chain of descriptors that the driver has put into a queue; none when there is none.
fn next<'m>(
    queue: &mut Queue,
    ram: &'m Memory,
) -> Result<Option<DescriptorChain<&'m Memory>>, Broken> {
    let mut chains = queue
        .iter(ram)
        .map_err(|_| Broken("a queue is not set up"))?;
    Ok(chains.next())
}

/// Gives a chain back, with so many bytes written to it.
fn give_back(queue: &mut Queue, ram: &Memory, head: u16, length: usize) -> Result<Used, Broken> {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    let given = queue.add_used(ram, head, length);
    given.map_err(|_| Broken("a used ring is outside of memory"))?;
    // The driver looks for what was given back after it has said that it wants to be interrupted.
    fence(Ordering::SeqCst);
    let flags = ram.read_obj(GuestAddress(queue.avail_ring()));
    let flags = flags.map_err(|_| Broken("an available ring is outside of memory"))?;
    let wants_none = u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT != 0;
    Ok(Used(!wants_none))
}

/// Has the driver notify of the buffers that it puts into a queue only while the device waits for
/// some: each notification stops the processor. Whether some are there that it will not notify of.
fn wait_for_buffers(queue: &mut Queue, ram: &Memory, waits: bool) -> Result<bool, Broken> {
    let wrong = |_| Broken("a used ring is outside of memory");
    if !queue.ready() {
        return Ok(false);
    }
    let flags = ram.read_obj(GuestAddress(queue.used_ring()));
    let flags: u16 = flags.map_err(|_| Broken("a used ring is outside of memory"))?;
    let notifies = u32::from(u16::from_le(flags)) & VRING_USED_F_NO_NOTIFY == 0;
    match (waits, notifies) {
        (true, false) => queue.enable_notification(ram).map_err(wrong),
        // The page is not written for nothing.
        (true, true) | (false, false) => Ok(false),
        (false, true) => queue
            .disable_notification(ram)
            .map(|()| false)
            .map_err(wrong),
    }
}

/// What a chain whose buffers cannot be reached means.
fn outside<E>(_: E) -> Broken {
    Broken("a buffer is outside of memory")
}
