//! Format of figures in few letters.

use crate::types::Guest;
use brood_core::units::Bytes;

/// An age in one unit: `5s`, `12m`, `3h`, `9d`.
pub(super) fn age(seconds: i64) -> String {
    match seconds {
        s if s < 60 => format!("{s}s"),
        s if s < 3600 => format!("{}m", s / 60),
        s if s < 86_400 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

/// Milliseconds; a dash where there are none.
pub(super) fn ms(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(ms) if ms < 10.0 => format!("{ms:.2}"),
        Some(ms) => format!("{ms:.0}"),
    }
}

/// Bytes of something that a guest may not have.
pub(super) fn bytes(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), |n| Bytes(n).to_string())
}

/// Guest memory that a guest has to itself.
pub(super) fn private(guest: &Guest) -> Option<u64> {
    guest.usage.map(|usage| usage.private_bytes)
}

/// Guest memory that it shares.
pub(super) fn shared(guest: &Guest) -> Option<u64> {
    guest.usage.map(|usage| usage.shared_bytes)
}

/// A part of a whole in hundredths.
pub(super) fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100).checked_div(whole).unwrap_or(0)
}
