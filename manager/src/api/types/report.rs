//! Schemas of the core's reports that are sent as they are: of a restore, of latencies, and of an
//! examined host.

use utoipa::ToSchema;

use super::words::Status;

/// Percentiles of a set of samples, in the samples' own unit (milliseconds in a density step).
#[derive(Debug, ToSchema)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// 90 % are not longer.
    pub p90: f64,
    /// 99 % are not longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

/// One fact, its required value, and how to reach it.
#[derive(Debug, ToSchema)]
pub struct Check {
    /// The fact: a sysctl, a limit, a device, a folder.
    pub name: String,
    /// How it bears on the guests that are wanted.
    pub status: Status,
    /// The value found.
    pub found: String,
    /// The required value; empty for a fact without one.
    pub need: String,
    /// What to do, with the command.
    pub hint: Option<String>,
}

/// What became of a restore.
#[derive(Debug, ToSchema)]
pub struct Restored {
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
    /// From the order to the guest's own answer, in milliseconds.
    pub restore_ms: Percentiles,
    /// The guests, in the order in which they answered.
    pub guests: Vec<RestoredGuest>,
    /// Those that failed.
    pub errors: Vec<RestoreFailure>,
    /// Steps that failed after the guests had answered: the guests run, but are not recorded,
    /// paused or destroyed as requested.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undone: Vec<String>,
    /// Warnings of the restore.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A guest that was restored and has answered.
#[derive(Debug, ToSchema)]
pub struct RestoredGuest {
    /// Name.
    pub name: String,
    /// Id.
    pub id: String,
    /// Id of its process.
    pub pid: i32,
    /// From the order to its own answer, in milliseconds.
    pub restore_ms: f64,
    /// Nonce from its memory, 16 hexadecimal digits.
    pub nonce: String,
    /// Requests answered since it was booted.
    pub counter: u64,
}

/// A guest that was not restored.
#[derive(Debug, ToSchema)]
pub struct RestoreFailure {
    /// The name it would have had.
    pub name: String,
    /// Why.
    pub error: String,
}
