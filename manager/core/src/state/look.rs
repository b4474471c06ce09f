//! Read-only view of the state, for commands that list and end guests on a file system that is full
//! or read-only. SQLite would have to write before it can read; so this opens a copy, and what is
//! recorded in the copy is lost. The running processes decide anyway: the next command that can
//! write reconciles the record with them.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use rusqlite::ErrorCode;

use super::{DATABASE, Error, State, damage, schema};
use crate::{full_disk, guest_id::random};

/// How often to copy again when another command has written meanwhile.
const TRIES: usize = 3;

/// A folder that is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let mut result = Err(io::ErrorKind::NotFound.into());
        for place in [
            std::env::temp_dir(),
            "/dev/shm".into(),
            "/run".into(),
            "/var/tmp".into(),
        ] {
            let dir = place.join(format!("brood-{:016x}", u64::from_ne_bytes(random()?)));
            match DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => {
                    let scratch = Self(dir);
                    // A full file system takes a folder, and no file.
                    match fs::write(scratch.0.join("room"), [1; 64 << 10]) {
                        Ok(()) => return Ok(scratch),
                        Err(e) => result = Err(e),
                    }
                }
                Err(e) => result = Err(e),
            }
        }
        result
    }

    /// Copies a database and its journal.
    fn copy(&self, dir: &Path) -> io::Result<PathBuf> {
        let to = self.0.join(DATABASE);
        fs::copy(dir.join(DATABASE), &to)?;
        let journal = format!("{DATABASE}-wal");
        match fs::copy(dir.join(&journal), self.0.join(&journal)) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        Ok(to)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // There is no caller to report to.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl State {
    /// Opens the state in `dir` to list guests, or to end them. If the folder cannot be written,
    /// what is recorded from now on is lost, and [`Self::unwritable`] says why.
    ///
    /// # Errors
    /// As of [`Self::open`].
    pub fn open_to_look(dir: &Path) -> Result<Self, Error> {
        match Self::open(dir) {
            Err(error) if error.is_unwritable() => match Self::copied(dir) {
                Ok(mut state) => {
                    state.unwritable = Some(error.to_string());
                    Ok(state)
                }
                Err(_) => Err(error),
            },
            opened => opened,
        }
    }

    /// Why what is recorded from now on is lost; `None` when it is not.
    #[must_use]
    pub fn unwritable(&self) -> Option<&str> {
        self.unwritable.as_deref()
    }

    fn copied(dir: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Io {
            action: "copy",
            path: dir.join(DATABASE),
            source,
        };
        let mut tries = 0;
        loop {
            damage::check_files(dir)?;
            let scratch = Scratch::new().map_err(failed)?;
            let copy = scratch.copy(dir).map_err(failed)?;
            tries += 1;
            match schema::open(&copy, || damage::check_new(dir)) {
                Ok(opened) => {
                    let mut state = Self::with(dir, &copy, opened.database)?;
                    state.scratch = Some(scratch);
                    return Ok(state);
                }
                Err(Error::Damaged { .. }) if tries < TRIES => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Error {
    /// Whether the file system takes no writing: it is full or read-only, or fails.
    #[must_use]
    pub(crate) fn is_unwritable(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                full_disk::is_full(source) || source.kind() == io::ErrorKind::ReadOnlyFilesystem
            }
            Self::Database { source, .. } => matches!(
                source.sqlite_error_code(),
                Some(
                    ErrorCode::DiskFull
                        | ErrorCode::SystemIoFailure
                        | ErrorCode::ReadOnly
                        | ErrorCode::CannotOpen
                )
            ),
            _ => false,
        }
    }

    /// Whether another process has the record to itself for longer than this one waited.
    pub(crate) fn is_busy(&self) -> bool {
        match self {
            Self::Locked { .. } => true,
            Self::Database { source, .. } => {
                source.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
            }
            _ => false,
        }
    }
}
