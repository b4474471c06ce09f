//! Sessions with a guest's agent: how one begins, how its loss is told, and the process that lets
//! many have one.

use std::{
    env, io,
    process::ExitCode,
    time::{Duration, Instant},
};

use super::{Engine, Error, GuestRef, Limit, Process, agent_ask};
use crate::agent::{self, Access, Agent, AgentPort, WORDS_BEFORE_GUEST};

/// How long the first attempt to begin a session with the agent may take.
const FIRST_ATTEMPT: Duration = Duration::from_millis(1000);
/// How often a channel is tried that is not there yet, or that another process has to itself.
const RETRY: Duration = Duration::from_millis(2);
/// How many brokers may end before they have said hello.
const ENDED_BROKERS_MAX: u32 = 3;
/// How long the end of a guest is waited for that has closed its channel.
pub(in crate::engine) const CRASH_PATIENCE: Duration = Duration::from_secs(2);

/// How long attempts to begin a session may take: each twice as long as the one before. What an agent
/// says to a hello is for that session alone. So one that needs longer than every attempt, on an
/// overloaded host, would answer for ever and never be heard.
#[derive(Debug)]
pub(in crate::engine) struct Attempts(Duration);

impl Attempts {
    pub(in crate::engine) fn new() -> Self {
        Self(FIRST_ATTEMPT)
    }

    /// The next, if so much time is left in all.
    pub(in crate::engine) fn next(&mut self, left: Duration) -> Duration {
        let attempt = self.0;
        self.0 = self.0.saturating_mul(2);
        attempt.min(left)
    }
}

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
    let mut attempts = Attempts::new();
    let is_wanted = || wanted().is_ok() && !limit.is_cancelled();
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
        match Agent::over_while(way.channel, attempts.next(left), &is_wanted) {
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

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        io::{Read, Write},
        os::{fd::OwnedFd, unix::net::UnixStream},
        path::Path,
        sync::{Arc, Mutex},
        thread,
    };

    use brood_agent_protocol::{
        AgentHello, Decoder, RequestId, SessionId, ToGuest, ToHost, encode, limits::VERSION,
    };

    use super::*;
    use crate::agent::Channel;

    /// How many hellos of each session the agent has heard.
    type Heard = Arc<Mutex<HashMap<SessionId, u32>>>;

    /// An agent that answers the first hello of a session only when it has heard so many.
    fn answer_after(many: u32, mut host: UnixStream, heard: &Heard) {
        let mut decoder = Decoder::<ToGuest>::default();
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = host.read(&mut bytes) {
            let mut rest = &bytes[..length];
            while let Some(received) = decoder.next(&mut rest) {
                let mut heard = heard.lock().unwrap();
                let count = heard.entry(received.session).or_default();
                *count += 1;
                if *count < many {
                    continue;
                }
                let hello = ToHost::Hello(AgentHello {
                    version: VERSION,
                    instance: [1; 16],
                    agent: String::new(),
                    system: String::new(),
                });
                let mut frame = Vec::new();
                encode(received.session, RequestId::NONE, &hello, &mut frame).unwrap();
                let _ = host.write_all(&frame);
            }
        }
    }

    /// The port of a guest without a folder.
    fn port<'a>(open: &'a dyn Fn() -> io::Result<OwnedFd>) -> AgentPort<'a> {
        AgentPort {
            folder: Path::new("/nonexistent"),
            program: Path::new(""),
            guest: &[],
            open,
            channel: &Channel::of,
        }
    }

    #[test]
    fn an_agent_that_takes_longer_than_an_attempt_is_heard() {
        let heard = Heard::default();
        let open = || -> io::Result<OwnedFd> {
            let (ours, guest) = UnixStream::pair()?;
            let heard = Arc::clone(&heard);
            // More than a second has hellos.
            thread::spawn(move || answer_after(14, guest, &heard));
            Ok(ours.into())
        };
        let port = port(&open);
        let limit = Limit::of(Duration::from_secs(60));
        let failed = |e: io::Error| panic!("{e}");
        let agent = begin(&port, Access::Alone, limit, &|| Ok(()), &failed);
        assert!(agent.is_ok(), "{:?}", heard.lock().unwrap());
        assert!(
            heard.lock().unwrap().len() > 1,
            "the first attempt is short"
        );
    }

    #[test]
    fn an_attempt_ends_with_the_wish() {
        let wishes = Mutex::new(3);
        let open = || -> io::Result<OwnedFd> {
            let (ours, guest) = UnixStream::pair()?;
            thread::spawn(move || answer_after(u32::MAX, guest, &Heard::default()));
            Ok(ours.into())
        };
        let port = port(&open);
        let wanted = || {
            let mut left = wishes.lock().unwrap();
            *left -= i32::from(*left > 0);
            if *left > 0 { Ok(()) } else { Err(Error::Gone) }
        };
        let limit = Limit::of(Duration::from_secs(3600));
        let failed = |e: io::Error| panic!("{e}");
        let ended = begin(&port, Access::Alone, limit, &wanted, &failed);
        assert!(
            matches!(ended, Err(agent_ask::Error::Other(Error::Gone))),
            "{:?}",
            ended.map(drop).is_ok()
        );
    }
}
