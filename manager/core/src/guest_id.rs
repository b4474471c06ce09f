//! Guest ids: random, 64 bits, never used twice.

use std::{fmt, io, str::FromStr};

use serde::{Deserialize, Serialize};

/// Identity of a guest for as long as it is known: random, never used twice. In JSON 16 hexadecimal
/// digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct GuestId(pub [u8; 8]);

impl GuestId {
    /// A new random id.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn random() -> io::Result<Self> {
        Ok(Self(random()?))
    }

    /// The id as 16 hexadecimal digits.
    pub(crate) fn hex(&self) -> [u8; 16] {
        let digit = |value: u8| b"0123456789abcdef"[usize::from(value)];
        let mut digits = [0; 16];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.0) {
            pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 0xf)]);
        }
        digits
    }
}

impl fmt::Display for GuestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&self.hex()).expect("digits are ASCII"))
    }
}

impl fmt::Debug for GuestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestId({self})")
    }
}

impl FromStr for GuestId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(|n| Self(n.to_be_bytes()))
    }
}

impl From<GuestId> for String {
    fn from(id: GuestId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for GuestId {
    type Error = std::num::ParseIntError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// `N` bytes of the system's randomness.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}
