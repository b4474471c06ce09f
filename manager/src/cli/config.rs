//! `brood config`: shows and checks the configuration.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use serde_json::json;

use super::output::{json, line, table};
use crate::config::{Config, EXAMPLE, Sources};
use crate::failure::Failure;
use brood_core::{checkpoint::Network, pool::NewPool};

/// Shows and checks the settings of the state folder, restores, the daemon and pools
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  brood config example > /etc/brood/brood.toml
  brood config check")]
pub(super) enum Command {
    #[command(
        about = "Print a configuration file that explains every setting",
        after_help = "Example: brood config example > /etc/brood/brood.toml"
    )]
    Example,
    #[command(about = "Check the configuration, and show each setting with its source")]
    Check(Check),
}

impl Command {
    pub(super) fn run(self, sources: &Sources) -> Result<ExitCode, Failure> {
        match self {
            Self::Example => {
                line(EXAMPLE.trim_end());
                Ok(ExitCode::SUCCESS)
            }
            Self::Check(command) => command.run(sources),
        }
    }
}

/// Checks the configuration, and shows each setting with its source.
///
/// The source is the command line, the environment, a line of the file, or the default, in this
/// order. The command changes nothing. Exits with 1 when a setting is invalid.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood config check
  brood config check ./brood.toml
  BROOD_RESTORE_PRIVATE_LIMIT=64M brood config check --json")]
pub(super) struct Check {
    /// The file [default: the file that brood uses]
    file: Option<PathBuf>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Check {
    fn run(self, sources: &Sources) -> Result<ExitCode, Failure> {
        let mut sources = sources.clone();
        sources.file = self.file.or(sources.file);
        let config = Config::load(&sources)?;
        let settings = config.shown();
        if self.json {
            let pools: Vec<_> = config.pools.iter().map(described).collect();
            json(&json!({ "file": config.file, "settings": settings, "pools": pools }));
            return Ok(ExitCode::SUCCESS);
        }
        match &config.file {
            Some(file) => line(format_args!("file: {}", file.display())),
            None => line("file: none"),
        }
        let rows: Vec<_> = settings
            .into_iter()
            .map(|setting| {
                vec![
                    setting.key.to_owned(),
                    setting.value.unwrap_or_else(|| "-".to_owned()),
                    setting.source.to_string(),
                ]
            })
            .collect();
        table(&["SETTING", "VALUE", "FROM"], &rows);
        if !config.pools.is_empty() {
            let header = [
                "POOL",
                "HOT",
                "HOT MIN",
                "MAX",
                "MAX MEMORY",
                "MAX AGE",
                "REFILL/S",
                "LEASE",
                "PRIVATE LIMIT",
                "CHECKPOINT",
            ];
            let rows: Vec<_> = config.pools.iter().map(row).collect();
            line("");
            table(&header, &rows);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn row(pool: &NewPool) -> Vec<String> {
    let policy = &pool.policy;
    let limit = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let seconds = |s: Option<u64>| s.map_or_else(|| "-".to_owned(), |s| format!("{s} s"));
    vec![
        pool.name.clone(),
        policy.hot.to_string(),
        limit(policy.hot_min),
        limit(policy.most),
        policy
            .max_memory
            .map_or_else(|| "-".to_owned(), |n| n.to_string()),
        seconds(policy.max_age_s),
        limit(policy.refill_per_s),
        seconds(Some(policy.lease_s)),
        match pool.enforce_private_limit {
            true => format!("{} enforced", pool.private_limit),
            false => pool.private_limit.to_string(),
        },
        pool.checkpoint.to_string(),
    ]
}

fn described(pool: &NewPool) -> serde_json::Value {
    let mut value = serde_json::to_value(pool.policy).expect("plain data");
    value["name"] = pool.name.clone().into();
    value["checkpoint"] = pool.checkpoint.to_string().into();
    value["private_limit"] = pool.private_limit.0.into();
    value["enforce_private_limit"] = pool.enforce_private_limit.into();
    value["network"] = pool.network.map(Network::name).into();
    value["publish"] = serde_json::to_value(&pool.publish).expect("plain data");
    value
}
