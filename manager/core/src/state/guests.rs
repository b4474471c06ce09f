//! Records of guests: one row for each guest from its order to its removal.

use std::{collections::HashSet, path::Path};

use rusqlite::{OptionalExtension, Row, params, types::Type};
use serde::Serialize;

use super::{EntryState, Error, Membership, State, pools::since_boot};
use crate::{
    checkpoint::{Accelerator, manifest::EngineKind},
    engine::{GuestOrder, GuestRef, Process, ProcessDescription, restore_lock},
    guest_id::GuestId,
    units::Bytes,
};

/// How far a guest has come, as recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RowState {
    /// Ordered; it has not been seen to answer.
    Restoring,
    /// It has answered; its process is known.
    Running,
    /// It ended by itself, or was killed, and was not destroyed.
    Dead,
}

impl RowState {
    fn name(self) -> &'static str {
        match self {
            Self::Restoring => "restoring",
            Self::Running => "running",
            Self::Dead => "dead",
        }
    }
}

/// One recorded guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestRow {
    /// Its id.
    pub id: GuestId,
    /// Its name.
    pub name: String,
    /// Bundle that it was restored from, `DIR/NAME`.
    pub checkpoint: String,
    /// Digest of that bundle's memory.
    pub sha256: String,
    /// Its memory.
    pub memory: Bytes,
    /// Private memory that it was promised.
    pub private_limit: Bytes,
    /// Whether the kernel ends it when it holds more.
    pub enforce_private_limit: bool,
    /// Its generation id, in hexadecimal.
    pub generation: String,
    /// Its MAC address.
    pub mac: String,
    /// Lock of the restore that it belongs to.
    pub session: String,
    /// When it was ordered, RFC 3339.
    pub created_at: String,
    /// How far it has come.
    pub state: RowState,
    /// Its process, when it has answered.
    pub process: Option<Process>,
    /// How it ended, when it did.
    pub reason: Option<String>,
    /// What its disk is a clone of ([`crate::disk::Source`]), when it has one.
    pub disk: Option<String>,
    /// The pool that it belongs to and how far its entry has come, when it belongs to one.
    pub entry: Option<(String, EntryState)>,
    /// The engine that runs it; none in rows of earlier versions.
    pub engine: Option<EngineKind>,
    /// What executes its instructions, when it is QEMU's.
    pub accelerator: Option<Accelerator>,
    boot: String,
}

impl GuestRow {
    /// The guest, as engines know it.
    #[must_use]
    pub fn in_folder<'a>(&'a self, run_dir: &'a Path) -> GuestRef<'a> {
        GuestRef::new(run_dir, &self.id).of(self.engine)
    }
}

/// A guest to record before it is restored.
#[derive(Clone, Debug)]
pub struct NewGuest<'a> {
    /// Its order.
    pub order: &'a GuestOrder,
    /// Bundle, `DIR/NAME`.
    pub checkpoint: &'a str,
    /// Digest of its memory.
    pub sha256: &'a str,
    /// Memory of the guest.
    pub memory: Bytes,
    /// Private memory that it is promised.
    pub private_limit: Bytes,
    /// Lock of the restore.
    pub session: &'a str,
    /// Now, RFC 3339.
    pub created_at: &'a str,
    /// The pool that it belongs to, if it does.
    pub membership: Option<&'a Membership>,
    /// What its disk will be a clone of, if it gets one.
    pub disk: Option<&'a str>,
    /// The engine that will run it.
    pub engine: EngineKind,
    /// What will execute its instructions, when it is QEMU's.
    pub accelerator: Option<Accelerator>,
}

/// What is found out of a guest without a record.
#[derive(Clone, Debug)]
pub struct AdoptedGuest<'a> {
    /// Digest of its checkpoint's memory; empty when that is not there.
    pub sha256: &'a str,
    /// What its disk is a clone of, when it has one.
    pub disk: Option<&'a str>,
    /// The engine that runs it.
    pub engine: EngineKind,
    /// What executes its instructions, when it is QEMU's.
    pub accelerator: Option<Accelerator>,
}

