//! The floor, as a command.

use std::{fmt, path::PathBuf, process::Command};

use brood_core::percentiles::Percentiles;
use serde::{Deserialize, Serialize};

use super::{
    command::{self, Interrupt},
    error::Error,
};

/// The memory slot that a guest of the floor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Slot {
    /// One over all of guest memory: the plain floor.
    Full,
    /// One over its first 2 MiB: the least slot that a guest could run in.
    Small,
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Full => "full",
            Self::Small => "small",
        })
    }
}

/// What the floor measured, as it prints it.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Measured {
    guests: u64,
    /// From the first fork to the last report, in seconds.
    pub(crate) wall_s: f64,
    /// From the fork to the report, in milliseconds.
    pub(crate) restore_ms: Percentiles,
    /// Host memory, in MiB.
    pub(crate) per_guest_mib: f64,
}

/// Where the floor is and what it works on.
#[derive(Clone, Debug)]
pub(crate) struct Floor {
    /// The binary.
    pub(crate) binary: PathBuf,
    /// Where it makes its memory file.
    pub(crate) dir: PathBuf,
    /// Memory of one guest, such as `256M`.
    pub(crate) memory: String,
}

impl Floor {
    /// Runs it once. It waits for the host to settle before and after.
    pub(crate) fn run(
        &self,
        slot: Slot,
        guests: u32,
        concurrency: u32,
        interrupt: &Interrupt,
    ) -> Result<Measured, Error> {
        let mut command = Command::new(&self.binary);
        command
            .args([
                "--json",
                "--slot",
                &slot.to_string(),
                "--memory",
                &self.memory,
            ])
            .args([
                "--guests",
                &guests.to_string(),
                "--concurrency",
                &concurrency.to_string(),
                "--dir",
            ])
            .arg(&self.dir);
        let output = command::run(&mut command, interrupt)?;
        let answer = |source| Error::Answer {
            command: command::shown(&command),
            source,
        };
        let measured: Measured = serde_json::from_str(&output).map_err(answer)?;
        if measured.guests != u64::from(guests) {
            return Err(Error::Short {
                command: "floor",
                done: measured.guests,
                asked: guests.into(),
            });
        }
        Ok(measured)
    }
}
