//! Console device (virtio 1.2, section 5.3) with one named port: the channel of the guest's agent.
//!
//! The guest sees the port as `/dev/virtio-ports/NAME`. What waits for the guest is in `input`, what
//! the guest has written in `output`; each has a limit. When `output` is full the guest's buffers
//! stay in their queue until somebody has read.

use std::{
    collections::VecDeque,
    io::{Read, Write},
};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_queue::{Queue, QueueT};

use super::{Broken, Device, Used, give_back, next, outside, wait_for_buffers};
use crate::{error::Error, memory::Memory};

/// Ports have names, and messages say what happens to them.
const MULTIPORT: u64 = 1 << 1;

// Queues.
const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;
const CONTROL_TO_GUEST: usize = 2;
const CONTROL_FROM_GUEST: usize = 3;
const QUEUES: [u16; 4] = [64; 4];

// Control messages.
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// The only port.
const PORT: u32 = 0;
/// Most bytes that wait on either side, before another buffer is taken from the guest.
pub const WAITING_MAX: usize = 64 * 1024;
/// Most bytes that the guest has written and nobody has read: that buffer is as long at most.
const OUTPUT_MAX: usize = 2 * WAITING_MAX;
/// Above so many control messages a driver is not listened to.
const CONTROL_HEARD: usize = 16;
/// Most control messages that wait for the driver: one that it sends is answered by two at most.
const CONTROL_MAX: usize = CONTROL_HEARD + 2;

/// The device.
pub struct Console {
    name: String,
    config: [u8; 12],
    state: ConsoleState,
    wake: Box<dyn Fn() + Send>,
}

/// What a console knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleState {
    input: VecDeque<u8>,
    output: VecDeque<u8>,
    control: VecDeque<Vec<u8>>,
    opened: bool,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Console");
        shown.field("name", &self.name).field("state", &self.state);
        shown.finish_non_exhaustive()
    }
}

fn message(event: u16, value: u16, name: &str) -> Vec<u8> {
    let mut bytes = PORT.to_le_bytes().to_vec();
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    bytes.extend(name.as_bytes());
    bytes
}

impl Console {
    /// A console whose port has this name. `wake` is called when there is something to read, and when
    /// there is room again for what waits for the guest.
    #[must_use]
    pub fn new(name: &str, wake: Box<dyn Fn() + Send>) -> Self {
        // Columns and rows, most ports, and a place for emergencies.
        let mut config = [0; 12];
        config[4] = 1;
        Self {
            name: name.to_owned(),
            config,
            state: ConsoleState::default(),
            wake,
        }
    }

