//! The API's types: what requests are answered with, and what the command line prints as JSON. Each is
//! made from a type of the core, which knows nothing of the API or of OpenAPI.

mod checkpoint;
mod claim;
mod disk;
mod guest;
mod guest_request;
mod host;
mod jail;
pub mod manifest;
mod plan;
mod pool;
mod pool_request;
pub mod report;
mod restore_event;
pub mod words;

#[cfg(test)]
mod schema_tests;

pub use checkpoint::{Checkpoint, ListedCheckpoint, ListedState};
pub(crate) use checkpoint::{RemovedCheckpoint, SuspendRequest, SuspendTarget, VerifyReport};
pub(crate) use claim::{
    Claim, ClaimRequest, LeaseRenewal, RenewRequest, ResumeClaimRequest, SuspendAnswer,
};
pub(crate) use disk::{Leftovers, SweepReport, SweepRequest};
pub use guest::{Guest, MemoryMap, PublishedPort, Usage};
pub(crate) use guest_request::{
    AskRequest, DestroyAnswer, DestroyTargets, GuestAnswer, ResumeReport, TIMEOUT, named,
};
pub(crate) use host::Host;
pub use plan::{CostModel, MemoryLimit, Plan, PlanCase, Sharing};
pub use pool::{
    ClaimState, ClaimStatus, Pool, PoolClaim, PoolDetails, PoolEntries, PoolFailing, PoolPolicy,
    PoolSettings, ReconcileAnswer, SuspendedClaimView,
};
pub(crate) use pool_request::{
    ChangePool, CreatePool, FillRequest, FilledPool, PoolAnswer, at_once,
};
pub(crate) use restore_event::RestoreEvent;
