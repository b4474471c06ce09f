//! Policy of a pool: how many guests wait in it, and its limits of number, memory, age and rate.
//! What can be changed of a pool, which is the policy and its guests' network.

use serde::{Deserialize, Serialize};

use super::PoolRow;
use crate::{checkpoint::Network, engine::Publish, units::Bytes};

/// How many guests of a pool wait, and how far it may go for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// High water: the number of hot entries that the pool is filled up to.
    pub hot: u64,
    /// Low water: the daemon fills the pool when fewer entries are hot; by default when one is
    /// missing.
    pub hot_min: Option<u64>,
    /// Maximum number of entries of any kind.
    #[serde(rename = "max", alias = "most")]
    pub most: Option<u64>,
    /// Maximum memory of its entries together, in bytes: each counts with its private limit and its
    /// overhead.
    pub max_memory: Option<Bytes>,
    /// Age at which a hot entry is replaced by a new one, in seconds.
    pub max_age_s: Option<u64>,
    /// Maximum number of guests that the daemon restores for the pool per second.
    #[serde(rename = "refill_rate", alias = "refill_per_s")]
    pub refill_per_s: Option<u64>,
    /// Lease of a claim, in seconds, until it is renewed.
    pub lease_s: u64,
}

impl Policy {
    /// So many hot entries, and no limit but the host's.
    #[must_use]
    pub const fn hot(hot: u64, lease_s: u64) -> Self {
        Self {
            hot,
            hot_min: None,
            most: None,
            max_memory: None,
            max_age_s: None,
            refill_per_s: None,
            lease_s,
        }
    }

    /// How many hot entries there must be for the daemon to leave it at that.
    #[must_use]
    pub fn enough(&self) -> u64 {
        self.hot_min.unwrap_or(self.hot).min(self.hot)
    }

    /// How many entries there may be when each may come to hold `each`.
    #[must_use]
    pub fn room(&self, each: Bytes) -> Option<u64> {
        let by_memory = self.max_memory.map(|memory| memory.0 / each.0.max(1));
        self.most.into_iter().chain(by_memory).min()
    }
}

/// Changes of a pool; `None` leaves a setting as it is, `Some(None)` removes a limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolChange {
    /// As [`Policy::hot`].
    pub hot: Option<u64>,
    /// As [`Policy::hot_min`].
    pub hot_min: Option<Option<u64>>,
    /// As [`Policy::most`].
    pub most: Option<Option<u64>>,
    /// As [`Policy::max_memory`].
    pub max_memory: Option<Option<Bytes>>,
    /// As [`Policy::max_age_s`].
    pub max_age_s: Option<Option<u64>>,
    /// As [`Policy::refill_per_s`].
    pub refill_per_s: Option<Option<u64>>,
    /// As [`Policy::lease_s`].
    pub lease_s: Option<u64>,
    /// As [`PoolRow::network`].
    pub network: Option<Option<Network>>,
    /// As [`PoolRow::publish`].
    pub publish: Option<Vec<Publish>>,
}

impl PoolChange {
    /// Applies the changes to a policy.
    #[must_use]
    pub fn apply(&self, to: &Policy) -> Policy {
        Policy {
            hot: self.hot.unwrap_or(to.hot),
            hot_min: self.hot_min.unwrap_or(to.hot_min),
            most: self.most.unwrap_or(to.most),
            max_memory: self.max_memory.unwrap_or(to.max_memory),
            max_age_s: self.max_age_s.unwrap_or(to.max_age_s),
            refill_per_s: self.refill_per_s.unwrap_or(to.refill_per_s),
            lease_s: self.lease_s.unwrap_or(to.lease_s),
        }
    }

    /// What the pool's guests reach and what leads into them, once this is applied.
    #[must_use]
    pub fn network_of(&self, pool: &PoolRow) -> (Option<Network>, Vec<Publish>) {
        let publish = self.publish.as_ref().unwrap_or(&pool.publish);
        (self.network.unwrap_or(pool.network), publish.clone())
    }
}

impl From<Policy> for PoolChange {
    /// All of it, and the network stays.
    fn from(policy: Policy) -> Self {
        Self {
            hot: Some(policy.hot),
            hot_min: Some(policy.hot_min),
            most: Some(policy.most),
            max_memory: Some(policy.max_memory),
            max_age_s: Some(policy.max_age_s),
            refill_per_s: Some(policy.refill_per_s),
            lease_s: Some(policy.lease_s),
            network: None,
            publish: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrower_limit_counts() {
        let each = Bytes::mib(2);
        let mut policy = Policy::hot(5, 60);
        assert_eq!((policy.room(each), policy.enough()), (None, 5));
        policy.max_memory = Some(Bytes::mib(17));
        assert_eq!(policy.room(each), Some(8));
        policy.most = Some(7);
        policy.hot_min = Some(9);
        assert_eq!((policy.room(each), policy.enough()), (Some(7), 5));
    }

    #[test]
    fn a_change_changes_what_it_names() {
        let policy = Policy {
            most: Some(9),
            ..Policy::hot(5, 60)
        };
        assert_eq!(PoolChange::default().apply(&policy), policy);
        let unlimited = PoolChange {
            most: Some(None),
            ..PoolChange::default()
        };
        assert_eq!(unlimited.apply(&policy), Policy::hot(5, 60));
        assert_eq!(PoolChange::from(policy).apply(&Policy::hot(1, 1)), policy);
    }
}
