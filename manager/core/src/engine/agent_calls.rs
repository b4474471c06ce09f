//! Calls to a guest's `brood-agent`, as an engine with such guests makes them.

use super::{Answer, Engine, Error, GuestRef, Limit, Process, agent_ask, agent_session::died};
use crate::agent::{Access, Agent, wake_up};

/// An engine whose guests have the agent.
pub(in crate::engine) trait AgentCalls: Engine + Sized {
    /// Begins a session with the agent of a running guest; that guest's process with it.
    fn open_agent(
        &self,
        guest: GuestRef<'_>,
        access: Access,
        limit: Limit<'_>,
    ) -> Result<(Process, Result<Agent, agent_ask::Error>), Error>;

    /// Has the agent do something.
    fn with_agent<T>(
        &self,
        guest: GuestRef<'_>,
        access: Access,
        limit: Limit<'_>,
        act: impl FnOnce(Agent) -> Result<T, agent_ask::Error>,
    ) -> Result<T, Error> {
        let (process, agent) = self.open_agent(guest, access, limit)?;
        agent.and_then(act).map_err(|e| match e {
            agent_ask::Error::Lost(e) => died(self, guest, process, e),
            agent_ask::Error::Other(e) => e,
        })
    }

    /// Puts a request in words to the agent.
    fn ask_agent(
        &self,
        guest: GuestRef<'_>,
        words: &[String],
        limit: Limit<'_>,
    ) -> Result<Box<dyn Answer>, Error> {
        let request = agent_ask::parse(words)?;
        let access = if request.is_long() {
            Access::Shared
        } else {
            Access::Short
        };
        self.with_agent(guest, access, limit, |agent| request.put(&agent, limit))
    }

    /// Tells the agent that its guest goes on.
    fn wake_agent(&self, guest: GuestRef<'_>, limit: Limit<'_>) -> Result<(), Error> {
        self.with_agent(guest, Access::Short, limit, |agent| {
            wake_up(&agent, None)
                .map(drop)
                .map_err(|e| agent_ask::Error::of(e.source, limit.timeout))
        })
    }
}
