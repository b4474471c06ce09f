//! Engines: what runs guests.

pub mod kvm;

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
