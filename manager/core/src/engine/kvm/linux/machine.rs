//! Machine of a Linux guest with its devices: a serial port, the agent's channel, entropy and a
//! memory balloon.

use std::{io, sync::Arc};

use brood_machine::{
    bus::{Bus, Devices},
    cpu_template::CpuTemplate,
    error::Error,
    machine::Machine,
    memory::Memory,
    virtio::{console::Console, rng::Rng},
};
use kvm_ioctls::Kvm;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::log::Log;
use crate::checkpoint::manifest::Device;

/// Name of the agent's port.
const PORT: &str = "brood.agent";

/// A machine that has not begun.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) machine: Machine,
    pub(super) bus: Arc<Bus>,
    /// Can be read when the guest has said something to its agent's host, or a processor has
    /// stopped.
    pub(super) wake: Arc<EventFd>,
    /// What the guest says on its console.
    pub(super) log: Log,
}

/// The devices, as a manifest names them.
pub(super) fn devices() -> Vec<Device> {
    let devices = [
        ("console", "serial-16550a"),
        ("agent", "virtio-console"),
        ("entropy", "virtio-rng"),
        ("balloon", "virtio-balloon"),
    ];
    let device = |(name, model): (&str, &str)| Device {
        name: name.to_owned(),
        model: model.to_owned(),
    };
    devices.map(device).to_vec()
}

impl Parts {
    /// Makes a machine over this memory.
    pub(super) fn new(
        kvm: &Kvm,
        memory: Memory,
        vcpus: u8,
        template: CpuTemplate,
    ) -> Result<Self, Error> {
        let machine = Machine::new(kvm, memory, vcpus, template)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let wake = Arc::new(wake.map_err(|e| Error::Io {
            action: "make an eventfd",
            source: e.into(),
        })?);
        let log = Log::default();
        let devices = Devices {
            serial: Box::new(log.clone()),
            console: Console::new(PORT, Box::new(waker(&wake))),
            rng: Rng::new(Box::new(Entropy)),
            disks: Vec::new(),
        };
        let bus = Arc::new(Bus::new(&machine, devices)?);
        Ok(Self {
            machine,
            bus,
            wake,
            log,
        })
    }
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
