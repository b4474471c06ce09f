//! Filters of guests: by the beginning of their names, their state, their pool.

use clap::{Args, ValueEnum};

use crate::api::types::Guest;
use brood_core::guests::GuestState;

/// What guests must be to be meant.
#[derive(Debug, Default, Args)]
pub(super) struct Filter {
    /// Guests whose names begin with this
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// Guests in this state: restoring, running, paused or dead
    #[arg(long, value_name = "STATE", hide_possible_values = true)]
    state: Option<State>,
    /// Guests of this pool
    #[arg(long, value_name = "POOL", add = super::complete::with(super::complete::pools))]
    pool: Option<String>,
}

/// What a guest is doing, as a word on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    Restoring,
    Running,
    Paused,
    Dead,
}

impl From<State> for GuestState {
    fn from(state: State) -> Self {
        match state {
            State::Restoring => Self::Restoring,
            State::Running => Self::Running,
            State::Paused => Self::Paused,
            State::Dead => Self::Dead,
        }
    }
}

impl Filter {
    /// Whether a guest is meant.
    pub(super) fn takes(&self, guest: &Guest) -> bool {
        let (prefix, pool) = (self.prefix.as_deref(), self.pool.as_deref());
        prefix.is_none_or(|prefix| guest.name.starts_with(prefix))
            && self.state.is_none_or(|state| guest.state == state.into())
            && pool.is_none_or(|pool| guest.pool.as_deref() == Some(pool))
    }
}
