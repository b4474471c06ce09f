//! `brood serve`

use std::{io::IsTerminal, net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use super::Failure;
use crate::{
    api::{self, Config, Listen},
    state::State,
};

/// Serves the API over HTTP on a socket in the state folder, STATE/api.sock, for its owner alone.
///
/// The daemon keeps nothing of its own: it can be killed or replaced at any time, and guests live
/// on. A second daemon on the same state folder takes over from the first. SIGTERM lets it answer
/// what it was asked before.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood serve
  curl --unix-socket /var/db/brood/api.sock http://brood/api/v1/guests
  brood serve --listen 127.0.0.1:7300 --token-file /etc/brood/token")]
pub(super) struct Serve {
    /// Listen on this port, too; requests must bear the token. Only an address that this machine
    /// alone can reach is taken
    #[arg(long, value_name = "ADDRESS:PORT", requires = "token_file")]
    listen: Option<SocketAddr>,
    /// File with the token that requests over the port must bear; only its owner may read it
    #[arg(long, value_name = "FILE", requires = "listen")]
    token_file: Option<PathBuf>,
    /// Folder of the checkpoints that requests name without one [default: STATE/checkpoints]
    #[arg(long, value_name = "DIR")]
    checkpoints: Option<PathBuf>,
    /// How to write the log, on standard error. RUST_LOG chooses what is in it
    #[arg(long, value_name = "FORM", env = "BROOD_LOG", default_value = "text")]
    log: LogForm,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogForm {
    /// For people
    Text,
    /// For programs: one JSON object a line
    Json,
}

impl Serve {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        start_log(self.log);
        api::serve(Config {
            state: State::default_dir()?,
            checkpoints: self
                .checkpoints
                .map(|dir| std::path::absolute(&dir).unwrap_or(dir)),
            listen: self
                .listen
                .zip(self.token_file)
                .map(|(address, token_file)| Listen {
                    address,
                    token_file,
                }),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

fn start_log(form: LogForm) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    match form {
        LogForm::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogForm::Json => log.json().flatten_event(true).init(),
    }
}
