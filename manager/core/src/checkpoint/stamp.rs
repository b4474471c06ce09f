//! Stamp of a file: its identity at one moment.

use std::{fs::File, io, os::unix::fs::MetadataExt};

use serde::{Deserialize, Serialize};

/// Identity of a file when it was opened: a change of its content changes the stamp.
///
/// The kernel sets the times, and nobody can set `ctime_ns` back. What the stamp cannot see: a
/// change within the clock tick of the stamp itself (Linux before 6.13: up to 4 ms), and stores
/// through a shared writable mapping: on tmpfs all of them, elsewhere those to a page that was
/// written to before, until the kernel writes it back. So a file is refused that somebody has open
/// for writing (`writers.rs`). The stamp also changes with the file's owner, mode, name and
/// number of links, which leave the content alone: then the content decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileStamp {
    /// Device that holds the file.
    pub device: u64,
    /// Number of the file on that device.
    pub inode: u64,
    /// Length in bytes.
    pub size: u64,
    /// Last change of the content, in nanoseconds since 1970.
    pub mtime_ns: i128,
    /// Last change of the content or of the file's attributes, in nanoseconds since 1970.
    pub ctime_ns: i128,
}

impl FileStamp {
    /// The stamp of an open file.
    ///
    /// # Errors
    /// What fstat(2) answers.
    pub fn of(file: &File) -> io::Result<Self> {
        let facts = file.metadata()?;
        let ns = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Ok(Self {
            device: facts.dev(),
            inode: facts.ino(),
            size: facts.size(),
            mtime_ns: ns(facts.mtime(), facts.mtime_nsec()),
            ctime_ns: ns(facts.ctime(), facts.ctime_nsec()),
        })
    }
}
