//! Bodies of requests and answers, as Cloud Hypervisor names their fields.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use brood_core::{engine::Usage, guests::GuestState};

/// What answers.
#[derive(Debug, Serialize)]
pub(super) struct VmmPingResponse {
    build_version: &'static str,
    version: &'static str,
    pid: u32,
    features: Vec<String>,
}

impl VmmPingResponse {
    /// This daemon.
    pub(super) fn of_process() -> Self {
        Self {
            build_version: concat!("brood ", env!("CARGO_PKG_VERSION")),
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            features: Vec::new(),
        }
    }
}

/// A guest.
#[derive(Debug, Serialize)]
pub(super) struct VmInfo {
    /// How it is built; only the parts that it has.
    pub(super) config: VmConfig,
    pub(super) state: VmState,
    pub(super) memory_actual_size: u64,
}

/// How a guest is built.
#[derive(Debug, Serialize)]
pub(super) struct VmConfig {
    /// Its virtual CPUs; none where its checkpoint, which tells of them, cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpus: Option<CpusConfig>,
    pub(super) memory: MemoryConfig,
    /// Nothing: it was restored, not booted.
    pub(super) payload: PayloadConfig,
}

/// Virtual CPUs of a guest: as many at boot as at most.
#[derive(Debug, Serialize)]
pub(super) struct CpusConfig {
    boot_vcpus: u32,
    max_vcpus: u32,
}

impl CpusConfig {
    /// So many.
    pub(super) fn of(vcpus: u32) -> Self {
        Self {
            boot_vcpus: vcpus,
            max_vcpus: vcpus,
        }
    }
}

/// Memory of a guest.
#[derive(Debug, Serialize)]
pub(super) struct MemoryConfig {
    /// In bytes.
    pub(super) size: u64,
    /// Whether its writes reach the file behind it. Never: they are the guest's own.
    pub(super) shared: bool,
}

/// What a guest was booted from.
#[derive(Debug, Serialize)]
pub(super) struct PayloadConfig {}

/// What a guest is doing.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) enum VmState {
    /// It is being restored.
    Created,
    /// It runs.
    Running,
    /// It ended.
    Shutdown,
    /// It is paused.
    Paused,
}

impl From<GuestState> for VmState {
    fn from(state: GuestState) -> Self {
        match state {
            GuestState::Restoring => Self::Created,
            GuestState::Running => Self::Running,
            GuestState::Paused => Self::Paused,
            GuestState::Dead => Self::Shutdown,
        }
    }
}

/// Counters by device, and then by their name.
#[derive(Debug, Serialize)]
pub(super) struct VmCounters(BTreeMap<&'static str, BTreeMap<&'static str, u64>>);

impl From<Usage> for VmCounters {
    fn from(usage: Usage) -> Self {
        let memory = BTreeMap::from([
            ("private_bytes", usage.private.0),
            ("shared_bytes", usage.shared.0),
        ]);
        let process = BTreeMap::from([
            ("memory_bytes", usage.process.0),
            ("page_table_bytes", usage.page_tables.0),
        ]);
        Self(BTreeMap::from([("memory", memory), ("process", process)]))
    }
}

/// Where a snapshot goes.
#[derive(Debug, Deserialize)]
pub(super) struct VmSnapshotConfig {
    /// An existing folder: `file:///DIR`.
    pub(super) destination_url: String,
}
