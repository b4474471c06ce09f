//! Devices under a driver that does what it likes.

use std::io;

use proptest::{collection::vec, prelude::*};
use virtio_bindings::virtio_mmio as r;
use vm_memory::{Bytes, GuestAddress};

use super::{MemoryDisk, card};
use crate::virtio::{
    Device,
    balloon::Balloon,
    block::{Block, SECTOR},
    console::{Console, WAITING_MAX},
    driver::{BUFFERS, Driver, QUEUES, SIZE, STRIDE},
    net::FRAME_MAX,
    rng::Rng,
};

/// What a driver may do that keeps no rule.
#[derive(Clone, Debug)]
enum Act {
    Start,
    Register(u32, u32),
    Bytes(u64, Vec<u8>),
    Read(u64, usize),
    Descriptor(usize, u16, u64, u32, u16, u16),
    Ring(usize, u16, u16),
    Kick(usize),
    Serve,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let address = prop_oneof![
        3 => BUFFERS..BUFFERS + 0x10_0000,
        2 => QUEUES..QUEUES + 4 * STRIDE,
        1 => (64_u64 << 20) - 64..(64 << 20) + 64,
        1 => any::<u64>(),
    ];
    let length =
        prop_oneof![4 => 0_u32..8192, 1 => Just(0), 1 => Just(u32::MAX), 1 => any::<u32>()];
    let act = prop_oneof![
        2 => Just(Act::Start),
        3 => (0_u32..0x120, any::<u32>()).prop_map(|(at, value)| Act::Register(at & !3, value)),
        1 => (0_u32..16).prop_map(|value| Act::Register(r::VIRTIO_MMIO_STATUS, value)),
        1 => (0_u64..0x1100, vec(any::<u8>(), 0..9)).prop_map(|(at, bytes)| Act::Bytes(at, bytes)),
        1 => (0_u64..0x1100, 0_usize..9).prop_map(|(at, length)| Act::Read(at, length)),
        12 => (0..4_usize, 0..SIZE, address, length, any::<u16>(), 0..2 * SIZE).prop_map(
            |(queue, n, at, length, flags, next)| {
                // Mostly the three flags that there are.
                let flags = if flags > 0xf000 { flags } else { flags & 7 };
                Act::Descriptor(queue, n, at, length, flags, next)
            }
        ),
        8 => (0..4_usize, 0..2 * SIZE, any::<u16>()).prop_map(|(queue, head, jump)| {
            Act::Ring(queue, head, if jump > 0xf000 { jump } else { 1 })
        }),
        8 => (0..5_usize).prop_map(Act::Kick),
        2 => Just(Act::Serve),
    ];
    vec(act, 50..400)
}

/// Does all of it. Nothing may panic, and each act has to end.
fn suffers<D: Device>(device: D, acts: &[Act]) -> Driver<D> {
    let mut driver = Driver::new(device);
    driver.start();
    for act in acts {
        match act {
            Act::Start => driver.start(),
            Act::Register(at, value) => driver.write(*at, *value),
            Act::Bytes(at, bytes) => driver.device.write(*at, bytes),
            Act::Read(at, length) => driver.device.read(*at, &mut vec![0; *length]),
            Act::Descriptor(queue, n, at, length, flags, next) => {
                driver.descriptor(*queue, *n, *at, *length, *flags);
                let to = QUEUES + *queue as u64 * STRIDE + u64::from(*n) * 16 + 14;
                driver.ram.write_obj(*next, GuestAddress(to)).unwrap();
            }
            Act::Ring(queue, head, jump) => {
                let ring = QUEUES + *queue as u64 * STRIDE + 0x1000;
                let index: u16 = driver.ram.read_obj(GuestAddress(ring + 2)).unwrap();
                let entry = GuestAddress(ring + 4 + u64::from(index % SIZE) * 2);
                driver.ram.write_obj(*head, entry).unwrap();
                let index = index.wrapping_add(*jump);
                driver.ram.write_obj(index, GuestAddress(ring + 2)).unwrap();
            }
            Act::Kick(queue) => driver.kick(*queue),
            Act::Serve => driver.device.serve(),
        }
    }
    driver
}

proptest! {
    // About 230 acts each: a million for each device.
    #![proptest_config(ProptestConfig { cases: 4500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_suffers_any_driver(acts in acts()) {
        let disk = MemoryDisk { size: 1 << 20, ..MemoryDisk::default() };
        let device = Block::new(Box::new(disk.clone()), false, "x");
        let _ = suffers(device, &acts);
        let sectors = disk.sectors.lock().unwrap();
        prop_assert!(sectors.keys().all(|n| n * SECTOR < 1 << 20));
    }

    #[test]
    fn a_console_suffers_any_driver(acts in acts()) {
        let mut driver = suffers(Console::new("x", Box::new(|| {})), &acts);
        // One buffer may come on top of what already waits.
        prop_assert!(driver.device.device().output().len() < 2 * WAITING_MAX);
    }

    #[test]
    fn a_balloon_suffers_any_driver(acts in acts()) {
        let _ = suffers(Balloon::new(), &acts);
    }

    #[test]
    fn an_entropy_source_suffers_any_driver(acts in acts()) {
        let _ = suffers(Rng::new(Box::new(io::repeat(1))), &acts);
    }

    #[test]
    fn a_card_suffers_any_driver(acts in acts()) {
        let (wire, _, net) = card();
        let _ = suffers(net, &acts);
        let frames = wire.0.lock().unwrap();
        prop_assert!(frames.iter().all(|frame| frame.len() <= FRAME_MAX));
    }
}