/// Exclusive access to the record within [`State::reserve`].
#[derive(Debug)]
pub struct Reservation<'a>(&'a State);

impl Reservation<'_> {
    /// Records a guest.
    ///
    /// # Errors
    /// When its name is taken, its pool is full, or the database cannot be written.
    pub fn add(&self, new: &NewGuest<'_>) -> Result<(), Error> {
        self.0.add(new)
    }

    /// Names of new guests, `PREFIX-N`. Numbers go on from the last one that was given, so that an
    /// old name never leads to another guest. They begin again when no guest of the prefix is left,
    /// except in a pool (`of_pool`), because claimers hold the names of its guests.
    ///
    /// # Errors
    /// [`Error::Name`] when the prefix makes names that a guest cannot have, or when the database
    /// cannot be written.
    pub fn names(
        &self,
        existing: &[GuestRow],
        prefix: &str,
        count: usize,
        of_pool: bool,
    ) -> Result<Vec<String>, Error> {
        let state = self.0;
        if !of_pool {
            // '.' comes after '-'.
            state.changed(
                "DELETE FROM numbered WHERE NOT of_pool AND NOT EXISTS
                 (SELECT 1 FROM guest WHERE name >= prefix || '-' AND name < prefix || '.')",
                [],
            )?;
        }
        let last: Option<i64> = state
            .database
            .prepare_cached("SELECT last FROM numbered WHERE prefix = ?1")
            .and_then(|mut statement| statement.query_row([prefix], |row| row.get(0)))
            .optional()
            .map_err(|e| state.database_error(e))?;
        let last = u64::try_from(last.unwrap_or(0)).unwrap_or(0);
        let names = new_names(existing, prefix, last, count)?;
        let last = names
            .last()
            .and_then(|name| name.rsplit_once('-')?.1.parse().ok())
            .unwrap_or(last);
        state.changed(
            "INSERT INTO numbered (prefix, last, of_pool) VALUES (?1, ?2, ?3)
             ON CONFLICT (prefix) DO UPDATE SET last = ?2, of_pool = of_pool OR ?3",
            params![prefix, signed(last), of_pool],
        )?;
        Ok(names)
    }
}

pub(super) const COLUMNS: &str = "id, name, checkpoint, sha256, memory, private_limit, generation, mac, session, \
                       created_at, state, pid, start_time, reason, boot, disk, \
                       enforce_private_limit, engine, accelerator";

impl State {
    /// All recorded guests, by name (numbers in names in their order).
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn guests(&self) -> Result<Vec<GuestRow>, Error> {
        let mut rows = self.unsorted_guests()?;
        let mut entries = self.entries_by_guest()?;
        for row in &mut rows {
            row.entry = entries.remove(&row.id);
        }
        rows.sort_by_cached_key(|row| natural(&row.name));
        Ok(rows)
    }

    fn unsorted_guests(&self) -> Result<Vec<GuestRow>, Error> {
        let read = || {
            let mut statement = self
                .database
                .prepare_cached(&format!("SELECT {COLUMNS} FROM guest"))?;
            let rows = statement.query_map([], from_row)?;
            rows.collect::<Result<Vec<_>, _>>()
        };
        read().map_err(|e| self.database_error(e))
    }

