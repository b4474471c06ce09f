//! Virtio devices: a hostile driver at their registers and queues, in a memory of any content.
#![no_main]

use std::{
    cell::RefCell,
    io,
    sync::{Arc, Mutex},
};

use brood_machine::{
    irq::Irq,
    layout::HIGH_START,
    memory::Memory,
    virtio::{
        Device,
        balloon::Balloon,
        block::{Block, Storage},
        console::{Console, WAITING_MAX},
        mmio::MmioDevice,
        net::{FRAME_MAX, Net, Wire},
        rng::Rng,
    },
};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use virtio_bindings::virtio_mmio as r;
use vm_memory::{Bytes, GuestAddress};

/// The parts of the guest's memory.
const LOW: usize = 0x1_8000;
const HIGH: usize = 0x4000;
/// How far the parts of a queue are from those of the next.
const STRIDE: u64 = 0x2000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x1800;
/// Bytes of the disk.
const DISK: usize = 64 << 10;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut left = Unstructured::new(input);
    let _ = left.arbitrary::<u8>().map(|kind| match kind % 6 {
        0 => drive(disk(false), &mut left, nothing),
        1 => drive(disk(true), &mut left, nothing),
        2 => drive(Rng::new(Box::new(io::repeat(0x5a))), &mut left, nothing),
        3 => drive(Balloon::new(), &mut left, nothing),
        4 => drive(
            Net::new([2; 6], Box::new(Ether), Box::new(|| ())),
            &mut left,
            network,
        ),
        _ => drive(
            Console::new("org.brood", Box::new(|| ())),
            &mut left,
            other_end,
        ),
    });
});

fn disk(read_only: bool) -> Block {
    Block::new(
        Box::new(Disk(Mutex::new(vec![0; DISK]))),
        read_only,
        "serial",
    )
}

/// A disk that must never be asked for what it has not.
struct Disk(Mutex<Vec<u8>>);

impl Storage for Disk {
    fn size(&self) -> u64 {
        DISK as u64
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let at = offset as usize;
        bytes.copy_from_slice(&self.0.lock().unwrap()[at..at + bytes.len()]);
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let at = offset as usize;
        self.0.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        let at = offset as usize;
        self.0.lock().unwrap()[at..at + length as usize].fill(0);
        Ok(())
    }
}

struct Line;

impl Irq for Line {
    fn raise(&self) {}
}

/// What the other end of a device does.
type OtherEnd<D> = fn(&mut D, u8) -> bool;

fn nothing<D>(_: &mut D, _: u8) -> bool {
    false
}

/// The host's end of a console: it sends and takes. Neither side's bytes pile up.
fn other_end(console: &mut Console, by: u8) -> bool {
    let waiting = console.output().len();
    assert!(waiting <= 2 * WAITING_MAX, "{waiting} bytes wait");
    let room = console.room();
    if by & 1 == 0 {
        assert_eq!(
            console.send(&vec![by; usize::from(by) << 8]),
            room.min(usize::from(by) << 8)
        );
    } else {
        console.output().drain(..waiting.min(usize::from(by) << 4));
    }
    true
}

/// A network to which no frame may be sent that is too long.
struct Ether;

impl Wire for Ether {
    fn send(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        assert!(frame.len() <= FRAME_MAX);
        // Some are answered at once.
        (frame.len() % 3 == 1).then(|| frame.to_vec())
    }
}

/// The host's end of a card.
fn network(net: &mut Net, by: u8) -> bool {
    net.receive(&vec![by; usize::from(by) << 3]);
    true
}

thread_local! {
    static RAM: RefCell<Memory> = RefCell::new(
        Memory::from_ranges(&[(GuestAddress(0), LOW), (GuestAddress(HIGH_START), HIGH)]).unwrap(),
    );
}

