//! Identity of a clone: its name, and what is its own from before its first instruction.

use std::io;

use crate::guest_id::random;

/// What makes one clone this clone; laid down before its first instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name, as `brood list` shows it.
    pub name: String,
    /// New for every restore, as a VM generation id is.
    pub generation: [u8; 16],
    /// What a guest with a network card would use as its MAC address.
    pub mac: [u8; 6],
    /// What a guest would derive its host name and machine id from.
    pub seed: [u8; 8],
    /// Fresh entropy for the guest's generator.
    pub entropy: [u8; 32],
}

impl Identity {
    /// A fresh identity for a guest of this name.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn fresh(name: &str) -> io::Result<Self> {
        let [b0, rest @ ..]: [u8; 6] = random()?;
        // Locally administered, unicast.
        let mac = [
            (b0 & 0xfc) | 0x02,
            rest[0],
            rest[1],
            rest[2],
            rest[3],
            rest[4],
        ];
        Ok(Self {
            name: name.to_owned(),
            generation: random()?,
            mac,
            seed: random()?,
            entropy: random()?,
        })
    }
}
