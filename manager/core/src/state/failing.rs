//! Failing pools: why a pool could not be filled, since when, and when the daemon tries again. This
//! is recorded so that every command can show it, and a new daemon keeps the pause.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};

use super::{Error, State, pools::since_boot};

/// Pause after a pool's first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Why a pool could not be filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFailure {
    /// The last error.
    pub error: String,
    /// Time of the first failure in the row, RFC 3339.
    pub since: String,
    /// Failures in a row.
    pub tries: u64,
    /// Pause of the daemon after the last failure, in seconds.
    pub pause_s: u64,
}

impl State {
    /// Records that a pool could not be filled.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) fn note_failing(&self, pool: &str, error: &str) -> Result<(), Error> {
        let tries = self.failing(pool)?.map_or(0, |failing| failing.tries) + 1;
        let retry_at = since_boot().saturating_add(milliseconds(pause(tries)));
        self.changed(
            "INSERT INTO failing (pool, error, since, tries, retry_at) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (pool) DO UPDATE SET error = ?2, tries = ?4, retry_at = ?5",
            params![
                pool,
                error,
                Timestamp::now().to_string(),
                i64::try_from(tries).unwrap_or(i64::MAX),
                retry_at
            ],
        )
        .map(|_| ())
    }

    /// Records that a pool could be filled, or is gone; says whether it failed before.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) fn note_not_failing(&self, pool: &str) -> Result<bool, Error> {
        // Said after each look at a pool: most have nothing to be written.
        match self.failing(pool)? {
            Some(_) => self.changed("DELETE FROM failing WHERE pool = ?1", [pool]),
            None => Ok(false),
        }
    }

    /// Why a pool could not be filled; `None` when it could.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn failing(&self, pool: &str) -> Result<Option<PoolFailure>, Error> {
        self.database
            .prepare_cached("SELECT error, since, tries FROM failing WHERE pool = ?1")
            .and_then(|mut statement| {
                statement.query_row([pool], |row| {
                    let tries = row.get::<_, i64>(2)?.cast_unsigned();
                    Ok(PoolFailure {
                        error: row.get(0)?,
                        since: row.get(1)?,
                        tries,
                        pause_s: pause(tries).as_secs(),
                    })
                })
            })
            .optional()
            .map_err(|e| self.database_error(e))
    }

    /// Whether a pool that could not be filled is to be left alone for now.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn is_left_alone(&self, pool: &str) -> Result<bool, Error> {
        let now = since_boot();
        let left = self
            .database
            .prepare_cached("SELECT retry_at FROM failing WHERE pool = ?1")
            .and_then(|mut statement| statement.query_row([pool], |row| row.get::<_, i64>(0)))
            .optional()
            .map_err(|e| self.database_error(e))?
            .map(|at| at.saturating_sub(now));
        // A time of an earlier boot may be far away: it is none.
        Ok(left.is_some_and(|left| left > 0 && left <= milliseconds(LONGEST_PAUSE)))
    }
}

/// How long a pool is left alone after so many failures in a row.
fn pause(tries: u64) -> Duration {
    let doubled = u32::try_from(tries.saturating_sub(1))
        .unwrap_or(u32::MAX)
        .min(16);
    (FIRST_PAUSE * 2_u32.pow(doubled)).min(LONGEST_PAUSE)
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_pause_and_a_success_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("state")).unwrap();
        assert_eq!(state.failing("web").unwrap(), None);
        let mut pauses = Vec::new();
        for n in 1..=8 {
            state.note_failing("web", &format!("error {n}")).unwrap();
            let failing = state.failing("web").unwrap().unwrap();
            assert_eq!((failing.tries, failing.error), (n, format!("error {n}")));
            assert!(state.is_left_alone("web").unwrap());
            pauses.push(failing.pause_s);
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(state.failing("other").unwrap(), None);
        assert!(!state.is_left_alone("other").unwrap());
        assert!(state.note_not_failing("web").unwrap());
        assert!(!state.note_not_failing("web").unwrap());
        state.note_failing("web", "again").unwrap();
        assert_eq!(state.failing("web").unwrap().unwrap().pause_s, 5);
    }
}
