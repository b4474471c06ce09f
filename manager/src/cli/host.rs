//! `brood doctor` and `brood plan`: the checks of this host, and its capacity.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{
    complete,
    output::{color, json, line, operations, operations_near, styled, width},
};
use crate::{config::Config, failure::Failure};
use brood_core::{
    checkpoint::BundlePath,
    host::{doctor_text, plan_text},
    units::Bytes,
};

/// Checks whether this host can restore guests, and how many: KVM or bhyve, limits, memory, disk.
///
/// Exits with 0 if mass restore can work here, else with 1.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brood doctor
  brood doctor --guests 5000 --checkpoint-dir /var/tmp/ckp")]
pub(super) struct Doctor {
    /// Number of guests that the host is to hold
    #[arg(long, value_name = "N", default_value_t = 1000)]
    guests: u64,
    /// Folder of the checkpoint; brood checks its file system too
    #[arg(long, value_name = "DIR")]
    checkpoint_dir: Option<PathBuf>,
    /// Print a JSON object: the checks, and the facts behind them
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        // Guests that the daemon restores are held to its limits, not to those of this command.
        let host =
            operations(config).run(|ops| ops.host(self.guests, self.checkpoint_dir.as_deref()))?;
        if self.json {
            json(&host);
        } else {
            let text = doctor_text::render(&host.checks, color(), width());
            if color() {
                styled(text.trim_end());
            } else {
                line(text.trim_end());
            }
        }
        Ok(if host.ok {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// Computes how many guests of a checkpoint fit: at best (no page written), expected (from the
/// private memory of measured guests) and at worst (every guest writes every page).
#[derive(Debug, Args)]
#[command(after_help = "Example: brood plan /var/tmp/ckp/demo --host-memory 24G")]
pub(super) struct Plan {
    /// DIR/NAME of the checkpoint
    #[arg(add = complete::with(complete::checkpoints))]
    checkpoint: BundlePath,
    /// Plan for a host with this much available memory, instead of this host's
    #[arg(long, value_name = "SIZE")]
    host_memory: Option<Bytes>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let mut ops = operations_near(config);
        let plan = ops.run(|ops| ops.plan(&self.checkpoint, self.host_memory))?;
        if self.json {
            json(&plan);
        } else {
            line(plan_text::render(&plan).trim_end());
        }
        Ok(ExitCode::SUCCESS)
    }
}
