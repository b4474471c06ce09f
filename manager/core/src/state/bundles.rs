//! Folders with deltas: recorded so that a removal finds deltas in other folders that need the
//! bundle.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{Error, State};
use crate::{
    checkpoint::{self, BundlePath, Checkpoint},
    disk::Place,
};

impl State {
    /// Records that a folder has deltas, or is about to.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) fn note_bundle_folder(&self, folder: &Path) -> Result<(), Error> {
        // It may have no folder yet.
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let folder = folder.canonicalize().unwrap_or(folder);
        // A path that is not UTF-8 cannot be recorded; bundles of it are not either.
        let Some(folder) = folder.to_str() else {
            return Ok(());
        };
        if self
            .bundle_folders()?
            .iter()
            .any(|known| known.as_os_str() == folder)
        {
            return Ok(());
        }
        let add = "INSERT OR IGNORE INTO bundle_folder VALUES (?1)";
        self.changed(add, [folder]).map(|_| ())
    }

    /// Folders that have, or had, deltas.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(crate) fn bundle_folders(&self) -> Result<Vec<PathBuf>, Error> {
        let read = || {
            let mut statement = self
                .database
                .prepare_cached("SELECT folder FROM bundle_folder ORDER BY folder")?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.map(|folder| folder.map(PathBuf::from))
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|e| self.database_error(e))
    }

    /// Folders that may hold bundles: `these`, those in which deltas were written or used, and
    /// those of guests, pools, suspended claims and disks. Leaves out folders that do not exist.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn folders_of_bundles(&self, these: &[PathBuf]) -> Result<BTreeSet<PathBuf>, Error> {
        let mut folders = BTreeSet::from_iter(these.iter().cloned());
        folders.extend(self.bundle_folders()?);
        folders.insert(self.suspended_dir());
        for place in self.disk_places()? {
            if let Place::Folder(folder) = place {
                folders.insert(folder);
            }
        }
        let guests = self.guests()?.into_iter().map(|row| row.checkpoint);
        let pools = self.pools()?.into_iter().map(|pool| pool.checkpoint);
        for bundle in guests.chain(pools) {
            if let Ok(path) = bundle.parse::<BundlePath>() {
                folders.insert(path.dir().to_owned());
            }
        }
        // One folder may have several names.
        let there = folders
            .into_iter()
            .filter_map(|folder| folder.canonicalize().ok());
        Ok(there.collect())
    }

    /// Opens a bundle. Searches all recorded folders for a delta's parent that was moved.
    ///
    /// # Errors
    /// When the bundle, or a parent of it, cannot be used.
    pub fn open_checkpoint(&self, path: &BundlePath) -> Result<Checkpoint, checkpoint::Error> {
        match Checkpoint::open(path) {
            Err(checkpoint::Error::Parent { .. } | checkpoint::Error::OtherParent { .. }) => {
                // Without the record it is looked for beside the delta alone, and was not there.
                let folders = self.folders_of_bundles(&[]).unwrap_or_default();
                Checkpoint::open_among(path, &Vec::from_iter(folders))
            }
            opened => opened,
        }
    }
}
