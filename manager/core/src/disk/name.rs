//! Names of disks as people write them (`zfs:pool/data@now`, `reflink:/images/web.img`). They are
//! checked completely before any use: a name that passes can never act as an option of `zfs`.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::Error;
use crate::zfs_name::{Dataset, SnapshotName};

fn refuse<T>(given: &str, reason: &'static str) -> Result<T, Error> {
    Err(Error::Name {
        given: given.to_owned(),
        reason,
    })
}

/// Checks the path of a file or folder: absolute, and text that can be printed and recorded.
fn check_path(text: &str) -> Result<PathBuf, Error> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return refuse(text, "its path does not begin with '/'");
    }
    if text.chars().any(char::is_control) {
        return refuse(text, "its path has control characters");
    }
    Ok(path.to_owned())
}

/// A file's path from the root, free of symlinks.
fn absolute(file: &Path) -> Result<PathBuf, Error> {
    let absolute = file.canonicalize().map_err(|cause| match cause.kind() {
        std::io::ErrorKind::NotFound => Error::Missing {
            disk: file.display().to_string(),
        },
        _ => Error::io("find", file, cause),
    })?;
    match absolute.to_str() {
        Some(text) => check_path(text),
        None => refuse(&absolute.to_string_lossy(), "its path is not UTF-8"),
    }
}

/// What the disks of guests are clones of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A ZFS snapshot.
    Zfs(SnapshotName),
    /// A file whose blocks its clones share.
    Reflink {
        /// Absolute path.
        file: PathBuf,
        /// Copy it where the file system cannot share blocks.
        copy: bool,
    },
    /// A file that its clones refer to for all that they have not written (qcow2).
    Overlay {
        /// Absolute path.
        file: PathBuf,
    },
}

impl Source {
    /// Where its clones lie.
    #[must_use]
    pub fn place(&self) -> Place {
        match self {
            Self::Zfs(snapshot) => Place::Zfs(snapshot.dataset().parent()),
            Self::Reflink { file, .. } | Self::Overlay { file } => {
                Place::Folder(file.parent().unwrap_or(Path::new("/")).to_owned())
            }
        }
    }

    /// Whether both name the same snapshot or file.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        match (self.file(), other.file()) {
            (Some(a), Some(b)) => a == b,
            _ => self == other,
        }
    }

    /// The same source with the path of a file made absolute and free of symlinks.
    ///
    /// # Errors
    /// [`Error::Missing`] when the file does not exist, [`Error::Name`] when its path cannot be
    /// recorded.
    pub fn absolute(self) -> Result<Self, Error> {
        match self {
            Self::Zfs(_) => Ok(self),
            Self::Reflink { file, copy } => Ok(Self::Reflink {
                file: absolute(&file)?,
                copy,
            }),
            Self::Overlay { file } => Ok(Self::Overlay {
                file: absolute(&file)?,
            }),
        }
    }

    /// The file; none when it is no file.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Zfs(_) => None,
            Self::Reflink { file, .. } | Self::Overlay { file } => Some(file),
        }
    }
}

impl FromStr for Source {
    type Err = Error;

    /// `zfs:POOL/DATASET@SNAPSHOT`, `reflink:FILE`, `reflink-or-copy:FILE` or `qcow2:FILE`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let file = |file: &str, copy| match file {
            "" => refuse(text, "it names no file"),
            file => Ok(Self::Reflink {
                file: file.into(),
                copy,
            }),
        };
        match text.split_once(':') {
            Some(("zfs", name)) => Ok(Self::Zfs(name.parse()?)),
            Some(("reflink", path)) => file(path, false),
            Some(("reflink-or-copy", path)) => file(path, true),
            Some(("qcow2", "")) => refuse(text, "it names no file"),
            Some(("qcow2", path)) => Ok(Self::Overlay { file: path.into() }),
            _ => refuse(
                text,
                "write zfs:POOL/DATASET@SNAPSHOT, reflink:FILE, reflink-or-copy:FILE or qcow2:FILE",
            ),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zfs(snapshot) => write!(f, "zfs:{snapshot}"),
            Self::Reflink { file, copy: false } => write!(f, "reflink:{}", file.display()),
            Self::Reflink { file, copy: true } => write!(f, "reflink-or-copy:{}", file.display()),
            Self::Overlay { file } => write!(f, "qcow2:{}", file.display()),
        }
    }
}

