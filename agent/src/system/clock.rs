//! The clock.

use std::time::{Duration, SystemTime};

use brood_agent_protocol::{ClockState, Failure, Reply};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};

use crate::{failure::Context, serve::Answer};

pub(crate) fn clock(set: Option<u64>) -> Answer {
    let state = match set {
        Some(time) => set_clock(time)?,
        None => {
            let now = now();
            ClockState {
                before_ns: now,
                after_ns: now,
            }
        }
    };
    Ok(Reply::Clock(state))
}

pub(crate) fn set_clock(time: u64) -> Result<ClockState, Failure> {
    let before_ns = now();
    let time = TimeSpec::from_duration(Duration::from_nanos(time));
    clock_settime(ClockId::CLOCK_REALTIME, time).context("cannot set the clock")?;
    Ok(ClockState {
        before_ns,
        after_ns: now(),
    })
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}
