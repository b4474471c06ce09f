//! The API's types: what requests are answered with, and what the command line prints as JSON. Each is
//! made from a type of the core, which knows nothing of the API or of OpenAPI.

mod checkpoint;
mod disk;
mod guest;
pub mod manifest;
mod plan;
mod pool;
pub mod report;
pub mod words;

#[cfg(test)]
mod schema_tests;

pub use checkpoint::{Checkpoint, ListedCheckpoint, ListedState};
pub(crate) use checkpoint::{RemovedCheckpoint, SuspendRequest, SuspendTarget, VerifyReport};
pub(crate) use disk::{Leftovers, SweepReport, SweepRequest};
pub use guest::{Guest, MemoryMap, PublishedPort, Usage};
pub use plan::{CostModel, MemoryLimit, Plan, PlanCase, Sharing};
pub use pool::{
    ClaimState, ClaimStatus, Pool, PoolClaim, PoolDetails, PoolEntries, PoolFailing, PoolPolicy,
    PoolSettings, ReconcileAnswer, SuspendedClaimView,
};