fn drive<D: Device>(device: D, left: &mut Unstructured<'_>, other_end: OtherEnd<D>) {
    RAM.with_borrow(|ram| {
        ram.write_slice(&[0; LOW], GuestAddress(0)).unwrap();
        ram.write_slice(&[0; HIGH], GuestAddress(HIGH_START))
            .unwrap();
        let queues = device.queues().len();
        let mut driver = Driver {
            device: MmioDevice::new(device, ram.clone(), Arc::new(Line)),
            ram: ram.clone(),
            offered: vec![0; queues],
        };
        driver.start();
        for _ in 0..200 {
            if left.is_empty() || driver.act(left, other_end).is_err() {
                break;
            }
        }
    });
}

struct Driver<D> {
    device: MmioDevice<D>,
    ram: Memory,
    offered: Vec<u16>,
}

impl<D: Device> Driver<D> {
    fn write(&mut self, register: u32, value: u32) {
        self.device.write(register.into(), &value.to_le_bytes());
    }

    /// As the standard has it.
    fn start(&mut self) {
        for status in [0, 1, 3] {
            self.write(r::VIRTIO_MMIO_STATUS, status);
        }
        for page in 0..2 {
            self.write(r::VIRTIO_MMIO_DEVICE_FEATURES_SEL, page);
            self.write(r::VIRTIO_MMIO_DRIVER_FEATURES_SEL, page);
            let mut offered = [0; 4];
            let at = r::VIRTIO_MMIO_DEVICE_FEATURES.into();
            self.device.read(at, &mut offered);
            self.write(r::VIRTIO_MMIO_DRIVER_FEATURES, u32::from_le_bytes(offered));
        }
        self.write(r::VIRTIO_MMIO_STATUS, 11);
        for (n, at) in (0..self.offered.len() as u32).zip((0..).step_by(STRIDE as usize)) {
            self.write(r::VIRTIO_MMIO_QUEUE_SEL, n);
            self.write(r::VIRTIO_MMIO_QUEUE_NUM, 16);
            self.write(r::VIRTIO_MMIO_QUEUE_DESC_LOW, at);
            self.write(r::VIRTIO_MMIO_QUEUE_AVAIL_LOW, at + AVAILABLE as u32);
            self.write(r::VIRTIO_MMIO_QUEUE_USED_LOW, at + USED as u32);
            self.write(r::VIRTIO_MMIO_QUEUE_READY, 1);
        }
        self.write(r::VIRTIO_MMIO_STATUS, 15);
        self.offered.fill(0);
    }

    /// An address: mostly one that is memory.
    fn address(from: &mut Unstructured<'_>) -> Result<u64> {
        Ok(match from.arbitrary::<u8>()? {
            0..8 => from.arbitrary()?,
            8..32 => HIGH_START + u64::from(from.arbitrary::<u16>()? % 0x4100),
            _ => u64::from(from.arbitrary::<u16>()?) * 2,
        })
    }

    fn act(&mut self, from: &mut Unstructured<'_>, other_end: OtherEnd<D>) -> Result<()> {
        let what = from.arbitrary::<u8>()?;
        let queue = usize::from(what >> 4) % self.offered.len();
        match what & 15 {
            0 => {
                let offset = u32::from(from.arbitrary::<u8>()?) * 4;
                let value = from.arbitrary()?;
                self.write(offset, value);
            }
            1 => {
                let offset: u16 = from.arbitrary()?;
                let mut bytes = [0; 8];
                let length = from.arbitrary::<u8>()? % 9;
                let bytes = &mut bytes[..length.into()];
                self.device.read(offset.into(), bytes);
            }
            2 => self.start(),
            3..=5 => self.describe(queue, from)?,
            6 | 7 => self.offer(queue, from.arbitrary::<u8>()?.into()),
            8 | 9 => self.write(r::VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32),
            10 => {
                let at = Self::address(from)?;
                let value: u32 = from.arbitrary()?;
                let _ = self.ram.write_obj(value, GuestAddress(at));
            }
            11 | 12 => {
                if other_end(self.device.device(), from.arbitrary()?) {
                    self.device.serve();
                }
            }
            13 => self.alter(from)?,
            _ => self.request(queue, from)?,
        }
        Ok(())
    }

