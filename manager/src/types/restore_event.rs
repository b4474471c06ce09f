//! Progress of a restore, as events tell it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::report;
use brood_core::{
    checkpoint::Progress,
    restore::{RestoreFailure, RestoreStep},
};

/// Progress of a restore, with its latest failure or warning.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct RestoreEvent {
    /// Id of the request that restores; empty when the daemon fills a pool by itself.
    pub(crate) request_id: String,
    /// The pool that is filled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pool: Option<String>,
    /// The bundle.
    pub(crate) checkpoint: String,
    /// Guests asked for.
    pub(crate) asked: u32,
    /// Guests restored so far.
    pub(crate) restored: u32,
    /// Guests failed so far.
    pub(crate) failed: u32,
    /// Bytes of the checkpoint that were checked so far, during the check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) verified_bytes: Option<u64>,
    /// Bytes to check in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) verify_bytes: Option<u64>,
    /// The latest failed guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<report::RestoreFailure>)]
    pub(crate) failure: Option<RestoreFailure>,
    /// The latest warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) warning: Option<String>,
}

impl RestoreEvent {
    /// Counts a step, and tells of it.
    pub(crate) fn count(&mut self, step: &RestoreStep<'_>) {
        self.failure = None;
        match step {
            RestoreStep::Restored(_) => self.restored += 1,
            RestoreStep::Failed(failure) => {
                self.failed += 1;
                self.failure = Some((*failure).clone());
            }
            RestoreStep::Admitted { .. }
            | RestoreStep::NurseryReplaced
            | RestoreStep::Exposed(_) => {}
        }
        self.warning = step.warning();
    }

    /// Tells how far the check of the checkpoint is.
    pub(crate) fn verifying(&self, progress: Progress) -> Self {
        Self {
            verified_bytes: Some(progress.done.0),
            verify_bytes: Some(progress.total.0),
            ..self.clone()
        }
    }
}
