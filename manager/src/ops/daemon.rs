//! Operations by the daemon, and which daemon that is.

use std::env;

use nix::{
    errno::Errno,
    unistd::{AccessFlags, access},
};

use super::{Error, Operations};
use crate::{
    api::{
        claims::Claim,
        suspended_claims::ResumeClaimRequest,
        types::{Pool, PoolDetails},
    },
    client::{self, Client},
    config::{Config, UseDaemon},
    failure::Failure,
};
use brood_core::engine::ENGINE_VARIABLE;

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
            let wanted = env::var(ENGINE_VARIABLE).unwrap_or_default();
            if !wanted.is_empty() && wanted != daemon.engine.name() {
                let runs = daemon.engine.name();
                tracing::info!("without the daemon: it runs {runs}, not {wanted}");
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

/// The daemon's result; `None` when it has begun nothing.
pub(crate) fn done<T>(result: Result<T, client::Error>) -> Result<Option<T>, Failure> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(client::Error::NotBegun(why)) => {
            tracing::info!("without the daemon: {why}");
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// Has the daemon do the work; `None` when it has begun nothing, so that this process must do it.
pub(crate) fn by_daemon<T>(
    config: &Config,
    ask: impl FnOnce(&Client) -> Result<T, client::Error>,
) -> Result<Option<T>, Failure> {
    match daemon(config) {
        Some(client) => done(ask(&client)),
        None => Ok(None),
    }
}

/// The daemon, if this user may not enter the state folder and so cannot look without it.
pub(crate) fn only_daemon(config: &Config) -> Option<Client> {
    let entered = access(
        config.state_dir().ok()?,
        AccessFlags::W_OK | AccessFlags::X_OK,
    );
    (entered == Err(Errno::EACCES)).then(|| daemon(config))?
}

impl Operations for Client {
    fn pools(&mut self) -> Result<Vec<Pool>, Error> {
        Ok(Self::pools(self)?)
    }

    fn pool(&mut self, pool: &str) -> Result<PoolDetails, Error> {
        Ok(Self::pool(self, pool)?)
    }

    fn evict(&mut self, pool: &str, entries: u32) -> Result<u64, Error> {
        Ok(Self::evict(self, pool, entries)?)
    }

    fn remove_pool(&mut self, pool: &str, force: bool) -> Result<(), Error> {
        Ok(Self::remove_pool(self, pool, force)?)
    }

    fn renew(&mut self, token: &str, lease_s: u32) -> Result<(), Error> {
        Ok(Self::renew(self, token, lease_s)?)
    }

    fn release(&mut self, token: &str) -> Result<(), Error> {
        Ok(Self::release(self, token)?)
    }

    fn resume_claim(&mut self, token: &str, resuming: &ResumeClaimRequest) -> Result<Claim, Error> {
        Ok(Self::resume_claim(self, token, resuming)?)
    }
}
