//! Guests that a manager is ending: noted before their processes are killed. A process that then
//! finds such a guest dead knows that it did not end by itself.

use std::collections::HashSet;

use super::{Error, State, pools::guest_id};
use crate::guest_id::GuestId;

impl State {
    /// Notes that these guests are being ended. That of entries which are being released, and of
    /// claims which are being suspended, is known already.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) fn note_ending(&self, guests: &[GuestId]) -> Result<(), Error> {
        self.change_each(
            "INSERT OR IGNORE INTO ending SELECT ?1
             WHERE NOT EXISTS (SELECT 1 FROM entry WHERE guest = ?1 AND state = 'releasing')
             AND NOT EXISTS (SELECT 1 FROM suspended_claim WHERE guest = ?1)",
            guests.iter().map(|id| (id.to_string(),)),
        )
    }

    /// Takes that back: the guests go on.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) fn forget_ending(&self, guests: &[GuestId]) -> Result<(), Error> {
        self.change_each(
            "DELETE FROM ending WHERE guest = ?1",
            guests.iter().map(|id| (id.to_string(),)),
        )
    }

    /// Recorded guests that ended by themselves.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn ended_unasked(&self) -> Result<HashSet<GuestId>, Error> {
        let read = || {
            let mut statement = self.database.prepare_cached(
                "SELECT id FROM guest WHERE state = 'dead'
                 AND id NOT IN (SELECT guest FROM ending)
                 AND id NOT IN (SELECT guest FROM entry WHERE state = 'releasing')
                 AND id NOT IN (SELECT guest FROM suspended_claim)",
            )?;
            let rows = statement.query_map([], |row| guest_id(row, 0))?;
            rows.collect::<rusqlite::Result<HashSet<_>>>()
        };
        read().map_err(|e| self.database_error(e))
    }
}
