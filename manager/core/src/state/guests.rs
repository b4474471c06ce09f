//! Records of guests: one row for each guest from its order to its removal.

use std::collections::HashSet;

use rusqlite::{OptionalExtension, Params, params};

use super::{
    EntryState, Error, GuestRow, Membership, State,
    guest_names::natural,
    guest_row::{COLUMNS, forwards, forwards_text, from_row},
    pools::{guest_id, since_boot},
};
use crate::{
    checkpoint::{Accelerator, manifest::EngineKind},
    engine::{Forward, GuestOrder, Process, ProcessDescription, restore_lock},
    guest_id::GuestId,
    units::Bytes,
};

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

/// A guest that has answered: its id, its process, and the version of Landlock that confines that,
/// where it is known.
pub(crate) type AnsweredGuest = (GuestId, Process, Option<u32>);

/// Exclusive access to the record within [`State::reserve`].
#[derive(Debug)]
pub struct Reservation<'a>(pub(super) &'a State);

impl Reservation<'_> {
    /// Records a guest.
    ///
    /// # Errors
    /// When its name is taken, its pool is gone, or the database cannot be written.
    pub fn add(&self, new: &NewGuest<'_>) -> Result<(), Error> {
        self.0.add(new)
    }

    /// All recorded guests, in no order, without their entries in pools.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn rows(&self) -> Result<Vec<GuestRow>, Error> {
        self.0.unsorted_guests("", [])
    }

    /// What leads into guests that are not dead, with the guest.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn forwards(&self) -> Result<Vec<(GuestId, Forward)>, Error> {
        let state = self.0;
        let read = || {
            let mut statement = state.database.prepare_cached(
                "SELECT id, forwards FROM guest WHERE forwards IS NOT NULL AND state != 'dead'",
            )?;
            let mut rows = statement.query([])?;
            let mut all = Vec::new();
            while let Some(row) = rows.next()? {
                let id = guest_id(row, 0)?;
                all.extend(forwards(row, 1)?.into_iter().map(|one| (id, one)));
            }
            Ok(all)
        };
        read().map_err(|e| state.database_error(e))
    }

    /// Checks that so many more guests may join a pool. Once for all that are to join: to count the
    /// pool's entries for each would take a time that grows with the pool.
    ///
    /// # Errors
    /// [`Error::PoolFull`], or when the database cannot be read.
    pub fn check_room(&self, membership: &Membership, guests: u64) -> Result<(), Error> {
        let state = self.0;
        let has_room = state
            .database
            .prepare_cached(
                "SELECT ifnull(min(ifnull(most, ?2), ifnull(?2, most))
                               >= (SELECT count(*) FROM entry WHERE pool = ?1) + ?3, true)
                 FROM pool WHERE name = ?1",
            )
            .and_then(|mut statement| {
                let room = membership.room.map(signed);
                statement
                    .query_row(params![membership.pool, room, signed(guests)], |row| {
                        row.get::<_, bool>(0)
                    })
                    .optional()
            })
            .map_err(|e| state.database_error(e))?;
        match has_room {
            Some(true) => Ok(()),
            // A pool that was removed takes no guests either.
            Some(false) | None => Err(Error::PoolFull(membership.pool.clone())),
        }
    }
}

impl State {
    /// All recorded guests, by name (numbers in names in their order).
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn guests(&self) -> Result<Vec<GuestRow>, Error> {
        let mut rows = self.unsorted_guests("", [])?;
        let mut entries = self.entries_by_guest()?;
        for row in &mut rows {
            row.entry = entries.remove(&row.id);
        }
        rows.sort_by_cached_key(|row| natural(&row.name));
        Ok(rows)
    }

