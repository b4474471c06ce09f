//! Salvage of a damaged database: the rows that can still be read. Each table is read from both
//! ends, so that the rows behind a damaged page are found from the other side.

use std::{collections::HashSet, fmt::Display, hash::Hash, path::Path};

use rusqlite::{Connection, OpenFlags, Row};

use super::{
    ClaimFile, EntryState, GuestRow, PoolRow, TokenDigest,
    guest_row::{self, COLUMNS},
    journal::Journal,
    pools::{POOL, bad, entry_state, guest_id, pool_from_row},
};
use crate::guest_id::GuestId;

/// An entry of a pool, as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SavedEntry {
    pub(crate) guest: GuestId,
    pub(crate) pool: String,
    pub(crate) state: EntryState,
    pub(crate) token: Option<TokenDigest>,
}

/// What was read.
#[derive(Debug, Default)]
pub(crate) struct Salvage {
    pub(crate) pools: Vec<PoolRow>,
    pub(crate) guests: Vec<GuestRow>,
    pub(crate) entries: Vec<SavedEntry>,
    /// Suspended claims.
    pub(crate) claims: Vec<ClaimFile>,
    /// Where guests had disks.
    pub(crate) disk_places: Vec<String>,
    /// What could not be read to its end, and why.
    pub(crate) unread: Vec<String>,
}

impl Salvage {
    /// Reads a database that no other process uses. Its journal lies beside it, if there is one.
    pub(crate) fn read(path: &Path) -> Self {
        let mut salvage = Self::default();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        match Connection::open_with_flags(path, flags) {
            Ok(database) => salvage.read_all(&database),
            Err(e) => salvage.unread.push(e.to_string()),
        }
        // Made by looking; the next look makes it again.
        let _ = std::fs::remove_file(Journal::beside(path, "-shm"));
        salvage
    }

    fn read_all(&mut self, database: &Connection) {
        let unread = &mut self.unread;
        let pool = format!("{POOL} FROM pool");
        self.pools = rows(database, unread, "pools", &pool, pool_from_row, |p| {
            p.name.clone()
        });
        let guest = format!("{COLUMNS} FROM guest");
        self.guests = rows(
            database,
            unread,
            "guests",
            &guest,
            guest_row::from_row,
            |g| g.id,
        );
        let entry = "guest, pool, state, token FROM entry";
        let of_row = |row: &Row<'_>| {
            Ok(SavedEntry {
                guest: guest_id(row, 0)?,
                pool: row.get(1)?,
                state: entry_state(row, 2)?,
                token: row.get(3)?,
            })
        };
        self.entries = rows(database, unread, "entries of pools", entry, of_row, |e| {
            e.guest
        });
        let suspended = "token, pool, guest, bundle, created_at, state FROM suspended_claim";
        let of_row = |row: &Row<'_>| {
            if row.get_ref(5)?.as_str()? == "suspending" {
                return Err(bad(5, "not suspended yet"));
            }
            Ok(ClaimFile {
                token: row.get(0)?,
                pool: row.get(1)?,
                guest: guest_id(row, 2)?.to_string(),
                bundle: row.get(3)?,
                created_at: row.get(4)?,
            })
        };
        self.claims = rows(
            database,
            unread,
            "suspended claims",
            suspended,
            of_row,
            |c| c.token.clone(),
        );
        let place = "place FROM disk_place";
        self.disk_places = rows(
            database,
            unread,
            "places of disks",
            place,
            |r| r.get(0),
            Clone::clone,
        );
    }
}

/// The readable rows of a table, without those that make no sense.
fn rows<T, K: Hash + Eq>(
    database: &Connection,
    unread: &mut Vec<String>,
    what: impl Display,
    select: &str,
    of_row: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
    key: impl Fn(&T) -> K,
) -> Vec<T> {
    let (mut found, mut known) = (Vec::new(), HashSet::new());
    for order in ["ASC", "DESC"] {
        let mut read = || -> rusqlite::Result<()> {
            let mut statement = database.prepare(&format!(
                "SELECT {select} NOT INDEXED ORDER BY rowid {order}"
            ))?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                if let Ok(value) = of_row(row)
                    && known.insert(key(&value))
                {
                    found.push(value);
                }
            }
            Ok(())
        };
        match read() {
            Ok(()) => break,
            Err(e) if order == "ASC" => unread.push(format!("{what}: {e}")),
            Err(_) => {}
        }
    }
    found
}
