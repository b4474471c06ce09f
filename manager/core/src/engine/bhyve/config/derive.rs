//! Configuration of one clone, derived from its checkpoint's configuration and its identity.

use super::{BhyveConfig, BhyveDevice, Disk, PciAddress};
use crate::engine::Identity;

/// Back ends of a clone's devices on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackEnds {
    /// Name of the virtual machine.
    pub vm: String,
    /// Taps, one for each network card, in the order of the cards' places.
    pub taps: Vec<String>,
    /// The guest's ends of null modems, one for each connected serial port, in their order.
    pub consoles: Vec<String>,
    /// The clone's copy of the firmware's variables, when its guest has such a file.
    pub bootvars: Option<String>,
    /// The disk that the clone has to itself: the device's key, and the path.
    pub disk: Option<(String, String)>,
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
    /// A disk was made for each clone, and no device would read it.
    #[error("it writes to none of its disks, so no device would use a disk of each clone")]
    NoOwnDisk,
    /// A disk was made for each clone, and two devices could have it.
    #[error("{first} and {second} are both written to, and clones have one disk of their own")]
    OwnDisks {
        /// Key of the first.
        first: String,
        /// Key of the second.
        second: String,
    },
    /// The disk that was sealed with a checkpoint is of a device that its guest has not.
    #[error("the disk that was sealed with it is {device}'s, which is no disk of its guest")]
    NoSuchDisk {
        /// Key of the device.
        device: String,
    },
    /// bhyve would take a part of the path for the name of a variable.
    #[error("{path:?}: bhyve would replace what follows the percent sign")]
    Percent {
        /// The path.
        path: String,
    },
    /// There are more devices than back ends.
    #[error("{key}: there is no back end for it")]
    NoBackEnd {
        /// Key of the back end.
        key: String,
    },
}

impl DeriveError {
    /// A hint what to do next.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::SharedDisk { .. } => {
                "give each clone a disk (restore --disk), have it read-only (ro=true), or name a \
                 disk for each clone with %(name) in its path"
            }
            Self::NoOwnDisk => "leave --disk out, or suspend a guest whose disk is not read-only",
            Self::OwnDisks { .. } => {
                "have the others read-only (ro=true), or name them with %(name) in their paths"
            }
            Self::NoSuchDisk { .. } => {
                "restore its memory alone with --disk none, or make it again"
            }
            Self::Percent { .. } => "keep disks at a path without percent signs",
            Self::SharedAddress { .. } => {
                "suspend a guest without a frame buffer; it costs each clone 32 MiB besides"
            }
            Self::NoBackEnd { .. } => "give it one",
        }
    }
}

impl BhyveConfig {
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

    /// Key of the disk that each clone has its own copy of: the only one that guests write to and
    /// that no `%(name)` keeps apart. `sealed` is the name that a checkpoint has for the device
    /// with the sealed disk.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub(crate) fn own_disk(&self, sealed: Option<&str>) -> Result<String, DeriveError> {
        let mut written = self
            .devices
            .iter()
            .filter(|(address, device)| sealed.is_none_or(|s| s == saved_name(**address, device)))
            .flat_map(|(address, device)| device.disks_at(*address))
            .filter(|(_, disk)| is_shared(disk));
        match (written.next(), written.next(), sealed) {
            (Some((key, _)), None, _) => Ok(key),
            (Some((first, _)), Some((second, _)), _) => {
                Err(DeriveError::OwnDisks { first, second })
            }
            (None, _, Some(device)) => Err(DeriveError::NoSuchDisk {
                device: device.to_owned(),
            }),
            (None, _, None) => Err(DeriveError::NoOwnDisk),
        }
    }

    /// The device that a disk of this key belongs to, as a checkpoint names it.
    #[must_use]
    pub(crate) fn device_of(&self, key: &str) -> Option<String> {
        let mut all = self.devices.iter();
        all.find_map(|(address, device)| {
            let mut disks = device.disks_at(*address).into_iter();
            let is_its = disks.any(|(other, _)| other == key);
            is_its.then(|| saved_name(*address, device))
        })
    }

    /// Path of a disk, by its device's key.
    #[must_use]
    pub fn disk_path(&self, key: &str) -> Option<&str> {
        self.devices
            .iter()
            .flat_map(|(address, device)| device.disks_at(*address))
            .find_map(|(other, disk)| (other == key).then_some(disk.path.as_str()))
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
        if let Some(path) = &mut clone.bootvars {
            let copy = back_ends.bootvars.as_ref();
            let copy = copy.ok_or_else(|| DeriveError::NoBackEnd {
                key: "lpc.bootvars".to_owned(),
            })?;
            path.clone_from(copy);
        }
        let mut consoles = back_ends.consoles.iter();
        for (com, path) in &mut clone.com {
            let console = consoles.next().ok_or_else(|| DeriveError::NoBackEnd {
                key: format!("lpc.{com}.path"),
            })?;
            path.clone_from(console);
        }
        let mut taps = back_ends.taps.iter().zip(0_u8..);
        for (address, device) in &mut clone.devices {
            for (key, disk) in device.disks_at_mut(*address) {
                match &back_ends.disk {
                    Some((own, path)) if *own == key => {
                        if path.contains('%') {
                            return Err(DeriveError::Percent { path: path.clone() });
                        }
                        disk.path.clone_from(path);
                    }
                    _ if is_shared(disk) => {
                        return Err(DeriveError::SharedDisk {
                            key: format!("{key}.path"),
                            path: disk.path.clone(),
                        });
                    }
                    _ => {}
                }
            }
            if let BhyveDevice::Fbuf { rfb, .. } = device {
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

/// Name of a device in a checkpoint (`pci_emul_init` of `pci_emul.c`).
fn saved_name(address: PciAddress, device: &BhyveDevice) -> String {
    format!("{}@{address}", device.model())
}

/// Whether all clones would write to it.
fn is_shared(disk: &Disk) -> bool {
    !disk.read_only && !disk.path.contains("%(name)")
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
