//! Places of disks: recorded so that disks without a guest, and snapshots without a bundle, are
//! found again.

use super::{Error, State};
use crate::{
    checkpoint::BundlePath,
    disk::{Owner, Place},
};

impl State {
    /// Whose disks are those of this state folder's guests.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner::of(&self.dir)
    }

    /// Records that disks or snapshots may come to lie in a place.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn note_disk_place(&self, place: &Place) -> Result<(), Error> {
        self.changed(
            "INSERT OR IGNORE INTO disk_place VALUES (?1)",
            [place.to_string()],
        )
        .map(|_| ())
    }

    /// Records that a snapshot may come to lie beside a bundle.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn note_bundle_place(&self, bundle: &BundlePath) -> Result<(), Error> {
        // It may have no folder yet.
        let dir = std::path::absolute(bundle.dir()).unwrap_or_else(|_| bundle.dir().to_owned());
        let dir = dir.canonicalize().unwrap_or(dir);
        self.note_disk_place(&Place::Folder(dir))
    }

    /// Places in which disks or snapshots may lie.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(crate) fn disk_places(&self) -> Result<Vec<Place>, Error> {
        let read = || {
            let mut statement = self
                .database
                .prepare("SELECT place FROM disk_place ORDER BY place")?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.collect::<Result<Vec<_>, _>>()
        };
        let places = read().map_err(|e| self.database_error(e))?;
        // What was written was a place.
        Ok(places
            .iter()
            .filter_map(|place| place.parse().ok())
            .collect())
    }
}
