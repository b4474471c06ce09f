//! Commands through the daemon: a command that gains by it asks the daemon first, and does the work
//! itself when the daemon has begun nothing.
//!
//! Output and exit code do not depend on which of the two did the work.

use std::env;

use nix::{
    errno::Errno,
    unistd::{AccessFlags, access},
};
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;
use crate::{
    client::{Client, Error},
    config::{Config, UseDaemon},
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
pub(crate) fn done<T>(result: Result<T, Error>) -> Result<Option<T>, Failure> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(Error::NotBegun(why)) => {
            tracing::info!("without the daemon: {why}");
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// Has the daemon do the work; `None` when it has begun nothing, so that this process must do it.
pub(crate) fn by_daemon<T>(
    config: &Config,
    ask: impl FnOnce(&Client) -> Result<T, Error>,
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

/// Starts the log of a command on standard error, if `--verbose` is given or `RUST_LOG` is set.
pub(crate) fn start_log(verbose: bool) {
    let filter = match EnvFilter::try_from_default_env() {
        Ok(filter) => filter,
        Err(_) if verbose => EnvFilter::new("brood=info"),
        Err(_) => return,
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .with_ansi(false)
        // It would panic when standard error cannot be written to.
        .log_internal_errors(false)
        .init();
}
