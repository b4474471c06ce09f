//! A QEMU guest: the facts of the QEMU that ran it, in the manifest of its checkpoint. Another QEMU
//! may read the device state otherwise, or offer the guest another processor, so all of them must
//! be the same when the guest is restored.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::units::Bytes;

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor, through the host's KVM.
    Kvm,
    /// QEMU itself, which translates them.
    Tcg,
}

impl Accelerator {
    /// Its name, as QEMU has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Accelerator {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Kvm, Self::Tcg]
            .into_iter()
            .find(|known| known.name() == text)
            .ok_or(())
    }
}

/// What a guest reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Nothing.
    #[default]
    None,
    /// What this host's user reaches, from behind an address of its own.
    User,
    /// This host, by a network device of the guest's own (KVM).
    Tap,
}

impl Network {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::User => "user",
            Self::Tap => "tap",
        }
    }

    /// Whether a guest needs a card for it.
    #[must_use]
    pub fn has_card(self) -> bool {
        self != Self::None
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    pub(super) fn is_none(&self) -> bool {
        *self == Self::None
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::None, Self::User, Self::Tap]
            .into_iter()
            .find(|known| known.name() == text)
            .ok_or_else(|| format!("{text:?} is no network: write none, user or tap"))
    }
}

/// The QEMU that a guest needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QemuGuest {
    /// QEMU's version, such as `7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)`.
    pub version: String,
    /// The machine type, with its version: `pc-i440fx-7.2`.
    pub machine: String,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    /// The processor's model.
    pub cpu: String,
    /// Version of the devices that brood gives a guest, and of the form of the `.kern`.
    pub devices_version: u32,
    /// What the guest's agent keeps in memory only, as 32 hexadecimal digits: a clone that answers
    /// with another was not restored.
    pub nonce: String,
    /// Digest of the image that it was booted from.
    pub image: String,
    /// The network that it has a card for.
    #[serde(default, skip_serializing_if = "Network::is_none")]
    pub network: Network,
    /// Whether its root file system is on a disk that all clones read. The manifest's disks name it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub root: bool,
    /// Size of the disk that each clone has to itself; none when it has no such disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
}
