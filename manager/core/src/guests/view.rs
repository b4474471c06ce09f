//! View of a guest: one JSON form for the command line and for the API.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Guest, GuestState};
use crate::{
    checkpoint::manifest::EngineKind, engine::Usage, host::plan::CostModel, state::EntryState,
    units::Bytes,
};

/// A guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Guest)]
pub struct View {
    /// Name.
    #[schema(example = "demo-1")]
    pub name: String,
    /// Id: 16 hexadecimal digits, never used twice.
    #[schema(example = "16f31da1b4e7e9c0")]
    pub id: String,
    /// What it is doing.
    pub state: GuestState,
    /// Id of its process; none when it has no process.
    pub pid: Option<i32>,
    /// What runs it.
    pub engine: EngineKind,
    /// Its memory, in MiB.
    pub memory_mib: f64,
    /// Bundle that it was restored from, `DIR/NAME`.
    pub checkpoint: String,
    /// SHA-256 of that bundle's memory.
    pub checkpoint_sha256: String,
    /// Its generation id, new for each restore.
    pub generation: String,
    /// Its MAC address.
    pub mac: String,
    /// When it was restored, RFC 3339.
    pub created_at: String,
    /// The pool that it belongs to, if it does.
    pub pool: Option<String>,
    /// How far its entry in that pool has come.
    pub entry: Option<EntryState>,
    /// How it ended, when it did.
    pub reason: Option<String>,
    /// What its disk was cloned from, when it has one: `PROVIDER:SOURCE`.
    pub disk: Option<String>,
    /// Where its disk is, where that was asked for and it has one.
    pub disk_path: Option<String>,
    /// What it costs, where that was asked for and it has a process.
    #[serde(flatten)]
    pub usage: Option<UsageView>,
}

/// What a guest costs, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Usage)]
pub struct UsageView {
    /// Guest memory that it has written and has to itself.
    pub private_bytes: u64,
    /// Guest memory that it has touched and shares with the checkpoint.
    pub shared_bytes: u64,
    /// Memory of its process that is not guest memory.
    pub process_bytes: u64,
    /// Page tables of its process.
    pub page_table_bytes: u64,
    /// Other memory of the kernel that it takes, which no process shows: what a density run of its
    /// checkpoint found for each guest, else what guests cost in general.
    #[serde(default)]
    pub kernel_bytes: u64,
    /// Whether that was measured by a density run of its checkpoint.
    #[serde(default)]
    pub kernel_measured: bool,
}

impl UsageView {
    /// What a guest costs whose process tells this of it.
    #[must_use]
    pub fn new(usage: Usage, overhead: Overhead) -> Self {
        let told = usage.process.0.saturating_add(usage.page_tables.0);
        Self {
            private_bytes: usage.private.0,
            shared_bytes: usage.shared.0,
            process_bytes: usage.process.0,
            page_table_bytes: usage.page_tables.0,
            kernel_bytes: overhead.bytes.0.saturating_sub(told),
            kernel_measured: overhead.measured,
        }
    }

    /// What the host would have more without it.
    #[must_use]
    pub fn cost(&self) -> Bytes {
        Bytes(self.private_bytes)
            + Bytes(self.process_bytes)
            + Bytes(self.page_table_bytes)
            + Bytes(self.kernel_bytes)
    }
}

/// What a guest costs besides its private memory: its process and the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overhead {
    /// How much.
    pub bytes: Bytes,
    /// Whether a density run found it; else it is what guests cost in general.
    pub measured: bool,
}

/// The overhead of guests, by their checkpoint.
#[derive(Clone, Debug)]
pub struct Overheads {
    measured: HashMap<String, Bytes>,
    general: Bytes,
}

impl Overheads {
    pub(super) fn new(measured: HashMap<String, Bytes>, engine: EngineKind) -> Self {
        Self {
            measured,
            general: CostModel::built_in(engine).overhead,
        }
    }

    /// That of guests of the checkpoint with this digest.
    #[must_use]
    pub fn of(&self, sha256: &str) -> Overhead {
        match self.measured.get(sha256) {
            Some(&bytes) => Overhead {
                bytes,
                measured: true,
            },
            None => Overhead {
                bytes: self.general,
                measured: false,
            },
        }
    }
}

impl View {
    /// What is to be told of a guest.
    #[must_use]
    pub fn new(guest: &Guest, engine: EngineKind, usage: Option<UsageView>) -> Self {
        let row = &guest.row;
        let (pool, entry) = row.entry.clone().unzip();
        Self {
            name: row.name.clone(),
            id: row.id.to_string(),
            state: guest.state,
            pid: guest.process().map(|p| p.pid),
            engine,
            memory_mib: row.memory.as_mib(),
            checkpoint: row.checkpoint.clone(),
            checkpoint_sha256: row.sha256.clone(),
            generation: row.generation.clone(),
            mac: row.mac.clone(),
            created_at: row.created_at.clone(),
            pool,
            entry,
            reason: row.reason.clone(),
            disk: row.disk.clone(),
            disk_path: None,
            usage,
        }
    }
}
