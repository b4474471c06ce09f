//! When idle guests give their virtual machine back to the host.

use std::{fmt, str::FromStr, time::Duration};

/// How long a guest must be idle until it gives its virtual machine back to the host; it gets one
/// again when it is asked. `None` is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParkAfter(pub Option<Duration>);

/// A text that is neither a number of seconds nor `never`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a number of seconds, or never")]
pub struct ParseParkAfterError;

impl FromStr for ParkAfter {
    type Err = ParseParkAfterError;

    /// Reads `never`, or seconds such as `0.5` and `60`, up to a million.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "never" {
            return Ok(Self(None));
        }
        match text.parse::<f64>() {
            Ok(s) if (0.0..=1e6).contains(&s) => Ok(Self(Some(Duration::from_secs_f64(s)))),
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