/// Which disk the guests of a restore get. In JSON its text, or null for the sealed one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Option<String>", try_from = "Option<String>")]
pub enum Choice {
    /// The disk sealed with the checkpoint, if there is one.
    #[default]
    Sealed,
    /// None, even when one was sealed with the checkpoint.
    None,
    /// This one. The checkpoint must have none of its own.
    Source(Source),
}

impl FromStr for Choice {
    type Err = Error;

    /// `none`, or a [`Source`].
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "none" => Ok(Self::None),
            _ => Ok(Self::Source(text.parse()?)),
        }
    }
}

impl TryFrom<Option<String>> for Choice {
    type Error = Error;

    fn try_from(text: Option<String>) -> Result<Self, Error> {
        text.map_or(Ok(Self::Sealed), |text| text.parse())
    }
}

impl From<Choice> for Option<String> {
    fn from(choice: Choice) -> Self {
        match choice {
            Choice::Sealed => None,
            Choice::None => Some("none".to_owned()),
            Choice::Source(source) => Some(source.to_string()),
        }
    }
}

/// Where disks and snapshots of brood lie.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// Right below this dataset.
    Zfs(Dataset),
    /// In this folder, guests' disks in its folder `brood-disks`.
    Folder(PathBuf),
}

impl FromStr for Place {
    type Err = Error;

    /// `zfs:DATASET` or `reflink:FOLDER`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text.split_once(':') {
            Some(("zfs", name)) => Ok(Self::Zfs(name.parse()?)),
            Some(("reflink", path)) => Ok(Self::Folder(check_path(path)?)),
            _ => refuse(text, "write zfs:DATASET or reflink:FOLDER"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zfs(dataset) => write!(f, "zfs:{dataset}"),
            Self::Folder(folder) => write!(f, "reflink:{}", folder.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_zfs_or_a_shell_would_take_for_something_else_are_refused() {
        for bad in [
            "",
            "/",
            "pool/",
            "/pool",
            "pool//a",
            "-r",
            "1pool",
            "pool/../a",
            "pool/a b",
            "pool/a@b",
            "pool/a#b",
            "pool/a%b",
            "pool/$(x)",
            "pool/a\nb",
            "pööl",
            &format!("p/{}", "x".repeat(206)),
        ] {
            assert!(bad.parse::<Dataset>().is_err(), "{bad:?}");
        }
        for bad in [
            "pool",
            "pool@",
            "@now",
            "pool@a@b",
            "pool@a/b",
            "pool@-r x",
            "-r@x",
            "pool@..",
        ] {
            assert!(bad.parse::<SnapshotName>().is_err(), "{bad:?}");
        }
        for bad in ["zfs:", "zfs:pool", "reflink:", "copy:/a", "/a", "zfs:-f@x"] {
            assert!(bad.parse::<Choice>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn clones_lie_beside_what_they_are_clones_of() {
        let place = |source: &str| source.parse::<Source>().unwrap().place().to_string();
        assert_eq!(place("zfs:pool/data@now"), "zfs:pool");
        assert_eq!(place("zfs:pool@now"), "zfs:pool");
        assert_eq!(place("zfs:pool/a/b@now"), "zfs:pool/a");
        assert_eq!(place("reflink:/images/web.img"), "reflink:/images");
        assert_eq!(place("reflink-or-copy:/web.img"), "reflink:/");
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_written_back_and_is_no_option(text in "(zfs:|reflink:|reflink-or-copy:|qcow2:)?[-a-zA-Z0-9_.:@/ #]{0,24}") {
            if let Ok(source) = text.parse::<Source>() {
                prop_assert_eq!(source.to_string(), text);
                if let Source::Zfs(snapshot) = source {
                    prop_assert!(snapshot.to_string().starts_with(|c: char| c.is_ascii_alphabetic()));
                    prop_assert_eq!(snapshot.to_string().matches('@').count(), 1);
                }
            }
        }
    }
}
