//! Calls about the guest's system.

use std::time::{Duration, Instant, SystemTime};

use brood_agent_protocol::{
    ClockState, Facts, HookResult, Hooks, Identity, OsBytes, Power, Ready, Reply, Request,
};

use super::{Agent, AgentError, asked::unexpected};

/// How wrong a guest's clock may be after it was set.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(50);
/// How long the clock is set again and again until it was set within the tolerance: on a busy host
/// most answers are late, and some are not.
const CLOCK_LIMIT: Duration = Duration::from_secs(10);

impl Agent {
    fn call(&self, what: &'static str, request: Request) -> Result<Reply, AgentError> {
        self.call_within(what, request, self.limit)
    }

    fn call_within(
        &self,
        what: &'static str,
        request: Request,
        limit: Duration,
    ) -> Result<Reply, AgentError> {
        self.connection.ask(what, request)?.answer(limit)
    }

    pub(super) fn call_for_nothing(
        &self,
        what: &'static str,
        request: Request,
    ) -> Result<(), AgentError> {
        match self.call(what, request)? {
            Reply::Nothing => Ok(()),
            _ => Err(unexpected(what)),
        }
    }

    pub(super) fn call_for<T>(
        &self,
        what: &'static str,
        request: Request,
        take: impl FnOnce(Reply) -> Option<T>,
    ) -> Result<T, AgentError> {
        take(self.call(what, request)?).ok_or_else(|| unexpected(what))
    }

    /// Asks whether the guest is there.
    ///
    /// # Errors
    /// As all calls: no answer in time, a session that is over, or the agent's own failure.
    pub fn ready(&self) -> Result<Ready, AgentError> {
        self.call_for("ready", Request::Ready, |reply| match reply {
            Reply::Ready(ready) => Some(ready),
            _ => None,
        })
    }

    /// Has the kernel's random generator take 64 new bytes, and use them at once.
    ///
    /// # Errors
    /// As all calls; or this host has no random bytes.
    pub fn reseed(&self) -> Result<(), AgentError> {
        let mut entropy = vec![0; 64];
        getrandom::fill(&mut entropy).map_err(|e| AgentError::Local {
            what: "draw random bytes",
            source: std::io::Error::other(e),
        })?;
        self.call_for_nothing("reseed the random generator", Request::Reseed { entropy })
    }

    /// Sets the guest's clock to this host's. How wrong it may be: 50 ms at most.
    ///
    /// # Errors
    /// As all calls; or all answers took so long that nobody knows what the clock shows.
    pub fn set_clock(&self) -> Result<Duration, AgentError> {
        let until = Instant::now() + CLOCK_LIMIT;
        let (mut shortest, mut lead) = (Duration::MAX, Duration::ZERO);
        loop {
            let asked = Instant::now();
            self.clock(Some(SystemTime::now() + lead))?;
            let took = asked.elapsed();
            // The guest set it at some time between, to what is right `lead` after the beginning.
            let uncertainty = lead.max(took.saturating_sub(lead));
            if uncertainty <= CLOCK_TOLERANCE {
                return Ok(uncertainty);
            }
            if Instant::now() >= until {
                return Err(AgentError::Clock { uncertainty });
            }
            shortest = shortest.min(took);
            lead = (shortest / 2).min(CLOCK_TOLERANCE);
        }
    }

    /// Asks for the guest's clock, and sets it where a time is given.
    ///
    /// # Errors
    /// As all calls.
    pub fn clock(&self, set: Option<SystemTime>) -> Result<ClockState, AgentError> {
        let set = set.map(|time| {
            let time = time.duration_since(SystemTime::UNIX_EPOCH);
            u64::try_from(time.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
        });
        let request = Request::Clock { set };
        self.call_for("set the clock", request, |reply| match reply {
            Reply::Clock(state) => Some(state),
            _ => None,
        })
    }

    /// Gives the guest another identity.
    ///
    /// # Errors
    /// As all calls.
    pub fn identify(&self, identity: Identity) -> Result<(), AgentError> {
        self.call_for_nothing("take an identity", Request::Identity(identity))
    }

    /// Runs the image's hooks for an occasion, each for `limit` at most, until one fails.
    ///
    /// # Errors
    /// As all calls; and [`AgentError::Hook`] for one that fails.
    pub fn hooks(&self, occasion: &str, limit: Duration) -> Result<Vec<HookResult>, AgentError> {
        let what = "run hooks";
        let limit_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        let request = Request::Hooks(Hooks {
            occasion: occasion.to_owned(),
            limit_ms,
            stop_at_failure: true,
        });
        // As many as an occasion can have, each with all of its time.
        let all = limit.saturating_mul(64).saturating_add(self.limit);
        let Reply::Hooks(results) = self.call_within(what, request, all)? else {
            return Err(unexpected(what));
        };
        use brood_agent_protocol::HookEnd;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        for result in &results {
            let end = match &result.end {
                HookEnd::Code(0) => continue,
                HookEnd::Code(code) => format!("ended with code {code}"),
                HookEnd::Signal(signal) => format!("was ended by signal {signal}"),
                HookEnd::TimedOut => format!("was killed after its {} ms", limit.as_millis()),
                HookEnd::NotStarted(why) => {
                    format!("could not be started: {}", crate::escaped::line(why))
                }
            };
            return Err(AgentError::Hook {
                name: text(result.name.as_bytes()),
                end,
                output: text(&result.output),
            });
        }
        Ok(results)
    }

    /// Freezes file systems; the guest thaws them by itself after `limit`. All that have a disk
    /// behind them, when no mount points are named.
    ///
    /// # Errors
    /// As all calls. Nothing is frozen then, unless no answer came.
    pub fn freeze(&self, paths: &[OsBytes], limit: Duration) -> Result<(), AgentError> {
        let request = Request::Freeze {
            paths: paths.to_vec(),
            limit_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
        };
        self.call_for_nothing("freeze file systems", request)
    }

    /// Thaws what [`Agent::freeze`] has frozen.
    ///
    /// # Errors
    /// As all calls.
    pub fn thaw(&self) -> Result<(), AgentError> {
        self.call_for_nothing("thaw file systems", Request::Thaw)
    }

    /// Has the guest write back what it holds of files.
    ///
    /// # Errors
    /// As all calls.
    pub fn sync(&self) -> Result<(), AgentError> {
        self.call_for_nothing("write files back", Request::Sync)
    }

    /// Asks for memory, load and time of running.
    ///
    /// # Errors
    /// As all calls.
    pub fn facts(&self) -> Result<Facts, AgentError> {
        self.call_for("report facts", Request::Facts, |reply| match reply {
            Reply::Facts(facts) => Some(facts),
            _ => None,
        })
    }

    /// Ends the guest: it answers, and then does.
    ///
    /// # Errors
    /// As all calls.
    pub fn shut_down(&self, power: Power) -> Result<(), AgentError> {
        self.call_for_nothing("shut down", Request::Shutdown(power))
    }
}
