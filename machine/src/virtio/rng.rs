//! Entropy device (virtio 1.2, section 5.4): random bytes of the host's kernel.

use std::io::{Read, Write};

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::{Queue, QueueT};

use super::{Broken, Device, Used, give_back, next, outside};
use crate::memory::Memory;

const QUEUES: [u16; 1] = [64];
/// Most bytes that one request is given: a guest that wants more asks again.
const MOST: usize = 4096;

/// The device, with where its bytes come from.
pub struct Rng(Box<dyn Read + Send>);

impl std::fmt::Debug for Rng {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rng").finish_non_exhaustive()
    }
}

impl Rng {
    /// A device that gives what `source` does.
    #[must_use]
    pub fn new(source: Box<dyn Read + Send>) -> Self {
        Self(source)
    }
}

impl Device for Rng {
    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &[u16] {
        &QUEUES
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn reset(&mut self) {}

    fn notify(&mut self, _: usize, queues: &mut [Queue], ram: &Memory) -> Result<Used, Broken> {
        let queue = &mut queues[0];
        let mut used = Used(false);
        let mut bytes = [0; MOST];
        for _ in 0..queue.size() {
            let Some(chain) = next(queue, ram)? else {
                break;
            };
            let head = chain.head_index();
            let mut writer = chain.writer(ram).map_err(outside)?;
            let room = writer.available_bytes().min(MOST);
            let length = self.0.read(&mut bytes[..room]).unwrap_or(0);
            writer.write_all(&bytes[..length]).map_err(outside)?;
            used |= give_back(queue, ram, head, length)?;
        }
        Ok(used)
    }
}
