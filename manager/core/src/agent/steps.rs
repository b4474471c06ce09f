//! Steps that make a guest safe to hand out, to suspend and to wake up.
//!
//! A clone has the memory of its checkpoint: the same random generator, the same clock, the same
//! names. Nobody gets it before all steps are done; an error says which was not.

use std::{
    fmt,
    time::{Duration, Instant, SystemTime},
};

use brood_agent_protocol::{FailureKind, Identity, Interface, Ready, Step, StepReply, StepResults};

use super::{
    Agent, AgentError,
    asked::unexpected,
    system::{CLOCK_TOLERANCE, STEPS, nanoseconds},
};

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestStep {
    /// File systems that the checkpoint has frozen are thawed.
    Thaw,
    /// The random generator gets new entropy.
    Reseed,
    /// The clock is set.
    Clock,
    /// Host name, machine-id, MAC address and generation are changed.
    Identity,
    /// The image's programs run.
    Hooks,
    /// File systems are frozen.
    Freeze,
    /// The guest says that it is ready.
    Ready,
}

impl GuestStep {
    /// What was tried: a verb and its object.
    fn tried(self) -> &'static str {
        match self {
            GuestStep::Thaw => "thaw file systems",
            GuestStep::Reseed => "reseed the random generator",
            GuestStep::Clock => "set the clock",
            GuestStep::Identity => "take an identity",
            GuestStep::Hooks => "run hooks",
            GuestStep::Freeze => "freeze file systems",
            GuestStep::Ready => "ready",
        }
    }
}

impl fmt::Display for GuestStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GuestStep::Thaw => "thaw",
            GuestStep::Reseed => "reseed",
            GuestStep::Clock => "clock",
            GuestStep::Identity => "identity",
            GuestStep::Hooks => "hooks",
            GuestStep::Freeze => "freeze",
            GuestStep::Ready => "ready",
        })
    }
}

/// A step failed.
#[derive(Debug)]
pub struct StepError {
    /// Which; the first that may not be done, where the guest did not say.
    pub step: GuestStep,
    /// It may have been one of those behind it.
    pub or_later: bool,
    /// Why.
    pub source: AgentError,
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            step,
            or_later,
            source,
        } = self;
        let later = if *or_later { " or a later one" } else { "" };
        write!(
            f,
            "the step \"{step}\"{later} in the guest failed: {source}"
        )
    }
}

impl std::error::Error for StepError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Who a clone is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneIdentity {
    /// Its host name.
    pub hostname: String,
    /// Its MAC address, if it has a network.
    pub mac: Option<[u8; 6]>,
    /// Its machine-id.
    pub machine_id: [u8; 16],
    /// Its generation: new for each clone and each return to an older state.
    pub generation: [u8; 16],
}

/// Time limits of steps that depend on the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// For each hook.
    pub hook: Duration,
    /// For how long file systems stay frozen when nobody thaws them.
    pub freeze: Duration,
}

impl Default for StepLimits {
    fn default() -> StepLimits {
        StepLimits {
            hook: Duration::from_secs(10),
            freeze: Duration::from_secs(60),
        }
    }
}

/// What the steps did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepReport {
    /// What the guest said at the end.
    pub ready: Option<Ready>,
    /// How long each step took in the guest.
    pub took: Vec<(GuestStep, Duration)>,
}

/// Steps to ask for.
struct Steps<'a> {
    agent: &'a Agent,
    asked: Vec<(GuestStep, Step)>,
    /// What the guest's agent has to answer at the end.
    nonce: Option<[u8; 16]>,
}

