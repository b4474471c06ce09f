//! Parking time: how long a guest must be idle until it gives its virtual machine back to the host.

use std::{fmt, str::FromStr, time::Duration};

use crate::units::parse_duration;

/// The longest that anybody may want to wait.
const LONGEST: Duration = Duration::from_secs(1_000_000);

/// How long a guest must be idle until it gives its virtual machine back to the host; it gets one
/// again when it is asked. `None` is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParkAfter(pub Option<Duration>);

/// A text that is neither a duration nor `never`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write seconds, a duration such as 90s, 5m or 1h, or never")]
pub struct ParseParkAfterError;

impl FromStr for ParkAfter {
    type Err = ParseParkAfterError;

    /// Reads `never`, or a duration such as `0.5`, `60` (seconds) and `5m`, up to a million
    /// seconds.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "never" {
            return Ok(Self(None));
        }
        match parse_duration(text) {
            Ok(idle) if idle <= LONGEST => Ok(Self(Some(idle))),
            _ => Err(ParseParkAfterError),
        }
    }
}

impl fmt::Display for ParkAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("never"),
            Some(idle) => write!(f, "{}", idle.as_secs_f64()),
        }
    }
}
