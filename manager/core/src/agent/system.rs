//! Calls about the guest's system.

use std::time::{Duration, Instant, SystemTime};

use brood_agent_protocol::{
    ClockState, Event, Facts, HookResult, Hooks, Identity, OsBytes, Ready, Reply, Request, Step,
    StepResults,
};

use super::{Agent, AgentError, asked::unexpected, request::Incoming};

/// A time as the protocol has it: nanoseconds since 1970.
pub(super) fn nanoseconds(time: SystemTime) -> u64 {
    let time = time.duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(time.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// What is tried by steps.
pub(super) const STEPS: &str = "carry out the steps";
/// How wrong a guest's clock may be after it was set.
pub(super) const CLOCK_TOLERANCE: Duration = Duration::from_millis(50);
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

    /// 64 random bytes of this host.
    ///
    /// # Errors
    /// This host has none.
    pub fn entropy() -> Result<Vec<u8>, AgentError> {
        let mut entropy = vec![0; 64];
        getrandom::fill(&mut entropy).map_err(|e| AgentError::Local {
            what: "draw random bytes",
            source: std::io::Error::other(e),
        })?;
        Ok(entropy)
    }

    /// Has the kernel's random generator take these bytes, and use them at once.
    ///
    /// # Errors
    /// As all calls.
    pub fn reseed(&self, entropy: Vec<u8>) -> Result<(), AgentError> {
        self.call_for_nothing("reseed the random generator", Request::Reseed { entropy })
    }

    /// Sets the guest's clock to this host's. How wrong it may be: 50 ms at most.
    ///
    /// # Errors
    /// As all calls; or all answers took so long that nobody knows what the clock shows.
    pub(crate) fn set_clock(&self) -> Result<Duration, AgentError> {
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
        let set = set.map(nanoseconds);
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

    /// The request to run the image's hooks for an occasion, each for `limit` at most, until one
    /// fails.
    #[must_use]
    pub fn all_hooks(occasion: &str, limit: Duration) -> Hooks {
        Hooks {
            occasion: occasion.to_owned(),
            limit_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
            stop_at_failure: true,
        }
    }

    /// How long hooks may take: as many as an occasion can have, each with all of its time.
    fn hooks_limit(&self, limit_ms: u32) -> Duration {
        let limit = Duration::from_millis(limit_ms.into());
        limit.saturating_mul(64).saturating_add(self.limit)
    }

    /// Runs the image's hooks.
    ///
    /// # Errors
    /// As all calls; and [`AgentError::Hook`] for one that fails.
    pub fn hooks(&self, hooks: Hooks) -> Result<Vec<HookResult>, AgentError> {
        let what = "run hooks";
        let limit_ms = hooks.limit_ms;
        let all = self.hooks_limit(limit_ms);
        let Reply::Hooks(results) = self.call_within(what, Request::Hooks(hooks), all)? else {
            return Err(unexpected(what));
        };
        Self::check_hooks(&results, limit_ms)?;
        Ok(results)
    }

    /// The first of these hooks that has failed.
    pub(super) fn check_hooks(results: &[HookResult], limit_ms: u32) -> Result<(), AgentError> {
        use brood_agent_protocol::HookEnd;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        for result in results {
            let end = match &result.end {
                HookEnd::Code(0) => continue,
                HookEnd::Code(code) => format!("ended with code {code}"),
                HookEnd::Signal(signal) => format!("was ended by signal {signal}"),
                HookEnd::TimedOut => format!("was killed after its {limit_ms} ms"),
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
        Ok(())
    }

    /// Carries out steps. `begun` becomes the number of the last of which the guest said that it began.
    ///
    /// # Errors
    /// As all calls; a step that fails is told by its result.
    pub(super) fn steps(
        &self,
        steps: Vec<Step>,
        begun: &mut Option<usize>,
    ) -> Result<StepResults, AgentError> {
        // A step that may take longer than a call is told when it begins.
        let limits: Vec<Duration> = steps
            .iter()
            .map(|step| match step {
                Step::Hooks(hooks) => self.hooks_limit(hooks.limit_ms),
                _ => self.limit,
            })
            .collect();
        let asked = self.connection.ask(STEPS, Request::Steps(steps))?;
        let mut limit = self.limit;
        let mut until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match asked.next(Some(left)) {
                Ok(Incoming::Done(Ok(Reply::Steps(results)))) => return Ok(results),
                Ok(Incoming::Done(Err(failure))) => return Err(asked.refused(failure)),
                Ok(Incoming::Event(Event::StepBegan { step })) => {
                    // Each once: a guest cannot hold its host for longer than its steps may take.
                    let step = usize::try_from(step).unwrap_or(usize::MAX);
                    let is_next = begun.is_none_or(|before| before < step);
                    let Some(of_step) = limits.get(step).filter(|_| is_next) else {
                        return Err(unexpected(STEPS));
                    };
                    *begun = Some(step);
                    limit = *of_step;
                    until = Instant::now() + limit;
                }
                Ok(_) => return Err(unexpected(STEPS)),
                Err(AgentError::NoAnswer { what, .. }) => {
                    return Err(AgentError::NoAnswer { what, limit });
                }
                Err(e) => return Err(e),
            }
        }
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
}
