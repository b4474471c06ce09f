//! Configuration of a bhyve guest, typed, as `bhyve -k` reads it (`bhyve_config(5)`).
//!
//! It knows only what can be part of a checkpoint. Reading a configuration fails, with the name of
//! the key, for a device that bhyve cannot save (`pe_snapshot` in `usr.sbin/bhyve`) and for a
//! setting that keeps memory from being shared. A configuration has two parts. The *model*
//! (processors, memory, boot ROM, devices by place and kind) is the checkpoint's, and the same for
//! each of its guests; `bhyve -r` takes it for granted. The *back ends* (tap, disk, console, MAC
//! address, UUID, name) are each guest's own.

mod derive;
mod device;
mod saved;
mod text;

use std::{collections::BTreeMap, fmt, str::FromStr};

pub(super) use derive::mac;
pub use derive::{BackEnds, DeriveError};
pub use device::{BhyveDevice, Disk, Nic, Port, PortKind};
pub use saved::Difference;
pub use text::Variables;

use crate::units::Bytes;

/// Why a text is no configuration that a guest can be restored with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A line is not `key=value`.
    #[error("line {line}: {text:?} is not key=value")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// A key that brood does not know.
    #[error("{key}: not known, so it cannot be said whether guests can share it")]
    Unknown {
        /// The key.
        key: String,
    },
    /// A key without which there is no guest.
    #[error("{key}: missing")]
    Missing {
        /// The key.
        key: String,
    },
    /// A value that the key cannot have.
    #[error("{key}: {value:?} {reason}")]
    Value {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// A device that bhyve cannot save in a checkpoint.
    #[error("{key}: bhyve cannot save a {model} in a checkpoint")]
    NotSaved {
        /// Key of the device's model.
        key: String,
        /// The model.
        model: String,
    },
}

impl Error {
    /// A hint what to do next.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Line { .. } => "see bhyve_config(5): no spaces around the equals sign",
            Self::Unknown { .. } => "leave it out; docs/bhyve.md lists the settings that are known",
            Self::Missing { .. } => "add it, as the guest that was suspended had it",
            Self::Value { .. } => "see bhyve_config(5) for what it may be",
            Self::NotSaved { .. } => {
                "use a device that is saved: hostbridge, lpc, virtio-blk, virtio-net, virtio-rnd, \
                 ahci, e1000, fbuf or xhci"
            }
        }
    }
}

fn wrong(key: &str, value: &str, reason: impl fmt::Display) -> Error {
    Error::Value {
        key: key.to_owned(),
        value: value.to_owned(),
        reason: reason.to_string(),
    }
}

/// Where a PCI device sits: `pci.BUS.SLOT.FUNCTION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciAddress {
    /// 0 to 255.
    pub bus: u8,
    /// 0 to 31.
    pub slot: u8,
    /// 0 to 7.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pci.{}.{}.{}", self.bus, self.slot, self.function)
    }
}

impl FromStr for PciAddress {
    type Err = ();

    /// Decimal without padding, as bhyve looks its devices up by this very text.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut numbers = text.strip_prefix("pci.").ok_or(())?.split('.');
        let mut number = || {
            let text = numbers.next().ok_or(())?;
            let n: u8 = text.parse().map_err(|_| ())?;
            (n.to_string() == text).then_some(n).ok_or(())
        };
        let address = Self {
            bus: number()?,
            slot: number()?,
            function: number()?,
        };
        let fits = numbers.next().is_none() && address.slot < 32 && address.function < 8;
        fits.then_some(address).ok_or(())
    }
}

/// Virtual processors: their number is the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Sockets.
    pub sockets: u16,
    /// Cores of each socket.
    pub cores: u16,
    /// Threads of each core.
    pub threads: u16,
}

impl Topology {
    /// How many virtual processors.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        u32::from(self.sockets) * u32::from(self.cores) * u32::from(self.threads)
    }
}

/// A number of a serial port of the LPC bridge, 1 to 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Com(u8);

impl Com {
    /// The serial port of this number; `None` when there is none.
    #[must_use]
    pub fn new(number: u8) -> Option<Self> {
        (1..=4).contains(&number).then_some(Self(number))
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Com {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "com{}", self.0)
    }
}

impl FromStr for Com {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = text.strip_prefix("com").and_then(|n| n.parse().ok());
        number.and_then(Self::new).ok_or(())
    }
}

/// A guest's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BhyveConfig {
    /// Name of the virtual machine. bhyve takes it from the command line; here it is what `%(name)`
    /// in other values stands for.
    pub name: Option<String>,
    /// UUID in the guest's SMBIOS, in the usual text form.
    pub uuid: Option<String>,
    /// Virtual processors.
    pub cpus: Topology,
    /// Guest memory.
    pub memory: Bytes,
    /// Path of the boot ROM; the guest was loaded by bhyveload(8) when there is none.
    pub bootrom: Option<String>,
    /// Path of the firmware's variables, which the guest writes to; each clone has a copy.
    pub bootvars: Option<String>,
    /// Serial ports of the LPC bridge that have a back end: a terminal or `tcp=ADDRESS:PORT`.
    pub com: BTreeMap<Com, String>,
    /// PCI devices.
    pub devices: BTreeMap<PciAddress, BhyveDevice>,
    /// Settings of the machine that have no structure: see `text.rs`.
    pub settings: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests;
