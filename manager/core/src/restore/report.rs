//! Restore report: what became of a restore, in one type for the command line, the API and pools;
//! and the steps that an observer is told on the way.

use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::Exposure, guest_id::GuestId, host::admission::Verdict, percentiles::Percentiles,
};

/// What became of a restore.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// Bundle, as it was named.
    pub checkpoint: String,
    /// Guests asked for.
    pub asked: usize,
    /// Guests that are left.
    pub restored: usize,
    /// Guests that failed.
    pub failed: usize,
    /// Guests that brood did not begin because the restore was cancelled.
    pub not_begun: usize,
    /// Whether the restore was cancelled before all guests were begun.
    pub interrupted: bool,
    /// Whether the guests that were restored were destroyed again.
    pub rolled_back: bool,
    /// Whether guests were paused.
    pub paused: bool,
    /// From the admission to the last answer, in seconds.
    pub wall_s: f64,
    /// Time of the check of the checkpoint's memory before that, in seconds; 0 when it was checked
    /// before.
    pub verify_s: f64,
    /// From the order to the guest's own answer, in milliseconds, of all guests that were restored,
    /// also if they were destroyed again.
    pub restore_ms: Percentiles,
    /// The guests, in the order in which they answered.
    pub guests: Vec<RestoredGuest>,
    /// Those that failed.
    #[serde(rename = "errors")]
    pub failures: Vec<RestoreFailure>,
    /// Steps that failed after the guests had answered: the guests run, but are not recorded,
    /// paused or destroyed as requested.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undone: Vec<String>,
    /// Warnings of the restore; see [`RestoreStep::warning`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A guest that was restored and has answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestoredGuest {
    /// Name.
    pub name: String,
    /// Id.
    pub id: GuestId,
    /// Id of its process. Another process may have it when the guest has ended.
    pub pid: i32,
    /// From the order to its own answer, in milliseconds.
    pub restore_ms: f64,
    /// Nonce from its memory, 16 hexadecimal digits in JSON.
    #[serde(with = "hexadecimal")]
    pub nonce: u64,
    /// Requests answered since it was booted.
    pub counter: u64,
}

/// A guest that was not restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreFailure {
    /// The name it would have had.
    pub name: String,
    /// Why.
    pub error: String,
}

/// How a restore ended, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreEnd {
    /// All guests were restored.
    Whole,
    /// Some were, some failed.
    Some,
    /// None is left.
    Nothing,
    /// It was cancelled before all were begun.
    Interrupted,
}

impl RestoreReport {
    /// How it ended.
    #[must_use]
    pub fn ending(&self) -> RestoreEnd {
        if self.interrupted {
            RestoreEnd::Interrupted
        } else if self.failed == 0 && self.not_begun == 0 && self.undone.is_empty() {
            RestoreEnd::Whole
        } else if self.restored == 0 && self.undone.is_empty() {
            RestoreEnd::Nothing
        } else {
            RestoreEnd::Some
        }
    }

    /// Guests that answered, those too that were destroyed again.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.asked
            .saturating_sub(self.failed)
            .saturating_sub(self.not_begun)
    }
}

/// Step of a restore, as its observer is told.
#[derive(Debug)]
pub enum RestoreStep<'a> {
    /// Admitted; memory is overcommitted when there is a risk to tell.
    Admitted {
        /// The verdict of admission.
        verdict: &'a Verdict,
    },
    /// A guest has answered.
    Restored(&'a RestoredGuest),
    /// A guest was not restored.
    Failed(&'a RestoreFailure),
    /// The nursery was killed; a new one goes on.
    NurseryReplaced,
    /// Others may change the checkpoint.
    Exposed(&'a Exposure),
}

impl RestoreStep<'_> {
    /// The warning in it, if it has one.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        match self {
            Self::Admitted { verdict } => verdict
                .memory_risk()
                .map(|risk| format!("overcommitted: {risk}")),
            Self::Exposed(exposure) => Some(exposure.to_string()),
            Self::NurseryReplaced => Some("the nursery was killed; a new one goes on".to_owned()),
            Self::Restored(_) | Self::Failed(_) => None,
        }
    }
}

/// Nonces in JSON: 16 hexadecimal digits.
mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(nonce: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{nonce:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let digits = String::deserialize(deserializer)?;
        u64::from_str_radix(&digits, 16).map_err(D::Error::custom)
    }
}
