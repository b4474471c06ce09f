//! Bus of the machine: which device stands at an address or port. All processors share it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::{
    error::Error,
    generation::{Generation, GenerationId, GenerationState},
    layout as l,
    machine::Machine,
    power::{self, PowerEvent},
    serial::{Output, PortState, SerialPort, Wake},
    virtio::{
        Device,
        balloon::Balloon,
        block::Block,
        console::{Console, ConsoleState},
        mmio::MmioDevice,
        net::Net,
        rng::Rng,
        state::MmioState,
    },
};

/// The devices of one machine, each under a lock of its own. The virtio devices have their pages in
/// this order.
#[derive(Debug)]
pub struct Bus {
    serial: Mutex<SerialPort>,
    console: Mutex<MmioDevice<Console>>,
    rng: Mutex<MmioDevice<Rng>>,
    balloon: Mutex<MmioDevice<Balloon>>,
    disks: Vec<Mutex<MmioDevice<Block>>>,
    net: Option<Mutex<MmioDevice<Net>>>,
    generation: Mutex<Generation>,
}

/// Most disks of a guest: there is room for a network card beside them.
pub const DISKS_MAX: usize = l::VIRTIO_MAX - FIRST_DISK - 1;
/// Number of the first disk among the virtio devices.
const FIRST_DISK: usize = 3;

/// What a bus is made of.
pub struct Devices {
    /// Where the serial port's output goes.
    pub serial: Output,
    /// What is called when the guest has read all that was typed at its serial port.
    pub serial_wake: Wake,
    /// The channel of the guest's agent.
    pub console: Console,
    /// Where the guest's entropy comes from.
    pub rng: Rng,
    /// The guest's disks, in their order.
    pub disks: Vec<Block>,
    /// The guest's network card, if it has one.
    pub net: Option<Net>,
}

/// State of all devices, as a checkpoint has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusState {
    serial: PortState,
    console: (MmioState, ConsoleState),
    rng: MmioState,
    balloon: MmioState,
    disks: Vec<MmioState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    net: Option<MmioState>,
    #[serde(default, skip_serializing_if = "GenerationState::is_new")]
    generation: GenerationState,
}

/// Registers of a device of any kind.
trait Registers {
    fn read(&self, offset: u64, data: &mut [u8]);
    fn write(&self, offset: u64, data: &[u8]);
}

impl<D: Device> Registers for Mutex<MmioDevice<D>> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(self).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        lock(self).write(offset, data);
    }
}

impl Registers for Mutex<Generation> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(self).read(offset, data);
    }

    fn write(&self, _: u64, _: &[u8]) {}
}

