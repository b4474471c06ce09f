//! A driver for tests: what the guest's kernel does to a device, by its registers and its queues.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use virtio_bindings::virtio_mmio as r;
use vm_memory::{Bytes, GuestAddress};

use super::{Device, mmio::MmioDevice};
use crate::{
    irq::Irq,
    memory::{self, Backing, Memory},
};

/// A line that counts.
#[derive(Debug, Default)]
pub(crate) struct CountedLine(AtomicUsize);

impl Irq for CountedLine {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Size of each queue.
pub(crate) const SIZE: u16 = 16;
/// Where the first queue's parts are, and how far the next one's.
pub(crate) const QUEUES: u64 = 0x10_0000;
pub(crate) const STRIDE: u64 = 0x3000;
/// Where buffers are.
pub(crate) const BUFFERS: u64 = 0x20_0000;

/// A driver and its device.
pub(crate) struct Driver<D> {
    pub(crate) ram: Memory,
    pub(crate) device: MmioDevice<D>,
    line: Arc<CountedLine>,
    available: Vec<u16>,
    used: Vec<u16>,
}

/// A buffer of a chain.
pub(crate) enum Buffer<'a> {
    /// What the device reads.
    Out(&'a [u8]),
    /// So many bytes that it writes.
    In(usize),
}

impl<D: Device> Driver<D> {
    pub(crate) fn new(device: D) -> Self {
        Self::over(device, memory::map(64 << 20, Backing::Anonymous).unwrap())
    }

    pub(crate) fn over(device: D, ram: Memory) -> Self {
        let line = Arc::new(CountedLine::default());
        let queues = device.queues().len();
        let irq: Arc<dyn Irq> = Arc::clone(&line) as _;
        Self {
            device: MmioDevice::new(device, ram.clone(), irq),
            ram,
            line,
            available: vec![0; queues],
            used: vec![0; queues],
        }
    }

    pub(crate) fn write(&mut self, register: u32, value: u32) {
        self.device.write(register.into(), &value.to_le_bytes());
    }