    fn describe(&mut self, queue: usize, from: &mut Unstructured<'_>) -> Result<()> {
        let index: u8 = from.arbitrary()?;
        let (at, length) = (Self::address(from)?, from.arbitrary::<u16>()?);
        // A long one now and then.
        let flags: u8 = from.arbitrary()?;
        let length = u32::from(length) << if flags & 0x40 == 0 { 0 } else { 16 };
        let next: u8 = from.arbitrary()?;
        self.descriptor(queue, index % 16, at, length, flags & 7, next % 18);
        Ok(())
    }

    fn descriptor(&self, queue: usize, index: u8, at: u64, length: u32, flags: u8, next: u8) {
        let to = queue as u64 * STRIDE + u64::from(index) * 16;
        self.ram.write_obj(at, GuestAddress(to)).unwrap();
        self.ram.write_obj(length, GuestAddress(to + 8)).unwrap();
        self.ram
            .write_obj(u16::from(flags), GuestAddress(to + 12))
            .unwrap();
        self.ram
            .write_obj(u16::from(next), GuestAddress(to + 14))
            .unwrap();
    }

    fn offer(&mut self, queue: usize, head: u16) {
        let ring = queue as u64 * STRIDE + AVAILABLE;
        let slot = GuestAddress(ring + 4 + u64::from(self.offered[queue] % 16) * 2);
        self.ram.write_obj(head, slot).unwrap();
        self.offered[queue] = self.offered[queue].wrapping_add(1);
        self.ram
            .write_obj(self.offered[queue], GuestAddress(ring + 2))
            .unwrap();
    }

    /// A chain of three, as disks and consoles have them: a header, a buffer and a status.
    fn request(&mut self, queue: usize, from: &mut Unstructured<'_>) -> Result<()> {
        let (kind, sector): (u8, u8) = from.arbitrary()?;
        let (length, writes): (u16, bool) = from.arbitrary()?;
        let header = 0x1_4000;
        self.ram
            .write_obj(u32::from(kind), GuestAddress(header))
            .unwrap();
        self.ram
            .write_obj(u64::from(sector), GuestAddress(header + 8))
            .unwrap();
        self.descriptor(queue, 0, header, 16, 1, 1);
        self.descriptor(
            queue,
            1,
            0x8000,
            length.into(),
            1 | u8::from(writes) << 1,
            2,
        );
        self.descriptor(queue, 2, header + 32, 1, 2, 0);
        self.offer(queue, 0);
        self.write(r::VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
        Ok(())
    }

    /// Goes on from its own state, with one number of it changed.
    fn alter(&mut self, from: &mut Unstructured<'_>) -> Result<()> {
        let state = self.device.state();
        let mut value = serde_json::to_value(&state).unwrap();
        let (which, number): (u8, u64) = from.arbitrary()?;
        let mut numbers = Vec::new();
        collect(&mut value, &mut numbers);
        if !numbers.is_empty() {
            let which = usize::from(which) % numbers.len();
            *numbers[which] = number.into();
        }
        if let Ok(state) = serde_json::from_value(value)
            && self.device.set_state(&state).is_ok()
        {
            assert_eq!(self.device.state(), state);
        }
        Ok(())
    }
}

/// The numbers in a document.
fn collect<'v>(value: &'v mut serde_json::Value, into: &mut Vec<&'v mut serde_json::Value>) {
    use serde_json::Value;
    match value {
        Value::Number(_) => into.push(value),
        Value::Array(list) => list.iter_mut().for_each(|value| collect(value, into)),
        Value::Object(map) => map.values_mut().for_each(|value| collect(value, into)),
        _ => {}
    }
}
