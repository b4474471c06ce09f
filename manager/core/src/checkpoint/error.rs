//! Errors of bundles. Each message names the file and the field.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{hash, path::BundlePath};
use crate::{full_disk, units::Bytes};

/// What to do where a file may not grow so large.
const TOO_LARGE: &str = "allow larger files (ulimit -f unlimited, or LimitFSIZE= of the service), or choose another file system";

/// A bundle that cannot be written, opened, verified or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path cannot name a bundle.
    #[error("{given:?} does not name a checkpoint: {reason}")]
    Name {
        /// What was given.
        given: PathBuf,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {cause}", file.display())]
    Io {
        /// The action that failed, such as `open`.
        action: &'static str,
        /// On which file or folder.
        file: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// The requester cancelled it.
    #[error("interrupted while at {}", file.display())]
    Interrupted {
        /// The file that was read or written.
        file: PathBuf,
    },
    /// No file of the bundle exists.
    #[error("there is no checkpoint {bundle}: {} does not exist", file.display())]
    NotFound {
        /// What was looked for.
        bundle: BundlePath,
        /// Its manifest.
        file: PathBuf,
    },
    /// Some files of the bundle exist, but not this one.
    #[error("checkpoint {bundle} is incomplete: {} is missing", file.display())]
    Incomplete {
        /// Which bundle.
        bundle: BundlePath,
        /// The first missing file.
        file: PathBuf,
    },
    /// A file of the bundle to write exists already.
    #[error("cannot create checkpoint {bundle}: {} exists already", file.display())]
    Exists {
        /// Which bundle.
        bundle: BundlePath,
        /// The file that is in the way.
        file: PathBuf,
    },
    /// Another process writes or removes this bundle now.
    #[error("checkpoint {bundle} is being written or removed by another process, which holds {}", file.display())]
    Busy {
        /// Which bundle.
        bundle: BundlePath,
        /// The locked temporary file.
        file: PathBuf,
    },
    /// The file system cannot hold the bundle.
    #[error("cannot create checkpoint {bundle}: it needs up to {needed}, and {} has {free} free", dir.display())]
    NoSpace {
        /// Which bundle.
        bundle: BundlePath,
        /// Folder whose file system was asked.
        dir: PathBuf,
        /// What the bundle takes when every page of it is written.
        needed: Bytes,
        /// What an unprivileged user may still write.
        free: Bytes,
    },
    /// A file of the bundle is a symbolic link.
    #[error("refusing {}: it is a symbolic link, and what it points to could change unseen", file.display())]
    Symlink {
        /// Which file.
        file: PathBuf,
    },
    /// A file of the bundle is a folder, device, pipe or socket.
    #[error("refusing {}: it is not a regular file", file.display())]
    NotRegular {
        /// Which file.
        file: PathBuf,
    },
    /// A file is longer than any real one.
    #[error("refusing {}: it has {size}, and no such file may have more than {cap}", file.display())]
    TooLarge {
        /// Which file.
        file: PathBuf,
        /// Its length.
        size: Bytes,
        /// Longest that is read.
        cap: Bytes,
    },
    /// A manifest of another version.
    #[error("{}: field version: this is a version {found} manifest{}; brood {} reads version {}",
        file.display(), made_by.as_ref().map(|by| format!(" of a checkpoint made by {by}")).unwrap_or_default(),
        env!("CARGO_PKG_VERSION"), super::manifest::VERSION)]
    Version {
        /// The manifest.
        file: PathBuf,
        /// Its version, as written.
        found: String,
        /// The engine that made the checkpoint, if the manifest names it readably.
        made_by: Option<String>,
    },
    /// A field is missing, unknown, of the wrong type or holds what cannot be.
    #[error("{}: field {field}: {reason}", file.display())]
    Field {
        /// The manifest or the `.meta`.
        file: PathBuf,
        /// Path of the field, such as `memory.segments[0].size`; `(top level)` for the whole.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file has another length than the manifest says.
    #[error("{} has {} bytes, but field {field} of {} says {}", file.display(), actual.0, manifest.display(), expected.0)]
    Size {
        /// Which file.
        file: PathBuf,
        /// The manifest.
        manifest: PathBuf,
        /// Field of the manifest.
        field: String,
        /// Length by the manifest.
        expected: Bytes,
        /// Length of the file.
        actual: Bytes,
    },
    /// A file has another content than when it was sealed.
    #[error("{} has SHA-256 {actual}, but field {field} of {} says {expected}", file.display(), manifest.display())]
    Digest {
        /// Which file.
        file: PathBuf,
        /// The manifest.
        manifest: PathBuf,
        /// Field of the manifest.
        field: String,
        /// Digest by the manifest.
        expected: String,
        /// Digest of the file.
        actual: String,
    },
    /// A file was written to, or replaced, between two looks at it.
    #[error("{} changed while it was in use", file.display())]
    Changed {
        /// Which file.
        file: PathBuf,
    },
    /// It was made elsewhere, and wants this host to do something for it.
    #[error("checkpoint {bundle} was not made here, and would have this host {}", wants.join(", "))]
    NotTrusted {
        /// Which bundle.
        bundle: BundlePath,
        /// What it wants.
        wants: Vec<String>,
    },
    /// No key that it must be signed with has signed it.
    #[error("checkpoint {bundle} is not signed with a key of {}: {reason}", signers.display())]
    NotSigned {
        /// Which bundle.
        bundle: BundlePath,
        /// The folder of keys.
        signers: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file that is to hold a key of signatures cannot be used.
    #[error("cannot use the key {}: {reason}", file.display())]
    Key {
        /// The file, or the folder that it lies in.
        file: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Everybody on this host may change it.
    #[error("everybody on this host may change {}: guests of checkpoint {bundle} would be anybody's", file.display())]
    Exposed {
        /// Which bundle.
        bundle: BundlePath,
        /// The file or folder.
        file: PathBuf,
    },
    /// Another process may write to a sealed file.
    #[error("{} is open for writing{}: what is written there would be guests' memory", file.display(), by_whom(by))]
    OpenForWriting {
        /// Which file.
        file: PathBuf,
        /// Processes that have it open, as far as they are known.
        by: Vec<String>,
    },
    /// A parent of a delta cannot be used.
    #[error("checkpoint {bundle} is a delta of {parent}, which cannot be used: {cause}")]
    Parent {
        /// The delta.
        bundle: BundlePath,
        /// Its parent.
        parent: BundlePath,
        /// What is wrong with the parent.
        cause: Box<Error>,
    },
    /// Another checkpoint lies where the parent of a delta was.
    #[error(
        "checkpoint {bundle} is a delta of what {parent} was: its memory had SHA-256 {expected} and has {found}"
    )]
    OtherParent {
        /// The delta.
        bundle: BundlePath,
        /// Where its parent should lie.
        parent: BundlePath,
        /// `memory_sha256` of the parent by the delta's manifest.
        expected: String,
        /// That of what lies there.
        found: String,
    },
    /// More deltas over each other than are followed.
    #[error(
        "checkpoint {bundle} cannot be a delta of {parent}: at most {} deltas may lie over a full checkpoint",
        super::open::DELTAS_MAX
    )]
    TooDeep {
        /// The delta that is one too many, or that has too many over it.
        bundle: BundlePath,
        /// Its parent.
        parent: BundlePath,
    },
    /// A full checkpoint was to be joined with parents that it does not have.
    #[error("checkpoint {bundle} is a full one: there is nothing to flatten")]
    NotADelta {
        /// Which bundle.
        bundle: BundlePath,
    },
    /// Its disk cannot be had twice.
    #[error("cannot flatten {bundle}: its disk is a ZFS snapshot, which one checkpoint has")]
    OwnDisk {
        /// The bundle.
        bundle: BundlePath,
    },
    /// Another process is removing the bundle.
    #[error("checkpoint {bundle} is being removed: {by}")]
    BeingRemoved {
        /// Which bundle.
        bundle: BundlePath,
        /// Who does it.
        by: String,
    },
    /// Another process is reading the bundle.
    #[error("cannot remove or change checkpoint {bundle}: {by}")]
    BeingRead {
        /// Which bundle.
        bundle: BundlePath,
        /// Who does it.
        by: String,
    },
    /// A pool, a suspended claim or a delta needs the bundle.
    #[error("cannot remove checkpoint {bundle}: {}", users.join("; "))]
    Needed {
        /// Which bundle.
        bundle: BundlePath,
        /// Deltas, pools and suspended claims, with what each needs it for.
        users: Vec<String>,
    },
    /// Guests still share the bundle's memory.
    #[error("cannot remove checkpoint {bundle}: {} use it: {}", count(users), users.join(", "))]
    InUse {
        /// Which bundle.
        bundle: BundlePath,
        /// Names of the guests.
        users: Vec<String>,
    },
}

