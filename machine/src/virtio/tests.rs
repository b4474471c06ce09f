//! Devices under a driver that keeps the rules, or breaks one.

mod hostile;

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use virtio_bindings::virtio_mmio as r;
use vm_memory::{Bytes, GuestAddress};

use super::{
    balloon::Balloon,
    block::{Block, SECTOR, Storage},
    console::{Console, WAITING_MAX},
    driver::{BUFFERS, Buffer, Driver},
    net::{FRAME_MAX, Net, Wire},
    rng::Rng,
};
use crate::memory::{self, Backing};

/// A disk in memory, which says what was done to it.
#[derive(Clone, Default)]
struct MemoryDisk {
    sectors: Arc<Mutex<HashMap<u64, Vec<u8>>>>,
    size: u64,
    flushes: Arc<AtomicUsize>,
}

impl Storage for MemoryDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        assert!(
            offset + bytes.len() as u64 <= self.size,
            "outside of the disk"
        );
        let sectors = self.sectors.lock().unwrap();
        for (n, part) in (0..).zip(bytes.chunks_mut(512)) {
            match sectors.get(&(offset / SECTOR + n)) {
                Some(sector) => part.copy_from_slice(sector),
                None => part.fill(0),
            }
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        assert!(
            offset + bytes.len() as u64 <= self.size,
            "outside of the disk"
        );
        let mut sectors = self.sectors.lock().unwrap();
        for (n, part) in (0..).zip(bytes.chunks(512)) {
            sectors.insert(offset / SECTOR + n, part.to_vec());
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        assert!(offset + length <= self.size, "outside of the disk");
        let mut sectors = self.sectors.lock().unwrap();
        sectors.retain(|&n, _| !(offset / SECTOR..(offset + length) / SECTOR).contains(&n));
        Ok(())
    }
}

