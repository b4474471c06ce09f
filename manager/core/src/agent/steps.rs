//! Steps that make a guest safe to hand out, to suspend and to wake up.
//!
//! A clone has the memory of its checkpoint: the same random generator, the same clock, the same
//! names. Nobody gets it before all steps are done; an error says which was not.

use std::{
    fmt,
    time::{Duration, Instant},
};

use brood_agent_protocol::{Identity, Interface, Ready};

use super::{Agent, AgentError};

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
#[derive(Debug, thiserror::Error)]
#[error("the step {step:?} in the guest failed: {source}", step = step.to_string())]
pub struct StepError {
    /// Which.
    pub step: GuestStep,
    /// Why.
    pub source: AgentError,
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
    /// How long each step took.
    pub took: Vec<(GuestStep, Duration)>,
}

/// Runs steps one after the other, and takes their time.
struct Steps<'a> {
    agent: &'a Agent,
    took: Vec<(GuestStep, Duration)>,
}

impl<'a> Steps<'a> {
    fn new(agent: &'a Agent) -> Steps<'a> {
        let took = Vec::with_capacity(8);
        Steps { agent, took }
    }

    fn step<T>(
        &mut self,
        step: GuestStep,
        act: impl FnOnce(&Agent) -> Result<T, AgentError>,
    ) -> Result<T, StepError> {
        let began = Instant::now();
        let done = act(self.agent).map_err(|source| StepError { step, source })?;
        self.took.push((step, began.elapsed()));
        Ok(done)
    }

    /// The guest has to be the one whose agent answered with this nonce before.
    fn ready(mut self, nonce: Option<[u8; 16]>) -> Result<StepReport, StepError> {
        let ready = self.step(GuestStep::Ready, |agent| {
            let ready = agent.ready()?;
            match nonce {
                Some(nonce) if nonce != ready.nonce => Err(AgentError::OtherGuest),
                _ => Ok(ready),
            }
        })?;
        Ok(StepReport {
            ready: Some(ready),
            took: self.took,
        })
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
    let mut steps = Steps::new(agent);
    steps.step(GuestStep::Thaw, Agent::thaw)?;
    steps.step(GuestStep::Reseed, Agent::reseed)?;
    steps.step(GuestStep::Clock, Agent::set_clock)?;
    steps.step(GuestStep::Identity, |agent| {
        agent.identify(Identity {
            hostname: Some(identity.hostname.clone()),
            machine_id: Some(identity.machine_id),
            interface: identity.mac.map(|mac| Interface { name: None, mac }),
            generation: Some(identity.generation),
        })
    })?;
    steps.step(GuestStep::Hooks, |agent| {
        agent.hooks("restored", limits.hook)
    })?;
    steps.ready(nonce)
}

/// Makes a guest ready for a suspend: hooks `suspending`, freeze. What was frozen is thawed by
/// [`wake_up`], by [`undo_suspend`], or by the guest when the time is over.
///
/// # Errors
/// Which step failed, and why. The guest goes on as before.
pub fn prepare_suspend(agent: &Agent, limits: StepLimits) -> Result<StepReport, StepError> {
    let mut steps = Steps::new(agent);
    steps.step(GuestStep::Hooks, |agent| {
        agent.hooks("suspending", limits.hook)
    })?;
    let frozen = steps.step(GuestStep::Freeze, |agent| agent.freeze(&[], limits.freeze));
    if let Err(failed) = frozen {
        // The answer may have been late, and the freeze not.
        let _ = agent.thaw();
        return Err(failed);
    }
    Ok(StepReport {
        ready: None,
        took: steps.took,
    })
}

/// The suspend that the guest was made ready for did not happen: thaw.
///
/// # Errors
/// Why it is still frozen.
pub fn undo_suspend(agent: &Agent) -> Result<(), StepError> {
    Steps::new(agent).step(GuestStep::Thaw, Agent::thaw)
}

/// Makes a guest that goes on after a suspend fit for use: thaw, reseed, clock, ready. It keeps its
/// identity.
///
/// # Errors
/// Which step failed, and why.
pub fn wake_up(agent: &Agent, nonce: Option<[u8; 16]>) -> Result<StepReport, StepError> {
    let mut steps = Steps::new(agent);
    steps.step(GuestStep::Thaw, Agent::thaw)?;
    steps.step(GuestStep::Reseed, Agent::reseed)?;
    steps.step(GuestStep::Clock, Agent::set_clock)?;
    steps.ready(nonce)
}
