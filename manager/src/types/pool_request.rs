//! Requests to make, change and fill a pool, and their answers.

use std::{num::NonZeroU32, sync::atomic::AtomicBool};

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Pool, ReconcileAnswer, report, words};
use brood_core::{
    checkpoint::Network,
    engine::Publish,
    pool::{self, NewPool, Pools, Refill},
    restore::{RestoreFailure, RestoreStep, cores},
    state::{Policy, PoolChange},
};

/// A pool to make.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewPool)]
pub(crate) struct CreatePool {
    /// Its name; its guests are `NAME-1`, `NAME-2`, ...
    #[schema(example = "web")]
    pub(crate) name: String,
    /// What its guests are restored from: `DIR/NAME`, or a name in the daemon's folder.
    #[schema(example = "/var/tmp/ckp/demo")]
    pub(crate) checkpoint: String,
    /// How many guests wait to be claimed.
    pub(crate) hot: u32,
    /// Low water: the daemon fills the pool when fewer guests than this wait; by default when one
    /// is missing.
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub(crate) hot_min: Option<NonZeroU32>,
    /// Maximum number of guests, claimed ones included; by default as many as the host takes.
    #[serde(rename = "max")]
    pub(crate) most: Option<u32>,
    /// Maximum memory of its guests together, in bytes: each counts with its private limit and its
    /// overhead. By default as much as the host has.
    pub(crate) max_memory: Option<u64>,
    /// Age in seconds at which a waiting guest is replaced by a new one; by default never.
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub(crate) max_age_s: Option<NonZeroU32>,
    /// Maximum number of guests that the daemon restores for the pool per second.
    #[schema(value_type = Option<u32>, minimum = 1)]
    #[serde(rename = "refill_rate")]
    pub(crate) refill_per_s: Option<NonZeroU32>,
    /// Lease of a claim, in seconds, until it is renewed.
    #[schema(default = 300, minimum = 1)]
    pub(crate) lease_s: Option<u32>,
    /// Private memory that each guest may come to hold, in bytes. Admission counts with it for the
    /// worst case. A guest can write more, unless `enforce_private_limit` is set.
    #[schema(default = 1_048_576)]
    pub(crate) private_limit: Option<u64>,
    /// Have the kernel end a guest that comes to hold more than its private limit and what a guest
    /// costs besides; the KVM engine does so by a control group for each guest. Refused where it
    /// cannot be done.
    #[serde(default)]
    pub(crate) enforce_private_limit: bool,
    /// What its guests reach: `none`; `user`: what this host's user reaches, each guest from behind an
    /// address of its own; or `tap`: this host, by a network device for each guest (KVM). By default what the checkpoint's guest had a network card for.
    #[schema(value_type = Option<words::Network>)]
    pub(crate) network: Option<Network>,
    /// Ports of this host that lead to ports of its guests: `[ADDRESS:]PORT:GUEST_PORT`. `{n}` in the
    /// port stands for the lowest number whose ports no other guest has.
    #[serde(default)]
    #[schema(value_type = Vec<String>, example = json!(["80{n}:80"]))]
    pub(crate) publish: Vec<Publish>,
    /// Trust the checkpoint from now on: see trustCheckpoint.
    #[serde(default)]
    pub(crate) trust: bool,
    /// Answer when the pool is filled, with the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fill: Option<FillRequest>,
}

/// How a pool is to be filled.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, IntoParams, ToSchema)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct FillRequest {
    /// How many restores run at once; by default one for each core.
    #[param(minimum = 1)]
    #[schema(minimum = 1)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) concurrency: Option<u32>,
}

impl FillRequest {
    /// How many restores run at once.
    pub(crate) fn at_once(self) -> u32 {
        self.concurrency.unwrap_or_else(at_once)
    }
}

/// A pool that was made or changed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum PoolAnswer {
    /// It was filled then.
    Filled(FilledPool),
    /// It was not to be filled.
    Pool(Pool),
}