    /// The guests whose names begin with `prefix`, as [`State::guests`] has them. Others are not
    /// read.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(crate) fn guests_with_prefix(&self, prefix: &str) -> Result<Vec<GuestRow>, Error> {
        // Names are of ASCII, and no letter of it comes after '~'.
        let range = "WHERE name >= ?1 AND name < ?1 || '~'";
        let mut rows = self.unsorted_guests(range, [prefix])?;
        for row in &mut rows {
            row.entry = self.entry_of(&row.id)?;
        }
        rows.sort_by_cached_key(|row| natural(&row.name));
        Ok(rows)
    }

    fn unsorted_guests(&self, which: &str, with: impl Params) -> Result<Vec<GuestRow>, Error> {
        let read = || {
            let mut statement = self
                .database
                .prepare_cached(&format!("SELECT {COLUMNS} FROM guest {which}"))?;
            let rows = statement.query_map(with, from_row)?;
            rows.collect::<Result<Vec<_>, _>>()
        };
        read().map_err(|e| self.database_error(e))
    }

    /// Ids of all recorded guests.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(crate) fn guest_ids(&self) -> Result<HashSet<GuestId>, Error> {
        let read = || {
            let mut statement = self.database.prepare_cached("SELECT id FROM guest")?;
            let ids = statement.query_map([], |row| guest_id(row, 0))?;
            ids.collect::<Result<HashSet<_>, _>>()
        };
        read().map_err(|e| self.database_error(e))
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
        let entry = self.entry_of(&row.id)?;
        Ok(GuestRow { entry, ..row })
    }

    fn entry_of(&self, id: &GuestId) -> Result<Option<(String, EntryState)>, Error> {
        let pool = self.entry_pool(id)?;
        Ok(pool.zip(self.entry_state(id)?))
    }

    /// Runs `decide`, which looks at the record and records the guests that it orders, in one
    /// transaction: no other command can record a guest in between.
    ///
    /// # Errors
    /// What `decide` says, or when the database cannot be written.
    pub fn reserve<T, E: From<Error>>(
        &mut self,
        decide: impl FnOnce(&Reservation<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.at_once(|state| decide(&Reservation(state)))
    }

    fn add(&self, new: &NewGuest<'_>) -> Result<(), Error> {
        let id = new.order.id.to_string();
        let identity = &new.order.identity;
        self.changed(
            "INSERT INTO guest (id, name, checkpoint, sha256, memory, private_limit, generation, \
             mac, session, boot, created_at, state, disk, enforce_private_limit, engine, accelerator, \
             forwards) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, 'restoring', ?12, ?13, ?14, ?15, ?16)",
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
                new.accelerator.map(Accelerator::name),
                forwards_text(&new.order.network.forwards)
            ],
        )?;
        let Some(membership) = new.membership else {
            return Ok(());
        };
        let claim = membership.claim.as_ref();
        let joined = self.changed(
            "INSERT INTO entry (guest, pool, state, token, expires, since, network_version)
             SELECT ?1, name, ?3, ?4, ?5, ?6, ?7 FROM pool WHERE name = ?2",
            params![
                id,
                membership.pool,
                membership.first_state(),
                claim.map(|lease| &lease.token),
                claim.map(super::Lease::expires),
                since_boot(),
                signed(membership.network_version)
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
    pub(crate) fn adopt(
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
                     ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)"
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
                row.accelerator.map(Accelerator::name),
                forwards_text(&row.forwards),
                row.landlock
            ],
        )
        .map(|_| ())
    }

    /// Records that these guests have answered, with the version of Landlock that confines each.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) fn record_running(&mut self, guests: &[AnsweredGuest]) -> Result<(), Error> {
        self.change_each(
            "UPDATE guest SET state = 'running', pid = ?2, start_time = ?3, landlock = ?4,
                              reason = NULL
             WHERE id = ?1",
            guests.iter().map(|(id, process, landlock)| {
                let start_time = signed(process.start_time);
                (id.to_string(), process.pid, start_time, *landlock)
            }),
        )
    }

    /// Records how guests ended.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) fn record_dead(&mut self, guests: &[(GuestId, String)]) -> Result<(), Error> {
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
        // No lock outlives the host's boot.
        Ok(restore_lock::is_held(&self.run_dir(), &row.session)?)
    }
}

pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn hex(bytes: &[u8], separator: &str) -> String {
    bytes
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect::<Vec<_>>()
        .join(separator)
}
