//! Guests of a state folder, as they are recorded and as they run.
//!
//! The record says what was intended; the processes say what is, and they win. Every command that
//! looks at guests first reconciles the record with the processes, so that a manager killed at any
//! moment leaves nothing that the next command does not see.

mod destroy;
mod disks;
mod error;
mod overhead;
mod pause;
mod programs;
mod reconcile;
mod strays;
mod suspend;
mod users;

use std::{
    io,
    sync::atomic::AtomicBool,
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

pub use destroy::{DestroyReport, Left};
pub use disks::Leftover;
pub use error::Error;
pub use overhead::{Overhead, Overheads};
pub use strays::{EndedStrays, destroy_strays, strays};
pub use users::User;

use reconcile::UNEXPLAINED;

use crate::{
    engine::{self, Answer, Engine, Limit, MemoryMap, Process, Usage, restore_lock},
    guest_id::GuestId,
    state::{EntryState, GuestRow, State},
};

/// How long to wait for the reason of a guest's end.
const REASON_PATIENCE: Duration = Duration::from_millis(500);

/// What a guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestState {
    /// Another command is restoring it.
    Restoring,
    /// It runs, or waits for a request.
    Running,
    /// It is stopped, and holds its memory.
    Paused,
    /// It ended by itself or was killed.
    Dead,
}

impl GuestState {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Restoring => "restoring",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Dead => "dead",
        }
    }
}

/// A guest.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its record.
    pub row: GuestRow,
    /// What it is doing.
    pub state: GuestState,
}

impl Guest {
    /// Whether it is claimed.
    #[must_use]
    pub fn is_claimed(&self) -> bool {
        matches!(self.row.entry, Some((_, EntryState::Claimed)))
    }

    /// Its process, when it has one.
    #[must_use]
    pub fn process(&self) -> Option<Process> {
        match self.state {
            GuestState::Running | GuestState::Paused => self.row.process,
            GuestState::Restoring | GuestState::Dead => None,
        }
    }
}

/// The guests of a state folder and the engine that runs them.
#[derive(Debug)]
pub struct Guests<'a> {
    /// The record.
    pub state: &'a mut State,
    /// What runs them.
    pub engine: &'a dyn Engine,
    /// Ends all waits when set: the requester has gone.
    pub cancelled: &'a AtomicBool,
}