    /// Whether any guest is recorded as ordered and not seen to answer.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn has_restoring(&self) -> Result<bool, Error> {
        self.database
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM guest WHERE state = 'restoring')")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .map_err(|e| self.database_error(e))
    }

    /// The guest of this name or id.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn guest(&self, name: &str) -> Result<Option<GuestRow>, Error> {
        self.database
            .query_row(
                &format!("SELECT {COLUMNS} FROM guest WHERE name = ?1 OR id = ?1 ORDER BY name = ?1 DESC LIMIT 1"),
                [name],
                from_row,
            )
            .optional()
            .map_err(|e| self.database_error(e))
            .and_then(|row| row.map(|row| self.with_entry(row)).transpose())
    }

    fn with_entry(&self, row: GuestRow) -> Result<GuestRow, Error> {
        let pool = self.entry_pool(&row.id)?;
        let entry = pool.zip(self.entry_state(&row.id)?);
        Ok(GuestRow { entry, ..row })
    }

    /// Runs `decide` on all recorded guests and records the guests that it orders, in one
    /// transaction: no other command can record a guest in between.
    ///
    /// # Errors
    /// What `decide` says, or when the database cannot be written.
    pub fn reserve<T, E: From<Error>>(
        &mut self,
        decide: impl FnOnce(&[GuestRow], &Reservation<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.at_once(|state| {
            let rows = state.unsorted_guests()?;
            decide(&rows, &Reservation(state))
        })
    }

    fn add(&self, new: &NewGuest<'_>) -> Result<(), Error> {
        let id = new.order.id.to_string();
        let identity = &new.order.identity;
        self.changed(
            "INSERT INTO guest (id, name, checkpoint, sha256, memory, private_limit, generation, \
             mac, session, boot, created_at, state, disk, enforce_private_limit, engine, accelerator) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, 'restoring', ?12, ?13, ?14, ?15)",
            params![
                id,
                identity.name,
                new.checkpoint,
                new.sha256,
                signed(new.memory.0),
                signed(new.private_limit.0),
                hex(&identity.generation, ""),
                hex(&identity.mac, ":"),
                new.session,
                self.boot_id,
                new.created_at,
                new.disk,
                new.order.memory_limit.is_some(),
                new.engine.name(),
                new.accelerator.map(Accelerator::name)
            ],
        )?;
        let Some(membership) = new.membership else {
            return Ok(());
        };
        let claim = membership.claim.as_ref();
        let joined = self.changed(
            "INSERT INTO entry (guest, pool, state, token, expires, since)
             SELECT ?1, name, ?3, ?4, ?5, ?6 FROM pool WHERE name = ?2
             AND ifnull(min(ifnull(most, ?7), ifnull(?7, most))
                        > (SELECT count(*) FROM entry WHERE pool = ?2), true)",
            params![
                id,
                membership.pool,
                membership.first_state(),
                claim.map(|lease| &lease.token),
                claim.map(super::Lease::expires),
                since_boot(),
                membership.room.map(signed)
            ],
        )?;
        if joined {
            Ok(())
        } else {
            Err(Error::PoolFull(membership.pool.clone()))
        }
    }

    /// Records a live guest that has no record, as after a loss of the database. The guest gets its
    /// id as its name when its own name is taken or unusable.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn adopt(
        &mut self,
        id: GuestId,
        process: Process,
        described: &ProcessDescription,
        adopted: &AdoptedGuest<'_>,
    ) -> Result<(), Error> {
        let now = jiff::Timestamp::now().to_string();
        let insert = |name: &str| {
            self.changed(
                "INSERT OR IGNORE INTO guest (id, name, checkpoint, sha256, memory, private_limit, \
                 generation, mac, session, boot, created_at, state, pid, start_time, disk, \
                 engine, accelerator) \
                 VALUES (?1, ?2, ?3, ?4, ?5, 0, '', '', '', ?6, ?7, 'running', ?8, ?9, ?10, ?11, ?12)",
                params![
                    id.to_string(),
                    name,
                    described.checkpoint,
                    adopted.sha256,
                    signed(described.memory.0),
                    self.boot_id,
                    now,
                    process.pid,
                    signed(process.start_time),
                    adopted.disk,
                    adopted.engine.name(),
                    adopted.accelerator.map(Accelerator::name)
                ],
            )
        };
        // Nothing inserted: the name is taken, or another process has recorded the guest meanwhile,
        // and then the second try changes nothing either.
        if !insert(&described.name)? {
            insert(&id.to_string())?;
        }
        Ok(())
    }

    /// Records a guest that was found again, as it was recorded before.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) fn recall_guest(&mut self, row: &GuestRow) -> Result<(), Error> {
        self.changed(
            &format!(
                "INSERT OR IGNORE INTO guest ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, \
                     ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)"
            ),
            params![
                row.id.to_string(),
                row.name,
                row.checkpoint,
                row.sha256,
                signed(row.memory.0),
                signed(row.private_limit.0),
                row.generation,
                row.mac,
                row.session,
                row.created_at,
                row.state.name(),
                row.process.map(|process| process.pid),
                row.process.map(|process| signed(process.start_time)),
                row.reason,
                row.boot,
                row.disk,
                row.enforce_private_limit,
                row.engine.map(EngineKind::name),
                row.accelerator.map(Accelerator::name)
            ],
        )
        .map(|_| ())
    }

    /// Records that these guests have answered.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn record_running(&mut self, guests: &[(GuestId, Process)]) -> Result<(), Error> {
        self.change_each(
            "UPDATE guest SET state = 'running', pid = ?2, start_time = ?3, reason = NULL
             WHERE id = ?1",
            guests
                .iter()
                .map(|(id, process)| (id.to_string(), process.pid, signed(process.start_time))),
        )
    }

    /// Records how guests ended.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn record_dead(&mut self, guests: &[(GuestId, String)]) -> Result<(), Error> {
        self.change_each(
            "UPDATE guest SET state = 'dead', reason = ?2 WHERE id = ?1",
            guests
                .iter()
                .map(|(id, reason)| (id.to_string(), reason.clone())),
        )
    }

    /// Removes guests from the record.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn remove_guests(&mut self, guests: &[GuestId]) -> Result<(), Error> {
        self.change_each(
            "DELETE FROM guest WHERE id = ?1",
            guests.iter().map(|id| (id.to_string(),)),
        )
    }

    /// Whether a recorded guest may still come to life: its restore goes on.
    ///
    /// # Errors
    /// When the restore's lock cannot be looked at.
    pub fn may_come(&self, row: &GuestRow) -> Result<bool, Error> {
        Ok(self.of_this_boot(row) && restore_lock::is_held(&self.run_dir(), &row.session)?)
    }

    /// Whether the host has not been booted since the guest was restored.
    #[must_use]
    pub fn of_this_boot(&self, row: &GuestRow) -> bool {
        boot_of(&row.boot) == boot_of(&self.boot_id)
    }

    /// Whether the guest was restored in another PID namespace of this boot: its process cannot be
    /// looked at from here.
    #[must_use]
    pub fn of_other_namespace(&self, row: &GuestRow) -> bool {
        self.of_this_boot(row)
            && matches!(
                (namespace_of(&row.boot), namespace_of(&self.boot_id)),
                (Some(theirs), Some(ours)) if theirs != ours
            )
    }
}

