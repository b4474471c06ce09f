//! Schema of a checkpoint's manifest, which is sent as it lies in the file `X.ckp.brood`.

use std::collections::BTreeMap;

use utoipa::ToSchema;

use super::words::{Accelerator, AgentProtocol, Bytes, DiskProvider, EngineKind, Network};

/// A contiguous part of guest-physical memory and where it lies in the memory image: the `.ckp`
/// file, or what a delta and its parents compose to.
#[derive(Debug, ToSchema)]
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
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Sum of all segments; the image's size.
    pub size: Bytes,
    /// Segments in ascending guest-physical order, not overlapping, in the guest or in the image.
    pub segments: Vec<Segment>,
}

/// A device the guest had, by model. Its back end belongs to each guest, not to the checkpoint.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Name, unique in the checkpoint.
    pub name: String,
    /// Model, such as `brood-channel` or `virtio-net`.
    pub model: String,
}

/// A disk snapshot taken while the guest was stopped at the moment of the memory.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSnapshot {
    /// Device that the disk belongs to; `null` for one that goes with the guest though no device
    /// of it reads it. Always written.
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

/// Size and digest of one file of the bundle.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSeal {
    /// Length of the file.
    pub size: Bytes,
    /// SHA-256 of its content, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// The three sealed files.
#[derive(Debug, ToSchema)]
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
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// The parent bundle: its name when it lies in the delta's folder, so that a folder can be
    /// moved as a whole; otherwise its absolute path, DIR/NAME.
    pub path: String,
    /// The parent's `memory_sha256`.
    pub sha256: String,
    /// Pages of the image that the delta's `.ckp` holds, in this order. All others are the
    /// parent's.
    #[schema(example = "8,256-511,600")]
    pub pages: String,
}

/// A pages range of the checkpoint, `[first, first + count)` in pages of the memory image.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PageRange {
    /// First page.
    pub first: u64,
    /// How many pages; never zero.
    pub count: u64,
}

/// The manifest as a whole.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always `brood-checkpoint`.
    pub format: String,
    /// Version of the manifest, 1.
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
    /// Set only in a delta, in which `X.ckp` is not all of the memory. Always written, `null` when there is none.
    pub parent: Option<Parent>,
    /// Sizes and digests of the three files.
    pub files: Files,
}

/// A bhyve guest. The engine checks what is in it.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BhyveGuest {
    /// Its configuration when it was suspended, as `bhyve_config(5)` has it.
    pub config: BTreeMap<String, String>,
    /// Number of the serial port at which the guest's agent listens; `null` when it has none.
    pub agent: Option<u8>,
    /// Protocol of that agent; `lines`, when it is not there.
    pub agent_protocol: Option<AgentProtocol>,
    /// What a clone is waited for.
    pub readiness: Readiness,
}

/// The QEMU that a guest needs.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QemuGuest {
    /// QEMU's version.
    pub version: String,
    /// The machine type, with its version: `pc-i440fx-7.2`.
    pub machine: String,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    /// The processor's model.
    pub cpu: String,
    /// Version of the devices that brood gives a guest, and of the form of the `.kern`.
    pub devices_version: u32,
    /// What the guest's agent keeps in memory only, as 32 hexadecimal digits.
    pub nonce: String,
    /// Digest of the image that it was booted from.
    pub image: String,
    /// The network that it has a card for; none when it has no card.
    pub network: Option<Network>,
    /// Whether its root file system is on a disk that all clones read; none when it is not.
    pub root: Option<bool>,
    /// Size of the disk that each clone has to itself; none when it has no such disk.
    pub disk: Option<Bytes>,
}

/// The machine that a Linux guest of the KVM engine needs.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LinuxGuest {
    /// Version of the devices that brood gives a guest, and of the form of the `.kern`.
    pub machine_version: u32,
    /// What virtualises the host's processor: `svm` (AMD), `vmx` (Intel) or `pvm` (software).
    pub virtualization: String,
    /// What the guest's agent keeps in memory only, as 32 hexadecimal digits.
    pub nonce: String,
    /// Digest of the image that it was booted from.
    pub image: String,
    /// The processor that it sees: `host`, all that the host had that made it; or `v2` or `v3`, the
    /// features of that level of x86-64 only.
    pub cpu_template: String,
    /// The network that it has a card for; none when it has no card.
    pub network: Option<Network>,
    /// Whether its root file system is on a disk that all clones read; none when it is not.
    pub root: Option<bool>,
    /// Size of the disk that each clone has to itself; none when it has no such disk.
    pub disk: Option<Bytes>,
}

/// What the guest itself must do to be counted as restored.
#[derive(Debug, ToSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Readiness {
    /// Its agent takes the identity and answers.
    Agent,
    /// It writes these words on a serial port.
    Console {
        /// Number of the port.
        com: u8,
        /// The words.
        words: String,
    },
    /// It accepts a connection.
    Tcp {
        /// `HOST:PORT`; `%(name)` stands for the guest's name.
        address: String,
    },
    /// A command on the host says so by its exit code, 0. It is run again until it does.
    Command {
        /// The program and its arguments; `%(name)` stands for the guest's name.
        argv: Vec<String>,
    },
}
