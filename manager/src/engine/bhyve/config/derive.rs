//! The configuration of one clone, made of its checkpoint's and its identity.

use super::{Config, Device};
use crate::engine::Identity;

/// What a clone's devices are connected to on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackEnds {
    /// Name of the virtual machine.
    pub vm: String,
    /// Taps, one for each network card, in the order of the cards' places.
    pub taps: Vec<String>,
    /// The guest's ends of null modems, one for each connected serial port, in their order.
    pub consoles: Vec<String>,
}

/// Why no clone can be made of a checkpoint's guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeriveError {
    /// All clones would write to one disk.
    #[error("{key}: each clone would write to {path:?}")]
    SharedDisk {
        /// Key of the path.
        key: String,
        /// The disk.
        path: String,
    },
    /// All clones would listen at one address: bhyve has a VNC server for each frame buffer, at
    /// 127.0.0.1:5900 unless told otherwise.
    #[error("{key}: each clone's frame buffer would listen at {address:?}")]
    SharedAddress {
        /// Key of the address.
        key: String,
        /// The address.
        address: String,
    },
    /// There are more devices than back ends.
    #[error("{key}: there is no back end for it")]
    NoBackEnd {
        /// Key of the back end.
        key: String,
    },
}

impl DeriveError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::SharedDisk { .. } => {
                "have it read-only (ro=true), or name a disk for each clone with %(name) in its path"
            }
            Self::SharedAddress { .. } => {
                "suspend a guest without a frame buffer; it costs each clone 32 MiB besides"
            }
            Self::NoBackEnd { .. } => "give it one",
        }
    }
}

impl Config {
    /// How many taps and null modems a clone needs.
    #[must_use]
    pub fn needs(&self) -> (usize, usize) {
        let nics = self.devices.values().filter(|d| d.nic().is_some()).count();
        (nics, self.com.len())
    }

    /// Bridges of the network cards, in the order of the cards' places.
    #[must_use]
    pub fn bridges(&self) -> Vec<Option<String>> {
        self.devices
            .values()
            .filter_map(|device| Some(device.nic()?.bridge.clone()))
            .collect()
    }

    /// The configuration of a clone: the same model, its own back ends and identity.
    ///
    /// `%(name)` in a disk's path stands for the clone's virtual machine, as bhyve has it.
    ///
    /// # Errors
    /// When clones would be in each other's way.
    pub fn derive(&self, identity: &Identity, back_ends: &BackEnds) -> Result<Self, DeriveError> {
        let mut clone = self.clone();
        clone.name = Some(back_ends.vm.clone());
        clone.uuid = Some(uuid(identity.generation));
        // A guest that powers off leaves no virtual machine behind.
        clone
            .settings
            .insert("destroy_on_poweroff".to_owned(), "true".to_owned());
        let mut consoles = back_ends.consoles.iter();
        for (com, path) in &mut clone.com {
            let console = consoles.next().ok_or_else(|| DeriveError::NoBackEnd {
                key: format!("lpc.{com}.path"),
            })?;
            path.clone_from(console);
        }
        let mut taps = back_ends.taps.iter().zip(0_u8..);
        for (address, device) in &mut clone.devices {
            for disk in device.disks() {
                if !disk.read_only && !disk.path.contains("%(name)") {
                    return Err(DeriveError::SharedDisk {
                        key: format!("{address}.path"),
                        path: disk.path.clone(),
                    });
                }
            }
            if let Device::Fbuf { rfb, .. } = device {
                return Err(DeriveError::SharedAddress {
                    key: format!("{address}.rfb"),
                    address: rfb.clone().unwrap_or_else(|| "127.0.0.1:5900".to_owned()),
                });
            }
            if let Some(nic) = device.nic_mut() {
                let (tap, number) = taps.next().ok_or_else(|| DeriveError::NoBackEnd {
                    key: format!("{address}.backend"),
                })?;
                nic.backend = Some(tap.clone());
                nic.mac = Some(mac(identity.mac, number));
            }
        }
        Ok(clone)
    }
}

/// The text of a UUID of version 4 (RFC 9562) with these random bits.
fn uuid(mut bits: [u8; 16]) -> String {
    bits[6] = bits[6] & 0x0f | 0x40;
    bits[8] = bits[8] & 0x3f | 0x80;
    let hex: String = bits.iter().map(|b| format!("{b:02x}")).collect();
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

/// The MAC address of a clone's card of this number, the first being its identity's own.
pub(in crate::engine::bhyve) fn mac(mut address: [u8; 6], card: u8) -> String {
    address[5] ^= card;
    address.map(|b| format!("{b:02x}")).join(":")
}