/// The boot that a guest was restored in, as its row says: `BOOT` or `BOOT/NAMESPACE`.
fn boot_of(recorded: &str) -> &str {
    recorded.split('/').next().unwrap_or(recorded)
}

/// The PID namespace (the jail, on FreeBSD) that a guest was restored in; rows of earlier versions
/// do not say.
fn namespace_of(recorded: &str) -> Option<&str> {
    recorded.split_once('/').map(|(_, namespace)| namespace)
}

/// Names of new guests: `PREFIX-N`, with the lowest numbers after `last` that are free.
///
/// # Errors
/// [`Error::Name`] when the prefix makes names that a guest cannot have.
pub fn new_names(
    existing: &[GuestRow],
    prefix: &str,
    last: u64,
    count: usize,
) -> Result<Vec<String>, Error> {
    let taken: HashSet<&str> = existing.iter().map(|row| row.name.as_str()).collect();
    let names: Vec<String> = (last.saturating_add(1)..)
        .map(|n| format!("{prefix}-{n}"))
        .filter(|name| !taken.contains(name.as_str()))
        .take(count)
        .collect();
    check(prefix, names.last().map_or(prefix, String::as_str))?;
    Ok(names)
}

/// This very name for a new guest.
///
/// # Errors
/// [`Error::Name`] when a guest cannot have it, or another has it.
pub fn new_name(existing: &[GuestRow], name: &str) -> Result<String, Error> {
    check(name, name)?;
    if existing.iter().any(|row| row.name == name) {
        return Err(Error::Name {
            name: name.to_owned(),
            reason: "another guest has it",
        });
    }
    Ok(name.to_owned())
}

