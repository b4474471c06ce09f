//! Units: amounts of memory as a type, so that bytes, MiB and pages cannot be mixed up; and
//! durations as people write them.

use std::{fmt, num::ParseIntError, ops, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// Size of a guest page and of a host page on every platform brood runs on, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// An amount of memory or storage in bytes. Serialized as a plain number of bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// `n` KiB.
    #[must_use]
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// `n` MiB.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` GiB.
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// The amount in MiB, for reports.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a report shows three digits")]
    pub fn as_mib(self) -> f64 {
        self.0 as f64 / f64::from(1 << 20)
    }

    /// An amount in MiB, as [`Self::as_mib`] gives it.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "no memory is negative or has 2^64 bytes"
    )]
    pub fn from_mib(mib: f64) -> Self {
        Self((mib * f64::from(1 << 20)) as u64)
    }

    /// Whole pages that hold this amount.
    #[must_use]
    pub const fn pages(self) -> u64 {
        self.0.div_ceil(PAGE_SIZE)
    }

    /// `self - other`, or zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `self * n`, or the largest amount.
    #[must_use]
    pub const fn saturating_mul(self, n: u64) -> Self {
        Self(self.0.saturating_mul(n))
    }
}

impl ops::Add for Bytes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self(0), ops::Add::add)
    }
}

impl fmt::Display for Bytes {
    #[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            (1_u64 << 40, "TiB"),
            (1 << 30, "GiB"),
            (1 << 20, "MiB"),
            (1 << 10, "KiB"),
        ];
        let text = match units.into_iter().find(|(size, _)| self.0 >= *size) {
            Some((size, unit)) if self.0.is_multiple_of(size) => {
                format!("{} {unit}", self.0 / size)
            }
            Some((size, unit)) => format!("{:.1} {unit}", self.0 as f64 / size as f64),
            None => format!("{} B", self.0),
        };
        f.pad(&text)
    }
}

/// A text that is not an amount of memory.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseBytesError {
    /// No number where one belongs.
    #[error(
        "{text:?} is not a size: write a whole number with an optional unit, such as 256M, 4G or 65536"
    )]
    Number {
        /// What was given.
        text: String,
        /// Why it is no number.
        source: ParseIntError,
    },
    /// More than 2^64 bytes.
    #[error("{0:?} is more than brood can count")]
    TooLarge(String),
    /// A number without a unit that is less than a page.
    #[error("{0} alone means {0} bytes, less than a page: write {0}M or {0}G")]
    UnitMissing(u64),
}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    /// Reads `65536`, `64K`, `256M`, `256MiB`, `24G`, `2T`; units are powers of 1024. A bare number
    /// that is less than a page surely lacks its unit.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.trim().to_ascii_lowercase();
        let number = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match lower[number.len()..].trim() {
            "" | "b" => Some(0),
            "k" | "kb" | "kib" => Some(10),
            "m" | "mb" | "mib" => Some(20),
            "g" | "gb" | "gib" => Some(30),
            "t" | "tb" | "tib" => Some(40),
            _ => None,
        };
        // An unknown unit is reported as the number parser reports the whole text.
        let digits = if shift.is_some() { number.trim() } else { text };
        let n: u64 = digits.parse().map_err(|source| ParseBytesError::Number {
            text: text.to_owned(),
            source,
        })?;
        if number.len() == lower.len() && (1..PAGE_SIZE).contains(&n) {
            return Err(ParseBytesError::UnitMissing(n));
        }
        n.checked_mul(1 << shift.unwrap_or(0))
            .map(Self)
            .ok_or_else(|| ParseBytesError::TooLarge(text.to_owned()))
    }
}

/// A text that is not a duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is not a duration: write seconds, or a number with a unit, such as 90, 500ms, 10s, 5m or 1h"
)]
pub struct ParseDurationError(String);

/// Reads seconds (`90`, `0.5`), or numbers with units (`500ms`, `10s`, `5m`, `1h30m`).
///
/// # Errors
/// When the text is neither, or less than nothing.
pub fn parse_duration(text: &str) -> Result<Duration, ParseDurationError> {
    let seconds = text.parse().ok().map(Duration::try_from_secs_f64);
    let parsed = match seconds {
        Some(seconds) => seconds.ok(),
        None => text
            .parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|signed| signed.try_into().ok()),
    };
    parsed.ok_or_else(|| ParseDurationError(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, milliseconds) in [
            ("90", 90_000),
            ("0.5", 500),
            ("500ms", 500),
            ("10s", 10_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("2 h", 7_200_000),
        ] {
            let expected = Duration::from_millis(milliseconds);
            assert_eq!(parse_duration(text), Ok(expected), "{text}");
        }
        for bad in ["", "s", "-1", "-1s", "1x", "NaN", "inf", "1e30"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes, shown) in [
            ("65536", 65536, "64 KiB"),
            ("256M", 256 << 20, "256 MiB"),
            ("24GiB", 24 << 30, "24 GiB"),
            ("1536k", 1536 << 10, "1.5 MiB"),
            ("12B", 12, "12 B"),
            ("0", 0, "0 B"),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
            assert_eq!(Bytes(bytes).to_string(), shown);
        }
        for bad in [
            "",
            "M",
            "-1",
            "1.5G",
            "12X",
            "1e3",
            "99999999999T",
            "64",
            "4095",
        ] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad:?}");
        }
    }
}
