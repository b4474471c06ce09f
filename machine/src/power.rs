//! Power of the machine: the ACPI registers with which the guest turns itself off or starts again.

use crate::layout::{RESET, RESET_VALUE, SLEEP_CONTROL, SLEEP_STATUS};

/// Sleep type of the state "off" (S5), as the tables name it.
pub const OFF: u8 = 5;
/// Bit of the sleep control register that begins the sleep.
const SLEEP_ENABLE: u8 = 1 << 5;

/// What the guest did with its power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// It has turned itself off.
    Off,
    /// It starts again.
    Reset,
}

/// What comes of a write to one of the registers; none when it does nothing.
#[must_use]
pub fn write(port: u16, value: u8) -> Option<PowerEvent> {
    match port {
        SLEEP_CONTROL if value == SLEEP_ENABLE | (OFF << 2) => Some(PowerEvent::Off),
        RESET if value == RESET_VALUE => Some(PowerEvent::Reset),
        _ => None,
    }
}

/// Whether a port is one of the registers.
#[must_use]
pub fn is_at(port: u16) -> bool {
    matches!(port, SLEEP_CONTROL | SLEEP_STATUS | RESET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_off_and_reset_do_anything() {
        let events: Vec<_> = (0..=u8::MAX)
            .flat_map(|value| [SLEEP_CONTROL, SLEEP_STATUS, RESET].map(|port| (port, value)))
            .filter_map(|(port, value)| Some((port, value, write(port, value)?)))
            .collect();
        assert_eq!(
            events,
            [
                (RESET, 1, PowerEvent::Reset),
                (SLEEP_CONTROL, 0x34, PowerEvent::Off)
            ]
        );
    }
}