fn disk(read_only: bool) -> (MemoryDisk, Driver<Block>) {
    let disk = MemoryDisk {
        size: 1 << 20,
        ..MemoryDisk::default()
    };
    let device = Block::new(Box::new(disk.clone()), read_only, "serial number");
    let mut driver = Driver::new(device);
    driver.start();
    (disk, driver)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

/// One request; its status, and what the device wrote before that.
fn request(driver: &mut Driver<Block>, header: &[u8], data: &Buffer<'_>) -> (u8, Vec<u8>) {
    let length = match data {
        Buffer::In(length) => *length,
        Buffer::Out(_) => 0,
    };
    let data = match data {
        Buffer::In(length) => Buffer::In(*length),
        Buffer::Out(bytes) => Buffer::Out(bytes),
    };
    let at = driver.send(0, BUFFERS, &[Buffer::Out(header), data, Buffer::In(1)]);
    assert!(driver.used(0).is_some(), "the request is given back");
    let data = driver.bytes(at[1], length);
    (driver.bytes(at[2], 1)[0], data)
}

#[test]
fn a_disk_reads_writes_discards_and_says_its_name() {
    let (disk, mut driver) = disk(false);
    let sent: Vec<u8> = (0..4096_u32).map(|n| n.to_le_bytes()[0] ^ 0x5a).collect();
    let (status, _) = request(&mut driver, &header(1, 8), &Buffer::Out(&sent));
    assert_eq!(status, 0);
    let (status, read) = request(&mut driver, &header(0, 8), &Buffer::In(4096));
    assert!(status == 0 && read == sent);
    assert_eq!(disk.flushes.load(Ordering::Relaxed), 0);
    let at = driver.send(0, BUFFERS, &[Buffer::Out(&header(4, 0)), Buffer::In(1)]);
    assert_eq!((driver.used(0), driver.bytes(at[1], 1)[0]), (Some(1), 0));
    assert_eq!(disk.flushes.load(Ordering::Relaxed), 1);
    let (status, id) = request(&mut driver, &header(8, 0), &Buffer::In(20));
    assert_eq!((status, &id[..14]), (0, &b"serial number\0"[..]));
    let mut range = 8_u64.to_le_bytes().to_vec();
    range.extend(8_u32.to_le_bytes());
    range.extend([0; 4]);
    let (status, _) = request(&mut driver, &header(11, 0), &Buffer::Out(&range));
    assert_eq!(status, 0);
    let (_, read) = request(&mut driver, &header(0, 8), &Buffer::In(4096));
    assert!(read.iter().all(|byte| *byte == 0));
    assert_eq!(driver.interrupts(), 6);
}

#[test]
fn requests_beyond_a_disk_or_against_its_kind_fail_alone() {
    let (_, mut driver) = disk(false);
    let last = (1 << 20) / SECTOR - 1;
    for (sector, length) in [(last, 1024), (u64::MAX, 512), (1 << 55, 512), (0, 100)] {
        let (status, _) = request(&mut driver, &header(0, sector), &Buffer::In(length));
        assert_eq!(status, 1, "{sector} {length}");
        let bytes = vec![1; length];
        let (status, _) = request(&mut driver, &header(1, sector), &Buffer::Out(&bytes));
        assert_eq!(status, 1, "{sector} {length}");
    }
    let (status, _) = request(&mut driver, &header(77, 0), &Buffer::In(512));
    assert_eq!(status, 2);
    let (status, _) = request(&mut driver, &header(0, last), &Buffer::In(512));
    assert_eq!(status, 0);
    let (_, mut driver) = disk(true);
    let (status, _) = request(&mut driver, &header(1, 0), &Buffer::Out(&[1; 512]));
    assert_eq!(status, 2);
}

#[test]
fn a_device_runs_after_the_whole_handshake_in_its_order_and_not_before() {
    let wrong: [&[u32]; 5] = [&[15], &[1, 15], &[3, 11, 15], &[1, 3, 15], &[1, 11, 15]];
    for steps in wrong {
        let (_, mut driver) = disk(false);
        driver.write(r::VIRTIO_MMIO_STATUS, 0);
        assert_eq!(driver.read(r::VIRTIO_MMIO_STATUS), 0);
        for step in steps {
            driver.write(r::VIRTIO_MMIO_STATUS, *step);
        }
        assert_ne!(driver.read(r::VIRTIO_MMIO_STATUS), 15, "{steps:?}");
        driver.kick(0);
        assert_eq!(driver.interrupts(), 0);
    }
    // Without VIRTIO_F_VERSION_1, or with a feature that was not offered.
    for (page, value) in [(1, 0), (1, 3), (0, u32::MAX)] {
        let (_, mut driver) = disk(false);
        for (register, value) in [
            (r::VIRTIO_MMIO_STATUS, 0),
            (r::VIRTIO_MMIO_STATUS, 1),
            (r::VIRTIO_MMIO_STATUS, 3),
            (r::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1),
            (r::VIRTIO_MMIO_DRIVER_FEATURES, 1),
            (r::VIRTIO_MMIO_DRIVER_FEATURES_SEL, page),
            (r::VIRTIO_MMIO_DRIVER_FEATURES, value),
            (r::VIRTIO_MMIO_STATUS, 11),
        ] {
            driver.write(register, value);
        }
        assert_eq!(driver.read(r::VIRTIO_MMIO_STATUS), 3, "{page} {value}");
    }
}

#[test]
fn a_driver_that_breaks_the_rules_has_to_start_anew() {
    let (_, mut driver) = disk(false);
    // A buffer outside of memory.
    driver.descriptor(0, 0, 1 << 40, 16, 0);
    driver.offer(0, 0);
    driver.kick(0);
    assert_eq!(driver.read(r::VIRTIO_MMIO_STATUS), 15 | 64);
    assert_eq!(driver.read(r::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    driver.start();
    assert_eq!(driver.read(r::VIRTIO_MMIO_STATUS), 15);
    let (status, _) = request(&mut driver, &header(0, 0), &Buffer::In(512));
    assert_eq!(status, 0);
}

#[test]
fn entropy_is_what_the_source_gives() {
    let mut driver = Driver::new(Rng::new(Box::new(io::repeat(7))));
    driver.start();
    let at = driver.send(0, BUFFERS, &[Buffer::In(10_000)]);
    assert_eq!(driver.used(0), Some(4096));
    let bytes = driver.bytes(at[0], 4097);
    assert!(bytes[..4096].iter().all(|byte| *byte == 7) && bytes[4096] == 0);
    let mut driver = Driver::new(Rng::new(Box::new(io::empty())));
    driver.start();
    let _ = driver.send(0, BUFFERS, &[Buffer::In(100)]);
    assert_eq!(driver.used(0), Some(0));
}

#[test]
fn reported_ranges_are_given_back_and_nothing_beyond_memory() {
    let mut driver = Driver::new(Balloon::new());
    driver.start();
    let (at, end) = (0x80_0000_u64, 64_u64 << 20);
    for address in [at - 1, at, at + 0x1_ffff, at + 0x2_0000, end - 1] {
        driver.ram.write_obj(7_u8, GuestAddress(address)).unwrap();
    }
    // A range, one that reaches out of memory, and one that is nowhere.
    driver.descriptor(2, 0, at, 0x2_0000, 2 | 1);
    driver.descriptor(2, 1, end - 4096, 1 << 20, 2 | 1);
    driver.descriptor(2, 2, u64::MAX - 100, 4096, 2);
    driver.offer(2, 0);
    driver.kick(2);
    assert_eq!(driver.used(2), Some(0));
    assert_eq!(driver.read(r::VIRTIO_MMIO_STATUS), 15);
    assert_eq!(driver.device.device().given(), 0x2_0000 + 4096);
    let byte = |address: u64| driver.bytes(address, 1)[0];
    let left = [at - 1, at, at + 0x1_ffff, at + 0x2_0000, end - 1].map(byte);
    assert_eq!(left, [7, 0, 0, 7, 0]);
    // The balloon itself takes pages by their numbers.
    let numbers = u32::try_from(at / 4096 - 1).unwrap().to_le_bytes();
    let _ = driver.send(0, BUFFERS, &[Buffer::Out(&numbers)]);
    assert_eq!(driver.used(0), Some(0));
    assert_eq!(driver.bytes(at - 1, 1)[0], 0);
}

#[test]
fn a_page_that_was_given_back_is_the_checkpoints_again() {
    let mut file = tempfile::tempfile().unwrap();
    file.set_len(64 << 20).unwrap();
    std::io::Write::write_all(&mut file, &[1; 8192]).unwrap();
    for (backing, then) in [(Backing::Private(&file), 1), (Backing::Shared(&file), 0)] {
        let mut driver = Driver::over(Balloon::new(), memory::map(64 << 20, backing).unwrap());
        driver.start();
        driver.ram.write_obj(9_u8, GuestAddress(0)).unwrap();
        driver.descriptor(2, 0, 0, 4096, 2);
        driver.offer(2, 0);
        driver.kick(2);
        assert_eq!(driver.bytes(0, 1)[0], then);
        assert_eq!(driver.bytes(4096, 1)[0], 1);
    }
}

fn control(event: u16, value: u16) -> Vec<u8> {
    let mut bytes = 0_u32.to_le_bytes().to_vec();
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    bytes
}

/// A console whose port the guest has opened, and how often somebody was woken.
fn opened() -> (Driver<Console>, Arc<AtomicUsize>) {
    let woken = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&woken);
    let wake = move || {
        counted.fetch_add(1, Ordering::Relaxed);
    };
    let mut driver = Driver::new(Console::new("brood.agent", Box::new(wake)));
    driver.start();
    let heard = |driver: &mut Driver<Console>, said: &[u8], answers: &[Vec<u8>]| {
        let _ = driver.send(3, BUFFERS, &[Buffer::Out(said)]);
        for answer in answers {
            let at = driver.send(2, BUFFERS + 0x10_0000, &[Buffer::In(64)]);
            let length = driver.used(2).expect("an answer") as usize;
            assert_eq!(driver.bytes(at[0], length), *answer);
        }
    };
    heard(&mut driver, &control(0, 1), &[control(1, 0)]);
    let mut name = control(7, 1);
    name.extend(b"brood.agent");
    heard(&mut driver, &control(3, 1), &[name, control(6, 1)]);
    heard(&mut driver, &control(6, 1), &[]);
    assert!(driver.device.device().is_open());
    (driver, woken)
}

#[test]
fn a_port_is_named_and_carries_bytes_both_ways() {
    let (mut driver, woken) = opened();
    let _ = driver.send(1, BUFFERS, &[Buffer::Out(b"hello "), Buffer::Out(b"host")]);
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    let heard: Vec<u8> = driver.device.device().output().drain(..).collect();
    assert_eq!(heard, b"hello host");
    let sent = driver.device.device().send(b"hello guest");
    driver.device.serve();
    assert_eq!((sent, driver.used(0)), (11, None));
    let at = driver.send(0, BUFFERS, &[Buffer::In(5)]);
    assert_eq!(
        (driver.used(0), driver.bytes(at[0], 5)),
        (Some(5), b"hello".to_vec())
    );
    let at = driver.send(0, BUFFERS, &[Buffer::In(100)]);
    assert_eq!(
        (driver.used(0), driver.bytes(at[0], 6)),
        (Some(6), b" guest".to_vec())
    );
}

#[test]
fn neither_side_is_told_what_it_does_not_wait_for() {
    let (mut driver, _) = opened();
    driver.want_interrupts(1, false);
    let before = driver.interrupts();
    let _ = driver.send(1, BUFFERS, &[Buffer::Out(b"quiet")]);
    assert!(driver.used(1).is_some());
    assert_eq!(driver.interrupts(), before);
    driver.want_interrupts(1, true);
    let _ = driver.send(1, BUFFERS, &[Buffer::Out(b"loud")]);
    assert_eq!(driver.interrupts(), before + 1);
    // A buffer for the guest, before there is anything to put into it: nobody waits for another.
    driver.descriptor(0, 0, BUFFERS, 5, 2);
    driver.offer(0, 0);
    driver.kick(0);
    assert!(!driver.is_listened_to(0) && driver.used(0).is_none());
    assert_eq!(driver.device.device().send(b"hello guest"), 11);
    driver.device.serve();
    assert_eq!(driver.used(0), Some(5));
    // The rest waits for one.
    assert!(driver.is_listened_to(0));
    let _ = driver.send(0, BUFFERS, &[Buffer::In(100)]);
    assert_eq!(driver.used(0), Some(6));
    assert!(!driver.is_listened_to(0));
    // One that came just before the device listened is found without a word.
    driver.offer(0, 0);
    assert_eq!(driver.device.device().send(b"again"), 5);
    driver.device.serve();
    assert_eq!(driver.used(0), Some(5));
}

#[test]
fn a_loud_guest_waits_until_somebody_reads() {
    let (mut driver, _) = opened();
    let part = vec![1; 16 * 1024];
    let mut sent = 0;
    while driver.device.device().output().len() < WAITING_MAX {
        let _ = driver.send(1, BUFFERS, &[Buffer::Out(&part)]);
        assert!(driver.used(1).is_some());
        sent += 1;
    }
    assert_eq!(sent, WAITING_MAX / part.len());
    let _ = driver.send(1, BUFFERS, &[Buffer::Out(&part)]);
    assert_eq!(driver.used(1), None, "its buffer stays in the queue");
    driver.device.device().output().clear();
    driver.device.serve();
    assert!(driver.used(1).is_some());
    assert_eq!(driver.device.device().send(&vec![0; 1 << 20]), WAITING_MAX);
}

/// A way in which the guest makes room.
type Way = (&'static str, fn(&mut Driver<Console>));

/// Whoever has more for the guest than there is room for waits to be told of room, and of nothing
/// else.
#[test]
fn whoever_filled_a_port_is_told_of_room() {
    let ways: [Way; 3] = [
        ("reads", |driver| {
            let _ = driver.send(0, BUFFERS, &[Buffer::In(100)]);
            assert_eq!(driver.used(0), Some(100));
        }),
        ("closes it", |driver| {
            let _ = driver.send(3, BUFFERS, &[Buffer::Out(&control(6, 0))]);
        }),
        ("starts anew", Driver::start),
    ];
    for (what, act) in ways {
        let (mut driver, woken) = opened();
        assert_eq!(driver.device.device().send(&[7; WAITING_MAX]), WAITING_MAX);
        driver.device.serve();
        let before = woken.load(Ordering::Relaxed);
        act(&mut driver);
        assert!(driver.device.device().room() > 0, "{what}");
        assert_eq!(woken.load(Ordering::Relaxed), before + 1, "{what}");
    }
}

/// A wire that remembers.
#[derive(Clone, Default)]
struct Frames(Arc<Mutex<Vec<Vec<u8>>>>);

/// A frame that is answered at once begins with this.
const ASKS: u8 = 0xee;

impl Wire for Frames {
    fn send(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        self.0.lock().unwrap().push(frame.to_vec());
        (frame[0] == ASKS).then(|| vec![ASKS; 60])
    }
}

/// A card for which as many frames wait as can.
fn card() -> (Frames, Arc<AtomicUsize>, Net) {
    let (wire, woken) = (Frames::default(), Arc::new(AtomicUsize::new(0)));
    let wake = {
        let woken = Arc::clone(&woken);
        Box::new(move || {
            woken.fetch_add(1, Ordering::Relaxed);
        })
    };
    let mut net = Net::new([2, 0, 0, 0, 0, 9], Box::new(wire.clone()), wake);
    while net.has_room() {
        net.receive(&[7; 60]);
    }
    (wire, woken, net)
}

#[test]
fn a_card_sends_and_receives_frames() {
    let (wire, woken, net) = card();
    let mut driver = Driver::new(net);
    driver.start();
    let mut mac = [0; 6];
    driver.device.read(0x100, &mut mac);
    assert_eq!(mac, [2, 0, 0, 0, 0, 9]);
    // A header and a frame, in one buffer or in two; what is no frame is lost.
    let frame = |n: u8, length: usize| vec![n; length];
    let _ = driver.send(
        1,
        BUFFERS,
        &[Buffer::Out(&[0; 12]), Buffer::Out(&frame(1, 60))],
    );
    let _ = driver.send(1, BUFFERS, &[Buffer::Out(&[0; 11])]);
    let _ = driver.send(1, BUFFERS, &[Buffer::Out(&frame(0, 13 + FRAME_MAX))]);
    let _ = driver.send(1, BUFFERS, &[Buffer::Out(&frame(0, 12 + FRAME_MAX))]);
    assert_eq!((0..4).filter_map(|_| driver.used(1)).sum::<u32>(), 0);
    let sent: Vec<Vec<u8>> = std::mem::take(&mut wire.0.lock().unwrap());
    assert_eq!(sent, [frame(1, 60), frame(0, FRAME_MAX)]);
    // A buffer for each frame. One more frame had no room until the first was gone.
    driver.device.device().receive(&frame(8, 60));
    assert_eq!(woken.load(Ordering::Relaxed), 0);
    let at = driver.send(0, BUFFERS, &[Buffer::In(1600)]);
    assert_eq!(
        (driver.used(0), woken.load(Ordering::Relaxed)),
        (Some(72), 1)
    );
    let heard = driver.bytes(at[0], 73);
    assert_eq!(
        (&heard[..12], heard[72]),
        (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0][..], 0)
    );
    assert_eq!(heard[12..72], frame(7, 60));
    // One that does not fit is lost.
    let _ = driver.send(0, BUFFERS, &[Buffer::In(71)]);
    assert_eq!(driver.used(0), Some(0));
    let mut left = 0;
    while driver.device.device().has_room() && left < 62 {
        let _ = driver.send(0, BUFFERS, &[Buffer::In(1600)]);
        assert_eq!(driver.used(0), Some(72));
        left += 1;
    }
    let _ = driver.send(0, BUFFERS, &[Buffer::In(1600)]);
    assert_eq!((left, driver.used(0)), (62, None));
    driver.device.device().receive(&frame(9, FRAME_MAX + 1));
    driver.device.device().receive(&frame(9, FRAME_MAX));
    driver.device.serve();
    assert_eq!(driver.used(0), Some(12 + FRAME_MAX as u32));
}

#[test]
fn a_card_gets_what_is_answered_at_once() {
    let (wire, _, net) = card();
    let mut driver = Driver::new(net);
    driver.start();
    for _ in 0..64 {
        let _ = driver.send(0, BUFFERS, &[Buffer::In(1600)]);
    }
    while driver.used(0).is_some() {}
    let at = driver.send(0, BUFFERS, &[Buffer::In(1600)]);
    let question = [&[0; 12][..], &[ASKS; 60]].concat();
    let _ = driver.send(1, BUFFERS, &[Buffer::Out(&question)]);
    assert_eq!((driver.used(1), driver.used(0)), (Some(0), Some(72)));
    assert_eq!(driver.bytes(at[0], 72)[12..], [ASKS; 60]);
    assert_eq!(wire.0.lock().unwrap().len(), 1);
}

#[test]
fn a_device_goes_on_from_its_state() {
    let (mut driver, _) = opened();
    let _ = driver.device.device().send(b"kept");
    let (state, console) = (
        driver.device.state(),
        driver.device.device().state().clone(),
    );
    // Another device over the same memory.
    let fresh = Driver::new(Console::new("brood.agent", Box::new(|| {})));
    let was = std::mem::replace(&mut driver.device, fresh.device);
    drop(was);
    let mut other = super::mmio::MmioDevice::new(
        Console::new("brood.agent", Box::new(|| {})),
        driver.ram.clone(),
        Arc::new(super::driver::CountedLine::default()),
    );
    other.device().set_state(console).unwrap();
    other.set_state(&state).unwrap();
    driver.device = other;
    let at = driver.send(0, BUFFERS, &[Buffer::In(100)]);
    assert_eq!(
        (driver.used(0), driver.bytes(at[0], 4)),
        (Some(4), b"kept".to_vec())
    );
    let mut short = Driver::new(Rng::new(Box::new(io::empty())));
    assert!(
        short.device.set_state(&state).is_err(),
        "it has other queues"
    );
}
