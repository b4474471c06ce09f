//! State of a virtio device's registers and queues, as a checkpoint has it.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};

/// Registers of a device, and its queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MmioState {
    pub(super) queue: u32,
    pub(super) status: u32,
    pub(super) interrupts: u32,
    pub(super) device_page: u32,
    pub(super) driver_page: u32,
    pub(super) accepted: u64,
    pub(super) queues: Vec<QueueRegisters>,
}

/// Where a queue lies, and how far both sides have come in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QueueRegisters {
    size: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    next_available: u16,
    next_used: u16,
}

impl QueueRegisters {
    pub(super) fn of(queue: &Queue) -> Self {
        Self {
            size: queue.size(),
            ready: queue.ready(),
            descriptors: queue.desc_table(),
            available: queue.avail_ring(),
            used: queue.used_ring(),
            next_available: queue.next_avail(),
            next_used: queue.next_used(),
        }
    }

    /// The queue; none when no queue of this most size can be so.
    pub(super) fn to_queue(&self, most: u16) -> Option<Queue> {
        let state = virtio_queue::QueueState {
            max_size: most,
            next_avail: self.next_available,
            next_used: self.next_used,
            event_idx_enabled: false,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        };
        Queue::try_from(state).ok()
    }
}
