//! Steps: what a host asks of a guest in one request, one after the other.
//!
//! They have types of their own: a request in a request could hold another for ever.

use serde::{Deserialize, Serialize};

use crate::{
    list,
    message::Failure,
    os_bytes::OsBytes,
    system::{ClockState, HookResult, Hooks, Identity, Ready},
};

/// A step. Each does what the request of this name does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// As [`Request::Thaw`](crate::Request::Thaw).
    Thaw,
    /// As [`Request::Reseed`](crate::Request::Reseed).
    Reseed {
        /// At most [`MAX_ENTROPY`](crate::limits::MAX_ENTROPY) bytes.
        #[serde(with = "serde_bytes")]
        entropy: Vec<u8>,
    },
    /// As [`Request::Clock`](crate::Request::Clock), to this time and what has passed since the
    /// agent got the request.
    Clock {
        /// Nanoseconds since 1970 in UTC.
        set: u64,
    },
    /// As [`Request::Identity`](crate::Request::Identity).
    Identity(Identity),
    /// As [`Request::Hooks`](crate::Request::Hooks). A hook that fails is the last step.
    Hooks(Hooks),
    /// As [`Request::Freeze`](crate::Request::Freeze).
    Freeze {
        /// Mount points; all that have a disk behind them, when there are none.
        #[serde(with = "list")]
        paths: Vec<OsBytes>,
        /// After so many milliseconds the agent thaws by itself.
        limit_ms: u32,
    },
    /// As [`Request::Ready`](crate::Request::Ready).
    Ready,
}

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepResult {
    /// What it was answered with.
    pub result: Result<StepReply, Failure>,
    /// How long it took, in microseconds.
    pub took_us: u32,
}

/// What a step is answered with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepReply {
    /// There is nothing to say.
    Nothing,
    /// See [`Step::Clock`].
    Clock(ClockState),
    /// See [`Step::Hooks`].
    Hooks(#[serde(with = "list")] Vec<HookResult>),
    /// See [`Step::Ready`].
    Ready(Ready),
}

/// What became of all steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepResults {
    /// One for each step, in this order; the last is of the first that failed, if one did.
    #[serde(with = "list")]
    pub results: Vec<StepResult>,
    /// How long all took since the agent got the request, in microseconds.
    pub took_us: u64,
}
