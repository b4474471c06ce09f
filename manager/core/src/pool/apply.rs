//! Declarative apply: creates or changes pools until they match the configuration, and leaves all
//! others alone.

use serde::Serialize;

use super::{Error, NewPool, Pools};
use crate::{checkpoint::Watch, state::PoolChange};

/// What had to be done to a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ApplyOutcome {
    /// There was none.
    Made,
    /// It was otherwise.
    Changed,
    /// Nothing.
    Same,
}

impl ApplyOutcome {
    /// The word for it.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Changed => "changed",
            Self::Same => "as it was",
        }
    }
}

impl Pools<'_> {
    /// Creates a pool that does not exist, or changes one that differs. Its entries follow when the
    /// pool is reconciled and filled. A caller may repeat this; it touches no other pool.
    ///
    /// # Errors
    /// [`Error::Fixed`] when a property differs that a pool keeps for good; when the pool's
    /// checkpoint is not usable.
    pub fn apply(&mut self, wanted: &NewPool, progress: Watch<'_>) -> Result<ApplyOutcome, Error> {
        let Some(row) = self.state.pool(&wanted.name)? else {
            self.create(wanted, progress)?;
            return Ok(ApplyOutcome::Made);
        };
        let checkpoint = wanted.checkpoint.absolute()?.to_string();
        let fixed = [
            ("checkpoint", row.checkpoint != checkpoint),
            ("private limit", row.private_limit != wanted.private_limit),
            (
                "enforcement of the private limit",
                row.enforce_private_limit != wanted.enforce_private_limit,
            ),
        ];
        if let Some((what, _)) = fixed.into_iter().find(|(_, differs)| *differs) {
            return Err(Error::Fixed {
                pool: row.name,
                what,
            });
        }
        if wanted.trust {
            self.state
                .trust(&self.state.open_checkpoint(&wanted.checkpoint)?)?;
        }
        let change = PoolChange {
            network: Some(wanted.network),
            publish: Some(wanted.publish.clone()),
            ..wanted.policy.into()
        };
        let network = (row.network, row.publish.clone());
        if row.policy == wanted.policy && network == change.network_of(&row) {
            return Ok(ApplyOutcome::Same);
        }
        self.change(&row.name, &change)?;
        Ok(ApplyOutcome::Changed)
    }
}
