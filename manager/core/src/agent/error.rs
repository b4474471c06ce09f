//! Errors of calls to an agent.

use std::{io, path::PathBuf, time::Duration};

use brood_agent_protocol::{Failure, FailureKind};

use crate::escaped;

/// Why a call to an agent failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The guest's port cannot be reached.
    #[error("cannot connect to the guest's agent at {}: {source}", path.display())]
    Connect {
        /// The unix socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The agent did not answer in time.
    #[error(
        "the guest's agent did not answer to {what:?} within {} ms; look at the guest's console, and whether brood-agent runs there",
        limit.as_millis()
    )]
    NoAnswer {
        /// What was asked.
        what: &'static str,
        /// The time limit.
        limit: Duration,
    },
    /// The session ended before the answer.
    #[error("the session with the guest's agent ended during {what:?}: {loss}")]
    Lost {
        /// What was asked.
        what: &'static str,
        /// Why it ended.
        loss: Loss,
    },
    /// The agent answered that it could not.
    #[error("the guest's agent could not {what}: {}", escaped::line(&failure.text))]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Its answer.
        failure: Failure,
    },
    /// The agent speaks versions of the protocol that this manager does not.
    #[error(
        "the guest's agent speaks versions {oldest} to {newest} of the protocol, and this brood version {}; build the image anew",
        brood_agent_protocol::limits::VERSION
    )]
    Version {
        /// The agent's oldest.
        oldest: u16,
        /// The agent's newest.
        newest: u16,
    },
    /// What was to be sent is longer than the protocol allows.
    #[error("cannot ask the guest's agent to {what}: {reason}")]
    Unsendable {
        /// What was to be asked.
        what: &'static str,
        /// Why it cannot.
        reason: String,
    },
    /// A file on this host could not be read or written.
    #[error("cannot {what} on this host: {source}")]
    Local {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A file came over other than it was sent.
    #[error("the guest's agent says that it had {guest}, and this host had {host}; try again")]
    Digest {
        /// Bytes and digest there.
        guest: String,
        /// Bytes and digest here.
        host: String,
    },
    /// A program's output is more than the caller takes.
    #[error("the program wrote more than {limit} bytes, and was killed")]
    TooMuchOutput {
        /// The most that the caller takes.
        limit: usize,
    },
    /// The guest's clock cannot be set so exactly.
    #[error(
        "the guest's clock was set, but it may be {} ms wrong; the host or the guest is too busy",
        uncertainty.as_millis()
    )]
    Clock {
        /// How wrong it may be.
        uncertainty: Duration,
    },
    /// The guest is another than was expected.
    #[error(
        "the agent that answers was not in the checkpoint's memory: it was started again, or the channel leads to another guest"
    )]
    OtherGuest,
    /// A program of the image failed.
    #[error("the hook {} {}{}", escaped::line(name), end, tail(output))]
    Hook {
        /// Its file's name.
        name: String,
        /// How it ended.
        end: String,
        /// The end of what it wrote.
        output: String,
    },
}

fn tail(output: &str) -> String {
    let last = output.trim_end().lines().last().unwrap_or_default();
    if last.is_empty() {
        String::new()
    } else {
        format!("; it wrote: {}", escaped::line(last))
    }
}

impl AgentError {
    /// The kind of the agent's own failure, if it is one.
    #[must_use]
    pub fn failure(&self) -> Option<FailureKind> {
        match self {
            AgentError::Refused { failure, .. } => Some(failure.kind),
            _ => None,
        }
    }
}

/// Why a session with an agent is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// The stream ended.
    #[error("the guest's end of the channel was closed")]
    Closed,
    /// The stream failed.
    #[error("the channel failed: {0}")]
    Io(String),
    /// The agent's process is another.
    #[error("the agent in the guest was started again")]
    Restarted,
    /// The guest broke the rules of the protocol.
    #[error("the guest broke the protocol: {0}")]
    Violation(String),
    /// The guest takes nothing that it is sent.
    #[error("the guest did not take what it was sent within {} s", .0.as_secs())]
    Stuck(Duration),
}
