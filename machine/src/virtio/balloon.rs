//! Memory balloon (virtio 1.2, section 5.5) with free page reporting: memory that the guest has no
//! use for goes back to the host.
//!
//! The guest reports free ranges by itself, a moment after they became free. Where guest memory is a
//! private mapping, the guest's own pages go and it finds the checkpoint's there again, or zeroes.
//! Where it is shared with a file, the file gets a hole. The host never asks for more than that: the
//! balloon's target is zero.

use std::os::fd::AsRawFd;

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{Broken, Device, Used, give_back, next, outside};
use crate::memory::Memory;

/// The guest reports its free pages.
const REPORTING: u64 = 1 << 5;
// Queues. Those of features that are not offered have no number.
const INFLATE: usize = 0;
const REPORTED: usize = 2;
const QUEUES: [u16; 3] = [32; 3];
/// Unit of the balloon.
const PAGE: u64 = 4096;
/// Most pages of one message of the balloon: a driver sends 256.
const PAGES_MAX: usize = 1024;

/// The device.
#[derive(Debug, Default)]
pub struct Balloon {
    given: u64,
}

impl Balloon {
    /// A balloon that nothing has gone into.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes that the guest has given back since the machine was made.
    #[must_use]
    pub fn given(&self) -> u64 {
        self.given
    }

    /// Gives a range back to the host, as far as it is memory.
    fn release(&mut self, ram: &Memory, start: GuestAddress, length: u64) {
        // Only whole pages can go.
        let Some(end) = start.raw_value().checked_add(length) else {
            return;
        };
        let (from, to) = (start.raw_value().next_multiple_of(PAGE), end / PAGE * PAGE);
        for region in ram.iter() {
            let (first, last) = (region.start_addr().raw_value(), region.len());
            let (from, to) = (from.max(first), to.min(first + last));
            if from < to {
                release(region, from - first, to - from);
                self.given += to - from;
            }
        }
    }

    fn inflate(&mut self, queue: &mut Queue, ram: &Memory) -> Result<Used, Broken> {
        let mut used = Used(false);
        for _ in 0..queue.size() {
            let Some(chain) = next(queue, ram)? else {
                break;
            };
            let head = chain.head_index();
            let mut reader = chain.reader(ram).map_err(outside)?;
            for _ in 0..(reader.available_bytes() / 4).min(PAGES_MAX) {
                let number: u32 = reader.read_obj().map_err(outside)?;
                self.release(ram, GuestAddress(u64::from(number) * PAGE), PAGE);
            }
            used |= give_back(queue, ram, head, 0)?;
        }
        Ok(used)
    }

    fn hear(&mut self, queue: &mut Queue, ram: &Memory) -> Result<Used, Broken> {
        let mut used = Used(false);
        for _ in 0..queue.size() {
            let Some(chain) = next(queue, ram)? else {
                break;
            };
            let head = chain.head_index();
            for range in chain.writable() {
                self.release(ram, range.addr(), range.len().into());
            }
            used |= give_back(queue, ram, head, 0)?;
        }
        Ok(used)
    }
}

/// Gives a range of a region back to the host.
fn release(region: &vm_memory::GuestRegionMmap<()>, offset: u64, length: u64) {
    let file = region.file_offset();
    let is_shared = region.flags() & libc::MAP_SHARED != 0;
    // A kernel that cannot do it leaves the pages as they are, which nobody minds.
    if let (true, Some(file)) = (is_shared, file) {
        let at = libc::off_t::try_from(file.start() + offset);
        if let (Ok(at), Ok(length)) = (at, libc::off_t::try_from(length)) {
            let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: the call takes a descriptor and numbers.
            let _ = unsafe { libc::fallocate(file.file().as_raw_fd(), punch, at, length) };
        }
        return;
    }
    let (Ok(offset), Ok(length)) = (usize::try_from(offset), usize::try_from(length)) else {
        return;
    };
    // SAFETY: the caller has cut the range to the region.
    let start = unsafe { region.as_ptr().add(offset) };
    // SAFETY: the range is guest memory, to which nobody has a reference: it is read and written as
    // volatile memory, whose content is the guest's to give up.
    let _ = unsafe { libc::madvise(start.cast(), length, libc::MADV_DONTNEED) };
}

impl Device for Balloon {
    fn id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        REPORTING
    }

    fn queues(&self) -> &[u16] {
        &QUEUES
    }

    fn config(&self) -> &[u8] {
        // Wanted and actual number of pages.
        &[0; 8]
    }

    fn reset(&mut self) {}

    fn notify(&mut self, index: usize, queues: &mut [Queue], ram: &Memory) -> Result<Used, Broken> {
        let queue = &mut queues[index];
        match index {
            INFLATE => self.inflate(queue, ram),
            REPORTED => self.hear(queue, ram),
            // Pages that leave the balloon come by themselves, when they are touched.
            _ => deflate(queue, ram),
        }
    }
}

fn deflate(queue: &mut Queue, ram: &Memory) -> Result<Used, Broken> {
    let mut used = Used(false);
    for _ in 0..queue.size() {
        let Some(chain) = next(queue, ram)? else {
            break;
        };
        used |= give_back(queue, ram, chain.head_index(), 0)?;
    }
    Ok(used)
}