impl Guests<'_> {
    /// All guests, after reconciling the record with the processes.
    ///
    /// # Errors
    /// When the state cannot be read or written.
    pub fn list(&mut self) -> Result<Vec<Guest>, Error> {
        self.adopt_unrecorded()?;
        let rows = self.state.guests()?;
        let mut guests = self.reconcile(rows)?;
        self.end_lost(&mut guests)?;
        let run_dir = self.state.run_dir();
        restore_lock::sweep(&run_dir);
        self.state.sweep_drafts();
        let _ = self.engine.sweep_templates(&run_dir)?;
        Ok(guests)
    }

    /// The guests whose names begin with `prefix`. Others are not looked at.
    ///
    /// # Errors
    /// When the state cannot be read or written.
    pub fn with_prefix(&mut self, prefix: &str) -> Result<Vec<Guest>, Error> {
        self.adopt_unrecorded()?;
        let rows = self.state.guests_with_prefix(prefix)?;
        let mut guests = self.reconcile(rows)?;
        self.end_lost(&mut guests)?;
        Ok(guests)
    }

    /// Those of these guests that are recorded.
    pub(crate) fn with_ids(&mut self, ids: &[GuestId]) -> Result<Vec<Guest>, Error> {
        let mut rows = Vec::with_capacity(ids.len());
        for id in ids {
            rows.extend(self.state.guest(&id.to_string())?);
        }
        self.reconcile(rows)
    }

    /// The guest of this name or id.
    ///
    /// # Errors
    /// [`Error::NoSuchGuest`], or when the state cannot be read or written.
    pub fn find(&mut self, name: &str) -> Result<Guest, Error> {
        let mut row = self.state.guest(name)?;
        if row.is_none() {
            self.adopt_unrecorded()?;
            row = self.state.guest(name)?;
        }
        let found = self.reconcile(row.into_iter().collect())?;
        found
            .into_iter()
            .next()
            .ok_or_else(|| Error::NoSuchGuest(name.to_owned()))
    }

    /// Puts a request in words to a running guest.
    ///
    /// # Errors
    /// When there is no such guest, it does not run, or it does not answer.
    pub fn ask(
        &mut self,
        name: &str,
        words: &[String],
        timeout: Duration,
    ) -> Result<Box<dyn Answer>, Error> {
        let guest = self.find(name)?;
        running(&guest)?;
        match self.ask_row(&guest.row, words, timeout) {
            Err(Error::Engine {
                source: engine::Error::Gone,
                ..
            }) => Err(self.why_gone(&guest)),
            answered => answered,
        }
    }

    /// Why a guest that was there is not any more. The reason may come a moment after its end.
    fn why_gone(&mut self, guest: &Guest) -> Error {
        let name = &guest.row.name;
        let begin = Instant::now();
        loop {
            let Ok(now) = self.find(&guest.row.id.to_string()) else {
                return Error::engine("ask", name, engine::Error::Gone);
            };
            let known = now.row.reason.as_deref().is_some_and(|r| r != UNEXPLAINED);
            let late = begin.elapsed() > REASON_PATIENCE;
            if now.state == GuestState::Dead && (known || late) {
                return alive(&now).expect_err("a dead guest does not live");
            }
            if late {
                let gone = Error::engine("ask", name, engine::Error::Gone);
                return match now.process() {
                    Some(process) => self.unreachable("ask", &now, process, gone),
                    None => gone,
                };
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn limit(&self, timeout: Duration) -> Limit<'_> {
        let cancelled = self.cancelled;
        Limit { timeout, cancelled }
    }

    fn ask_row(
        &self,
        row: &GuestRow,
        words: &[String],
        timeout: Duration,
    ) -> Result<Box<dyn Answer>, Error> {
        self.engine
            .ask(
                row.in_folder(&self.state.run_dir()),
                words,
                self.limit(timeout),
            )
            .map_err(|source| Error::engine("ask", &row.name, source))
    }

    /// Checks that a guest is not an unclaimed entry of a pool.
    fn free(&self, guest: &Guest, action: &'static str) -> Result<(), Error> {
        match self.state.entry_state(&guest.row.id)? {
            None | Some(EntryState::Claimed) => Ok(()),
            Some(_) => Err(Error::OfAPool {
                action,
                guest: guest.row.name.clone(),
            }),
        }
    }

    /// The network device of this host that leads to a guest, if it has one to itself.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn tap(&self, row: &GuestRow) -> Result<Option<engine::Tap>, engine::Error> {
        self.engine.tap(row.in_folder(&self.state.run_dir()))
    }

    /// What confines the process of a guest that lives; `None` when it has ended meanwhile, or does
    /// not live.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn confinement(&self, guest: &Guest) -> io::Result<Option<engine::Confinement>> {
        guest
            .process()
            .map_or(Ok(None), |process| process.confinement())
    }

    /// Memory of a guest that lives.
    ///
    /// # Errors
    /// When it does not, or its process cannot be looked at.
    pub fn usage(&self, guest: &Guest) -> Result<Usage, Error> {
        let process = alive(guest)?;
        self.engine
            .usage(guest.row.in_folder(&self.state.run_dir()), process)
            .map_err(|source| Error::engine("measure", &guest.row.name, source))
    }

    /// What guests cost besides their private memory, by checkpoint.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn overheads(&self) -> Result<Overheads, Error> {
        let measured = self.state.overheads()?;
        Ok(Overheads::new(measured, self.engine.kind()))
    }

    /// Where the memory of a guest that lives is its own, in at most that many cells; `None` when
    /// its engine cannot tell.
    ///
    /// # Errors
    /// When it does not live, or its process cannot be looked at.
    pub fn memory_map(&self, guest: &Guest, cells: u32) -> Result<Option<MemoryMap>, Error> {
        let process = alive(guest)?;
        self.engine
            .memory_map(guest.row.in_folder(&self.state.run_dir()), process, cells)
            .map_err(|source| Error::engine("measure", &guest.row.name, source))
    }
}

fn alive(guest: &Guest) -> Result<Process, Error> {
    guest.process().ok_or_else(|| Error::NotAlive {
        guest: guest.row.name.clone(),
        state: guest.state,
        reason: guest.row.reason.clone(),
    })
}

fn running(guest: &Guest) -> Result<Process, Error> {
    match guest.state {
        GuestState::Paused => Err(Error::Paused(guest.row.name.clone())),
        _ => alive(guest),
    }
}