fn by_whom(processes: &[String]) -> String {
    if processes.is_empty() {
        return String::new();
    }
    format!(" by process {}", processes.join(", "))
}

fn count(users: &[String]) -> String {
    match users.len() {
        1 => "1 guest".to_owned(),
        n => format!("{n} guests"),
    }
}

impl Error {
    pub(super) fn io(action: &'static str, file: &Path, cause: impl Into<io::Error>) -> Self {
        let (file, cause) = (file.to_owned(), cause.into());
        if hash::is_interrupted(&cause) {
            return Self::Interrupted { file };
        }
        Self::Io {
            action,
            file,
            cause,
        }
    }

    pub(super) fn field_of(file: &Path, field: &str, reason: &str) -> Self {
        Self::Field {
            file: file.to_owned(),
            field: printable(field),
            reason: printable(reason),
        }
    }

    /// The file or folder that the error is about.
    #[must_use]
    pub fn file(&self) -> &Path {
        match self {
            Self::Name { given: file, .. }
            | Self::Io { file, .. }
            | Self::Interrupted { file }
            | Self::NotFound { file, .. }
            | Self::Incomplete { file, .. }
            | Self::Exists { file, .. }
            | Self::Busy { file, .. }
            | Self::NoSpace { dir: file, .. }
            | Self::Symlink { file }
            | Self::Exposed { file, .. }
            | Self::NotRegular { file }
            | Self::TooLarge { file, .. }
            | Self::Version { file, .. }
            | Self::Field { file, .. }
            | Self::Size { file, .. }
            | Self::Digest { file, .. }
            | Self::OpenForWriting { file, .. }
            | Self::Key { file, .. }
            | Self::Changed { file } => file,
            Self::Parent { cause, .. } => cause.file(),
            Self::OtherParent { parent, .. } => parent.dir(),
            Self::TooDeep { bundle, .. }
            | Self::NotADelta { bundle }
            | Self::OwnDisk { bundle }
            | Self::BeingRemoved { bundle, .. }
            | Self::BeingRead { bundle, .. }
            | Self::Needed { bundle, .. }
            | Self::NotTrusted { bundle, .. }
            | Self::NotSigned { bundle, .. }
            | Self::InUse { bundle, .. } => bundle.dir(),
        }
    }

