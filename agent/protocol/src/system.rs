//! Messages about the guest's system.

use serde::{Deserialize, Serialize};

use crate::os_bytes::OsBytes;

/// The guest is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Drawn at random when the agent began, and nowhere but in the guest's memory: a guest that
    /// answers with its checkpoint's was restored from that.
    pub nonce: [u8; 16],
    /// How often this was asked, since the agent began.
    pub counter: u64,
}

/// Another identity for a clone. What is none stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Host name.
    pub hostname: Option<String>,
    /// See machine-id(5).
    pub machine_id: Option<[u8; 16]>,
    /// A network interface and its new address.
    pub interface: Option<Interface>,
    /// A number that changes whenever the guest is cloned or goes on from an older state. It is
    /// written to `/run/brood/generation`, and is given to hooks.
    pub generation: Option<[u8; 16]>,
}

/// A network interface and its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name; none is the first that is not the loopback.
    pub name: Option<String>,
    /// Its MAC address.
    pub mac: [u8; 6],
}

/// The guest's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// What it showed when the request came, in nanoseconds since 1970.
    pub before_ns: u64,
    /// What it shows at the answer.
    pub after_ns: u64,
}

/// What the guest knows of its load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Memory, in bytes.
    pub memory_total: u64,
    /// Memory that programs can have without swapping, in bytes.
    pub memory_available: u64,
    /// Processes that run or wait for a disk, in thousandths: means over 1, 5 and 15 minutes.
    pub load_milli: [u32; 3],
    /// Time since the system began, in milliseconds.
    pub uptime_ms: u64,
    /// Processors.
    pub cpus: u32,
    /// Processes and threads.
    pub tasks: u32,
    /// The root file system's size, in bytes.
    pub root_total: u64,
    /// What of it is free to programs, in bytes.
    pub root_available: u64,
}

/// Programs of the image to run for an occasion: executable files of
/// `/etc/brood/OCCASION.d`, one after the other, by the order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    /// `restored`, `suspending`, or another: lower case letters and `-`.
    pub occasion: String,
    /// Each is killed after so many milliseconds.
    pub limit_ms: u32,
    /// The first that fails is the last that is run.
    pub stop_at_failure: bool,
}

/// How a hook ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookResult {
    /// Its file's name.
    pub name: OsBytes,
    /// How it ended.
    pub end: HookEnd,
    /// The end of what it wrote.
    #[serde(with = "serde_bytes")]
    pub output: Vec<u8>,
    /// How long it took, in milliseconds.
    pub took_ms: u32,
}

/// See [`HookResult`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookEnd {
    /// By itself; 0 is success.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// Its time was over.
    TimedOut,
    /// It could not be started: why.
    NotStarted(String),
}

/// How a guest ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Power {
    /// The machine is switched off.
    Off,
    /// It starts again.
    Reboot,
}
