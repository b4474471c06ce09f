//! Capacity plan of a host (`brood plan`): how many guests fit, best, expected and worst, and which
//! limit binds.

use serde::{Deserialize, Serialize};

use super::{
    facts::{HostFacts, System},
    sharing::Sharing,
};
use crate::{
    checkpoint::manifest::EngineKind,
    host::admission::{self, Demand},
    units::Bytes,
};

/// What a guest costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CostModel {
    /// Kernel and process memory of one guest, whatever it writes.
    pub overhead: Bytes,
    /// Private memory of a guest that has only answered once.
    pub pristine_private: Bytes,
    /// Private memory of a guest at work, on average.
    pub expected_private: Bytes,
    /// Where the figures come from, such as `measured on 1000 live guests` or `built-in`.
    pub source: String,
}

/// Wired memory that a guest of bhyve takes of the kernel: 84 pages without a network card, 124
/// with one. Among them are 45 or 46 pages of page tables, and 97 or 130 KiB of zones (UMA).
/// Measured with bhyve of FreeBSD 14.2 (docs/freebsd-footprint.md).
const BHYVE_WIRED: Bytes = Bytes::kib(124 * 4);
/// What bhyve's process takes beside guest memory and a boot ROM: 3.08 to 3.22 MiB were measured
/// for each guest in all, of which 0.34 to 0.48 are wired or the guest's own.
const BHYVE_PROCESS: Bytes = Bytes::kib(2816);
/// A UEFI boot ROM, which each bhyve reads into memory of its own; smaller ones cost less.
const BHYVE_ROM: Bytes = Bytes::mib(4);

/// What QEMU's process takes beside guest memory: its heap, relocated pages of its libraries, and,
/// where it translates, tables and translations (docs/linux-guests.md).
const QEMU_PROCESS: Bytes = Bytes::mib(40);

impl CostModel {
    /// Cautious figures for guests of an engine on a host where nothing has been measured yet.
    #[must_use]
    pub fn built_in(engine: EngineKind) -> Self {
        Self {
            overhead: match engine {
                EngineKind::Kvm => Bytes::kib(768),
                EngineKind::Bhyve => BHYVE_WIRED + BHYVE_PROCESS + BHYVE_ROM,
                EngineKind::Qemu => QEMU_PROCESS,
            },
            pristine_private: Bytes::kib(16),
            expected_private: Bytes::mib(4),
            source: "built-in".to_owned(),
        }
    }
}

/// How many guests fit in one case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// Host memory that each guest takes.
    pub per_guest: Bytes,
    /// Guests that fit.
    pub guests: u64,
    /// What all guests would have as memory of their own.
    pub guest_memory: Bytes,
    /// The limit that lets no more in.
    pub binds: String,
    /// How many guests memory alone would let in.
    pub guests_by_memory: u64,
}

/// A limit on memory that leaves less than the host has available.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLimit {
    /// Its name, such as the file of a control group.
    pub name: String,
    /// What it leaves.
    pub left: Bytes,
}

/// How many guests of one checkpoint a host holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Memory to plan with: the available memory, or the amount in the request.
    pub host_memory: Bytes,
    /// The tightest limit below that, if there is one: guests must fit under it.
    pub memory_limit: Option<MemoryLimit>,
    /// Whether guests share the checkpoint's memory here.
    pub sharing: Sharing,
    /// Memory of one guest.
    pub memory_size: Bytes,
    /// What a guest costs.
    pub cost: CostModel,
    /// No guest writes more than it must to answer once.
    pub best: Case,
    /// Guests at work, on average.
    pub expected: Case,
    /// Every guest has written all its memory.
    pub worst: Case,
    /// For comparison: every guest has all its memory from the start and shares none.
    pub unshared: Case,
}

/// Plans for guests of `memory_size` on this host as it is now, or as if it had `host_memory` free
/// for brood. The host's other limits stay as they are.
#[must_use]
pub fn plan(
    facts: &HostFacts,
    host_memory: Option<Bytes>,
    memory_size: Bytes,
    cost: &CostModel,
) -> Plan {
    let facts = match host_memory {
        Some(amount) => with_memory(facts, amount),
        None => facts.clone(),
    };
    // Guests share one copy of the checkpoint in page cache, which must stay for them to be fast;
    // once all pages are private nobody reads it any more.
    let case = |private, shared| case(&facts, memory_size, cost.overhead, private, shared);
    let sharing = facts.sharing();
    // Where nothing is shared, nothing but the file's own pages is read of the page cache.
    let cached = if sharing.shared {
        memory_size
    } else {
        Bytes(0)
    };
    Plan {
        host_memory: facts.memory.available,
        memory_limit: memory_limit(&facts),
        sharing,
        memory_size,
        cost: cost.clone(),
        best: case(cost.pristine_private, cached),
        expected: case(cost.expected_private.max(cost.pristine_private), cached),
        worst: case(memory_size, Bytes(0)),
        unshared: self::case(&facts, memory_size, Bytes(0), memory_size, Bytes(0)),
    }
}

/// The limit on memory that leaves the least, if that is less than what is available.
fn memory_limit(facts: &HostFacts) -> Option<MemoryLimit> {
    let System::Linux(linux) = &facts.system else {
        return None;
    };
    let group = linux.groups.memory.as_ref()?;
    let left = Bytes(group.room());
    (left < facts.memory.available).then(|| MemoryLimit {
        name: group.file.display().to_string(),
        left,
    })
}

/// The same host with `amount` of free memory and no other limit on memory.
fn with_memory(facts: &HostFacts, amount: Bytes) -> HostFacts {
    let mut facts = facts.clone();
    (facts.memory.total, facts.memory.available) = (amount, amount);
    facts.memory.overcommit_mode = 0;
    if let System::Linux(linux) = &mut facts.system {
        linux.groups.memory = None;
    }
    facts
}

fn case(
    facts: &HostFacts,
    memory_size: Bytes,
    overhead: Bytes,
    private: Bytes,
    shared: Bytes,
) -> Case {
    let demand = Demand {
        guests: 1,
        overhead,
        private_limit: private,
        memory_size,
        outstanding: shared,
        outstanding_pids: 0,
    }
    .on(facts);
    let verdict = admission::admit(facts, &demand);
    let guests = verdict.max_guests();
    let by_memory = verdict
        .limits
        .iter()
        .filter(|limit| limit.unit == admission::Unit::Bytes);
    Case {
        per_guest: demand.worst_per_guest(),
        guests,
        guest_memory: memory_size.saturating_mul(guests),
        binds: verdict
            .binding(false)
            .map(|limit| limit.name.clone())
            .unwrap_or_default(),
        guests_by_memory: by_memory
            .map(admission::AdmissionLimit::max_guests)
            .min()
            .unwrap_or(u64::MAX),
    }
}
