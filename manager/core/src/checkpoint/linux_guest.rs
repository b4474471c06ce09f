//! A Linux guest of the KVM engine: facts of the machine and of the host that ran it, in the manifest
//! of its checkpoint. A restore rests on them.

use serde::{Deserialize, Serialize};

use super::Network;
use crate::units::Bytes;

/// The machine that a Linux guest needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinuxGuest {
    /// Version of the devices that brood gives a guest, and of the form of the `.kern`.
    pub machine_version: u32,
    /// What virtualises the host's processor: `svm` (AMD), `vmx` (Intel) or `pvm` (software).
    pub virtualization: String,
    /// What the guest's agent keeps in memory only, as 32 hexadecimal digits: a clone that answers
    /// with another was not restored.
    pub nonce: String,
    /// Digest of the image that it was booted from.
    pub image: String,
    /// The processor that it sees: `host`, all that the host had that made it; or `v2` or `v3`, the
    /// features of that level of x86-64 only.
    #[serde(default = "host")]
    pub cpu_template: String,
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

fn host() -> String {
    "host".to_owned()
}