/// Whether a guest may be named `whole`, which is `stem`, with or without a number.
fn check(stem: &str, whole: &str) -> Result<(), Error> {
    let refuse = |reason| {
        Err(Error::Name {
            name: stem.to_owned(),
            reason,
        })
    };
    if !stem.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return refuse("it must begin with a letter or digit");
    }
    if !stem
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    {
        return refuse("it may have letters, digits, '-', '_' and '.' only");
    }
    if whole.len() > 32 {
        return refuse("it is longer than 32 bytes, its number counted");
    }
    Ok(())
}

pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<GuestRow> {
    let bytes = |i| {
        row.get::<_, i64>(i)
            .map(|n| Bytes(u64::try_from(n).unwrap_or(0)))
    };
    let bad = |i, what: &str| rusqlite::Error::FromSqlConversionFailure(i, Type::Text, what.into());
    let state = match row.get_ref(10)?.as_str()? {
        "restoring" => RowState::Restoring,
        "running" => RowState::Running,
        "dead" => RowState::Dead,
        _ => return Err(bad(10, "not a guest's state")),
    };
    debug_assert!(row.get_ref(10)?.as_str()? == state.name());
    let process = match (
        row.get::<_, Option<i32>>(11)?,
        row.get::<_, Option<i64>>(12)?,
    ) {
        (Some(pid), Some(start)) => Some(Process {
            pid,
            start_time: u64::try_from(start).unwrap_or(0),
        }),
        _ => None,
    };
    Ok(GuestRow {
        id: row
            .get_ref(0)?
            .as_str()?
            .parse()
            .map_err(|_| bad(0, "not a guest's id"))?,
        name: row.get(1)?,
        checkpoint: row.get(2)?,
        sha256: row.get(3)?,
        memory: bytes(4)?,
        private_limit: bytes(5)?,
        generation: row.get(6)?,
        mac: row.get(7)?,
        session: row.get(8)?,
        created_at: row.get(9)?,
        state,
        process,
        reason: row.get(13)?,
        entry: None,
        boot: row.get(14)?,
        disk: row.get(15)?,
        enforce_private_limit: row.get(16)?,
        engine: EngineKind::named(row.get_ref(17)?.as_str_or_null()?.unwrap_or_default()),
        accelerator: row
            .get_ref(18)?
            .as_str_or_null()?
            .and_then(|name| name.parse().ok()),
    })
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn hex(bytes: &[u8], separator: &str) -> String {
    bytes
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect::<Vec<_>>()
        .join(separator)
}

/// Sorts `g-2` before `g-10`.
fn natural(name: &str) -> (String, u64, String) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (
        stem.to_owned(),
        name[stem.len()..].parse().unwrap_or(u64::MAX),
        name.to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_lowest_free_ones() {
        assert_eq!(new_names(&[], "g", 0, 3).unwrap(), ["g-1", "g-2", "g-3"]);
        assert_eq!(new_names(&[], "g", 8, 2).unwrap(), ["g-9", "g-10"]);
        for bad in ["", "-x", "a b", "a/b", "ä", &"x".repeat(31)] {
            assert!(new_names(&[], bad, 0, 1).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_sort_by_their_numbers() {
        let mut names = ["g-10", "g-9", "a", "g-1"];
        names.sort_by_key(|n| natural(n));
        assert_eq!(names, ["a", "g-1", "g-9", "g-10"]);
    }
}