/// A device whose thread has panicked is as it was: each register access stands for itself.
fn lock<T>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bus {
    /// The bus of a machine that has these devices.
    ///
    /// # Errors
    /// When it cannot have so many.
    pub fn new(machine: &Machine, devices: Devices) -> Result<Self, Error> {
        if devices.disks.len() > DISKS_MAX {
            return Err(Error::Refused(format!(
                "a guest has {DISKS_MAX} disks at most"
            )));
        }
        let gsi = |number: usize| l::VIRTIO_GSI + u32::try_from(number).unwrap_or(u32::MAX);
        let ram = || machine.ram.clone();
        let serial = SerialPort::new(
            machine.line(l::SERIAL_GSI),
            devices.serial,
            devices.serial_wake,
        );
        let after_disks = FIRST_DISK + devices.disks.len();
        let disks = devices.disks.into_iter().enumerate();
        Ok(Self {
            serial: Mutex::new(serial),
            console: Mutex::new(MmioDevice::new(
                devices.console,
                ram(),
                machine.line(gsi(0)),
            )),
            rng: Mutex::new(MmioDevice::new(devices.rng, ram(), machine.line(gsi(1)))),
            balloon: Mutex::new(MmioDevice::new(Balloon::new(), ram(), machine.line(gsi(2)))),
            disks: disks
                .map(|(n, disk)| {
                    let line = machine.line(gsi(n + FIRST_DISK));
                    Mutex::new(MmioDevice::new(disk, ram(), line))
                })
                .collect(),
            net: devices.net.map(|net| {
                let line = machine.line(gsi(after_disks));
                Mutex::new(MmioDevice::new(net, ram(), line))
            }),
            generation: Mutex::new(Generation::new(machine.line(l::GENERATION_GSI))),
        })
    }

    /// How many virtio devices there are.
    #[must_use]
    pub fn virtio_count(&self) -> usize {
        FIRST_DISK + self.disks.len() + usize::from(self.net.is_some())
    }

    /// What it takes to go on from here.
    pub fn state(&self) -> BusState {
        let mut console = lock(&self.console);
        BusState {
            serial: lock(&self.serial).state(),
            console: (console.state(), console.device().state().clone()),
            rng: lock(&self.rng).state(),
            balloon: lock(&self.balloon).state(),
            disks: self.disks.iter().map(|disk| lock(disk).state()).collect(),
            net: self.net.as_ref().map(|net| lock(net).state()),
            generation: lock(&self.generation).state(),
        }
    }

    /// Goes on from such a state, before any processor runs.
    ///
    /// # Errors
    /// When it is another machine's.
    pub fn set_state(&self, state: &BusState) -> Result<(), Error> {
        if state.disks.len() != self.disks.len() {
            return Err(Error::Refused("the state has other disks".to_owned()));
        }
        match (&self.net, &state.net) {
            (Some(net), Some(state)) => lock(net).set_state(state)?,
            (None, None) => {}
            _ => return Err(Error::Refused("the state has another network".to_owned())),
        }
        lock(&self.serial).set_state(&state.serial)?;
        let mut console = lock(&self.console);
        console.device().set_state(state.console.1.clone())?;
        console.set_state(&state.console.0)?;
        lock(&self.rng).set_state(&state.rng)?;
        lock(&self.balloon).set_state(&state.balloon)?;
        for (disk, state) in self.disks.iter().zip(&state.disks) {
            lock(disk).set_state(state)?;
        }
        lock(&self.generation).set_state(state.generation);
        Ok(())
    }

    /// Gives the guest this generation, and tells it if it wants to know. Comes right before its
    /// processors run.
    pub fn set_generation(&self, id: GenerationId) {
        lock(&self.generation).set(id);
    }

    /// The guest writes to a port. Ports where nothing stands take anything.
    pub fn write_port(&self, port: u16, data: &[u8]) -> Option<PowerEvent> {
        if power::is_at(port) {
            return power::write(port, data.first().copied().unwrap_or_default());
        }
        if let Some(offset) = serial_offset(port) {
            for &byte in data {
                lock(&self.serial).write(offset, byte);
            }
        }
        None
    }

    /// The guest reads a port. Where nothing stands all bits are one.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if power::is_at(port) {
            data.fill(0);
        } else if let Some(offset) = serial_offset(port) {
            for byte in data {
                *byte = lock(&self.serial).read(offset);
            }
        }
    }

    /// The guest writes to an address that is no memory.
    pub fn write_address(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.device_at(address) {
            device.write(offset, data);
        }
    }

    /// The guest reads an address that is no memory.
    pub fn read_address(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.device_at(address) {
            device.read(offset, data);
        }
    }

    /// The serial port.
    pub fn serial(&self) -> MutexGuard<'_, SerialPort> {
        lock(&self.serial)
    }

    /// The channel of the guest's agent.
    pub fn console(&self) -> MutexGuard<'_, MmioDevice<Console>> {
        lock(&self.console)
    }

    /// The network card, if there is one.
    pub fn net(&self) -> Option<MutexGuard<'_, MmioDevice<Net>>> {
        self.net.as_ref().map(lock)
    }

    fn device_at(&self, address: u64) -> Option<(&dyn Registers, u64)> {
        let at = address.checked_sub(l::VIRTIO)?;
        let device: &dyn Registers = match usize::try_from(at / l::VIRTIO_STRIDE).ok()? {
            0 => &self.console,
            1 => &self.rng,
            2 => &self.balloon,
            l::GENERATION_PAGE => &self.generation,
            number => match self.disks.get(number - FIRST_DISK) {
                Some(disk) => disk,
                None if number == FIRST_DISK + self.disks.len() => self.net.as_ref()?,
                None => return None,
            },
        };
        Some((device, at % l::VIRTIO_STRIDE))
    }
}

fn serial_offset(port: u16) -> Option<u8> {
    let offset = port.checked_sub(l::SERIAL)?;
    (offset < l::SERIAL_PORTS)
        .then(|| u8::try_from(offset).ok())
        .flatten()
}
