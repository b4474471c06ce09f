//! Calls of a guest's `brood-agent`: those of commands, and the steps around a suspend.

use std::{io, time::Duration};

use super::{
    Bhyve,
    folder::{Folder, Record},
    framed, look,
};
use crate::{
    agent::{Access, Agent, AgentPort, StepLimits, prepare_suspend, undo_suspend},
    checkpoint::AgentProtocol,
    engine::{Error, GuestRef, Limit, Process, agent_ask, agent_calls::AgentCalls, agent_session},
};

/// How long `brood-agent` has for its part of a suspend.
const AGENT_LIMIT: Duration = Duration::from_secs(10);
/// Refusal to run programs in a guest.
const NO_PROGRAMS: &str = "this guest has no brood-agent to run programs: import its checkpoint with \
     --agent COM --agent-protocol frames";

impl AgentCalls for Bhyve {
    fn open_agent(
        &self,
        guest: GuestRef<'_>,
        access: Access,
        limit: Limit<'_>,
    ) -> Result<(Process, Result<Agent, agent_ask::Error>), Error> {
        let (folder, process) = self.alive(guest)?;
        let record = folder.record().map_err(look)?.ok_or(Error::Gone)?;
        let (AgentProtocol::Frames, Some(line)) = (record.guest.agent_protocol, record.agent)
        else {
            return Err(Error::Refused(NO_PROGRAMS.to_owned()));
        };
        let path = self.host.path(&line);
        let port = AgentPort {
            folder: folder.path(),
            program: &self.program,
            guest: &agent_session::broker_words(process),
            open: &|| framed::open(&path),
            channel: &|line| framed::channel(line, process),
        };
        let failed = |source: io::Error| {
            if !process.may_live() {
                return Err(agent_ask::Error::Lost(Error::Gone));
            }
            // Its process is on its way out.
            let ends = source.raw_os_error() == Some(libc::EIO);
            if ends || source.kind() == io::ErrorKind::NotFound {
                return Ok(());
            }
            Err(agent_ask::Error::Other(Error::Io {
                action: "open the guest's serial line",
                source,
            }))
        };
        let agent = agent_session::begin(&port, access, limit, &|| Ok(()), &failed);
        Ok((process, agent))
    }
}

impl Bhyve {
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
        self.with_agent(guest, Access::Short, Limit::of(AGENT_LIMIT), |agent| {
            prepare_suspend(&agent, StepLimits::default())
                .map_err(|e| agent_ask::Error::Other(Error::Refused(e.to_string())))
        })?;
        Ok(true)
    }

    pub(super) fn undo_suspend(&self, guest: GuestRef<'_>) -> Result<(), Error> {
        self.with_agent(guest, Access::Short, Limit::of(AGENT_LIMIT), |agent| {
            undo_suspend(&agent).map_err(|e| agent_ask::Error::Other(Error::Refused(e.to_string())))
        })
    }
}
