//! Virtio over MMIO, version 2 (virtio 1.2, section 4.2): the registers of one device, through which
//! its driver finds out what it is and sets its queues up.

use std::sync::Arc;

use virtio_bindings::{
    virtio_config::{
        VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
        VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
        VIRTIO_F_VERSION_1,
    },
    virtio_mmio as r,
};
use virtio_queue::{Queue, QueueT};

use super::{
    Broken, Device, Used,
    state::{MmioState, QueueRegisters},
};
use crate::{error::Error, irq::Irq, memory::Memory};

/// "virt".
const MAGIC: u32 = 0x7472_6976;
/// Version of the registers.
const VERSION: u32 = 2;
/// "BROO", which no driver minds.
const VENDOR: u32 = 0x4f4f_5242;
/// Bits of the interrupt status.
const IRQ_QUEUE: u32 = 1;
const IRQ_CONFIG: u32 = 2;

/// Steps of the status, in their order.
const ACKNOWLEDGED: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = ACKNOWLEDGED | VIRTIO_CONFIG_S_DRIVER;
const FEATURES: u32 = DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
const RUNNING: u32 = FEATURES | VIRTIO_CONFIG_S_DRIVER_OK;

/// A device and its registers.
pub struct MmioDevice<D> {
    device: D,
    ram: Memory,
    irq: Arc<dyn Irq>,
    queues: Vec<Queue>,
    queue: u32,
    status: u32,
    interrupts: u32,
    device_page: u32,
    driver_page: u32,
    accepted: u64,
}

impl<D: Device> std::fmt::Debug for MmioDevice<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("MmioDevice");
        shown.field("id", &self.device.id());
        shown.field("status", &self.status).finish_non_exhaustive()
    }
}

impl<D: Device> MmioDevice<D> {
    /// The registers of a device that no driver has found yet.
    ///
    /// # Panics
    /// When the device has a queue of no size that there is.
    #[must_use]
    pub fn new(device: D, ram: Memory, irq: Arc<dyn Irq>) -> Self {
        let queue = |&size| Queue::new(size).expect("a power of two");
        let queues = device.queues().iter().map(queue).collect();
        Self {
            device,
            ram,
            irq,
            queues,
            queue: 0,
            status: 0,
            interrupts: 0,
            device_page: 0,
            driver_page: 0,
            accepted: 0,
        }
    }

    /// Something has happened at the device's other end.
    pub fn serve(&mut self) {
        if self.runs() {
            let served = self.device.serve(&mut self.queues, &self.ram);
            self.tell(&served);
        }
    }