    /// The field of the manifest or of the `.meta` that the error is about, if it is about one.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Field { field, .. } | Self::Size { field, .. } | Self::Digest { field, .. } => {
                Some(field)
            }
            Self::Version { .. } => Some("version"),
            _ => None,
        }
    }

    /// Whether the action ended because its requester cancelled it.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted { .. })
    }

    /// A hint what to do next, if there is one.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Name { .. } => "name it as DIR/NAME, such as checkpoints/web".to_owned(),
            Self::Io { cause, .. } if full_disk::is_full(cause) => full_disk::HINT.to_owned(),
            Self::Io { cause, file, .. } => match cause.kind() {
                io::ErrorKind::PermissionDenied => {
                    // What could not be made is not there to be looked at; its folder is.
                    let folder = file.parent().filter(|_| !file.exists());
                    let file = folder.unwrap_or(file);
                    format!("check who owns it: ls -ld {}", file.display())
                }
                io::ErrorKind::CrossesDevices => format!(
                    "a checkpoint lies in the file system of its memory: name a place beside {}, or copy that first",
                    file.display()
                ),
                io::ErrorKind::FileTooLarge => TOO_LARGE.to_owned(),
                _ => return None,
            },
            Self::Interrupted { .. } => return None,
            Self::NotFound { bundle, .. } => where_it_may_be(bundle),
            Self::Incomplete { bundle, .. } => format!(
                "if nobody is writing it now, remove what is left and make it again: brood checkpoint remove {bundle}"
            ),
            Self::Exists { bundle, .. } => {
                format!("choose another name, or remove it: brood checkpoint remove {bundle}")
            }
            Self::Busy { .. } | Self::BeingRemoved { .. } | Self::BeingRead { .. } => "wait until that process has ended, then try again".to_owned(),
            Self::NoSpace { needed, free, .. } => format!(
                "free {} or choose a folder on a larger file system",
                needed.saturating_sub(*free)
            ),
            Self::Symlink { .. } => {
                "name the folder that holds the files themselves, or put a copy here".to_owned()
            }
            Self::Version { made_by, .. } => format!(
                "restore it with the brood that made it{}, or make it again",
                made_by
                    .as_ref()
                    .map(|by| format!(" ({by})"))
                    .unwrap_or_default()
            ),
            Self::NotRegular { .. }
            | Self::TooLarge { .. }
            | Self::Field { .. }
            | Self::Size { .. }
            | Self::Digest { .. } => {
                "the bundle is damaged: bring back a good copy of its files, or make it again"
                    .to_owned()
            }
            Self::NotTrusted { bundle, .. } => format!(
                "if you know who made it and want that, say so once: brood checkpoint trust {bundle}, \
                 or --trust with restore and pool create"
            ),
            Self::NotSigned { bundle, .. } => format!(
                "if you know who made it and vouch for it: brood checkpoint sign {bundle} --key KEY.pem, \
                 with a key whose public part lies in that folder"
            ),
            Self::Key { .. } => "openssl genpkey -algorithm ed25519 -out KEY.pem makes a key, and \
                 openssl pkey -in KEY.pem -pubout -out SIGNERS/NAME.pem its public part"
                .to_owned(),
            Self::Exposed { bundle, file } => format!(
                "if it is what you made, take it from them: chmod o-w {}; brood checkpoint verify {bundle}",
                file.display()
            ),
            Self::OpenForWriting { .. } => "end that process, then try again".to_owned(),
            Self::Changed { file } => format!(
                "find who writes to it (fuser -v {}), then verify it again",
                file.display()
            ),
            Self::Parent { bundle, parent, .. } | Self::OtherParent { bundle, parent, .. } => {
                format!(
                    "a delta is nothing without its parents: bring {parent} back as it was, or \
                     say where it lies now: brood checkpoint rebase {bundle} --parent DIR/NAME"
                )
            }
            Self::TooDeep { parent, .. } => format!(
                "suspend in full (without --delta), or join the chain: brood checkpoint flatten {parent} DIR/NEW"
            ),
            Self::NotADelta { .. } => "restore from it as it is".to_owned(),
            Self::OwnDisk { .. } => {
                "restore a guest from it, and suspend that one in full: brood suspend".to_owned()
            }
            Self::Needed { .. } => "join deltas to full checkpoints first (brood checkpoint flatten DELTA DIR/NEW), release claims, remove pools; or remove it with --force, and lose what needs it".to_owned(),
            Self::InUse { .. } => "destroy these guests first: brood destroy GUEST...".to_owned(),
        })
    }
}

