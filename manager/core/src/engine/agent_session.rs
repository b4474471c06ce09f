//! Sessions with a guest's agent: how one begins, how its loss is told, and the process that lets
//! many have one.

use std::{
    env, io,
    process::ExitCode,
    time::{Duration, Instant},
};

use super::{Engine, Error, GuestRef, Limit, Process, agent_ask};
use crate::agent::{self, Access, Agent, AgentPort, WORDS_BEFORE_GUEST};

/// How long one attempt to begin a session with the agent may take, before the wait is looked at
/// again.
const ATTEMPT: Duration = Duration::from_millis(1000);
/// How often a channel is tried that is not there yet, or that another process has to itself.
const RETRY: Duration = Duration::from_millis(2);
/// How many brokers may end before they have said hello.
const ENDED_BROKERS_MAX: u32 = 3;
/// How long the end of a guest is waited for that has closed its channel.
pub(in crate::engine) const CRASH_PATIENCE: Duration = Duration::from_secs(2);

/// Begins a session, as long as `wanted` does not say otherwise. `failed` is told of a channel that
/// cannot be opened, and says why it never will be, if so.
pub(in crate::engine) fn begin(
    port: &AgentPort<'_>,
    access: Access,
    limit: Limit<'_>,
    wanted: &dyn Fn() -> Result<(), Error>,
    failed: &dyn Fn(io::Error) -> Result<(), agent_ask::Error>,
) -> Result<Agent, agent_ask::Error> {
    let begin = Instant::now();
    let mut ended_brokers = 0;
    loop {
        wanted().map_err(agent_ask::Error::Other)?;
        if limit.is_cancelled() {
            return Err(agent_ask::Error::Other(Error::Interrupted));
        }
        let left = limit.timeout.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Err(agent_ask::Error::Other(Error::Timeout(limit.timeout)));
        }
        let way = match port.way(access) {
            Ok(Some(way)) => way,
            Ok(None) => {
                std::thread::sleep(RETRY);
                continue;
            }
            Err(e) => {
                failed(e)?;
                std::thread::sleep(RETRY);
                continue;
            }
        };
        match Agent::over(way.channel, left.min(ATTEMPT)) {
            Ok(agent) => return Ok(agent.with_limit(limit.timeout)),
            Err(e) => match agent_ask::Error::of(e, limit.timeout) {
                agent_ask::Error::Other(Error::Timeout(_)) => {}
                // It had been idle, and ended just then; or the guest's end was closed, and the
                // next attempt finds that out.
                agent_ask::Error::Lost(_) if way.by_broker && ended_brokers < ENDED_BROKERS_MAX => {
                    ended_brokers += 1;
                    std::thread::sleep(RETRY);
                }
                e => return Err(e),
            },
        }
    }
}

/// How a guest ended whose channel was closed; `otherwise` when it goes on.
pub(in crate::engine) fn died(
    engine: &dyn Engine,
    guest: GuestRef<'_>,
    process: Process,
    otherwise: Error,
) -> Error {
    let begin = Instant::now();
    while process.may_live() {
        if begin.elapsed() > CRASH_PATIENCE {
            return otherwise;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    match engine.ended(guest) {
        Ok(reason) => Error::Died(reason.unwrap_or_default()),
        Err(e) => e,
    }
}

/// What a broker is told of a guest whose channel does not end with it.
pub(in crate::engine) fn broker_words(process: Process) -> [String; 2] {
    [process.pid.to_string(), process.start_time.to_string()]
}

/// The broker's program; see [`AgentPort`].
#[must_use]
pub fn broker() -> ExitCode {
    let words = env::args().skip(WORDS_BEFORE_GUEST);
    let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
    let process = match numbers[..] {
        [pid, start_time] => i32::try_from(pid)
            .ok()
            .map(|pid| Process { pid, start_time }),
        _ => None,
    };
    match process {
        Some(process) => agent::broker(Some(&|| process.may_live())),
        None => agent::broker(None),
    }
}
