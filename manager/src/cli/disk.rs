//! `brood disk`: lists and removes leftover disks, those whose guest or checkpoint is gone.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::output::{ending, json, line, operations_near, table};
use crate::{config::Config, failure::Failure};
use brood_core::disk::Place;

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  brood disk leftovers
  brood disk sweep zfs:tank/vm")]
pub(super) enum Command {
    /// List disks without a guest and snapshots without a checkpoint
    Leftovers(Leftovers),
    /// Remove the disks and snapshots that `leftovers` lists
    Sweep(Sweep),
}

impl Command {
    pub(super) fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        match self {
            Self::Leftovers(command) => command.run(config),
            Self::Sweep(command) => command.run(config),
        }
    }
}

/// Where to look.
#[derive(Debug, Args)]
struct Places {
    /// Places to look at: zfs:DATASET (its direct children) or reflink:FOLDER [default: all places
    /// in which guests of this state folder had disks]
    places: Vec<Place>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Lists disks of this state folder that have no guest, and snapshots that have no checkpoint. It
/// leaves out disks of other state folders; a snapshot belongs to its checkpoint, whoever made it
#[derive(Debug, Args)]
#[command(after_help = "Example: brood disk leftovers zfs:tank/vm")]
pub(super) struct Leftovers {
    #[command(flatten)]
    places: Places,
}

impl Leftovers {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let places = &self.places.places;
        let left = operations_near(config).run(|ops| ops.leftovers(places))?;
        if self.places.json {
            json(&left);
        } else if left.leftovers.is_empty() {
            line("nothing is left over");
        } else {
            let left = left.leftovers.into_iter();
            let rows: Vec<_> = left.map(|left| vec![left.disk, left.of]).collect();
            table(&["DISK", "OF"], &rows);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Removes what `brood disk leftovers` lists
#[derive(Debug, Args)]
#[command(after_help = "Example: brood disk sweep zfs:tank/vm")]
pub(super) struct Sweep {
    #[command(flatten)]
    places: Places,
}

impl Sweep {
    fn run(self, config: &Config) -> Result<ExitCode, Failure> {
        let places = &self.places.places;
        let swept = operations_near(config).run(|ops| ops.sweep(places))?;
        if self.places.json {
            json(&swept);
        } else {
            for left in &swept.removed {
                line(format_args!("removed {}, of {}", left.disk, left.of));
            }
            if swept.removed.is_empty() && swept.errors.is_empty() {
                line("nothing is left over");
            }
        }
        for failed in &swept.errors {
            super::output::failure(&Failure::new(&failed.error, failed.hint.clone()));
        }
        Ok(ending(swept.removed.len(), swept.errors.len()))
    }
}