/// `text` as it may go to a terminal: no control characters, and not a screenful.
pub(super) fn printable(text: &str) -> String {
    const MAX: usize = 300;
    let mut shown = String::new();
    for c in text.chars() {
        if shown.len() >= MAX {
            shown.push('…');
            break;
        }
        if crate::escaped::is_unprintable(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A hint for a checkpoint that does not exist: the path may name a folder of checkpoints, or lie
/// in a folder that does not exist.
fn where_it_may_be(bundle: &BundlePath) -> String {
    /// Names that are given; there may be thousands.
    const GIVEN: usize = 5;
    let dir = bundle.dir();
    let folder = dir.join(bundle.name());
    if folder.is_dir() {
        let mut names: Vec<String> = std::fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| Some(name.strip_suffix(".ckp.brood")?.to_owned()))
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort();
        let more = names.len().saturating_sub(GIVEN);
        names.truncate(GIVEN);
        let mut given: Vec<String> = names
            .iter()
            .map(|name| folder.join(name).display().to_string())
            .collect();
        if more > 0 {
            given.push(format!("and {more} more"));
        }
        return match given.is_empty() {
            true => format!("{} is a folder, with no checkpoint in it", folder.display()),
            false => format!(
                "{} is a folder; name a checkpoint in it: {}",
                folder.display(),
                given.join(", ")
            ),
        };
    }
    if !dir.exists() {
        return format!("there is no folder {}", dir.display());
    }
    format!("see what is there: brood checkpoint list {}", dir.display())
}
