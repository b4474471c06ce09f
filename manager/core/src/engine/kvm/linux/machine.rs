//! Machine of a Linux guest with its devices: a serial port, the agent's channel, entropy, a memory
//! balloon, and the network card and disks that its checkpoint names.

use std::{io, sync::Arc};

use brood_machine::{
    bus::{Bus, Devices},
    cpu_template::CpuTemplate,
    error::Error,
    line::Line,
    machine::Machine,
    memory::Memory,
    virtio::{console::Console, net::Net, rng::Rng},
};
use kvm_ioctls::Kvm;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{disk::Disks, log::Log};
use crate::{
    checkpoint::{LinuxGuest, manifest::Device},
    engine::guest_disks::{DISK, ROOT},
};

/// Name of the agent's port.
const PORT: &str = "brood.agent";
/// Address of a card until the guest's agent gives it another.
pub(super) const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// Model of disks.
const DISK_MODEL: &str = "virtio-blk";

/// What a machine has besides its VM and its memory.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) bus: Arc<Bus>,
    /// Can be read when the guest has said something to its agent's host, or a processor has
    /// stopped.
    pub(super) wake: Arc<EventFd>,
    /// What the guest says on its console.
    pub(super) log: Log,
    pub(super) disks: Disks,
    /// What the network card, if there is one, is connected to.
    pub(super) line: Line,
    /// Can be read when the card has room for frames again, or the serial port for what is typed.
    pub(super) room: Arc<EventFd>,
}

/// The devices, as a manifest names them.
pub(super) fn devices(guest: &LinuxGuest) -> Vec<Device> {
    let always = [
        ("console", "serial-16550a"),
        ("agent", "virtio-console"),
        ("entropy", "virtio-rng"),
        ("balloon", "virtio-balloon"),
    ];
    let card = guest
        .network
        .has_card()
        .then_some(("network", "virtio-net"));
    let root = guest.root.then_some((ROOT, DISK_MODEL));
    let disk = guest.disk.map(|_| (DISK, DISK_MODEL));
    let all = always.into_iter().chain(card).chain(root).chain(disk);
    all.map(|(name, model)| Device {
        name: name.to_owned(),
        model: model.to_owned(),
    })
    .collect()
}

impl Parts {
    /// Makes a machine over this memory, with these.
    pub(super) fn new(
        kvm: &Kvm,
        memory: Memory,
        vcpus: u8,
        template: CpuTemplate,
        disks: Disks,
        card: bool,
    ) -> Result<(Machine, Self), Error> {
        let machine = Machine::new(kvm, memory, vcpus, template)?;
        let (wake, room) = (eventfd()?, eventfd()?);
        let line = Line::default();
        let log = Log::default();
        let devices = Devices {
            serial: Box::new(log.clone()),
            serial_wake: Arc::new(waker(&room)),
            console: Console::new(PORT, Box::new(waker(&wake))),
            rng: Rng::new(Box::new(Entropy)),
            disks: disks.devices().map_err(|source| Error::Io {
                action: "use the guest's disks",
                source,
            })?,
            net: card.then(|| Net::new(MAC, line.card_end(), Box::new(waker(&room)))),
        };
        let bus = Arc::new(Bus::new(&machine, devices)?);
        let parts = Self {
            bus,
            wake,
            log,
            disks,
            line,
            room,
        };
        Ok((machine, parts))
    }
}

fn eventfd() -> Result<Arc<EventFd>, Error> {
    let fd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
    let fd = fd.map_err(|e| Error::Io {
        action: "make an eventfd",
        source: e.into(),
    })?;
    Ok(Arc::new(fd))
}

/// Wakes whoever waits.
pub(super) fn waker(wake: &Arc<EventFd>) -> impl Fn() + Send + Sync + use<> {
    let wake = Arc::clone(wake);
    move || {
        // A counter that is full wakes as well.
        let _ = wake.write(1);
    }
}

/// The kernel's random numbers, without a file.
struct Entropy;

impl io::Read for Entropy {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        getrandom::fill(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }
}
