//! Manifest (`X.ckp.brood`): the list of what a bundle holds. It is written last, so a bundle that
//! has one is complete.

use serde::{Deserialize, Serialize};

use super::{BhyveGuest, LinuxGuest, QemuGuest, hash, pages::PageList};
use crate::units::Bytes;

/// Value of [`Manifest::format`] in every manifest.
pub const FORMAT: &str = "brood-checkpoint";
/// The manifest version that this brood writes, and the only one it reads.
pub const VERSION: u32 = 1;

/// Which engine made a checkpoint, and so which can restore it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Linux KVM, embedded in brood.
    Kvm,
    /// FreeBSD bhyve.
    Bhyve,
    /// QEMU, a process for each guest.
    Qemu,
}

impl EngineKind {
    /// Its name, as a manifest has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Bhyve => "bhyve",
            Self::Qemu => "qemu",
        }
    }

    /// The engine of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Kvm, Self::Bhyve, Self::Qemu]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// A contiguous part of guest-physical memory and where it lies in the memory image: the `.ckp`
/// file, or what a delta and its parents compose to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// First guest-physical address. Page-aligned.
    pub guest_address: u64,
    /// Length. Whole pages, never zero.
    pub size: Bytes,
    /// Where it starts in the image, in bytes. Page-aligned.
    pub file_offset: u64,
}

/// The guest's memory as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Sum of all segments; the image's size.
    pub size: Bytes,
    /// Segments in ascending guest-physical order, not overlapping, in the guest or in the image.
    pub segments: Vec<Segment>,
}

/// A device the guest had, by model. Its back end belongs to each guest, not to the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Name, unique in the checkpoint.
    pub name: String,
    /// Model, such as `brood-channel` or `virtio-net`.
    pub model: String,
}

/// What keeps a disk snapshot, and so what makes clones of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskProvider {
    /// A snapshot of a ZFS dataset.
    Zfs,
    /// A file beside the bundle that shares blocks with others.
    Reflink,
    /// A file beside the bundle that all guests read and none writes.
    Shared,
}

/// A disk snapshot taken while the guest was stopped at the moment of the memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSnapshot {
    /// Device that the disk belongs to; `null` for one that goes with the guest though no device
    /// of it reads it. Always written.
    #[serde(deserialize_with = "Option::deserialize")]
    pub device: Option<String>,
    /// What keeps it.
    pub provider: DiskProvider,
    /// What it is a snapshot of: a dataset, or the path of a file.
    pub source: String,
    /// The snapshot: `pool/guest@moment`, or the name of a file in the bundle's folder.
    pub snapshot: String,
    /// What tells it from any other of that name: the snapshot's guid in decimal digits, or the
    /// SHA-256 of the file.
    pub identity: String,
}

impl DiskSnapshot {
    /// Whether all guests read the file itself, so that none gets a clone of it.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.provider == DiskProvider::Shared
    }
}

/// Size and digest of one file of the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSeal {
    /// Length of the file.
    pub size: Bytes,
    /// SHA-256 of its content, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// The three sealed files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// `X.ckp`: raw guest memory; in a delta, its pages alone, one after the other.
    pub ckp: FileSeal,
    /// `X.ckp.kern`: CPU and device state, in the engine's own format.
    pub kern: FileSeal,
    /// `X.ckp.meta`: bhyve's JSON description of the two.
    pub meta: FileSeal,
}

/// What the delta that this bundle holds is relative to, and which pages it has of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// The parent bundle: its name when it lies in the delta's folder, so that a folder can be
    /// moved as a whole; otherwise its absolute path, DIR/NAME.
    pub path: String,
    /// The parent's [`Manifest::memory_sha256`].
    pub sha256: String,
    /// Pages of the image that the delta's `.ckp` holds, in this order. All others are the
    /// parent's.
    pub pages: PageList,
}

/// A pages range of the checkpoint, `[first, first + count)` in pages of the memory image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageRange {
    /// First page.
    pub first: u64,
    /// How many pages; never zero.
    pub count: u64,
}

/// The manifest as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always [`FORMAT`].
    pub format: String,
    /// [`VERSION`] of the manifest.
    pub version: u32,
    /// Name of the guest the checkpoint was taken of.
    pub guest: String,
    /// When it was sealed, RFC 3339 in UTC.
    pub created_at: String,
    /// Engine that made it.
    pub engine: EngineKind,
    /// That engine's version, such as `brood 0.1.0, KVM API 12, Linux 6.18`.
    pub engine_version: String,
    /// Guest memory and where each part of it lies.
    pub memory: Memory,
    /// How many virtual CPUs; at least 1.
    pub vcpus: u32,
    /// Devices, by model.
    pub devices: Vec<Device>,
    /// Disk snapshots taken at the same moment.
    pub disks: Vec<DiskSnapshot>,
    /// Pages that the guest needs at once when it is restored (code, page tables, its own data).
    pub working_set: Vec<PageRange>,
    /// The guest's configuration, when bhyve ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bhyve: Option<BhyveGuest>,
    /// What QEMU must be like to go on with the guest, when QEMU ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<QemuGuest>,
    /// The machine that the guest needs, when it is a Linux that the KVM engine ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linux: Option<LinuxGuest>,
    /// Set only in a delta, in which `X.ckp` is not all of the memory. Always written, `null` when
    /// there is none.
    #[serde(deserialize_with = "Option::deserialize")]
    pub parent: Option<Parent>,
    /// Sizes and digests of the three files.
    pub files: Files,
}

impl Manifest {
    /// Whether each guest gets a clone of a disk that was sealed with it.
    #[must_use]
    pub fn clones_disk(&self) -> bool {
        self.disks.iter().any(|disk| !disk.is_shared())
    }

    /// What tells this memory from any other: of a full checkpoint the SHA-256 of its `.ckp`; of a
    /// delta a SHA-256 over the same of its parent, its list of pages and the SHA-256 of its
    /// `.ckp`, so that it stands for the whole chain.
    #[must_use]
    pub fn memory_sha256(&self) -> String {
        let own = &self.files.ckp.sha256;
        match &self.parent {
            None => own.clone(),
            Some(parent) => {
                hash::sha256(format!("{} {} {own}", parent.sha256, parent.pages).as_bytes())
            }
        }
    }
}
