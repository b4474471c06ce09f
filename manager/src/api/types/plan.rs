//! A plan: how many guests of a checkpoint a host holds.

use serde::Serialize;
use utoipa::ToSchema;

use super::words;
use brood_core::{
    host::{plan, sharing},
    units::Bytes,
};

/// How many guests of one checkpoint a host holds.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Plan {
    /// Memory to plan with: the available memory, or the amount in the request.
    #[schema(value_type = words::Bytes)]
    pub host_memory: Bytes,
    /// The tightest limit below that, if there is one: guests must fit under it.
    pub memory_limit: Option<MemoryLimit>,
    /// Whether guests share the checkpoint's memory here.
    pub sharing: Sharing,
    /// Memory of one guest.
    #[schema(value_type = words::Bytes)]
    pub memory_size: Bytes,
    /// What a guest costs.
    pub cost: CostModel,
    /// No guest writes more than it must to answer once.
    pub best: PlanCase,
    /// Guests at work, on average.
    pub expected: PlanCase,
    /// Every guest has written all its memory.
    pub worst: PlanCase,
    /// For comparison: every guest has all its memory from the start and shares none.
    pub unshared: PlanCase,
}

/// How many guests fit in one case.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PlanCase {
    /// Host memory that each guest takes.
    #[schema(value_type = words::Bytes)]
    pub per_guest: Bytes,
    /// Guests that fit.
    pub guests: u64,
    /// What all guests would have as memory of their own.
    #[schema(value_type = words::Bytes)]
    pub guest_memory: Bytes,
    /// The limit that lets no more in.
    pub binds: String,
    /// How many guests memory alone would let in.
    pub guests_by_memory: u64,
}

/// A limit on memory that leaves less than the host has available.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MemoryLimit {
    /// Its name, such as the file of a control group.
    #[schema(example = "/sys/fs/cgroup/box/memory.max")]
    pub name: String,
    /// What it leaves.
    #[schema(value_type = words::Bytes)]
    pub left: Bytes,
}

/// What a guest costs.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CostModel {
    /// Kernel and process memory of one guest, whatever it writes.
    #[schema(value_type = words::Bytes)]
    pub overhead: Bytes,
    /// Private memory of a guest that has only answered once.
    #[schema(value_type = words::Bytes)]
    pub pristine_private: Bytes,
    /// Private memory of a guest at work, on average.
    #[schema(value_type = words::Bytes)]
    pub expected_private: Bytes,
    /// Where the figures come from, such as `measured on 1000 live guests` or `built-in`.
    pub source: String,
}

/// Whether guests share a checkpoint's memory.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Sharing {
    /// Whether guests map the checkpoint, and copy only the pages that they write.
    pub shared: bool,
    /// Why they do not.
    #[schema(example = "vmm_vnode is not installed")]
    pub why: Option<String>,
}

impl From<plan::Plan> for Plan {
    fn from(plan: plan::Plan) -> Self {
        Self {
            host_memory: plan.host_memory,
            memory_limit: plan.memory_limit.map(Into::into),
            sharing: plan.sharing.into(),
            memory_size: plan.memory_size,
            cost: plan.cost.into(),
            best: plan.best.into(),
            expected: plan.expected.into(),
            worst: plan.worst.into(),
            unshared: plan.unshared.into(),
        }
    }
}

impl From<plan::Case> for PlanCase {
    fn from(case: plan::Case) -> Self {
        Self {
            per_guest: case.per_guest,
            guests: case.guests,
            guest_memory: case.guest_memory,
            binds: case.binds,
            guests_by_memory: case.guests_by_memory,
        }
    }
}

impl From<plan::MemoryLimit> for MemoryLimit {
    fn from(limit: plan::MemoryLimit) -> Self {
        Self {
            name: limit.name,
            left: limit.left,
        }
    }
}

impl From<plan::CostModel> for CostModel {
    fn from(cost: plan::CostModel) -> Self {
        Self {
            overhead: cost.overhead,
            pristine_private: cost.pristine_private,
            expected_private: cost.expected_private,
            source: cost.source,
        }
    }
}

impl From<sharing::Sharing> for Sharing {
    fn from(sharing: sharing::Sharing) -> Self {
        Self {
            shared: sharing.shared,
            why: sharing.why,
        }
    }
}
