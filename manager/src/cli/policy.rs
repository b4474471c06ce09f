//! Options for a pool's policy.

use std::{error::Error, fmt, str::FromStr};

use clap::Args;

use super::values::whole_seconds;
use brood_core::{
    checkpoint::Network,
    engine::Publish,
    state::{Policy, PoolChange},
    units::Bytes,
};

/// A limit, or the word that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit<T>(Option<T>);

impl<T: FromStr> FromStr for Limit<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            return Ok(Self(None));
        }
        text.parse().map(|limit| Self(Some(limit)))
    }
}

/// A number from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Positive(u32);

/// A text that is no such number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotPositive;

impl fmt::Display for NotPositive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("write a whole number from 1 on, or none")
    }
}

impl Error for NotPositive {}

impl FromStr for Positive {
    type Err = NotPositive;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(n) if n > 0 => Ok(Self(n)),
            _ => Err(NotPositive),
        }
    }
}

/// A time in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WholeSeconds(u32);

impl FromStr for WholeSeconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        whole_seconds(text).map(Self)
    }
}

/// What guests reach, or the word that it is for the checkpoint to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NetworkOrDefault(Option<Network>);

impl FromStr for NetworkOrDefault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "default" => Ok(Self(None)),
            text => text
                .parse()
                .map(|network| Self(Some(network)))
                .map_err(|e: String| format!("{e}, or default")),
        }
    }
}

/// Changes of the network that a pool's guests have.
#[derive(Debug, Args)]
pub(super) struct NetworkChange {
    /// What its guests reach: none, user, tap (KVM), or default: what the checkpoint was made with
    #[arg(long, value_name = "NET|default")]
    net: Option<NetworkOrDefault>,
    /// Have ports of this host lead to ports of each guest, as for `pool create`, and none but these;
    /// or no port, with the word none. Repeat the option for more
    #[arg(long, value_name = "[ADDRESS:]PORT:GUEST_PORT|none")]
    publish: Vec<Limit<Publish>>,
}

impl NetworkChange {
    /// Adds what these flags change to a change.
    pub(super) fn add_to(self, change: &mut PoolChange) {
        change.network = self.net.map(|network| network.0);
        if !self.publish.is_empty() {
            let ports = self.publish.into_iter().filter_map(|one| one.0);
            change.publish = Some(ports.collect());
        }
    }
}

/// Limits of a pool; `none` for no limit.
#[derive(Debug, Args)]
pub(super) struct Limits {
    /// Low water: the daemon fills the pool only when fewer guests than this wait, and then up to
    /// --hot [default: when one is missing]
    #[arg(long, value_name = "N|none")]
    hot_min: Option<Limit<Positive>>,
    /// Maximum number of guests, claimed ones included [default: as many as the host takes]
    #[arg(long, value_name = "N|none")]
    max: Option<Limit<u32>>,
    /// Maximum memory of the pool's guests together, each counted with its private limit and its
    /// overhead [default: as much as the host has]
    #[arg(long, value_name = "SIZE|none")]
    max_memory: Option<Limit<Bytes>>,
    /// Replace a guest that has waited for this time: seconds, or 5m, 1h [default: never]
    #[arg(long, value_name = "TIME|none")]
    max_age: Option<Limit<WholeSeconds>>,
    /// Maximum number of guests that the daemon restores for the pool per second [default: no
    /// limit]
    #[arg(long, value_name = "N|none")]
    refill_rate: Option<Limit<Positive>>,
}

impl Limits {
    /// What these flags change.
    pub(super) fn change(&self, hot: Option<u32>, lease_s: Option<u64>) -> PoolChange {
        let number = |limit: Option<Limit<Positive>>| {
            limit.map(|limit| limit.0.map(|Positive(n)| u64::from(n)))
        };
        PoolChange {
            hot: hot.map(u64::from),
            hot_min: number(self.hot_min),
            most: self.max.map(|limit| limit.0.map(u64::from)),
            max_memory: self.max_memory.map(|limit| limit.0),
            max_age_s: self
                .max_age
                .map(|age| age.0.map(|WholeSeconds(s)| s.into())),
            refill_per_s: number(self.refill_rate),
            lease_s,
            ..PoolChange::default()
        }
    }

    /// What a new pool should be.
    pub(super) fn policy(&self, hot: u32, lease_s: u64) -> Policy {
        self.change(None, None)
            .apply(&Policy::hot(hot.into(), lease_s))
    }
}
