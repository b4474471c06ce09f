//! Schema of a plan, which is sent as the core computes it: how many guests of a checkpoint a host
//! holds.

use utoipa::ToSchema;

use super::words::Bytes;

/// How many guests of one checkpoint a host holds.
#[derive(Debug, ToSchema)]
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
    pub best: PlanCase,
    /// Guests at work, on average.
    pub expected: PlanCase,
    /// Every guest has written all its memory.
    pub worst: PlanCase,
    /// For comparison: every guest has all its memory from the start and shares none.
    pub unshared: PlanCase,
}

/// How many guests fit in one case.
#[derive(Debug, ToSchema)]
pub struct PlanCase {
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
#[derive(Debug, ToSchema)]
pub struct MemoryLimit {
    /// Its name, such as the file of a control group.
    #[schema(example = "/sys/fs/cgroup/box/memory.max")]
    pub name: String,
    /// What it leaves.
    pub left: Bytes,
}

/// What a guest costs.
#[derive(Debug, ToSchema)]
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

/// Whether guests share a checkpoint's memory.
#[derive(Debug, ToSchema)]
pub struct Sharing {
    /// Whether guests map the checkpoint, and copy only the pages that they write.
    pub shared: bool,
    /// Why they do not.
    #[schema(example = "vmm_vnode is not installed")]
    pub why: Option<String>,
}
