//! View of a guest: one JSON form for the command line and for the API.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{jail::Jail, words};
use brood_core::{
    checkpoint::{Accelerator, manifest::EngineKind},
    engine,
    guests::{self, GuestState, Guests, Overhead},
    state::EntryState,
    units::Bytes,
};

/// A guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Guest {
    /// Name.
    #[schema(example = "demo-1")]
    pub name: String,
    /// Id: 16 hexadecimal digits, never used twice.
    #[schema(example = "16f31da1b4e7e9c0")]
    pub id: String,
    /// What it is doing.
    #[schema(value_type = words::GuestState)]
    pub state: GuestState,
    /// Id of its process; none when it has no process.
    pub pid: Option<i32>,
    /// What runs it.
    #[schema(value_type = words::EngineKind)]
    pub engine: EngineKind,
    /// What executes its instructions, if QEMU runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<words::Accelerator>)]
    pub accelerator: Option<Accelerator>,
    /// Its memory, in MiB.
    pub memory_mib: f64,
    /// Private limit that admission counts, in bytes.
    #[serde(default)]
    pub private_limit: u64,
    /// Whether the kernel ends the guest when it comes to hold more than that and what a guest costs
    /// besides.
    #[serde(default)]
    pub private_limit_enforced: bool,
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
    /// Ports of this host that lead into it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<PublishedPort>,
    /// The pool that it belongs to, if it does.
    pub pool: Option<String>,
    /// How far its entry in that pool has come.
    #[schema(value_type = Option<words::EntryState>)]
    pub entry: Option<EntryState>,
    /// How it ended, when it did.
    pub reason: Option<String>,
    /// What its disk was cloned from, when it has one: `PROVIDER:SOURCE`.
    pub disk: Option<String>,
    /// Where its disk is, where that was asked for and it has one.
    pub disk_path: Option<String>,
    /// The network device of this host that leads to it, where that was asked for and it has one to
    /// itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<Tap>,
    /// What confines its process, where that was asked for and it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jail: Option<Jail>,
    /// What it costs, where that was asked for and it has a process.
    #[serde(flatten)]
    pub usage: Option<Usage>,
}

impl Guest {
    /// Views of the guests whose names begin with `prefix`; with what each costs, if `usage` is set.
    pub(crate) fn with_prefix(
        guests: &mut Guests<'_>,
        prefix: &str,
        usage: bool,
    ) -> Result<Vec<Self>, guests::Error> {
        let all = match prefix {
            "" => guests.list()?,
            prefix => guests.with_prefix(prefix)?,
        };
        let overheads = guests.overheads()?;
        let views = all.iter().map(|guest| {
            // A guest that ended since it was listed costs nothing any more.
            let usage = usage.then(|| guests.usage(guest).ok()).flatten();
            let usage = usage.map(|usage| Usage::new(usage, overheads.of(&guest.row)));
            Self::new(guest, guests.engine.kind(), usage)
        });
        Ok(views.collect())
    }

    /// The view of the guest of this name or id, with what it costs and where its disk is.
    pub(crate) fn one(guests: &mut Guests<'_>, name: &str) -> Result<Self, guests::Error> {
        let mut guest = guests.find(name)?;
        let usage = guest.process().map(|_| guests.usage(&guest)).transpose();
        // What cannot be asked for must not keep the rest from being shown.
        let disk = guests.disk_location(&guest.row).ok().flatten();
        let tap = match guest.process() {
            Some(_) => guests.tap(&guest.row).ok().flatten(),
            None => None,
        };
        let jail = guests.confinement(&guest).ok().flatten();
        let jail = jail.map(|confinement| Jail::new(confinement, guest.row.landlock));
        let overhead = guests.overheads()?.of(&guest.row);
        let usage = usage.map(|usage| usage.map(|usage| Usage::new(usage, overhead)));
        if usage.is_err() {
            // It may have ended since it was found.
            guest = guests.find(name)?;
        }
        Ok(Self {
            disk_path: disk.map(|path| path.display().to_string()),
            tap: tap.map(Tap::from),
            jail,
            ..Self::new(&guest, guests.engine.kind(), usage.ok().flatten())
        })
    }

    /// The view of a guest; `engine` runs those whose records do not say what does.
    #[must_use]
    pub fn new(guest: &guests::Guest, engine: EngineKind, usage: Option<Usage>) -> Self {
        let row = &guest.row;
        let (pool, entry) = row.entry.clone().unzip();
        Self {
            name: row.name.clone(),
            id: row.id.to_string(),
            state: guest.state,
            pid: guest.process().map(|p| p.pid),
            engine: row.engine.unwrap_or(engine),
            accelerator: row.accelerator,
            memory_mib: row.memory.as_mib(),
            private_limit: row.private_limit.0,
            private_limit_enforced: row.enforce_private_limit,
            checkpoint: row.checkpoint.clone(),
            checkpoint_sha256: row.sha256.clone(),
            generation: row.generation.clone(),
            mac: row.mac.clone(),
            created_at: row.created_at.clone(),
            published: row.forwards.iter().map(PublishedPort::from).collect(),
            pool,
            entry,
            reason: row.reason.clone(),
            disk: row.disk.clone(),
            disk_path: None,
            tap: None,
            jail: None,
            usage,
        }
    }
}

/// A network device of this host that leads to one guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tap {
    /// The device's name.
    #[schema(example = "brood0")]
    pub name: String,
    /// The address by which this host knows the guest.
    #[schema(example = "198.18.0.2")]
    pub address: String,
}

impl From<engine::Tap> for Tap {
    fn from(tap: engine::Tap) -> Self {
        Self {
            name: tap.name,
            address: tap.address.to_string(),
        }
    }
}

/// A port of this host that leads to a port of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PublishedPort {
    /// Address of this host.
    #[schema(example = "127.0.0.1")]
    pub address: String,
    /// Port of this host.
    #[schema(example = 8080)]
    pub port: u16,
    /// Port of the guest.
    #[schema(example = 80)]
    pub guest_port: u16,
}

impl From<&engine::Forward> for PublishedPort {
    fn from(forward: &engine::Forward) -> Self {
        Self {
            address: forward.host.ip().to_string(),
            port: forward.host.port(),
            guest_port: forward.guest_port,
        }
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{} leads to port {}",
            self.address, self.port, self.guest_port
        )
    }
}

/// What a guest costs, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
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

impl Usage {
    /// The cost of a guest with this usage.
    #[must_use]
    pub fn new(usage: engine::Usage, overhead: Overhead) -> Self {
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

    /// The memory that the host would regain without it.
    #[must_use]
    pub fn cost(&self) -> Bytes {
        Bytes(self.private_bytes)
            + Bytes(self.process_bytes)
            + Bytes(self.page_table_bytes)
            + Bytes(self.kernel_bytes)
    }
}

/// Where a guest's memory is private and where shared: counts of pages in cells of equal size, from
/// address 0 on.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MemoryMap {
    /// Pages of 4 KiB in a cell; the last one may have fewer.
    pub cell_pages: u64,
    /// In each cell, pages that the guest has to itself.
    pub private: Vec<u64>,
    /// In each cell, pages that it has touched and shares.
    pub shared: Vec<u64>,
}

impl From<engine::MemoryMap> for MemoryMap {
    fn from(map: engine::MemoryMap) -> Self {
        Self {
            cell_pages: map.cell_pages,
            private: map.private,
            shared: map.shared,
        }
    }
}