    /// Whether a program of the guest has the port open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state.opened
    }

    /// Takes bytes for the guest, as many as there is room for; how many these were.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        let room = WAITING_MAX - self.state.input.len();
        let length = room.min(bytes.len());
        self.state.input.extend(&bytes[..length]);
        length
    }

    /// What it takes to go on from here.
    #[must_use]
    pub fn state(&self) -> &ConsoleState {
        &self.state
    }

    /// Goes on from such a state.
    ///
    /// # Errors
    /// When no console can be so: more waits than a console lets wait.
    pub fn set_state(&mut self, state: ConsoleState) -> Result<(), Error> {
        let longest = message(PORT_NAME, 1, &self.name).len();
        if state.input.len() > WAITING_MAX
            || state.output.len() > OUTPUT_MAX
            || state.control.len() > CONTROL_MAX
            || state.control.iter().any(|said| said.len() > longest)
        {
            return Err(Error::Refused(
                "more waits in the console's state than in any console".to_owned(),
            ));
        }
        self.state = state;
        Ok(())
    }

    /// How many bytes for the guest there is room for.
    #[must_use]
    pub fn room(&self) -> usize {
        WAITING_MAX - self.state.input.len()
    }

    /// What the guest has written, in its order.
    pub fn output(&mut self) -> &mut VecDeque<u8> {
        &mut self.state.output
    }

    fn hear(&mut self, event: u16, value: u16) {
        match event {
            DEVICE_READY if value == 1 => self.state.control.push_back(message(PORT_ADD, 0, "")),
            PORT_READY if value == 1 => {
                self.state
                    .control
                    .push_back(message(PORT_NAME, 1, &self.name));
                // The host's end is always there.
                self.state.control.push_back(message(PORT_OPEN, 1, ""));
            }
            PORT_OPEN => {
                self.state.opened = value == 1;
                if !self.state.opened {
                    self.forget_input();
                }
            }
            _ => {}
        }
    }

    /// Nobody in the guest reads what waits for it.
    fn forget_input(&mut self) {
        let was_full = self.room() == 0;
        self.state.input.clear();
        if was_full {
            (self.wake)();
        }
    }

    fn hear_all(&mut self, queue: &mut Queue, ram: &Memory) -> Result<Used, Broken> {
        let mut used = Used(false);
        for _ in 0..queue.size() {
            // A driver that asks and takes no answers is not listened to.
            if self.state.control.len() > CONTROL_HEARD {
                break;
            }
            let Some(chain) = next(queue, ram)? else {
                break;
            };
            let head = chain.head_index();
            let mut reader = chain.reader(ram).map_err(outside)?;
            let mut bytes = [0; 8];
            if reader.read_exact(&mut bytes).is_ok() {
                let [p0, p1, p2, p3, e0, e1, v0, v1] = bytes;
                if u32::from_le_bytes([p0, p1, p2, p3]) == PORT || e0 == 0 {
                    self.hear(u16::from_le_bytes([e0, e1]), u16::from_le_bytes([v0, v1]));
                }
            }
            used |= give_back(queue, ram, head, 0)?;
        }
        Ok(used)
    }

    fn say(&mut self, queue: &mut Queue, ram: &Memory) -> Result<Used, Broken> {
        let mut used = Used(false);
        while !self.state.control.is_empty() && queue.ready() {
            let Some(chain) = next(queue, ram)? else {
                break;
            };
            let head = chain.head_index();
            let mut writer = chain.writer(ram).map_err(outside)?;
            let bytes = self.state.control.pop_front().unwrap_or_default();
            let length = bytes.len().min(writer.available_bytes());
            writer.write_all(&bytes[..length]).map_err(outside)?;
            used |= give_back(queue, ram, head, length)?;
        }
        Ok(used)
    }

    fn fill(&mut self, queue: &mut Queue, ram: &Memory) -> Result<Used, Broken> {
        let was_full = self.room() == 0;
        let mut used = self.fill_once(queue, ram)?;
        let waits = self.state.opened && !self.state.input.is_empty();
        if wait_for_buffers(queue, ram, waits)? {
            used |= self.fill_once(queue, ram)?;
        }
        // Whoever has more does not wait for it at the stream while there is no room.
        if was_full && self.room() > 0 {
            (self.wake)();
        }
        Ok(used)
    }

    fn fill_once(&mut self, queue: &mut Queue, ram: &Memory) -> Result<Used, Broken> {
        let mut used = Used(false);
        while self.state.opened && !self.state.input.is_empty() && queue.ready() {
            let Some(chain) = next(queue, ram)? else {
                break;
            };
            let head = chain.head_index();
            let mut writer = chain.writer(ram).map_err(outside)?;
            let room = writer.available_bytes();
            let mut length = 0;
            while length < room && !self.state.input.is_empty() {
                let (part, _) = self.state.input.as_slices();
                let part = &part[..part.len().min(room - length)];
                writer.write_all(part).map_err(outside)?;
                let count = part.len();
                self.state.input.drain(..count);
                length += count;
            }
            used |= give_back(queue, ram, head, length)?;
        }
        Ok(used)
    }

    fn drain(&mut self, queue: &mut Queue, ram: &Memory) -> Result<Used, Broken> {
        let mut used = Used(false);
        for _ in 0..queue.size() {
            if self.state.output.len() >= WAITING_MAX || !queue.ready() {
                break;
            }
            let Some(chain) = next(queue, ram)? else {
                break;
            };
            let head = chain.head_index();
            let mut reader = chain.reader(ram).map_err(outside)?;
            // A driver's buffer is a page or so; one that is longer than what may wait is cut.
            let length = reader.available_bytes().min(WAITING_MAX);
            let mut bytes = vec![0; length];
            reader.read_exact(&mut bytes).map_err(outside)?;
            self.state.output.extend(bytes);
            used |= give_back(queue, ram, head, 0)?;
        }
        Ok(used)
    }
}

impl Device for Console {
    fn id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        MULTIPORT
    }

    fn queues(&self) -> &[u16] {
        &QUEUES
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn reset(&mut self) {
        self.forget_input();
        self.state.control.clear();
        self.state.opened = false;
    }

    fn notify(&mut self, index: usize, queues: &mut [Queue], ram: &Memory) -> Result<Used, Broken> {
        let mut used = Used(false);
        if index == CONTROL_FROM_GUEST {
            used |= self.hear_all(&mut queues[CONTROL_FROM_GUEST], ram)?;
        }
        used |= self.serve(queues, ram)?;
        Ok(used)
    }

    fn serve(&mut self, queues: &mut [Queue], ram: &Memory) -> Result<Used, Broken> {
        let waited = !self.state.output.is_empty();
        let mut used = self.say(&mut queues[CONTROL_TO_GUEST], ram)?;
        used |= self.fill(&mut queues[TO_GUEST], ram)?;
        used |= self.drain(&mut queues[FROM_GUEST], ram)?;
        if !waited && !self.state.output.is_empty() {
            (self.wake)();
        }
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state comes from a file, and `room` counts with its limits.
    #[test]
    fn a_state_that_no_console_has_is_refused() {
        let bytes = |length: usize| VecDeque::from(vec![7; length]);
        let control = |count: usize, length: usize| vec![vec![7; length]; count].into();
        for (input, output, control, taken) in [
            (WAITING_MAX, OUTPUT_MAX, control(CONTROL_MAX, 13), true),
            (WAITING_MAX + 1, 0, control(0, 0), false),
            (0, OUTPUT_MAX + 1, control(0, 0), false),
            (0, 0, control(CONTROL_MAX + 1, 8), false),
            (0, 0, control(1, 14), false),
        ] {
            let mut console = Console::new("agent", Box::new(|| ()));
            let state = ConsoleState {
                input: bytes(input),
                output: bytes(output),
                control,
                opened: true,
            };
            assert_eq!(console.set_state(state).is_ok(), taken, "{input} {output}");
            assert_eq!(console.room(), if taken { 0 } else { WAITING_MAX });
        }
    }
}