    /// The device, for whoever serves its other end.
    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }

    fn runs(&self) -> bool {
        self.status == RUNNING
    }

    fn offered(&self) -> u64 {
        self.device.features() | 1 << VIRTIO_F_VERSION_1
    }

    /// What it takes to go on from here: its registers, its queues and what the device says.
    #[must_use]
    pub fn state(&self) -> MmioState {
        MmioState {
            queue: self.queue,
            status: self.status,
            interrupts: self.interrupts,
            device_page: self.device_page,
            driver_page: self.driver_page,
            accepted: self.accepted,
            queues: self.queues.iter().map(QueueRegisters::of).collect(),
        }
    }

    /// Goes on from such a state. The device has been given its own before.
    ///
    /// # Errors
    /// When it is no state of such a device.
    pub fn set_state(&mut self, state: &MmioState) -> Result<(), Error> {
        let wrong = || Error::Refused("a device's state has other queues".to_owned());
        if state.queues.len() != self.queues.len() {
            return Err(wrong());
        }
        let queues = state.queues.iter().zip(self.device.queues());
        let queues = queues.map(|(queue, &most)| queue.to_queue(most).ok_or_else(wrong));
        self.queues = queues.collect::<Result<_, _>>()?;
        self.queue = state.queue;
        self.status = state.status;
        self.interrupts = state.interrupts;
        self.device_page = state.device_page;
        self.driver_page = state.driver_page;
        self.accepted = state.accepted;
        if self.runs() {
            self.device.activate(self.accepted);
        }
        Ok(())
    }

    /// The guest reads a register, or the configuration space.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= u64::from(r::VIRTIO_MMIO_CONFIG) {
            let config = self.device.config();
            let at = usize::try_from(offset - u64::from(r::VIRTIO_MMIO_CONFIG));
            let from = at.ok().and_then(|at| config.get(at..)).unwrap_or_default();
            let length = from.len().min(data.len());
            data[..length].copy_from_slice(&from[..length]);
            return;
        }
        // Registers are four bytes wide, and read as a whole.
        if let (Ok(data), Ok(offset)) = (<&mut [u8; 4]>::try_from(data), u32::try_from(offset)) {
            *data = self.register(offset).to_le_bytes();
        }
    }

    fn register(&self, offset: u32) -> u32 {
        let half = |page: u32, of: u64| match page {
            0 => (of & u64::from(u32::MAX)) as u32,
            1 => (of >> 32) as u32,
            _ => 0,
        };
        let queue = self.queues.get(self.queue as usize);
        match offset {
            r::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            r::VIRTIO_MMIO_VERSION => VERSION,
            r::VIRTIO_MMIO_DEVICE_ID => self.device.id(),
            r::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            r::VIRTIO_MMIO_DEVICE_FEATURES => half(self.device_page, self.offered()),
            r::VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            r::VIRTIO_MMIO_QUEUE_READY => queue.is_some_and(Queue::ready).into(),
            r::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupts,
            r::VIRTIO_MMIO_STATUS => self.status,
            // The configuration spaces here never change by themselves.
            _ => 0,
        }
    }

    /// The guest writes a register. Configuration spaces are for reading.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(data), Ok(offset)) = (<[u8; 4]>::try_from(data), u32::try_from(offset)) {
            self.set_register(offset, u32::from_le_bytes(data));
        }
    }

    fn set_register(&mut self, offset: u32, value: u32) {
        match offset {
            r::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_page = value,
            r::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_page = value,
            r::VIRTIO_MMIO_DRIVER_FEATURES if self.status == DRIVER => self.accept(value),
            r::VIRTIO_MMIO_QUEUE_SEL => self.queue = value,
            r::VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value as usize),
            r::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupts &= !value,
            r::VIRTIO_MMIO_STATUS => self.set_status(value),
            // Queues are set up between the choice of features and the start, and at no other time.
            _ if self.status == FEATURES => self.set_queue(offset, value),
            _ => {}
        }
    }

    fn accept(&mut self, value: u32) {
        let (shift, page) = match self.driver_page {
            0 => (0, u64::from(u32::MAX)),
            1 => (32, u64::from(u32::MAX) << 32),
            _ => return,
        };
        self.accepted = self.accepted & !page | u64::from(value) << shift;
    }

    fn set_queue(&mut self, offset: u32, value: u32) {
        let Some(queue) = self.queues.get_mut(self.queue as usize) else {
            return;
        };
        match offset {
            r::VIRTIO_MMIO_QUEUE_READY => queue.set_ready(value == 1),
            // One that is ready stays as it is.
            _ if queue.ready() => {}
            r::VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            r::VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            r::VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            r::VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            r::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            r::VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            r::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32) {
        match value {
            0 => self.reset(),
            _ if value & VIRTIO_CONFIG_S_FAILED != 0 => {
                self.status |= VIRTIO_CONFIG_S_FAILED;
            }
            ACKNOWLEDGED if self.status == 0 => self.status = value,
            DRIVER if self.status == ACKNOWLEDGED => self.status = value,
            // One that is refused stays away when the driver looks.
            FEATURES if self.status == DRIVER => {
                let is_modern = self.accepted & 1 << VIRTIO_F_VERSION_1 != 0;
                if is_modern && self.accepted & !self.offered() == 0 {
                    self.status = value;
                }
            }
            RUNNING if self.status == FEATURES => {
                self.status = value;
                self.device.activate(self.accepted);
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.device.reset();
        for queue in &mut self.queues {
            queue.reset();
        }
        self.status = 0;
        self.interrupts = 0;
        self.queue = 0;
        self.device_page = 0;
        self.driver_page = 0;
        self.accepted = 0;
    }

    fn notify(&mut self, index: usize) {
        if self.runs() && index < self.queues.len() {
            let served = self.device.notify(index, &mut self.queues, &self.ram);
            self.tell(&served);
        }
    }

    fn tell(&mut self, served: &Result<Used, Broken>) {
        match served {
            Ok(Used(false)) => return,
            Ok(Used(true)) => self.interrupts |= IRQ_QUEUE,
            Err(_) => {
                self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
                self.interrupts |= IRQ_CONFIG;
            }
        }
        self.irq.raise();
    }
}
