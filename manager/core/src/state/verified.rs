//! Verified memory files: digests by file stamp, so that an unchanged file is read only once.

use rusqlite::{OptionalExtension, params};

use super::{Error, State};
use crate::checkpoint::FileStamp;

impl State {
    /// The digest of the file that had this stamp, if it was computed.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(crate) fn verified_digest(&self, stamp: &FileStamp) -> Result<Option<String>, Error> {
        self.database
            .query_row(
                "SELECT sha256 FROM verified WHERE device = ?1 AND inode = ?2 AND size = ?3
                 AND mtime_ns = ?4 AND ctime_ns = ?5",
                key(stamp),
                |row| row.get(0),
            )
            .optional()
            .map_err(|e| self.database_error(e))
    }

    /// Notes the digest of the file that has this stamp, in place of an older one.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) fn note_verified(&self, stamp: &FileStamp, sha256: &str) -> Result<(), Error> {
        let (device, inode, size, mtime, ctime) = key(stamp);
        self.changed(
            "DELETE FROM verified WHERE device = ?1 AND inode = ?2",
            params![device, inode],
        )?;
        // Another command may have noted the same meanwhile.
        self.changed(
            "INSERT OR REPLACE INTO verified VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![device, inode, size, mtime, ctime, sha256],
        )?;
        Ok(())
    }
}

/// SQLite's integers are signed and have 64 bits; the bits are what counts here.
fn key(stamp: &FileStamp) -> (i64, i64, i64, String, String) {
    let bits = u64::cast_signed;
    (
        bits(stamp.device),
        bits(stamp.inode),
        bits(stamp.size),
        stamp.mtime_ns.to_string(),
        stamp.ctime_ns.to_string(),
    )
}
