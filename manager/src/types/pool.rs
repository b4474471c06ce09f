//! A pool with its entries and claims, and one claim as its claimer sees it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::words;
use brood_core::{
    checkpoint::Network,
    engine::Publish,
    pool,
    state::{self, SuspendedClaimState},
    units::Bytes,
};

/// A pool and what there is of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pool {
    /// What it should be.
    #[serde(flatten)]
    pub settings: PoolSettings,
    /// What it is.
    pub entries: PoolEntries,
    /// Why the last fill failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing: Option<PoolFailing>,
}

impl From<pool::Pool> for Pool {
    fn from(pool: pool::Pool) -> Self {
        Self {
            settings: pool.row.into(),
            entries: pool.entries.into(),
            failing: pool.failing.map(Into::into),
        }
    }
}

/// A pool, as its owner wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolSettings {
    /// Its name, which is also the prefix of its guests' names.
    pub name: String,
    /// Bundle that its guests are restored from, `DIR/NAME`.
    pub checkpoint: String,
    /// Digest of that bundle's memory.
    pub sha256: String,
    /// What it should be.
    #[serde(flatten)]
    pub policy: PoolPolicy,
    /// Private memory that each of its guests is allowed, in bytes.
    #[schema(value_type = words::Bytes)]
    pub private_limit: Bytes,
    /// Whether the kernel ends a guest that comes to hold more than that and what a guest costs
    /// besides.
    #[serde(default)]
    pub enforce_private_limit: bool,
    /// What its guests reach; null is for the checkpoint to say.
    #[serde(default)]
    #[schema(value_type = Option<words::Network>)]
    pub network: Option<Network>,
    /// Ports of this host that lead to ports of its guests, as `--publish` has them.
    #[serde(default)]
    #[schema(value_type = Vec<String>, example = json!(["80{n}:80"]))]
    pub publish: Vec<Publish>,
    /// When it was made, RFC 3339.
    pub created_at: String,
}

impl From<state::PoolRow> for PoolSettings {
    fn from(row: state::PoolRow) -> Self {
        Self {
            name: row.name,
            checkpoint: row.checkpoint,
            sha256: row.sha256,
            policy: row.policy.into(),
            private_limit: row.private_limit,
            enforce_private_limit: row.enforce_private_limit,
            network: row.network,
            publish: row.publish,
            created_at: row.created_at,
        }
    }
}

/// How many guests of a pool wait, and how far it may go for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolPolicy {
    /// High water: the number of hot entries that the pool is filled up to.
    pub hot: u64,
    /// Low water: the daemon fills the pool when fewer entries are hot; by default when one is
    /// missing.
    pub hot_min: Option<u64>,
    /// Maximum number of entries of any kind.
    #[serde(rename = "max")]
    pub most: Option<u64>,
    /// Maximum memory of its entries together, in bytes: each counts with its private limit and its
    /// overhead.
    #[schema(value_type = Option<words::Bytes>)]
    pub max_memory: Option<Bytes>,
    /// Age at which a hot entry is replaced by a new one, in seconds.
    pub max_age_s: Option<u64>,
    /// Maximum number of guests that the daemon restores for the pool per second.
    #[serde(rename = "refill_rate")]
    pub refill_per_s: Option<u64>,
    /// Lease of a claim, in seconds, until it is renewed.
    pub lease_s: u64,
}

impl From<state::Policy> for PoolPolicy {
    fn from(policy: state::Policy) -> Self {
        Self {
            hot: policy.hot,
            hot_min: policy.hot_min,
            most: policy.most,
            max_memory: policy.max_memory,
            max_age_s: policy.max_age_s,
            refill_per_s: policy.refill_per_s,
            lease_s: policy.lease_s,
        }
    }
}

/// How many of a pool's entries are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolEntries {
    /// Being restored.
    pub filling: u64,
    /// Waiting to be claimed.
    pub hot: u64,
    /// Somebody's.
    pub claimed: u64,
    /// Being destroyed.
    pub releasing: u64,
    /// Suspended claims. They are no entries, and take no memory.
    pub suspended: u64,
}

impl From<pool::Counts> for PoolEntries {
    fn from(entries: pool::Counts) -> Self {
        Self {
            filling: entries.filling,
            hot: entries.hot,
            claimed: entries.claimed,
            releasing: entries.releasing,
            suspended: entries.suspended,
        }
    }
}

/// Why a pool could not be filled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolFailing {
    /// The last error.
    pub error: String,
    /// Time of the first failure in the row, RFC 3339.
    pub since: String,
    /// Failures in a row.
    pub tries: u64,
    /// Pause of the daemon after the last failure, in seconds.
    pub pause_s: u64,
}

