//! Serial port of the guest: a 16550A, whose output goes wherever its owner says.

use std::{convert::Infallible, io::Write, sync::Arc};

use serde::{Deserialize, Serialize};
use vm_superio::{
    Serial, SerialState, Trigger,
    serial::{Error as SerialError, SerialEvents},
};

use crate::{error::Error, irq::Irq};

/// An interrupt line as the port's model takes it.
struct Line(Arc<dyn Irq>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.raise();
        Ok(())
    }
}

/// What is called when the guest has read all that was typed.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// The port's events as its model has them.
#[derive(Clone)]
struct Events(Wake);

impl SerialEvents for Events {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        (self.0)();
    }
}

/// Where what the guest says goes.
pub type Output = Box<dyn Write + Send>;

/// Registers of the port, as a checkpoint has them, and what was typed and not yet read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortState {
    registers: [u8; 9],
    typed: Vec<u8>,
}

/// The port.
pub struct SerialPort(Serial<Line, Events, Output>);

impl std::fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialPort").finish_non_exhaustive()
    }
}

impl SerialPort {
    /// A port in its state after a reset.
    #[must_use]
    pub fn new(irq: Arc<dyn Irq>, output: Output, wake: Wake) -> Self {
        Self(Serial::with_events(Line(irq), Events(wake), output))
    }

    /// What it takes to go on from here.
    #[must_use]
    pub fn state(&self) -> PortState {
        let s = self.0.state();
        PortState {
            registers: [
                s.baud_divisor_low,
                s.baud_divisor_high,
                s.interrupt_enable,
                s.interrupt_identification,
                s.line_control,
                s.line_status,
                s.modem_control,
                s.modem_status,
                s.scratch,
            ],
            typed: s.in_buffer,
        }
    }

    /// Goes on from such a state. The interrupt line and the output stay.
    ///
    /// # Errors
    /// When no port can be so.
    pub fn set_state(&mut self, state: &PortState) -> Result<(), Error> {
        let [
            low,
            high,
            enable,
            identification,
            line,
            status,
            modem,
            modem_status,
            scratch,
        ] = state.registers;
        let registers = SerialState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: enable,
            interrupt_identification: identification,
            line_control: line,
            line_status: status,
            modem_control: modem,
            modem_status,
            scratch,
            in_buffer: state.typed.clone(),
        };
        let irq = Line(Arc::clone(&self.0.interrupt_evt().0));
        let events = self.0.events().clone();
        let output = std::mem::replace(self.0.writer_mut(), Box::new(std::io::sink()));
        self.0 = Serial::from_state(&registers, irq, events, output)
            .map_err(|e: SerialError<Infallible>| Error::Refused(e.to_string()))?;
        Ok(())
    }

    /// The guest reads the register at this offset.
    pub fn read(&mut self, offset: u8) -> u8 {
        self.0.read(offset)
    }

    /// The guest writes the register at this offset.
    pub fn write(&mut self, offset: u8, value: u8) {
        // Output that cannot be written is lost, as on a line that nobody is at.
        let _ = self.0.write(offset, value);
    }

    /// For how many bytes of what somebody types there is room.
    #[must_use]
    pub fn room(&self) -> usize {
        self.0.fifo_capacity()
    }

    /// Somebody types; how much of it the guest has room for.
    pub fn input(&mut self, bytes: &[u8]) -> usize {
        let room = self.0.fifo_capacity().min(bytes.len());
        self.0.enqueue_raw_bytes(&bytes[..room]).unwrap_or(0)
    }

    /// Where its output goes.
    pub fn output(&mut self) -> &mut Output {
        self.0.writer_mut()
    }
}
