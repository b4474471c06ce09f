//! The host's end of the agent in a guest: typed calls over one byte stream.
//!
//! [`Agent`] is a session with an agent. A thread of its own reads what the guest says; calls block
//! until they are answered, and each has a time limit. The guest is not trusted: what it sends is
//! bounded by the windows of [`brood_agent_protocol`], and a guest that breaks the rules loses its
//! connection.
//!
//! [`prepare_clone`] makes a restored guest its own before anybody gets it.

mod asked;
mod broker;
mod channel;
mod error;
mod files;
mod link;
mod process;
mod request;
mod steps;
mod system;

use std::{
    path::Path,
    sync::{self, Arc},
    time::Duration,
};

#[cfg(target_os = "linux")]
pub(crate) use broker::Place;
#[cfg(fuzzing)]
pub(crate) use broker::fuzzing;
pub use broker::{Access, AgentPort, BROKER_COMMAND};
pub(crate) use broker::{WORDS_BEFORE_GUEST, broker};
pub use brood_agent_protocol as protocol;
pub use channel::Channel;
pub use error::{AgentError, Loss};
pub use files::FileWatch;
pub use process::{Captured, GuestProcess, Output, ProgramChoice};
pub use steps::{
    CloneIdentity, GuestStep, StepError, StepLimits, StepReport, prepare_clone, prepare_suspend,
    rehearse, undo_suspend, wake_up,
};

use self::link::Connection;
use brood_agent_protocol::AgentHello;

/// How long an agent has for an answer, where nothing else is said.
const LIMIT: Duration = Duration::from_secs(10);

/// A session with the agent of a guest. It may be used by many threads at once.
#[derive(Debug)]
pub struct Agent {
    connection: Arc<Connection>,
    hello: AgentHello,
    limit: Duration,
}

impl Agent {
    /// Begins a session over the unix socket of a guest's port. Waits for the socket, and for the
    /// agent, for so long at most.
    ///
    /// # Errors
    /// Nobody listens there, or no agent answers in time.
    pub fn connect(socket: &Path, limit: Duration) -> Result<Agent, AgentError> {
        let until = std::time::Instant::now() + limit;
        let channel = Channel::connect(socket, until)?;
        let left = until.saturating_duration_since(std::time::Instant::now());
        Agent::over(channel, left)
    }

    /// Begins a session over any byte stream.
    ///
    /// # Errors
    /// No agent answers in time, or none that speaks a version that this manager does.
    pub fn over(channel: Channel, limit: Duration) -> Result<Agent, AgentError> {
        Agent::over_while(channel, limit, &|| true)
    }

    /// The same, which is given up soon after it is no longer `wanted`.
    pub(crate) fn over_while(
        channel: Channel,
        limit: Duration,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Agent, AgentError> {
        let (connection, hello) = Connection::begin(channel, limit, wanted)?;
        Ok(Agent {
            connection: Arc::new(connection),
            hello,
            limit: LIMIT,
        })
    }

    /// The same session with another time limit for the answers of its calls.
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Agent {
        self.limit = limit;
        self
    }

    /// What the agent said of itself.
    #[must_use]
    pub fn hello(&self) -> &AgentHello {
        &self.hello
    }

    /// Why the session is over, if it is.
    #[must_use]
    pub fn loss(&self) -> Option<Loss> {
        self.connection.loss()
    }
}
