//! Answers about leftover disks: those whose guest or checkpoint is gone.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use brood_core::{
    disk::{self, Place},
    guests::{self, Guests},
};

/// A disk without a guest, or a snapshot without a checkpoint.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Leftover)]
pub(crate) struct LeftoverDisk {
    /// What it is called.
    pub(crate) disk: String,
    /// What it was of.
    pub(crate) of: String,
}

impl From<&guests::Leftover> for LeftoverDisk {
    fn from(left: &guests::Leftover) -> Self {
        Self {
            disk: left.found.name(),
            of: left.of.clone(),
        }
    }
}

/// What is left over.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct Leftovers {
    /// All of it.
    pub(crate) leftovers: Vec<LeftoverDisk>,
}

impl Leftovers {
    /// Looks in these places, or in all recorded ones when none is given.
    pub(crate) fn of(guests: &mut Guests<'_>, places: &[Place]) -> Result<Self, guests::Error> {
        let left = guests.leftovers(places)?;
        Ok(Self {
            leftovers: left.iter().map(Into::into).collect(),
        })
    }
}

/// Where to sweep.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SweepQuery)]
pub(crate) struct SweepRequest {
    /// `zfs:DATASET` or `reflink:FOLDER`, any number; by default all places in which guests of this
    /// state folder had disks.
    #[serde(default)]
    #[schema(example = json!(["zfs:tank/vm"]))]
    pub(crate) places: Vec<String>,
}

/// What came of sweeping.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct SweepReport {
    /// What was removed.
    pub(crate) removed: Vec<LeftoverDisk>,
    /// What was not, and why.
    pub(crate) errors: Vec<SweepFailure>,
}

impl SweepReport {
    /// Removes what is left over in these places.
    pub(crate) fn of(guests: &mut Guests<'_>, places: &[Place]) -> Result<Self, guests::Error> {
        let left = guests.leftovers(places)?;
        let failed = guests.sweep(&left);
        let removed = left
            .iter()
            .filter(|left| !failed.iter().any(|(other, _)| other == *left));
        Ok(Self {
            removed: removed.map(Into::into).collect(),
            errors: failed.iter().map(SweepFailure::from).collect(),
        })
    }
}

/// Something that could not be removed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct SweepFailure {
    /// What it is called.
    pub(crate) disk: String,
    /// Why not.
    pub(crate) error: String,
    /// What to do next; for who runs a command.
    #[serde(skip)]
    pub(crate) hint: Option<String>,
}

impl From<&(guests::Leftover, disk::Error)> for SweepFailure {
    fn from((left, error): &(guests::Leftover, disk::Error)) -> Self {
        Self {
            disk: left.found.name(),
            error: error.to_string(),
            hint: error.hint(),
        }
    }
}
