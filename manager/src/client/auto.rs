//! Choice between the daemon and this process, and which daemon that is.

use nix::{
    errno::Errno,
    unistd::{AccessFlags, access},
};

use super::Client;
use crate::{
    client,
    config::{Config, UseDaemon},
    failure::Failure,
    ops::{Error, Local, Operations, StateFolder},
};
use brood_core::checkpoint::{self, BundlePath, Checkpoint};

/// Operations by the daemon or by this process: the one place that chooses.
pub(crate) struct Auto {
    daemon: Option<Client>,
    /// This user may not enter the state folder, so that this process can do nothing itself.
    only_daemon: bool,
    local: Local,
}

impl Auto {
    /// The daemon, if one answers and may be used, for as long as it begins what it is asked.
    pub(crate) fn new(config: &Config, warn: fn(&str)) -> Self {
        Self {
            daemon: daemon(config),
            only_daemon: false,
            local: Local::new(config, warn),
        }
    }

    /// By this process, unless its user may not enter the state folder. To look at something it needs
    /// no daemon; and where it works on files, they are its user's.
    pub(crate) fn near(config: &Config, warn: fn(&str)) -> Self {
        let daemon = only_daemon(config);
        Self {
            only_daemon: daemon.is_some(),
            daemon,
            local: Local::new(config, warn),
        }
    }

    /// To restore guests of a checkpoint: by this process, if they have disks. Those are made where
    /// this user may write, which need not be where the daemon may.
    ///
    /// # Errors
    /// When the checkpoint cannot be opened.
    pub(crate) fn to_restore(
        config: &Config,
        warn: fn(&str),
        checkpoint: &BundlePath,
    ) -> Result<Self, Failure> {
        let mut here = Self::here(config, warn);
        let checkpoint = match Checkpoint::open(checkpoint) {
            // The folders that brood knows may have it.
            Err(checkpoint::Error::Parent { .. } | checkpoint::Error::OtherParent { .. }) => {
                let state = here.local.state().map_err(Failure::from)?;
                state.open_checkpoint(checkpoint)?
            }
            opened => opened?,
        };
        if !checkpoint.manifest().clones_disk() {
            here.daemon = daemon(config);
        }
        Ok(here)
    }

    /// This process alone.
    pub(crate) fn here(config: &Config, warn: fn(&str)) -> Self {
        Self {
            daemon: None,
            only_daemon: false,
            local: Local::new(config, warn),
        }
    }

    /// Looks for a daemon again, if none is used.
    #[cfg(feature = "top")]
    pub(crate) fn find_daemon(&mut self, config: &Config) {
        if self.daemon.is_none() {
            self.daemon = daemon(config);
        }
    }

    /// Does one operation. Once the daemon has refused to begin one, this process does that one and
    /// all later ones.
    pub(crate) fn run<T>(
        &mut self,
        mut operation: impl FnMut(&mut dyn Operations) -> Result<T, Error>,
    ) -> Result<T, Failure> {
        if let Some(done) = self.by_daemon(&mut operation)? {
            return Ok(done);
        }
        Ok(operation(&mut self.local)?)
    }

    /// Does an operation on each item; one that fails does not keep the others from being done.
    /// Returns the failures.
    ///
    /// # Errors
    /// When this process must do the work and cannot do any.
    pub(crate) fn each<I>(
        &mut self,
        items: &[I],
        operation: impl Fn(&mut dyn Operations, &I) -> Result<(), Error>,
    ) -> Result<Vec<Failure>, Failure> {
        let mut failures = Vec::new();
        for item in items {
            match self.by_daemon(|ops| operation(ops, item)) {
                Ok(Some(())) => {}
                Ok(None) => {
                    self.local.open()?;
                    failures.extend(operation(&mut self.local, item).err().map(Into::into));
                }
                Err(failure) => failures.push(failure),
            }
        }
        Ok(failures)
    }

    /// Has the daemon do an operation; `None` when it has begun nothing.
    fn by_daemon<T>(
        &mut self,
        operation: impl FnOnce(&mut dyn Operations) -> Result<T, Error>,
    ) -> Result<Option<T>, Failure> {
        let Some(daemon) = &mut self.daemon else {
            return Ok(None);
        };
        match operation(daemon) {
            Ok(done) => Ok(Some(done)),
            Err(Error::NotBegun(why)) if self.only_daemon => {
                Err(client::Error::NotBegun(why).into())
            }
            Err(Error::NotBegun(why)) => {
                tracing::info!("without the daemon: {why}");
                self.daemon = None;
                Ok(None)
            }
            Err(failed) => Err(failed.into()),
        }
    }
}

/// The daemon of the state folder, when one answers and may be used.
pub(crate) fn daemon(config: &Config) -> Option<Client> {
    if config.daemon.value == UseDaemon::Off {
        tracing::info!("without a daemon: switched off ({})", config.daemon.source);
        return None;
    }
    let (socket, state_dir) = (config.socket().ok()?, config.state_dir().ok()?);
    match Client::find(&socket, state_dir) {
        Ok(client) => {
            let daemon = client.daemon();
            if let Some(wanted) = config.engine.value.0
                && daemon.engines != [wanted]
            {
                let runs: Vec<_> = daemon.engines.iter().map(|kind| kind.name()).collect();
                let (runs, wanted) = (runs.join(" and "), wanted.name());
                tracing::info!(
                    "without the daemon: it restores from {runs}, not from {wanted} alone"
                );
                return None;
            }
            tracing::info!("with the daemon {} of brood {}", daemon.pid, daemon.version);
            Some(client)
        }
        Err(e) => {
            tracing::info!("without a daemon: {e}");
            None
        }
    }
}

/// The daemon, if this user may not enter the state folder and so cannot look without it.
fn only_daemon(config: &Config) -> Option<Client> {
    let entered = access(
        config.state_dir().ok()?,
        AccessFlags::W_OK | AccessFlags::X_OK,
    );
    (entered == Err(Errno::EACCES)).then(|| daemon(config))?
}