    pub(crate) fn read(&self, register: u32) -> u32 {
        let mut bytes = [0; 4];
        self.device.read(register.into(), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Interrupts until now.
    pub(crate) fn interrupts(&self) -> usize {
        self.line.0.load(Ordering::Relaxed)
    }

    /// The whole handshake, and all queues.
    pub(crate) fn start(&mut self) {
        self.write(r::VIRTIO_MMIO_STATUS, 0);
        self.write(r::VIRTIO_MMIO_STATUS, 1);
        self.write(r::VIRTIO_MMIO_STATUS, 3);
        for page in 0..2 {
            self.write(r::VIRTIO_MMIO_DEVICE_FEATURES_SEL, page);
            self.write(r::VIRTIO_MMIO_DRIVER_FEATURES_SEL, page);
            let offered = self.read(r::VIRTIO_MMIO_DEVICE_FEATURES);
            self.write(r::VIRTIO_MMIO_DRIVER_FEATURES, offered);
        }
        self.write(r::VIRTIO_MMIO_STATUS, 11);
        for n in 0..u32::try_from(self.available.len()).unwrap() {
            self.set_queue(n);
        }
        self.write(r::VIRTIO_MMIO_STATUS, 15);
        self.available.fill(0);
        self.used.fill(0);
    }

    fn set_queue(&mut self, n: u32) {
        let at = u32::try_from(QUEUES + u64::from(n) * STRIDE).unwrap();
        self.ram
            .write_slice(&[0; STRIDE as usize], GuestAddress(at.into()))
            .unwrap();
        self.write(r::VIRTIO_MMIO_QUEUE_SEL, n);
        self.write(r::VIRTIO_MMIO_QUEUE_NUM, SIZE.into());
        self.write(r::VIRTIO_MMIO_QUEUE_DESC_LOW, at);
        self.write(r::VIRTIO_MMIO_QUEUE_AVAIL_LOW, at + 0x1000);
        self.write(r::VIRTIO_MMIO_QUEUE_USED_LOW, at + 0x2000);
        self.write(r::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// Puts a descriptor into a queue's table.
    pub(crate) fn descriptor(&self, queue: usize, n: u16, at: u64, length: u32, flags: u16) {
        let next = (n + 1) % SIZE;
        let to = QUEUES + queue as u64 * STRIDE + u64::from(n) * 16;
        self.ram.write_obj(at, GuestAddress(to)).unwrap();
        self.ram.write_obj(length, GuestAddress(to + 8)).unwrap();
        self.ram.write_obj(flags, GuestAddress(to + 12)).unwrap();
        self.ram.write_obj(next, GuestAddress(to + 14)).unwrap();
    }

    /// Makes a chain that begins with this descriptor available, without telling the device.
    pub(crate) fn offer(&mut self, queue: usize, head: u16) {
        let ring = QUEUES + queue as u64 * STRIDE + 0x1000;
        let slot = u64::from(self.available[queue] % SIZE);
        let entry = GuestAddress(ring + 4 + slot * 2);
        self.ram.write_obj(head, entry).unwrap();
        self.available[queue] = self.available[queue].wrapping_add(1);
        let index = GuestAddress(ring + 2);
        self.ram.write_obj(self.available[queue], index).unwrap();
    }

    pub(crate) fn kick(&mut self, queue: usize) {
        self.write(r::VIRTIO_MMIO_QUEUE_NOTIFY, u32::try_from(queue).unwrap());
    }

    /// Makes a chain of buffers available and tells the device. Each buffer has a page or more of its
    /// own from `at` on; where those are.
    pub(crate) fn send(&mut self, queue: usize, at: u64, buffers: &[Buffer<'_>]) -> Vec<u64> {
        let mut address = at;
        let mut addresses = Vec::new();
        let last = buffers.len() - 1;
        for (n, buffer) in (0..).zip(buffers) {
            let more = u16::from(usize::from(n) < last);
            let (length, flags) = match buffer {
                Buffer::Out(bytes) => {
                    self.ram.write_slice(bytes, GuestAddress(address)).unwrap();
                    (bytes.len(), more)
                }
                Buffer::In(length) => (*length, more | 2),
            };
            self.descriptor(queue, n, address, u32::try_from(length).unwrap(), flags);
            addresses.push(address);
            address += (length as u64).next_multiple_of(4096);
        }
        self.offer(queue, 0);
        self.kick(queue);
        addresses
    }

    /// Tells the device whether to interrupt for what it gives back.
    pub(crate) fn want_interrupts(&self, queue: usize, wanted: bool) {
        let flags = GuestAddress(QUEUES + queue as u64 * STRIDE + 0x1000);
        self.ram.write_obj(u16::from(!wanted), flags).unwrap();
    }

    /// Whether the device wants to know of what is put into a queue.
    pub(crate) fn is_listened_to(&self, queue: usize) -> bool {
        let flags = GuestAddress(QUEUES + queue as u64 * STRIDE + 0x2000);
        self.ram.read_obj::<u16>(flags).unwrap() == 0
    }

    /// The next chain that the device has given back: how many bytes it has written.
    pub(crate) fn used(&mut self, queue: usize) -> Option<u32> {
        let ring = QUEUES + queue as u64 * STRIDE + 0x2000;
        let index: u16 = self.ram.read_obj(GuestAddress(ring + 2)).unwrap();
        if index == self.used[queue] {
            return None;
        }
        let slot = u64::from(self.used[queue] % SIZE);
        self.used[queue] = self.used[queue].wrapping_add(1);
        let length = GuestAddress(ring + 4 + slot * 8 + 4);
        Some(self.ram.read_obj(length).unwrap())
    }

    pub(crate) fn bytes(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
}
