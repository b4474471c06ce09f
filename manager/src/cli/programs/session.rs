//! A session with the agent of a guest, and how errors of it are told.

use brood_core::{
    agent::{Agent, AgentError, protocol::FailureKind},
    guests::Guests,
};

use super::{ANSWER_LIMIT, NO_PROGRAM, NOT_RUN, OURS};
use crate::{cli::output::local, config::Config, failure::Failure};

/// A session with a guest's agent.
pub(super) struct GuestSession<'a> {
    config: &'a Config,
    guest: &'a str,
    pub(super) agent: Agent,
}

/// Does something with the guests of this state folder.
pub(super) fn with_guests<T>(
    config: &Config,
    act: impl FnOnce(&mut Guests<'_>) -> Result<T, brood_core::guests::Error>,
) -> Result<T, Failure> {
    local(config).change_guests(act)
}

impl<'a> GuestSession<'a> {
    /// Begins one.
    pub(super) fn begin(config: &'a Config, guest: &'a str) -> Result<Self, Failure> {
        let agent = with_guests(config, |guests| guests.agent(guest, ANSWER_LIMIT))?;
        Ok(Self {
            config,
            guest,
            agent,
        })
    }

    /// An error of the agent, as it is told: when the session has ended with the guest, how that did.
    pub(super) fn failure(&self, error: &AgentError) -> Failure {
        let guest = self.guest;
        if let AgentError::Lost { .. } = error
            && let Err(why) = with_guests(self.config, |guests| guests.outlives_its_channel(guest))
        {
            return why;
        }
        let hint = match error {
            AgentError::NoAnswer { .. } => Some(format!(
                "see whether it runs: brood show {guest}; what its console says: brood logs {guest}"
            )),
            AgentError::Lost { .. } => Some(
                "what was under way in the guest was ended; try again, and see `brood logs` if it \
                 fails again"
                    .to_owned(),
            ),
            _ => None,
        };
        Failure::new(&format!("guest {guest}: {error}"), hint)
    }

    /// The same of a program's run, with the exit code that says so.
    pub(super) fn program_failure(&self, error: &AgentError) -> Failure {
        let code = match error.failure() {
            Some(FailureKind::NotFound) => NO_PROGRAM,
            Some(FailureKind::Denied) => NOT_RUN,
            _ => OURS,
        };
        Failure {
            code,
            ..self.failure(error)
        }
    }
}
