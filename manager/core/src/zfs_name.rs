//! Names of ZFS datasets and snapshots (`pool/data@now`). They are checked completely before any
//! use: a name that passes can never act as an option of `zfs`.

use std::{fmt, str::FromStr};

/// Longest name of a dataset or snapshot in bytes (ZFS_MAX_DATASET_NAME_LEN, which counts the NUL).
const ZFS_NAME_MAX: usize = 255;
/// Room that a dataset's own name must leave: for `@brood-` and a token, or for a guest's disk
/// beside it.
const ZFS_ROOM: usize = 48;

/// A text that is not the name of a ZFS dataset or snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} does not name a disk: {reason}")]
pub struct NameError {
    /// The text.
    pub given: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

fn refuse<T>(given: &str, reason: &'static str) -> Result<T, NameError> {
    Err(NameError {
        given: given.to_owned(),
        reason,
    })
}

/// Checks one component of a dataset's name, or a snapshot's own name (zfs_namecheck.c, without
/// blanks, which `zfs` allows and scripts trip over).
fn check_component(given: &str, component: &str) -> Result<(), NameError> {
    if component.is_empty() {
        return refuse(given, "a part of it is empty");
    }
    if component == "." || component == ".." {
        return refuse(given, "a part of it is '.' or '..'");
    }
    if !component
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
    {
        return refuse(
            given,
            "it may have letters, digits, '-', '_', '.', ':' and '/' only",
        );
    }
    Ok(())
}

/// Name of a ZFS filesystem or volume, such as `pool/data`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dataset(String);

impl Dataset {
    /// The dataset that holds this one; a pool holds itself.
    #[must_use]
    pub fn parent(&self) -> Self {
        let parent = self.0.rsplit_once('/').map_or(&*self.0, |(dir, _)| dir);
        Self(parent.to_owned())
    }

    /// The last component.
    #[must_use]
    pub fn last(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// A dataset in this one.
    pub(crate) fn child(&self, name: &str) -> Self {
        Self(format!("{}/{name}", self.0))
    }

    /// A snapshot of this one.
    pub(crate) fn at(&self, name: &str) -> SnapshotName {
        SnapshotName {
            dataset: self.clone(),
            name: name.to_owned(),
        }
    }

    /// The name as `zfs` takes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Dataset {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        text.split('/')
            .try_for_each(|component| check_component(text, component))?;
        if !text.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return refuse(text, "a pool's name begins with a letter");
        }
        if text.len() + ZFS_ROOM > ZFS_NAME_MAX {
            return refuse(
                text,
                "it is too long: a guest's disk and snapshot need 48 bytes more",
            );
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a ZFS snapshot, such as `pool/data@now`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotName {
    dataset: Dataset,
    name: String,
}

impl SnapshotName {
    /// The dataset that it is a snapshot of.
    #[must_use]
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// What follows the `@`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for SnapshotName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some((dataset, name)) = text.split_once('@') else {
            return refuse(text, "it names no snapshot (POOL/DATASET@SNAPSHOT)");
        };
        check_component(text, name)?;
        if text.len() > ZFS_NAME_MAX {
            return refuse(text, "it is longer than 255 bytes");
        }
        Ok(Self {
            dataset: dataset.parse()?,
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.dataset, self.name)
    }
}
