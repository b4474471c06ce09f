//! Network card (virtio 1.2, section 5.1) with one pair of queues and no offloads: each buffer is one
//! frame behind an empty header.
//!
//! As on any network a frame may be lost: one for the guest when too many wait, one of the guest's
//! when the line does not take it at once. Frames that wait are not part of a checkpoint.

use std::{
    collections::VecDeque,
    io::{Read, Write},
};

use virtio_bindings::{virtio_ids::VIRTIO_ID_NET, virtio_net::VIRTIO_NET_F_MAC};
use virtio_queue::{Queue, QueueT};

use super::{Broken, Device, Used, give_back, next, outside, wait_for_buffers};
use crate::memory::Memory;

const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;
const QUEUES: [u16; 2] = [256; 2];
/// Length of the header before each frame (`virtio_net_hdr_v1`).
const HEADER: usize = 12;
/// Where the header says how many buffers a frame takes: always one.
const BUFFERS_AT: usize = 10;
/// Longest frame: an Ethernet frame of 1,500 bytes, with a tag.
pub const FRAME_MAX: usize = 1518;
/// Most frames that wait for the guest.
const WAITING_MAX: usize = 64;

/// Where the guest's frames go.
pub trait Wire: Send {
    /// Takes a frame, or loses it; returns one that answers it at once, if there is such a one.
    fn send(&mut self, frame: &[u8]) -> Option<Vec<u8>>;
}

/// The device.
pub struct Net {
    config: [u8; 6],
    wire: Box<dyn Wire>,
    waiting: VecDeque<Vec<u8>>,
    wake: Box<dyn Fn() + Send>,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net")
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

impl Net {
    /// A card with this address. `wake` is called when there is room for frames again.
    #[must_use]
    pub fn new(mac: [u8; 6], wire: Box<dyn Wire>, wake: Box<dyn Fn() + Send>) -> Self {
        Self {
            config: mac,
            wire,
            waiting: VecDeque::new(),
            wake,
        }
    }

    /// Whether there is room for another frame.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    /// Takes a frame for the guest, if there is room for it, and it is none that no card takes.
    pub fn receive(&mut self, frame: &[u8]) {
        if self.has_room() && frame.len() <= FRAME_MAX {
            self.waiting.push_back(frame.to_vec());
        }
    }

    fn fill(&mut self, queue: &mut Queue, ram: &Memory) -> Result<Used, Broken> {
        let had_room = self.has_room();
        let mut used = self.fill_once(queue, ram)?;
        if wait_for_buffers(queue, ram, !self.waiting.is_empty())? {
            used |= self.fill_once(queue, ram)?;
        }
        if !had_room && self.has_room() {
            (self.wake)();
        }
        Ok(used)
    }

    fn fill_once(&mut self, queue: &mut Queue, ram: &Memory) -> Result<Used, Broken> {
        let mut used = Used(false);
        while !self.waiting.is_empty() && queue.ready() {
            let Some(chain) = next(queue, ram)? else {
                break;
            };
            let head = chain.head_index();
            let mut writer = chain.writer(ram).map_err(outside)?;
            let frame = self.waiting.pop_front().unwrap_or_default();
            let length = HEADER + frame.len();
            // A driver of such a card gives buffers that any frame fits into: else it is lost.
            let written = if writer.available_bytes() < length {
                0
            } else {
                let mut header = [0; HEADER];
                header[BUFFERS_AT] = 1;
                writer.write_all(&header).map_err(outside)?;
                writer.write_all(&frame).map_err(outside)?;
                length
            };
            used |= give_back(queue, ram, head, written)?;
        }
        Ok(used)
    }

    fn drain(&mut self, queue: &mut Queue, ram: &Memory) -> Result<Used, Broken> {
        let mut used = Used(false);
        for _ in 0..queue.size() {
            let Some(chain) = next(queue, ram)? else {
                break;
            };
            let head = chain.head_index();
            let mut reader = chain.reader(ram).map_err(outside)?;
            let mut bytes = [0; HEADER + FRAME_MAX];
            let length = reader.available_bytes();
            // What is no frame is lost.
            if (HEADER..=bytes.len()).contains(&length) {
                reader.read_exact(&mut bytes[..length]).map_err(outside)?;
                if let Some(answer) = self.wire.send(&bytes[HEADER..length]) {
                    self.receive(&answer);
                }
            }
            used |= give_back(queue, ram, head, 0)?;
        }
        Ok(used)
    }
}

impl Device for Net {
    fn id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC
    }

    fn queues(&self) -> &[u16] {
        &QUEUES
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn reset(&mut self) {}

    fn notify(&mut self, index: usize, queues: &mut [Queue], ram: &Memory) -> Result<Used, Broken> {
        let mut used = Used(false);
        if index == FROM_GUEST {
            used |= self.drain(&mut queues[FROM_GUEST], ram)?;
        }
        // Also what has been answered at once.
        used |= self.serve(queues, ram)?;
        Ok(used)
    }

    fn serve(&mut self, queues: &mut [Queue], ram: &Memory) -> Result<Used, Broken> {
        self.fill(&mut queues[TO_GUEST], ram)
    }
}
