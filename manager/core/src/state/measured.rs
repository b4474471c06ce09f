//! Measured costs of a checkpoint's guests, for `brood plan` and for admission.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, params};

use super::{Error, State};
use crate::units::Bytes;

/// The last measurement of a checkpoint's guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestMeasurement {
    /// On how many guests.
    pub guests: u64,
    /// Kernel and process memory of one guest.
    pub overhead: Bytes,
    /// Private guest memory of a guest that had only answered.
    pub pristine_private: Bytes,
    /// Private guest memory of one at work.
    pub expected_private: Bytes,
    /// When, RFC 3339.
    pub at: String,
}

impl State {
    /// The last measurement of guests of the checkpoint with this digest.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn measured(&self, sha256: &str) -> Result<Option<GuestMeasurement>, Error> {
        let bytes = |n: i64| Bytes(u64::try_from(n).unwrap_or(0));
        self.database
            .query_row(
                "SELECT guests, overhead, pristine_private, expected_private, at FROM measured WHERE sha256 = ?1",
                [sha256],
                |row| {
                    Ok(GuestMeasurement {
                        guests: bytes(row.get(0)?).0,
                        overhead: bytes(row.get(1)?),
                        pristine_private: bytes(row.get(2)?),
                        expected_private: bytes(row.get(3)?),
                        at: row.get(4)?,
                    })
                },
            )
            .optional()
            .map_err(|e| self.database_error(e))
    }

    /// What guests of all checkpoints that were measured cost besides their private memory, by the
    /// checkpoint's digest.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn overheads(&self) -> Result<HashMap<String, Bytes>, Error> {
        let read = || {
            let mut statement = self
                .database
                .prepare_cached("SELECT sha256, overhead FROM measured")?;
            let rows = statement.query_map([], |row| {
                let overhead = row.get::<_, i64>(1)?;
                Ok((row.get(0)?, Bytes(u64::try_from(overhead).unwrap_or(0))))
            })?;
            rows.collect::<rusqlite::Result<HashMap<_, _>>>()
        };
        read().map_err(|e| self.database_error(e))
    }

    /// Notes a measurement.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn note_measured(&self, sha256: &str, measured: &GuestMeasurement) -> Result<(), Error> {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.changed(
            "INSERT OR REPLACE INTO measured VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                sha256,
                signed(measured.guests),
                signed(measured.overhead.0),
                signed(measured.pristine_private.0),
                signed(measured.expected_private.0),
                measured.at
            ],
        )
        .map(|_| ())
    }
}
