//! Filters of guests: by the beginning of their names, their state, their pool.

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};

use crate::types::Guest;
use brood_core::guests::GuestState;

/// What guests must be to be meant.
#[derive(Debug, Default, Args)]
pub(super) struct Filter {
    /// Guests whose names begin with this
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// Guests in this state: restoring, running, paused or dead
    #[arg(long, value_name = "STATE", hide_possible_values = true, value_parser = state())]
    state: Option<GuestState>,
    /// Guests of this pool
    #[arg(long, value_name = "POOL", add = super::complete::with(super::complete::pools))]
    pool: Option<String>,
}

/// Reads a state by its word.
fn state() -> impl TypedValueParser<Value = GuestState> {
    const STATES: [GuestState; 4] = [
        GuestState::Restoring,
        GuestState::Running,
        GuestState::Paused,
        GuestState::Dead,
    ];
    PossibleValuesParser::new(STATES.map(GuestState::name)).map(|word| {
        let named = STATES.into_iter().find(|state| state.name() == word);
        named.expect("the parser takes no other word")
    })
}

impl Filter {
    /// How the names of all guests begin that are meant.
    pub(super) fn prefix(&self) -> &str {
        self.prefix.as_deref().unwrap_or_default()
    }

    /// Whether a guest is meant.
    pub(super) fn takes(&self, guest: &Guest) -> bool {
        let pool = self.pool.as_deref();
        guest.name.starts_with(self.prefix())
            && self.state.is_none_or(|state| guest.state == state)
            && pool.is_none_or(|pool| guest.pool.as_deref() == Some(pool))
    }
}
