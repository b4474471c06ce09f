//! Messages about files in the guest.

use serde::{Deserialize, Serialize};

use crate::os_bytes::OsBytes;

/// A file to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadFile {
    /// Where it is; relative paths begin at the root.
    pub path: OsBytes,
    /// Where in it to begin, in bytes.
    pub offset: u64,
    /// How many bytes at most; none is to its end.
    pub length: Option<u64>,
    /// Whether the answer has the digest of what was read.
    pub digest: bool,
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteFile {
    /// Where; relative paths begin at the root. A symbolic link is replaced, not followed.
    pub path: OsBytes,
    /// Permission bits.
    pub mode: u32,
    /// Its owner by name or by number; none is the agent's own.
    pub user: Option<String>,
    /// Whether folders above it are made.
    pub parents: bool,
    /// Whether it is written back to the disk before the answer.
    pub sync: bool,
    /// Whether the answer has the digest of what was written.
    pub digest: bool,
}

/// A file was read or written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// How many bytes.
    pub bytes: u64,
    /// Their SHA-256, if it was asked for.
    pub sha256: Option<[u8; 32]>,
}

/// What something in a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link.
    Link,
    /// A device, a pipe or a socket.
    Other,
}

/// What is known of something in a file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// What it is.
    pub kind: FileKind,
    /// Its size in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// The number of its owner.
    pub uid: u32,
    /// The number of its group.
    pub gid: u32,
    /// When it was changed last, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// Where it leads, if it is a symbolic link.
    pub target: Option<OsBytes>,
}

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name in the folder.
    pub name: OsBytes,
    /// What it is.
    pub metadata: Metadata,
}

/// A change in a file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What changed: a path below the one that is watched.
    pub path: OsBytes,
    /// What happened to it.
    pub kind: ChangeKind,
    /// Whether it is a folder.
    pub directory: bool,
}

/// Kinds of [`Change`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    /// It was made.
    Created,
    /// Its content was changed.
    Written,
    /// Its owner, its permission or its times were changed.
    Attributes,
    /// It was removed.
    Removed,
    /// It was renamed from here.
    MovedFrom,
    /// It was renamed to here.
    MovedTo,
}