impl<'a> Steps<'a> {
    fn new(agent: &'a Agent) -> Steps<'a> {
        Steps {
            agent,
            asked: Vec::with_capacity(8),
            nonce: None,
        }
    }

    fn add(mut self, kind: GuestStep, step: Step) -> Self {
        self.asked.push((kind, step));
        self
    }

    fn hooks(self, occasion: &str, limit: Duration) -> Self {
        self.add(
            GuestStep::Hooks,
            Step::Hooks(Agent::all_hooks(occasion, limit)),
        )
    }

    /// Thaw, reseed, clock.
    fn awake(self) -> Result<Self, StepError> {
        let entropy = Agent::entropy().map_err(|source| StepError {
            step: GuestStep::Reseed,
            or_later: false,
            source,
        })?;
        let thawed = self.add(GuestStep::Thaw, Step::Thaw);
        let reseeded = thawed.add(GuestStep::Reseed, Step::Reseed { entropy });
        Ok(reseeded.add(GuestStep::Clock, Step::Clock { set: 0 }))
    }

    fn identity(self, identity: &CloneIdentity) -> Self {
        let identity = Identity {
            hostname: Some(identity.hostname.clone()),
            machine_id: Some(identity.machine_id),
            interface: identity.mac.map(|mac| Interface { name: None, mac }),
            generation: Some(identity.generation),
        };
        self.add(GuestStep::Identity, Step::Identity(identity))
    }

    /// The guest has to be the one whose agent answered with this nonce before.
    fn ready(mut self, nonce: Option<[u8; 16]>) -> Self {
        self.nonce = nonce;
        self.add(GuestStep::Ready, Step::Ready)
    }

    /// Has the guest carry them out: all by one request, or one by one where its agent is older than
    /// that request.
    fn run(mut self) -> Result<StepReport, StepError> {
        let asked = Instant::now();
        for (_, step) in &mut self.asked {
            if let Step::Clock { set } = step {
                *set = nanoseconds(SystemTime::now());
            }
        }
        let steps = self.asked.iter().map(|(_, step)| step.clone()).collect();
        let mut begun = None;
        match self.agent.steps(steps, &mut begun) {
            Ok(done) => {
                let in_guest = Duration::from_micros(done.took_us);
                let on_the_way = asked.elapsed().saturating_sub(in_guest);
                self.report(done, on_the_way)
            }
            Err(AgentError::Refused { failure, .. })
                if failure.kind == FailureKind::Unsupported =>
            {
                self.one_by_one()
            }
            Err(source) => Err(self.error(begun.unwrap_or(0), true, source)),
        }
    }

    fn error(&self, at: usize, or_later: bool, source: AgentError) -> StepError {
        let last = self.asked.len().saturating_sub(1);
        let step = self.asked.get(at.min(last));
        StepError {
            step: step.map_or(GuestStep::Ready, |(step, _)| *step),
            or_later: or_later && at < last,
            source,
        }
    }

    /// Looks at the results of all steps. `on_the_way` is how long the clock's time may have been.
    fn report(&self, done: StepResults, on_the_way: Duration) -> Result<StepReport, StepError> {
        let mut report = StepReport {
            ready: None,
            took: Vec::with_capacity(self.asked.len()),
        };
        let mut results = done.results.into_iter();
        for (at, (kind, step)) in self.asked.iter().enumerate() {
            let failed = |source| self.error(at, false, source);
            let result = results.next().ok_or_else(|| failed(unexpected(STEPS)))?;
            let reply = result.result.map_err(|failure| {
                failed(AgentError::Refused {
                    what: kind.tried(),
                    failure,
                })
            })?;
            match (step, reply) {
                (Step::Clock { .. }, StepReply::Clock(_)) if on_the_way > CLOCK_TOLERANCE => {
                    let _ = self.agent.set_clock().map_err(failed)?;
                }
                (Step::Clock { .. }, StepReply::Clock(_)) => {}
                (Step::Hooks(hooks), StepReply::Hooks(results)) => {
                    Agent::check_hooks(&results, hooks.limit_ms).map_err(failed)?;
                }
                (Step::Ready, StepReply::Ready(ready)) => {
                    self.check_nonce(&ready).map_err(failed)?;
                    report.ready = Some(ready);
                }
                (
                    Step::Thaw | Step::Reseed { .. } | Step::Identity(_) | Step::Freeze { .. },
                    StepReply::Nothing,
                ) => {}
                _ => return Err(failed(unexpected(STEPS))),
            }
            let took = Duration::from_micros(result.took_us.into());
            report.took.push((*kind, took));
        }
        Ok(report)
    }

    fn check_nonce(&self, ready: &Ready) -> Result<(), AgentError> {
        match self.nonce {
            Some(nonce) if nonce != ready.nonce => Err(AgentError::OtherGuest),
            _ => Ok(()),
        }
    }

    /// The same for an agent that knows of no steps.
    fn one_by_one(self) -> Result<StepReport, StepError> {
        let mut report = StepReport {
            ready: None,
            took: Vec::with_capacity(self.asked.len()),
        };
        for (at, (kind, step)) in self.asked.iter().enumerate() {
            let began = Instant::now();
            let done = self.one(step.clone(), &mut report.ready);
            done.map_err(|source| self.error(at, false, source))?;
            report.took.push((*kind, began.elapsed()));
        }
        Ok(report)
    }

    fn one(&self, step: Step, answer: &mut Option<Ready>) -> Result<(), AgentError> {
        let agent = self.agent;
        match step {
            Step::Thaw => agent.thaw(),
            Step::Reseed { entropy } => agent.reseed(entropy),
            Step::Clock { .. } => agent.set_clock().map(drop),
            Step::Identity(identity) => agent.identify(identity),
            Step::Hooks(hooks) => agent.hooks(hooks).map(drop),
            Step::Freeze { paths, limit_ms } => {
                agent.freeze(&paths, Duration::from_millis(limit_ms.into()))
            }
            Step::Ready => {
                let ready = agent.ready()?;
                *answer = Some(ready);
                self.check_nonce(&ready)
            }
        }
    }
}

/// Makes a restored guest its own: thaw, reseed, clock, identity, hooks `restored`, ready. `nonce` is
/// what the checkpoint's agent answered, where that is known.
///
/// # Errors
/// Which step failed, and why. The guest is not to be handed out then.
pub fn prepare_clone(
    agent: &Agent,
    identity: &CloneIdentity,
    nonce: Option<[u8; 16]>,
    limits: StepLimits,
) -> Result<StepReport, StepError> {
    Steps::new(agent)
        .awake()?
        .identity(identity)
        .hooks("restored", limits.hook)
        .ready(nonce)
        .run()
}

/// Has the first guest of an image do what each of its clones will do, but for hooks: what that
/// allocates is then in the checkpoint, and shared.
///
/// # Errors
/// Which step failed, and why.
pub fn rehearse(agent: &Agent, identity: &CloneIdentity) -> Result<StepReport, StepError> {
    let steps = Steps::new(agent).awake()?.identity(identity);
    steps.ready(None).run()
}

/// Makes a guest ready for a suspend: hooks `suspending`, freeze. What was frozen is thawed by
/// [`wake_up`], by [`undo_suspend`], or by the guest when the time is over.
///
/// # Errors
/// Which step failed, and why. The guest goes on as before.
pub fn prepare_suspend(agent: &Agent, limits: StepLimits) -> Result<StepReport, StepError> {
    let freeze = Step::Freeze {
        paths: Vec::new(),
        limit_ms: u32::try_from(limits.freeze.as_millis()).unwrap_or(u32::MAX),
    };
    let prepared = Steps::new(agent)
        .hooks("suspending", limits.hook)
        .add(GuestStep::Freeze, freeze)
        .run();
    if let Err(failed) = &prepared
        && (failed.step == GuestStep::Freeze || failed.or_later)
    {
        // The answer may have been late, and the freeze not.
        let _ = agent.thaw();
    }
    prepared
}

/// The suspend that the guest was made ready for did not happen: thaw.
///
/// # Errors
/// Why it is still frozen.
pub fn undo_suspend(agent: &Agent) -> Result<(), StepError> {
    agent.thaw().map_err(|source| StepError {
        step: GuestStep::Thaw,
        or_later: false,
        source,
    })
}

/// Makes a guest that goes on after a suspend fit for use: thaw, reseed, clock, ready. It keeps its
/// identity.
///
/// # Errors
/// Which step failed, and why.
pub fn wake_up(agent: &Agent, nonce: Option<[u8; 16]>) -> Result<StepReport, StepError> {
    Steps::new(agent).awake()?.ready(nonce).run()
}
