//! `brood serve`: runs the daemon.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc};

use clap::Args;

use super::{failure::INTERRUPTED, log};
use crate::failure::Failure;
use crate::{
    api::{self, Listen, Reload, ReloadReport, ServeEnd},
    config::{Config, LogFormat, Sources, listen_address},
};

/// Serves the API over HTTP on a socket in the state folder, STATE/api.sock, for its owner alone.
///
/// The daemon keeps no data of its own: it can be killed or replaced at any time, and guests live
/// on. A second daemon on the same state folder takes over from the first. At its start the daemon
/// applies the pools of the configuration, as `brood pool apply` does. After SIGTERM it answers its
/// open requests, then ends. After SIGHUP it reads the configuration again, and adopts the log
/// level and the pools.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood serve
  curl --unix-socket /var/db/brood/api.sock http://brood/api/v1/guests
  brood serve --listen 127.0.0.1:7300 --token-file /etc/brood/token")]
pub(super) struct Serve {
    /// Listen on this port too; requests must bear the token. The address must be one that only
    /// this machine can reach [default address: 127.0.0.1]
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = listen_address)]
    listen: Option<SocketAddr>,
    /// File with the token that requests over the port must bear; only its owner may read it
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Folder of checkpoints that requests name without a folder [default: STATE/checkpoints]
    #[arg(long, value_name = "DIR")]
    checkpoints: Option<PathBuf>,
    /// Format of the log on standard error: text or json [default: text]
    #[arg(long, value_name = "FORM", value_enum, hide_possible_values = true)]
    log: Option<LogFormat>,
}

impl Serve {
    pub(super) fn run(self, mut sources: Sources) -> Result<ExitCode, Failure> {
        let flags = [
            ("serve.listen", self.listen.map(|a| a.to_string().into())),
            (
                "serve.token_file",
                self.token_file.map(PathBuf::into_os_string),
            ),
            (
                "serve.checkpoints",
                self.checkpoints.map(PathBuf::into_os_string),
            ),
            (
                "serve.log_format",
                self.log.map(|format| OsString::from(format.to_string())),
            ),
        ];
        for (key, value) in flags {
            if let Some(value) = value {
                sources.flags.insert(key, value);
            }
        }
        let config = Config::load(&sources)?;
        let serve = &config.serve;
        let log = log::start(serve.log_format.value, serve.log_level.value);
        let set_level = log.level();
        let listen = serve.listen.as_ref().zip(serve.token_file.as_ref());
        let serving = api::ServeConfig {
            state: config.state_dir()?.to_owned(),
            signers: config.signers(),
            socket: config.socket()?,
            socket_mode: serve.socket_mode.value.0,
            checkpoints: config.checkpoints()?,
            listen: listen.map(|(address, token_file)| Listen {
                address: address.value,
                token_file: token_file.value.to_path_buf(),
            }),
            engines: config.engines(),
            pools: config.pools.clone(),
        };
        let reload: Reload = Arc::new(move || {
            let now = Config::load(&sources).map_err(|e| e.to_string())?;
            set_level(now.serve.log_level.value);
            Ok(ReloadReport {
                later: later(&config, &now),
                pools: now.pools,
            })
        });
        let ended = api::serve(serving, &reload)?;
        drop(log);
        Ok(match ended {
            ServeEnd::Drained => ExitCode::SUCCESS,
            ServeEnd::CutOff => ExitCode::from(INTERRUPTED),
        })
    }
}

/// Settings that have changed in the configuration, but that the daemon keeps until it ends.
fn later(then: &Config, now: &Config) -> Vec<String> {
    let kept = |key: &str| {
        ["serve.", "state.", "bhyve.", "engine", "qemu."]
            .iter()
            .any(|section| key.starts_with(section))
            && key != "serve.log_level"
    };
    let before = then.shown();
    now.shown()
        .into_iter()
        .filter(|setting| kept(setting.key))
        .filter(|setting| {
            let was = before.iter().find(|before| before.key == setting.key);
            was.is_none_or(|was| was.value != setting.value)
        })
        .map(|setting| setting.key.to_owned())
        .collect()
}
