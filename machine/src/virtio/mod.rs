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

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

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
fn give_back(queue: &mut Queue, ram: &Memory, head: u16, length: usize) -> Result<(), Broken> {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    let given = queue.add_used(ram, head, length);
    given.map_err(|_| Broken("a used ring is outside of memory"))
}

/// What a chain whose buffers cannot be reached means.
fn outside<E>(_: E) -> Broken {
    Broken("a buffer is outside of memory")
}
