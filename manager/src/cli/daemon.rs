//! The log of a command, and the functions that find its daemon.

use tracing_subscriber::EnvFilter;

pub(crate) use crate::ops::{by_daemon, daemon, done};

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
