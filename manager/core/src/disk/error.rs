//! Errors of disks: what was tried, on which disk, and why it failed.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{checkpoint::is_interrupted, full_disk, zfs_name::NameError};

/// Why something could not be done with a disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that no disk can have.
    #[error("{given:?} does not name a disk: {reason}")]
    Name {
        /// What was given.
        given: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// The source of a clone does not exist.
    #[error("the disk {disk} does not exist")]
    Missing {
        /// Snapshot or file.
        disk: String,
    },
    /// A disk of this name exists, but it is not the sealed one.
    #[error(
        "{disk} is not the disk that was sealed with the checkpoint: its {what} is {found}, and was {sealed}"
    )]
    Other {
        /// Snapshot or file.
        disk: String,
        /// What was compared.
        what: &'static str,
        /// The present value.
        found: String,
        /// The sealed value.
        sealed: String,
    },
    /// A checkpoint that has a disk of its own is to be restored with another one.
    #[error("its memory belongs to the disk that was sealed with it, {sealed}, and not to {given}")]
    Mismatch {
        /// The disk that was asked for.
        given: String,
        /// The disk that was sealed.
        sealed: String,
    },
    /// A checkpoint with more disks than a guest can have here.
    #[error("it has {0} disks, and guests have one here")]
    Many(usize),
    /// The name of a guest's disk is taken by something else.
    #[error("cannot make the disk {disk}: it exists, and is not a clone of {origin}")]
    Taken {
        /// The guest's disk.
        disk: String,
        /// What it was to be a clone of.
        origin: String,
    },
    /// Guests' disks are clones of a snapshot that was to be removed.
    #[error("cannot remove the snapshot {snapshot}: {said}")]
    InUse {
        /// The snapshot.
        snapshot: String,
        /// What `zfs` said.
        said: String,
    },
    /// `zfs` could not do it.
    #[error("cannot {action} {dataset}: zfs says: {said}")]
    Zfs {
        /// The action that failed.
        action: &'static str,
        /// On which dataset or snapshot.
        dataset: String,
        /// What `zfs` said.
        said: String,
    },
    /// There is no `zfs` to run.
    #[error("cannot run zfs: {0}")]
    NoZfs(io::Error),
    /// The file system does not let two files share blocks.
    #[error("cannot share the blocks of {} with {}: {cause}", from.display(), to.display())]
    CannotShare {
        /// The file that exists.
        from: PathBuf,
        /// The file to make, or its folder.
        to: PathBuf,
        /// What the system answered.
        cause: io::Error,
    },
    /// Guests whose engine reads no overlays were to get some.
    #[error(
        "{disk} would be an overlay (qcow2), and only guests of QEMU that have a disk read one"
    )]
    NoOverlays {
        /// What was asked for.
        disk: String,
    },
    /// A file was written to while clones of it were made.
    #[error("{} changed while disks were made of it", file.display())]
    Changed {
        /// The file.
        file: PathBuf,
    },
    /// A file that disks are made of is a folder, device or symbolic link.
    #[error("refusing {}: it is not a regular file", file.display())]
    NotRegular {
        /// The file.
        file: PathBuf,
    },
    /// The requester cancelled it.
    #[error("interrupted")]
    Interrupted,
    /// The operating system refused.
    #[error("cannot {action} {}: {cause}", file.display())]
    Io {
        /// The action that failed.
        action: &'static str,
        /// On which file.
        file: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
}

impl From<NameError> for Error {
    fn from(error: NameError) -> Self {
        let NameError { given, reason } = error;
        Self::Name { given, reason }
    }
}

impl Error {
    pub(super) fn io(action: &'static str, file: &Path, cause: impl Into<io::Error>) -> Self {
        let cause = cause.into();
        if is_interrupted(&cause) {
            return Self::Interrupted;
        }
        Self::Io {
            action,
            file: file.to_owned(),
            cause,
        }
    }

    /// Whether the action ended because its requester cancelled it.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted)
    }

    /// A hint what to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Name { .. } => "see brood restore --help".to_owned(),
            Self::Missing { .. } => {
                "bring it back; memory alone can be restored with --disk none".to_owned()
            }
            Self::Other { .. } => {
                "bring back the one that was sealed, or make the checkpoint again".to_owned()
            }
            Self::Mismatch { .. } => "leave --disk out".to_owned(),
            Self::NoOverlays { .. } => "name it as reflink:FILE or reflink-or-copy:FILE".to_owned(),
            Self::Taken { disk, .. } => format!("see what it is: zfs get all {disk}"),
            Self::InUse { .. } => "destroy the guests that use it first".to_owned(),
            Self::Zfs { dataset, .. } => format!("see zfs list -r -t all {dataset}"),
            Self::NoZfs(_) => "install ZFS, and have zfs in PATH".to_owned(),
            Self::CannotShare { .. } => {
                "keep both on one file system that can (XFS, Btrfs), or name the disk as reflink-or-copy:FILE to have it copied".to_owned()
            }
            Self::Changed { .. } => {
                "make disks of a file that nobody writes to, such as a read-only copy".to_owned()
            }
            Self::Io { cause, .. } if full_disk::is_full(cause) => full_disk::HINT.to_owned(),
            Self::Io { file, cause, .. } => match cause.kind() {
                io::ErrorKind::PermissionDenied => {
                    let folder = file.parent().filter(|_| !file.exists());
                    let file = folder.unwrap_or(file);
                    format!("check who owns it: ls -ld {}", file.display())
                }
                _ => return None,
            },
            Self::Many(_) | Self::NotRegular { .. } | Self::Interrupted => return None,
        })
    }
}