/// A number that was one of 32 bits.
fn small(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn positive(n: u64) -> NonZeroU32 {
    NonZeroU32::new(small(n)).unwrap_or(NonZeroU32::MIN)
}

impl CreatePool {
    /// Asks for this pool, whose checkpoint the daemon finds by `checkpoint`.
    pub(crate) fn of(new: &NewPool, checkpoint: String, fill: Option<FillRequest>) -> Self {
        let Policy {
            hot,
            hot_min,
            most,
            max_memory,
            max_age_s,
            refill_per_s,
            lease_s,
        } = new.policy;
        Self {
            name: new.name.clone(),
            checkpoint,
            hot: small(hot),
            hot_min: hot_min.map(positive),
            most: most.map(small),
            max_memory: max_memory.map(|bytes| bytes.0),
            max_age_s: max_age_s.map(positive),
            refill_per_s: refill_per_s.map(positive),
            lease_s: Some(small(lease_s)),
            private_limit: Some(new.private_limit.0),
            enforce_private_limit: new.enforce_private_limit,
            network: new.network,
            publish: new.publish.clone(),
            trust: new.trust,
            fill,
        }
    }
}

impl ChangePool {
    /// Asks for this change.
    pub(crate) fn of(change: &PoolChange, fill: Option<FillRequest>) -> Self {
        let number = |limit: Option<Option<u64>>| limit.map(|limit| limit.map(positive));
        Self {
            hot: change.hot.map(small),
            hot_min: number(change.hot_min),
            most: change.most.map(|limit| limit.map(small)),
            max_memory: change.max_memory.map(|limit| limit.map(|bytes| bytes.0)),
            max_age_s: number(change.max_age_s),
            refill_per_s: number(change.refill_per_s),
            lease_s: change.lease_s.map(small),
            network: change.network,
            publish: change.publish.clone(),
            fill,
        }
    }
}

/// What to change of a pool. `null` takes a limit away. When `network` or `publish` change
/// something, guests that wait are replaced; claimed ones stay as they are.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PoolChange)]
pub(crate) struct ChangePool {
    /// How many guests wait to be claimed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hot: Option<u32>,
    /// Low water: the daemon fills the pool when fewer guests than this wait.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub(crate) hot_min: Option<Option<NonZeroU32>>,
    /// Maximum number of guests.
    #[serde(
        rename = "max",
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u32>)]
    pub(crate) most: Option<Option<u32>>,
    /// Maximum memory of its guests together, in bytes.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u64>)]
    pub(crate) max_memory: Option<Option<u64>>,
    /// Age in seconds at which a waiting guest is replaced by a new one.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub(crate) max_age_s: Option<Option<NonZeroU32>>,
    /// Maximum number of guests that the daemon restores for the pool per second.
    #[serde(
        rename = "refill_rate",
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub(crate) refill_per_s: Option<Option<NonZeroU32>>,
    /// Lease of a claim, in seconds, until it is renewed.
    #[schema(minimum = 1)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lease_s: Option<u32>,
    /// What its guests reach (QEMU), as for createPool; `null` is for the checkpoint to say.
    #[serde(
        default,
        deserialize_with = "given",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<words::Network>)]
    pub(crate) network: Option<Option<Network>>,
    /// Ports of this host that lead to ports of its guests, as for createPool, in place of those until
    /// now.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>, example = json!(["80{n}:80"]))]
    pub(crate) publish: Option<Vec<Publish>>,
    /// Answer when the pool is filled, with the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fill: Option<FillRequest>,
}

/// Reads a limit that is given, be it `null`.
fn given<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

/// Result of filling a pool.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct FilledPool {
    /// The pool, as it is now.
    #[serde(flatten)]
    pub(crate) pool: Pool,
    /// What the reconciliation before it did.
    pub(crate) reconciled: ReconcileAnswer,
    /// New entries.
    pub(crate) restored: u64,
    /// Entries that are still missing.
    pub(crate) missing: u64,
    /// Why there was no room for those.
    pub(crate) no_room: Option<String>,
    /// From the beginning to the last new entry, in seconds.
    pub(crate) wall_s: f64,
    /// Guests that were not restored.
    #[schema(value_type = Vec<report::RestoreFailure>)]
    pub(crate) errors: Vec<RestoreFailure>,
}

impl FilledPool {
    /// Fills a pool.
    pub(crate) fn of(
        pools: &mut Pools<'_>,
        name: &str,
        fill: FillRequest,
        cancelled: &AtomicBool,
        observe: &mut dyn FnMut(&RestoreStep<'_>),
    ) -> Result<Self, pool::Error> {
        let (reconciled, filled) =
            pools.fill(name, Refill::Whole, fill.at_once(), cancelled, observe)?;
        Ok(Self {
            pool: pools.show(name)?.into(),
            reconciled: reconciled.into(),
            restored: filled.restored,
            missing: filled.missing,
            no_room: filled.no_room,
            wall_s: filled.wall.as_secs_f64(),
            errors: filled.failures,
        })
    }
}

/// How many guests are restored for pools at once.
pub(crate) fn at_once() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| cores(n.get() as u64))
}
