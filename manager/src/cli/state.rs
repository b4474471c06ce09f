//! `brood state`: checks the record of the state folder, and rebuilds it after damage.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    failure::SOME,
    output::{json, line, local},
};
use crate::config::Config;
use crate::failure::Failure;
use brood_core::rebuild::Rebuilt;

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  brood state check
  brood state rebuild")]
pub(super) enum Command {
    #[command(about = "Check the record for damage")]
    Check(Check),
    #[command(about = "Rebuild a damaged record")]
    Rebuild(Rebuild),
}

impl Command {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        match self {
            Self::Check(command) => command.run(config),
            Self::Rebuild(command) => command.run(config),
        }
    }
}

/// Checks all of the state's database. Exits with 1 when it is damaged, and says what to do
#[derive(Debug, Args)]
#[command(after_help = "Example: brood state check && echo fine")]
pub(super) struct Check {
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Check {
    fn run(&self, config: &Config) -> Result<ExitCode, Failure> {
        let dir = local(config).check_state()?;
        if self.json {
            json(&json!({ "whole": true, "dir": dir }));
        } else {
            line(format_args!("the state in {} is whole", dir.display()));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Rebuilds the state's database when it is damaged or lost, and keeps the damaged file aside.
///
/// Running guests go on, and brood records them again; so it does with pools, suspended claims, and
/// those other claims that can still be read. A guest that waited in a pool may have been claimed
/// since: it becomes a guest outside any pool, for you to keep or to destroy.
///
/// Exits with 3 when something could not be found again, and says what.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood state rebuild
  brood state rebuild --json")]
pub(super) struct Rebuild {
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Rebuild {
    fn run(&self, config: &Config) -> Result<ExitCode, Failure> {
        let rebuilt = local(config).rebuild_state()?;
        if self.json {
            json(&rebuilt);
        } else {
            print(&rebuilt);
        }
        let all =
            rebuilt.unread.is_empty() && rebuilt.loose.is_empty() && rebuilt.orphans.is_empty();
        Ok(ExitCode::from(if all { 0 } else { SOME }))
    }
}

fn print(rebuilt: &Rebuilt) {
    let Rebuilt {
        pools,
        guests,
        claims,
        suspended,
        ..
    } = rebuilt;
    line(format_args!(
        "found again: {} pools, {} guests that run, {claims} claims, and {suspended} suspended claims",
        pools.len(),
        guests.len(),
    ));
    if let Some(damaged) = &rebuilt.damaged {
        line(format_args!("the damaged file is {}", damaged.display()));
    }
    for what in &rebuilt.unread {
        line(format_args!("not read to the end: {what}"));
    }
    if !rebuilt.loose.is_empty() {
        line(format_args!(
            "in no pool any more, but perhaps in use: {0}\n  to end them: brood destroy {0}",
            rebuilt.loose.join(" ")
        ));
    }
    for orphan in &rebuilt.orphans {
        line(format_args!(
            "{} is a suspended claim whose token was lost: its new token is {}",
            orphan.bundle, orphan.token
        ));
    }
}
