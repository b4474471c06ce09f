//! State folder of a command, and the engine of this host as it is configured.

use std::path::Path;

use super::{Error, OpenFolder, StateFolder};
use crate::{config::Config, failure::Failure};
use brood_core::{
    engine::{self, Engine},
    guests::{self, Guests},
    pool::NEVER,
    state::{self, State},
};

/// This process, with what it needs to do the work.
pub(crate) struct Local {
    pub(super) config: Config,
    /// Shows a warning to the user.
    warn: fn(&str),
    state: Option<State>,
    engine: Option<Box<dyn Engine>>,
}

impl Local {
    pub(crate) fn new(config: &Config, warn: fn(&str)) -> Self {
        Self {
            config: config.clone(),
            warn,
            state: None,
            engine: None,
        }
    }

    /// Works on guests, and records each step.
    pub(crate) fn change_guests<T>(
        &mut self,
        work: impl FnOnce(&mut Guests<'_>) -> Result<T, guests::Error>,
    ) -> Result<T, Failure> {
        Ok(work(&mut self.open()?.guests())?)
    }

    fn open_by(
        &mut self,
        open: impl FnOnce(&Path) -> Result<State, state::Error>,
    ) -> Result<OpenFolder<'_>, Error> {
        let (dir, signers) = (self.config.state_dir()?, self.config.signers());
        Ok(OpenFolder {
            dir,
            state: kept(&mut self.state, || Ok(open(dir)?.with_signers(signers)))?,
            engine: &**kept(&mut self.engine, || engine(&self.config))?,
            sessions: None,
            cancelled: &NEVER,
        })
    }
}

impl StateFolder for Local {
    fn state(&mut self) -> Result<&mut State, Error> {
        drop(self.state.take_if(|state| state.unwritable().is_some()));
        kept(&mut self.state, || Ok(state(&self.config)?))
    }

    fn engine(&mut self) -> Result<(&dyn Engine, &Path), Error> {
        let dir = self.config.state_dir()?;
        Ok((&**kept(&mut self.engine, || engine(&self.config))?, dir))
    }

    fn open(&mut self) -> Result<OpenFolder<'_>, Error> {
        self.state()?;
        self.open_by(State::open)
    }

    /// The user is warned when it cannot be written.
    fn open_to_look(&mut self) -> Result<OpenFolder<'_>, Error> {
        let warn = self.warn;
        self.open_by(|dir| {
            let state = State::open_to_look(dir)?;
            if let Some(why) = state.unwritable() {
                warn(&format!(
                    "{why}; guests are seen as they are, and what is done now is recorded by the \
                     next command that can write"
                ));
            }
            Ok(state)
        })
    }
}

/// What is there already, or is made now.
fn kept<T>(slot: &mut Option<T>, make: impl FnOnce() -> Result<T, Error>) -> Result<&mut T, Error> {
    Ok(match slot {
        Some(there) => there,
        none => none.insert(make()?),
    })
}

/// The state folder, opened.
pub(super) fn state(config: &Config) -> Result<State, state::Error> {
    Ok(State::open(config.state_dir()?)?.with_signers(config.signers()))
}

/// The engine of this host.
pub(super) fn engine(config: &Config) -> Result<Box<dyn Engine>, Error> {
    let program = std::env::current_exe().map_err(|source| engine::Error::Io {
        action: "find the brood binary",
        source,
    })?;
    Ok(engine::choose(&program, &config.engines())?)
}
