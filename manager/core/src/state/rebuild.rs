//! Replacement of a damaged database. The damaged one is kept aside. The new one has another name
//! until it is complete, and every command that starts meanwhile says so.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::{DATABASE, Error, Salvage, State, damage::UNFINISHED, journal::Journal, schema};
use crate::{
    faults::{self, Point},
    owner_only,
};

/// A database that is being made.
#[derive(Debug)]
pub(crate) struct Rebuild {
    /// The state, with the new database.
    pub(crate) state: State,
    /// The damaged one, aside.
    aside: Option<PathBuf>,
}

impl Rebuild {
    /// Moves the database of `dir` aside, and begins a new one.
    ///
    /// # Errors
    /// [`Error::Whole`] when it is not damaged; when the folder cannot be written.
    pub(crate) fn begin(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(DATABASE);
        match State::open(dir) {
            Ok(_) => return Err(Error::Whole { path }),
            Err(Error::Damaged { .. }) => {}
            Err(e) => return Err(e),
        }
        let unfinished = dir.join(UNFINISHED);
        remove_all(&unfinished)?;
        owner_only::options()
            .create(true)
            .truncate(true)
            .write(true)
            .open(&unfinished)
            .map_err(failed("write", &unfinished))?;
        let aside = keep_aside(dir)?;
        let database = schema::open(&unfinished, || Ok(()))?.database;
        let state = State::with(dir, &unfinished, database)?;
        Ok(Self { state, aside })
    }

    /// The readable part of the damaged database.
    pub(crate) fn salvage(&self) -> Salvage {
        self.aside
            .as_deref()
            .map_or_else(Salvage::default, Salvage::read)
    }

    /// Puts the new database in its place. Returns where the damaged one is.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn finish(self) -> Result<Option<PathBuf>, Error> {
        let State { dir, database, .. } = self.state;
        let (path, unfinished) = (dir.join(DATABASE), dir.join(UNFINISHED));
        let of = |source| Error::database(&unfinished, source);
        // All of it in one file: its journal would not be found under the new name.
        database
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .map_err(of)?;
        database.close().map_err(|(_, e)| of(e))?;
        for end in ["-wal", "-shm"] {
            remove(&Journal::beside(&path, end))?;
        }
        let put = || {
            File::open(&unfinished)?.sync_all()?;
            faults::at(Point::RebuildPlace)?;
            fs::rename(&unfinished, &path)?;
            File::open(&dir)?.sync_all()
        };
        put().map_err(failed("put the new database in the place of", &path))?;
        Ok(self.aside)
    }
}

/// Gives the database a second name, and its journal the matching one. Returns the name that an
/// earlier, interrupted rebuild has given, if there is one.
fn keep_aside(dir: &Path) -> Result<Option<PathBuf>, Error> {
    let path = dir.join(DATABASE);
    let Ok(damaged) = fs::metadata(&path) else {
        return Ok(None);
    };
    owner_only::restrict(&path).map_err(failed("take from others", &path))?;
    let prefix = format!("{DATABASE}.damaged-");
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let known = entries.map(|entry| entry.path()).find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let of_database = name.starts_with(&prefix) && !name.ends_with("-wal");
        of_database && fs::metadata(path).is_ok_and(|file| file.ino() == damaged.ino())
    });
    if known.is_some() {
        return Ok(known);
    }
    let aside = (Timestamp::now().as_second()..)
        .map(|n| dir.join(format!("{prefix}{n}")))
        .find(|path| !path.exists())
        .expect("numbers do not run out");
    let journal = Journal::path;
    faults::at(Point::RebuildAside).map_err(failed("keep the damaged database as", &aside))?;
    if journal(&path).exists() {
        let to = journal(&aside);
        fs::hard_link(journal(&path), &to).map_err(failed("keep the journal as", &to))?;
    }
    fs::hard_link(&path, &aside).map_err(failed("keep the damaged database as", &aside))?;
    Ok(Some(aside))
}

fn remove_all(database: &Path) -> Result<(), Error> {
    remove(database)?;
    for end in ["-wal", "-shm"] {
        remove(&Journal::beside(database, end))?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(e)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path: path.clone(),
        source,
    }
}
