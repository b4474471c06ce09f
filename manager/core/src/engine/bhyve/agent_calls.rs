//! Calls of a guest's `brood-agent`: those of commands, and the steps around a suspend.

use std::time::Duration;

use super::{
    Bhyve,
    folder::{Folder, Record},
    framed, look,
};
use crate::{
    agent::{Agent, StepLimits, prepare_suspend, undo_suspend},
    checkpoint::AgentProtocol,
    engine::{Engine, Error, GuestRef, Limit, agent_ask},
};

/// How long `brood-agent` has for its part of a suspend.
const AGENT_LIMIT: Duration = Duration::from_secs(10);
/// Refusal to run programs in a guest.
const NO_PROGRAMS: &str = "this guest has no brood-agent to run programs: import its checkpoint with \
     --agent COM --agent-protocol frames";

impl Bhyve {
    /// Has the `brood-agent` of a running guest do something.
    pub(super) fn with_agent<T>(
        &self,
        guest: GuestRef<'_>,
        limit: Limit<'_>,
        act: impl FnOnce(Agent) -> Result<T, agent_ask::Error>,
    ) -> Result<T, Error> {
        let (folder, process) = self.alive(guest)?;
        let record = folder.record().map_err(look)?.ok_or(Error::Gone)?;
        let (AgentProtocol::Frames, Some(line)) = (record.guest.agent_protocol, record.agent)
        else {
            return Err(Error::Refused(NO_PROGRAMS.to_owned()));
        };
        let path = self.host.path(&line);
        let done = framed::connect(&folder, &path, process, limit).and_then(act);
        done.map_err(|e| match e {
            agent_ask::Error::Lost(_) if !process.may_live() => match self.ended(guest) {
                Ok(reason) => Error::Died(reason.unwrap_or_default()),
                Err(e) => e,
            },
            agent_ask::Error::Lost(e) | agent_ask::Error::Other(e) => e,
        })
    }

    /// Has a `brood-agent` make its guest ready for a suspend; whether there was one. A suspend that
    /// an earlier command began goes on without.
    pub(super) fn prepare_suspend(
        &self,
        guest: GuestRef<'_>,
        folder: &Folder,
        record: &Record,
    ) -> Result<bool, Error> {
        let has_begun = folder.suspending().map_err(look)?.is_some();
        if record.guest.agent_protocol == AgentProtocol::Lines || has_begun {
            return Ok(false);
        }
        self.with_agent(guest, Limit::of(AGENT_LIMIT), |agent| {
            prepare_suspend(&agent, StepLimits::default())
                .map_err(|e| agent_ask::Error::Other(Error::Refused(e.to_string())))
        })?;
        Ok(true)
    }

    pub(super) fn undo_suspend(&self, guest: GuestRef<'_>) -> Result<(), Error> {
        self.with_agent(guest, Limit::of(AGENT_LIMIT), |agent| {
            undo_suspend(&agent).map_err(|e| agent_ask::Error::Other(Error::Refused(e.to_string())))
        })
    }
}
