//! Schemas of the core's types that are sent as they are: what to restore and what became of it,
//! latencies, and an examined host.

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

/// What to restore.
#[derive(Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// From where: `DIR/NAME`, or a name in the daemon's folder.
    #[schema(example = "/var/tmp/ckp/demo")]
    pub checkpoint: String,
    /// How many guests.
    #[schema(minimum = 1)]
    pub guests: u32,
    /// How many restores run at once; by default one for each core.
    #[schema(minimum = 1)]
    pub concurrency: Option<u32>,
    /// Time that each guest has from its order to its answer, in seconds. brood ends one that takes
    /// longer, and goes on with the others.
    #[schema(default = 60.0, exclusive_minimum = 0.0, maximum = 3600.0)]
    pub timeout_s: Option<f64>,
    /// Guests are named `PREFIX-1`, `PREFIX-2`, ...; the default prefix is the checkpoint's name.
    pub prefix: Option<String>,
    /// Pause the guests as soon as all have answered.
    #[serde(default)]
    pub paused: bool,
    /// Private memory that each guest may come to hold, in bytes. Admission counts with it for the
    /// worst case. A guest can write more, unless `enforce_private_limit` is set.
    #[schema(default = 1_048_576)]
    pub private_limit: Option<u64>,
    /// Have the kernel end a guest that comes to hold more than its private limit and what a guest
    /// costs besides; the KVM engine does so by a control group for each guest. Refused where it
    /// cannot be done.
    #[serde(default)]
    pub enforce_private_limit: bool,
    /// Restore even if that worst case does not fit in memory.
    #[serde(default)]
    pub overcommit: bool,
    /// Park guests that were idle for this many seconds: they give their virtual machine back to
    /// the host until the next request. By default never.
    #[schema(minimum = 0, maximum = 1e6)]
    pub park_after_s: Option<f64>,
    /// If any guest fails, destroy all guests of this request.
    #[serde(default)]
    pub all_or_nothing: bool,
    /// Disk that each guest gets a clone of: `zfs:POOL/DATASET@SNAPSHOT`, `reflink:FILE`,
    /// `reflink-or-copy:FILE`, `qcow2:FILE` or `none`; by default the disk sealed with the checkpoint.
    #[schema(example = "none")]
    pub disk: Option<String>,
    /// What the guests reach: `none`; `user`: what this host's user reaches, each guest from behind an
    /// address of its own; or `tap`: this host, by a network device for each guest (KVM). By default what the checkpoint's guest had a network card
    /// for.
    pub network: Option<super::words::Network>,
    /// Ports of this host that lead to ports of guests: `[ADDRESS:]PORT:GUEST_PORT`; `{n}` in the
    /// port stands for the number at the end of the guest's name.
    #[serde(default)]
    #[schema(example = json!(["8080:80"]))]
    pub publish: Vec<String>,
    /// Trust the checkpoint from now on: see trustCheckpoint.
    #[serde(default)]
    pub trust: bool,
}

/// What became of a restore.
#[derive(Debug, ToSchema)]
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
