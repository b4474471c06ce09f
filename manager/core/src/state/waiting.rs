//! Queue of claimers that wait for an entry of a pool, in the order in which they came. A claimer
//! who came later, or does not want to wait, gets no entry before them.

use rusqlite::params;

use super::{Error, State, pools::since_boot};
use crate::engine::Process;

/// A place in a pool's queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueuePlace(i64);

impl State {
    /// Takes the last place in a pool's queue, for a process that waits no longer than `wait_ms`.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn wait_in_line(
        &self,
        pool: &str,
        waiter: Process,
        wait_ms: u64,
    ) -> Result<QueuePlace, Error> {
        let until = since_boot().saturating_add_unsigned(wait_ms);
        let start_time = waiter.start_time.cast_signed();
        self.added(
            "INSERT INTO waiting (pool, pid, start_time, until) VALUES (?1, ?2, ?3, ?4)",
            params![pool, waiter.pid, start_time, until],
        )
        .map(QueuePlace)
    }

    /// Gives a place up.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn leave_line(&self, place: QueuePlace) -> Result<(), Error> {
        self.changed("DELETE FROM waiting WHERE ticket = ?1", [place.0])
            .map(|_| ())
    }

    /// How many claimers stand before this place, or before somebody without a place. Claimers
    /// whose process has ended, or whose time to wait is over, lose their place.
    ///
    /// # Errors
    /// When the database cannot be read or written.
    pub fn waiters_before(&self, pool: &str, place: Option<QueuePlace>) -> Result<u64, Error> {
        let read = || {
            let mut statement = self.database.prepare_cached(
                "SELECT ticket, pid, start_time, until FROM waiting
                 WHERE pool = ?1 AND ticket < ?2",
            )?;
            let rows = statement.query_map(params![pool, before(place)], |row| {
                let process = Process {
                    pid: row.get(1)?,
                    start_time: row.get::<_, i64>(2)?.cast_unsigned(),
                };
                Ok((QueuePlace(row.get(0)?), process, row.get::<_, i64>(3)?))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let now = since_boot();
        let mut waiters = 0;
        for (place, process, until) in read().map_err(|e| self.database_error(e))? {
            if until < now || !process.may_live() {
                self.leave_line(place)?;
            } else {
                waiters += 1;
            }
        }
        Ok(waiters)
    }
}

/// The ticket that those with a better place are below.
pub(super) fn before(place: Option<QueuePlace>) -> i64 {
    place.map_or(i64::MAX, |place| place.0)
}
