//! A request that was asked: waits for what the guest says about it, and sends it input.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use brood_agent_protocol::{Failure, Reply, RequestId, Stream, ToGuest, limits::MAX_DATA};

use super::{
    AgentError, Loss,
    link::{Connection, SendError},
    request::{Incoming, Missing, Pending},
};

/// A request. When it is dropped before it is answered, the guest is told to end it.
#[derive(Debug)]
pub(super) struct Asked {
    connection: Arc<Connection>,
    id: RequestId,
    what: &'static str,
    pending: Arc<Pending>,
    /// The guest is told to end it when this is dropped.
    cancels: bool,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.connection.forget(self.id);
        if self.cancels && !self.pending.is_done() && self.connection.loss().is_none() {
            // Without an answer: that is passed over.
            let _ = self.connection.send(self.id, &ToGuest::Cancel);
        }
    }
}

impl Asked {
    pub(super) fn new(
        connection: &Arc<Connection>,
        id: RequestId,
        what: &'static str,
        pending: Arc<Pending>,
    ) -> Asked {
        Asked {
            connection: Arc::clone(connection),
            id,
            what,
            pending,
            cancels: true,
        }
    }

    /// Leaves the request to the guest.
    pub(super) fn leave(mut self) {
        self.cancels = false;
    }

    pub(super) fn id(&self) -> RequestId {
        self.id
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    pub(super) fn send(&self, message: &ToGuest) -> Result<(), AgentError> {
        let what = self.what;
        let sent = self.connection.send(self.id, message);
        sent.map_err(|e| match e {
            SendError::Lost(loss) => AgentError::Lost { what, loss },
            SendError::Unsendable(reason) => AgentError::Unsendable { what, reason },
        })
    }

    /// Waits for the next that the guest says, `limit` at most.
    pub(super) fn next(&self, limit: Option<Duration>) -> Result<Incoming, AgentError> {
        let until = limit.map(|limit| Instant::now() + limit);
        let next = self.pending.next(until);
        next.map_err(|missing| self.missing(&missing, limit))
    }

    /// Sends a part of these bytes as input, as soon as the guest lets it; how many bytes. None when
    /// the guest has answered, and takes no more.
    pub(super) fn send_input(
        &self,
        bytes: &[u8],
        limit: Option<Duration>,
    ) -> Result<Option<usize>, AgentError> {
        let until = limit.map(|limit| Instant::now() + limit);
        let wanted = bytes.len().min(MAX_DATA);
        let credit = self.pending.credit(wanted, until);
        let credit = credit.map_err(|missing| self.missing(&missing, limit))?;
        if let Some(length) = credit {
            self.send(&ToGuest::Data(bytes[..length].to_vec()))?;
        }
        Ok(credit)
    }

    /// The guest may send as much more of a stream as was used of it.
    pub(super) fn consumed(&self, stream: Stream, bytes: usize) -> Result<(), AgentError> {
        match self.pending.consumed(stream, bytes) {
            Some(grant) if !self.pending.is_done() => self.send(&ToGuest::Credit(stream, grant)),
            _ => Ok(()),
        }
    }

    /// Waits for the answer; events and streams before it are for nobody.
    pub(super) fn answer(self, limit: Duration) -> Result<Reply, AgentError> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.next(Some(left)) {
                Ok(Incoming::Done(Ok(reply))) => return Ok(reply),
                Ok(Incoming::Done(Err(failure))) => return Err(self.refused(failure)),
                Ok(Incoming::Data(stream, bytes)) => self.consumed(stream, bytes.len())?,
                Ok(Incoming::Event(_)) => {}
                Err(AgentError::NoAnswer { what, .. }) => {
                    return Err(AgentError::NoAnswer { what, limit });
                }
                Err(e) => return Err(e),
            }
        }
    }

    pub(super) fn refused(&self, failure: Failure) -> AgentError {
        let what = self.what;
        AgentError::Refused { what, failure }
    }

    /// The guest answered with something that does not belong to what it was asked.
    pub(super) fn unexpected(&self) -> AgentError {
        unexpected(self.what)
    }

    fn missing(&self, missing: &Missing, limit: Option<Duration>) -> AgentError {
        let what = self.what;
        match missing {
            Missing::Late => AgentError::NoAnswer {
                what,
                limit: limit.unwrap_or_default(),
            },
            Missing::Lost(loss) => AgentError::Lost {
                what,
                loss: loss.clone(),
            },
        }
    }
}

pub(super) fn unexpected(what: &'static str) -> AgentError {
    AgentError::Lost {
        what,
        loss: Loss::Violation("an answer to something else".to_owned()),
    }
}
