//! Requests about claims, and their answers.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{PublishedPort, words};
use brood_core::{
    checkpoint::Watch,
    pool::{ClaimGrant, Error, Pools, Tier},
    state::{SuspendedClaimState, TokenDigest},
    units::Bytes,
};

/// Request for a claim.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClaimRequest {
    /// Lease of the claim, in seconds, until it is renewed; the pool's lease by default.
    #[schema(minimum = 1)]
    pub(crate) lease_s: Option<u32>,
    /// How long to wait, in seconds, when the pool or the host has no room.
    #[serde(default)]
    #[schema(default = 0.0, minimum = 0.0, maximum = 3600.0)]
    pub(crate) wait_s: f64,
    /// Time that the guest has to answer, in seconds; by default 10 for a hot guest and 60 for a
    /// restored one.
    #[schema(exclusive_minimum = 0.0, maximum = 3600.0)]
    pub(crate) timeout_s: Option<f64>,
}

/// A claim. Its guest has answered.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Claim {
    /// Name of the guest.
    pub(crate) guest: String,
    /// Its id.
    pub(crate) id: String,
    /// Its process.
    pub(crate) pid: i32,
    /// Token to renew or release the claim with.
    pub(crate) token: String,
    /// Lease from now, in seconds, until it is renewed.
    pub(crate) lease_s: u64,
    /// Tier of the guest: it was hot, or brood restored it for this claim (cold).
    #[schema(value_type = words::Tier)]
    pub(crate) tier: Tier,
    /// Ports of this host that lead into the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) published: Vec<PublishedPort>,
    /// From the claim to the guest's answer, in milliseconds.
    pub(crate) claim_ms: f64,
}

impl From<ClaimGrant> for Claim {
    fn from(claimed: ClaimGrant) -> Self {
        Self {
            guest: claimed.guest,
            id: claimed.id.to_string(),
            pid: claimed.pid,
            token: claimed.token,
            lease_s: claimed.lease.as_secs(),
            tier: claimed.tier,
            published: claimed.forwards.iter().map(PublishedPort::from).collect(),
            claim_ms: claimed.latency.as_secs_f64() * 1e3,
        }
    }
}

impl Claim {
    /// The same, with the time that it took its claimer, waits included.
    pub(crate) fn after(self, took: Duration) -> Self {
        Self {
            claim_ms: took.as_secs_f64() * 1e3,
            ..self
        }
    }
}

/// How long a claim is to last.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RenewRequest {
    /// From now, in seconds.
    #[schema(minimum = 1)]
    pub(crate) lease_s: u32,
}

/// A claim was renewed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct LeaseRenewal {
    /// How long it lasts from now, in seconds.
    pub(crate) lease_s: u32,
}

/// A claim was suspended. The event leaves out the token, which is the claimer's alone.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = SuspendedClaim)]
pub(crate) struct SuspendAnswer {
    /// The pool.
    pub(crate) pool: String,
    /// Name that its guest had.
    pub(crate) guest: String,
    /// Guest memory that was written.
    #[schema(value_type = words::Bytes)]
    pub(crate) written_bytes: Bytes,
    /// How long that took, in milliseconds.
    pub(crate) suspend_ms: f64,
    /// Whether it was not suspended before; this is not told.
    #[serde(skip)]
    pub(crate) is_news: bool,
}

impl SuspendAnswer {
    /// Suspends a claim.
    pub(crate) fn of(
        pools: &mut Pools<'_>,
        token: &str,
        progress: Watch<'_>,
    ) -> Result<Self, Error> {
        let begin = Instant::now();
        let digest = TokenDigest::of(token);
        let before = pools.state.suspended_claim(&digest)?;
        let manifest = pools.suspend(token, progress)?;
        let after = pools.state.suspended_claim(&digest)?;
        Ok(Self {
            guest: manifest.guest,
            written_bytes: manifest.files.ckp.size,
            suspend_ms: begin.elapsed().as_secs_f64() * 1e3,
            pool: after.ok_or(Error::NoSuchClaim)?.pool,
            is_news: before.is_none_or(|before| before.state != SuspendedClaimState::Suspended),
        })
    }
}

/// Request to resume a suspended claim.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResumeClaimRequest {
    /// Lease of the claim from then on, in seconds, until it is renewed; the pool's lease by
    /// default.
    #[schema(minimum = 1)]
    pub(crate) lease_s: Option<u32>,
    /// How long to wait, in seconds, when the pool or the host has no room.
    #[serde(default)]
    #[schema(default = 0.0, minimum = 0.0, maximum = 3600.0)]
    pub(crate) wait_s: f64,
    /// Time that the guest has to answer, in seconds; by default 10 if it still runs and 60 if it
    /// is restored.
    #[schema(exclusive_minimum = 0.0, maximum = 3600.0)]
    pub(crate) timeout_s: Option<f64>,
}
