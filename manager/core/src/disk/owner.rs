//! Owner of a clone or snapshot: the part of its name that says which state folder made it.

use std::{fmt, io, path::Path, str::FromStr};

use sha2::{Digest, Sha256};

use crate::guest_id::{GuestId, random};

/// The state folder that a guest's disk belongs to, so that two of them can share a pool: the
/// first bytes of the SHA-256 of its path. It does not get lost with the database.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner([u8; 8]);

impl Owner {
    /// The owner that a state folder is.
    #[must_use]
    pub fn of(state_dir: &Path) -> Self {
        // One folder is one owner, by whatever path it is reached.
        let path = state_dir
            .canonicalize()
            .unwrap_or_else(|_| state_dir.to_owned());
        let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        Self(first)
    }

    /// Name of a guest's disk.
    pub(super) fn name_for(self, guest: &GuestId) -> String {
        format!("{self}-{guest}")
    }

    /// The owner and the guest of such a name.
    pub(super) fn parse_name(name: &str) -> Option<(Self, GuestId)> {
        let (owner, guest) = name.split_once('-')?;
        let id = GuestId(parse(guest)?);
        Some((Self(parse(owner)?), id))
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl FromStr for Owner {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        parse(text).map(Self).ok_or(())
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Owner({self})")
    }
}

/// What tells one snapshot of a bundle from that of another try: random, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token([u8; 8]);

impl Token {
    /// A new random token.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn random() -> io::Result<Self> {
        Ok(Self(random()?))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl FromStr for Token {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        parse(text).map(Self).ok_or(())
    }
}

/// 16 lower-case hexadecimal digits, and nothing else that a number may be written as.
fn parse(text: &str) -> Option<[u8; 8]> {
    let digits = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let number = u64::from_str_radix(text, 16).ok().filter(|_| digits)?;
    Some(number.to_be_bytes())
}