impl From<state::PoolFailure> for PoolFailing {
    fn from(failing: state::PoolFailure) -> Self {
        Self {
            error: failing.error,
            since: failing.since,
            tries: failing.tries,
            pause_s: failing.pause_s,
        }
    }
}

/// A pool and its entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolDetails {
    /// The pool.
    #[serde(flatten)]
    pub pool: Pool,
    /// Claimed entries.
    pub claims: Vec<PoolClaim>,
    /// Names of the hot guests, the oldest first.
    pub hot_guests: Vec<String>,
    /// Suspended claims, those being suspended or resumed included; the oldest first.
    pub suspended: Vec<SuspendedClaimView>,
}

impl From<pool::Details> for PoolDetails {
    fn from(details: pool::Details) -> Self {
        Self {
            pool: details.pool.into(),
            claims: details.claims.into_iter().map(Into::into).collect(),
            hot_guests: details.hot_guests,
            suspended: details.suspended.into_iter().map(Into::into).collect(),
        }
    }
}

/// An entry that is claimed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolClaim {
    /// Name of its guest.
    pub guest: String,
    /// Remaining lease, in seconds.
    pub lease_left_s: Option<u64>,
}

impl From<pool::ClaimedEntry> for PoolClaim {
    fn from(held: pool::ClaimedEntry) -> Self {
        Self {
            guest: held.guest,
            lease_left_s: held.lease_left_s,
        }
    }
}

/// A claim whose guest is suspended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SuspendedClaimView {
    /// Name that its guest had.
    pub guest: String,
    /// How far it is.
    #[schema(value_type = words::SuspendedClaimState)]
    pub state: SuspendedClaimState,
    /// Time of its suspension, RFC 3339.
    pub since: String,
    /// Guest memory that was written for it; null while it is being written.
    #[schema(value_type = Option<words::Bytes>)]
    pub written_bytes: Option<Bytes>,
}

impl From<pool::SuspendedClaim> for SuspendedClaimView {
    fn from(resting: pool::SuspendedClaim) -> Self {
        Self {
            guest: resting.guest,
            state: resting.state,
            since: resting.since,
            written_bytes: resting.written_bytes,
        }
    }
}

/// A claim, as its claimer sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ClaimStatus {
    /// The pool.
    pub pool: String,
    /// How far it has come.
    pub state: ClaimState,
    /// Name of its guest; for a suspended claim, the name that the guest had.
    pub guest: String,
    /// Id of its guest; null for a suspended claim.
    pub id: Option<String>,
    /// Remaining lease, in seconds; null for a suspended claim, which lasts until it is released.
    pub lease_left_s: Option<u64>,
    /// Time of its suspension, RFC 3339.
    pub since: Option<String>,
    /// Guest memory that was written for it, if it is suspended.
    #[schema(value_type = Option<words::Bytes>)]
    pub written_bytes: Option<Bytes>,
}

impl From<pool::ClaimView> for ClaimStatus {
    fn from(claim: pool::ClaimView) -> Self {
        Self {
            pool: claim.pool,
            state: claim.state.into(),
            guest: claim.guest,
            id: claim.id,
            lease_left_s: claim.lease_left_s,
            since: claim.since,
            written_bytes: claim.written_bytes,
        }
    }
}

/// How far a claim has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClaimState {
    /// Its guest is there.
    Claimed,
    /// Its guest is being suspended.
    Suspending,
    /// Its guest is suspended.
    Suspended,
    /// Its guest is being restored.
    Resuming,
}

impl From<pool::ClaimState> for ClaimState {
    fn from(state: pool::ClaimState) -> Self {
        match state {
            pool::ClaimState::Claimed => Self::Claimed,
            pool::ClaimState::Suspending => Self::Suspending,
            pool::ClaimState::Suspended => Self::Suspended,
            pool::ClaimState::Resuming => Self::Resuming,
        }
    }
}

/// Result of a reconciliation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReconcileAnswer {
    /// Guests of an interrupted fill that are hot now.
    pub saved: u64,
    /// Entries whose guest was destroyed: released, expired, dead, or no longer pristine.
    pub destroyed: u64,
    /// Hot entries beyond the pool's high water.
    pub evicted: u64,
    /// Guests that could not be ended, each with the reason; the next reconciliation tries again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
}

impl From<pool::ReconcileReport> for ReconcileAnswer {
    fn from(report: pool::ReconcileReport) -> Self {
        Self {
            saved: report.saved,
            destroyed: report.destroyed,
            evicted: report.evicted,
            left: report.left,
        }
    }
}
