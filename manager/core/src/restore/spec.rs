//! Restore specification: what the command line, the API and pools want restored, in one type. Its
//! JSON is the body of the API's request; what only pools set is no part of the JSON.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::Network,
    disk::Choice,
    engine::{Publish, SessionTerms},
    state::Membership,
    units::Bytes,
};

/// Default time that a guest has from its order to its answer.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// Default private limit of each guest.
pub const PRIVATE_LIMIT: Bytes = Bytes::mib(1);

/// What to restore, and what to do with the guests then.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreSpec {
    /// Bundle, as it is named.
    pub checkpoint: String,
    /// How many guests.
    pub guests: u32,
    /// How many restores run at once; by default one for each core.
    pub concurrency: Option<u32>,
    /// Time that each guest has from its order to its answer; by default [`TIMEOUT`]. A guest that
    /// takes longer is ended.
    #[serde(default, rename = "timeout_s", with = "seconds")]
    pub timeout: Option<Duration>,
    /// Guests are named `PREFIX-1`, `PREFIX-2`, ..., continuing after the last number given; the
    /// default prefix is the checkpoint's name.
    pub prefix: Option<String>,
    /// Pause each guest when all have answered.
    #[serde(default)]
    pub paused: bool,
    /// Private memory that each guest may come to hold; by default [`PRIVATE_LIMIT`].
    pub private_limit: Option<Bytes>,
    /// Have the kernel end a guest that comes to hold more.
    #[serde(default)]
    pub enforce_private_limit: bool,
    /// Restore even if the private limits do not fit in memory.
    #[serde(default)]
    pub overcommit: bool,
    /// Guests that are idle for so long give their virtual machine back until they are asked.
    #[serde(default, rename = "park_after_s", with = "seconds")]
    pub park_after: Option<Duration>,
    /// Destroy those that were restored if any fails or is not begun.
    #[serde(default)]
    pub all_or_nothing: bool,
    /// The disk that each guest gets a clone of.
    #[serde(default)]
    pub disk: Choice,
    /// What the guests reach; by default what the checkpoint's guest had a network card for.
    pub network: Option<Network>,
    /// Ports of this host that lead to ports of guests.
    #[serde(default)]
    pub publish: Vec<Publish>,
    /// Trust the checkpoint from now on. Whoever verifies the checkpoint does so before.
    #[serde(default)]
    pub trust: bool,
    /// Name of the only guest; if it is taken, the guest is named as others are.
    #[serde(skip)]
    pub name: Option<String>,
    /// Kernel and process memory of one guest; by default as measured for the checkpoint.
    #[serde(skip)]
    pub overhead: Option<Bytes>,
    /// The pool that the guests belong to, if they do.
    #[serde(skip)]
    pub membership: Option<Membership>,
}

impl RestoreSpec {
    /// What its session has to be begun with.
    pub(crate) fn terms(&self) -> SessionTerms {
        SessionTerms {
            park_after: self.park_after,
            enforces_limits: self.enforce_private_limit,
        }
    }
}

/// As many restores at once as there are cores.
#[must_use]
pub fn cores(cores: u64) -> u32 {
    u32::try_from(cores).unwrap_or(1).max(1)
}

/// Times in JSON: a number of seconds.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(|time| time.as_secs_f64()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let seconds = Option::<f64>::deserialize(deserializer)?;
        let time = seconds.map(Duration::try_from_secs_f64).transpose();
        time.map_err(D::Error::custom)
    }
}
