//! Row of a guest: what the record says of it, and how it is read.

use std::path::Path;

use rusqlite::{Row, types::Type};
use serde::Serialize;

use super::{EntryState, State};
use crate::{
    checkpoint::{Accelerator, manifest::EngineKind},
    engine::{Forward, GuestRef, Process},
    guest_id::GuestId,
    units::Bytes,
};

pub(super) const COLUMNS: &str = "id, name, checkpoint, sha256, memory, private_limit, generation, mac, session, \
                       created_at, state, pid, start_time, reason, boot, disk, \
                       enforce_private_limit, engine, accelerator, forwards, landlock";

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
    pub(super) fn name(self) -> &'static str {
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
    /// What leads into it.
    pub forwards: Vec<Forward>,
    /// Version of Landlock that confines its process, as that reported at its restore; none when it
    /// is not known.
    pub landlock: Option<u32>,
    pub(super) boot: String,
}

impl GuestRow {
    /// The guest, as engines know it.
    #[must_use]
    pub fn in_folder<'a>(&'a self, run_dir: &'a Path) -> GuestRef<'a> {
        GuestRef::new(run_dir, &self.id).of(self.engine)
    }
}

impl State {
    /// Whether the host has not been booted since the guest was restored.
    #[must_use]
    pub(crate) fn of_this_boot(&self, row: &GuestRow) -> bool {
        boot_of(&row.boot) == boot_of(&self.boot_id)
    }

    /// Has the row say that its guest was restored in this boot, here.
    pub(crate) fn count_to_this_boot(&self, row: &mut GuestRow) {
        row.boot.clone_from(&self.boot_id);
    }

    /// Whether the guest was restored in another PID namespace of this boot: its process cannot be
    /// looked at from here.
    #[must_use]
    pub(crate) fn of_other_namespace(&self, row: &GuestRow) -> bool {
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

pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<GuestRow> {
    let bytes = |i| {
        row.get::<_, i64>(i)
            .map(|n| Bytes(u64::try_from(n).unwrap_or(0)))
    };
    let state = row_state(row, 10)?;
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
        forwards: forwards(row, 19)?,
        landlock: row.get(20)?,
    })
}

/// What leads into a guest, as a column says it.
pub(super) fn forwards(row: &Row<'_>, column: usize) -> rusqlite::Result<Vec<Forward>> {
    match row.get_ref(column)?.as_str_or_null()? {
        Some(text) => serde_json::from_str(text).map_err(|_| bad(column, "no list of ports")),
        None => Ok(Vec::new()),
    }
}

/// How far a guest has come, as a column says it.
pub(super) fn row_state(row: &Row<'_>, column: usize) -> rusqlite::Result<RowState> {
    let word = row.get_ref(column)?.as_str()?;
    [RowState::Restoring, RowState::Running, RowState::Dead]
        .into_iter()
        .find(|state| state.name() == word)
        .ok_or_else(|| bad(column, "not a guest's state"))
}

fn bad(column: usize, what: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, what.into())
}

/// What leads into a guest, as its row has it.
pub(super) fn forwards_text(forwards: &[Forward]) -> Option<String> {
    let some = !forwards.is_empty();
    some.then(|| serde_json::to_string(forwards).unwrap_or_default())
}
