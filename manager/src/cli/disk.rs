//! `brood disk`: lists and removes leftover disks, those whose guest or checkpoint is gone.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::output::{ending, engine, json, line, state, table};
use crate::config::Config;
use crate::failure::Failure;
use brood_core::{
    disk::Place,
    engine::NEVER,
    guests::{Guests, Leftover},
};

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
        let (mut state, engine) = (state(config)?, engine(config)?);
        let mut guests = Guests {
            state: &mut state,
            engine: &*engine,
            cancelled: &NEVER,
        };
        let left = guests.leftovers(&self.places.places)?;
        if self.places.json {
            let left: Vec<_> = left.iter().map(described).collect();
            json(&json!({ "leftovers": left }));
        } else if left.is_empty() {
            line("nothing is left over");
        } else {
            let row = |left: &Leftover| vec![left.found.name(), left.of.clone()];
            table(&["DISK", "OF"], &left.iter().map(row).collect::<Vec<_>>());
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
        let (mut state, engine) = (state(config)?, engine(config)?);
        let mut guests = Guests {
            state: &mut state,
            engine: &*engine,
            cancelled: &NEVER,
        };
        let left = guests.leftovers(&self.places.places)?;
        let failed = guests.sweep(&left);
        let removed: Vec<&Leftover> = left
            .iter()
            .filter(|left| !failed.iter().any(|(other, _)| other == *left))
            .collect();
        if self.places.json {
            let removed: Vec<_> = removed.iter().map(|left| described(left)).collect();
            let errors: Vec<_> = failed
                .iter()
                .map(|(left, e)| json!({ "disk": left.found.name(), "error": e.to_string() }))
                .collect();
            json(&json!({ "removed": removed, "errors": errors }));
        } else {
            for left in &removed {
                line(format_args!(
                    "removed {}, of {}",
                    left.found.name(),
                    left.of
                ));
            }
            if left.is_empty() {
                line("nothing is left over");
            }
        }
        for (_, error) in &failed {
            super::output::failure(&Failure::new(error, error.hint()));
        }
        Ok(ending(removed.len(), failed.len()))
    }
}

fn described(left: &Leftover) -> serde_json::Value {
    json!({ "disk": left.found.name(), "of": left.of })
}
