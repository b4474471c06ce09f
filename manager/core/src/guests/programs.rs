//! Programs in guests: a session with a guest's agent, and what its console says.

use std::{
    path::PathBuf,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use super::{Error, Guests, running};
use crate::{
    agent::Agent,
    engine::{self, ConsoleLine, GuestRef},
};

/// How long the end of a guest is waited for that has closed its channel.
const END_PATIENCE: Duration = Duration::from_secs(2);

impl Guests<'_> {
    /// Begins a session with the agent of a running guest, beside all others that there are.
    ///
    /// # Errors
    /// When there is no such guest, it does not run or has no agent, or the agent does not answer.
    pub fn agent(&mut self, name: &str, timeout: Duration) -> Result<Agent, Error> {
        let guest = self.find(name)?;
        running(&guest)?;
        let run_dir = self.state.run_dir();
        let id = GuestRef::new(&run_dir, &guest.row.id);
        match self.engine.agent(id, self.limit(timeout)) {
            Err(engine::Error::Gone) => Err(self.why_gone(&guest)),
            agent => agent.map_err(|e| Error::engine("reach", &guest.row.name, e)),
        }
    }

    /// Makes sure that a guest has not ended.
    ///
    /// # Errors
    /// When the guest is gone; the error says how it ended.
    pub fn still_runs(&mut self, name: &str) -> Result<(), Error> {
        let guest = self.find(name)?;
        match running(&guest) {
            // Its end may be noticed a moment later.
            Ok(process) if !process.may_live() => Err(self.why_gone(&guest)),
            Ok(_) | Err(Error::Paused(_)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Makes sure that a guest whose channel was closed has not ended. A process that ends closes
    /// its channels first, so its end is waited for.
    ///
    /// # Errors
    /// When the guest is gone; the error says how it ended.
    pub fn outlives_its_channel(&mut self, name: &str) -> Result<(), Error> {
        let begin = Instant::now();
        if let Ok(process) = running(&self.find(name)?) {
            while process.may_live()
                && begin.elapsed() < END_PATIENCE
                && !self.cancelled.load(Ordering::Relaxed)
            {
                thread::sleep(Duration::from_millis(5));
            }
        }
        self.still_runs(name)
    }

    /// The file with what a guest's console said.
    ///
    /// # Errors
    /// When there is no such guest, or it has no console.
    pub fn console_log(&mut self, name: &str) -> Result<PathBuf, Error> {
        let guest = self.find(name)?;
        let run_dir = self.state.run_dir();
        let log = self.engine.console(GuestRef::new(&run_dir, &guest.row.id));
        log.map_err(|e| Error::engine("read the console of", &guest.row.name, e))
    }

    /// Connects to the console of a running guest, which one may have at a time.
    ///
    /// # Errors
    /// When there is no such guest, it does not run or has no console, or another has it.
    pub fn console(&mut self, name: &str) -> Result<ConsoleLine, Error> {
        let guest = self.find(name)?;
        running(&guest)?;
        let run_dir = self.state.run_dir();
        let id = GuestRef::new(&run_dir, &guest.row.id);
        match self.engine.open_console(id) {
            Err(engine::Error::Gone) => Err(self.why_gone(&guest)),
            console => {
                console.map_err(|e| Error::engine("open the console of", &guest.row.name, e))
            }
        }
    }
}
