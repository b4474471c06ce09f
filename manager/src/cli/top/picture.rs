//! Picture: the host, pools and guests at one moment.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    api::{events::RestoreEvent, sample::HostSample},
    types::{Guest, Pool},
};
use brood_core::{guests::GuestState, units::Bytes};

/// The guests, pools and host at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Picture {
    /// When, RFC 3339.
    pub(crate) at: String,
    /// Process id of the daemon that was asked; none without a daemon.
    pub(crate) daemon: Option<u32>,
    /// The host.
    pub(crate) host: HostSample,
    /// What guests cost.
    pub(crate) density: Density,
    /// Pools, by name.
    pub(crate) pools: Vec<PoolLine>,
    /// Restores under way, as far as the daemon does them.
    pub(crate) restores: Vec<RestoreEvent>,
    /// Guests, in the order of their records.
    pub(crate) guests: Vec<Guest>,
}

/// What guests cost that have a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Density {
    /// How many they are.
    pub(crate) guests: u64,
    /// What they have to themselves together: guest memory, their processes' own, page tables, and
    /// other memory of the kernel.
    pub(crate) own_bytes: u64,
    /// That, for each, in MiB.
    pub(crate) mib_per_guest: f64,
}

impl Density {
    /// Of these guests.
    pub(crate) fn of(guests: &[Guest]) -> Self {
        let costs = guests.iter().filter_map(|guest| guest.usage);
        let (mut count, mut own) = (0_u64, Bytes(0));
        for usage in costs {
            count += 1;
            own = own + usage.cost();
        }
        Self {
            guests: count,
            own_bytes: own.0,
            mib_per_guest: Bytes(own.0.checked_div(count).unwrap_or(0)).as_mib(),
        }
    }
}

/// A pool, and the claims to it that the daemon has seen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PoolLine {
    /// The pool.
    #[serde(flatten)]
    pub(crate) pool: Pool,
    /// Claims, as far as a daemon counts them.
    pub(crate) claims: Option<Claims>,
}

/// Claims to a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Claims {
    /// Since the daemon began.
    pub(crate) total: u64,
    /// Their mean latency, in milliseconds.
    pub(crate) mean_ms: Option<f64>,
    /// Claims in each of the last seconds; none without an event stream.
    pub(crate) per_second: Option<f64>,
    /// Median latency of the last minute, in milliseconds.
    pub(crate) p50_ms: Option<f64>,
    /// 99 % of the last minute were not slower, in milliseconds.
    pub(crate) p99_ms: Option<f64>,
}

impl Picture {
    /// Guests in this state.
    pub(crate) fn count(&self, state: GuestState) -> usize {
        self.guests.iter().filter(|g| g.state == state).count()
    }

    /// Seconds since a guest was restored.
    pub(crate) fn age_s(&self, guest: &Guest) -> Option<i64> {
        let (now, then): (Timestamp, Timestamp) =
            (self.at.parse().ok()?, guest.created_at.parse().ok()?);
        Some((now.as_second() - then.as_second()).max(0))
    }
}
