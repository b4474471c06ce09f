//! The guests of a state folder, as they are recorded and as they run.
//!
//! What is recorded is what was intended; what runs is what counts. Every command that looks at
//! guests first brings the record in line with the processes, so that a manager killed at any
//! moment leaves nothing that the next command does not see.

mod destroy;
mod disks;
mod error;
mod view;

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use destroy::Destroyed;
pub use disks::Leftover;
pub use error::Error;
pub use view::{UsageView, View};

use crate::{
    checkpoint::{BundlePath, Checkpoint, Progress, manifest::Manifest},
    engine::{self, Answer, Engine, GuestId, MemoryMap, Process, ProcessState, TakeDisks, Usage},
    state::{EntryState, GuestRow, RowState, State},
};

/// The reason of an end that nobody saw, or not yet.
const UNEXPLAINED: &str = "its process is gone; nothing was left to see why";
/// How long the reason of a guest's end is waited for.
const REASON_PATIENCE: Duration = Duration::from_millis(500);

/// How long a guest may take to be stopped.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// What a guest is doing.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
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
    /// What is recorded of it.
    pub row: GuestRow,
    /// What it is doing.
    pub state: GuestState,
}

impl Guest {
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
}

impl Guests<'_> {
    /// All guests, the record brought in line with what runs.
    ///
    /// # Errors
    /// When the state cannot be read or written.
    pub fn list(&mut self) -> Result<Vec<Guest>, Error> {
        self.adopt_unrecorded()?;
        let rows = self.state.guests()?;
        let guests = self.reconcile(rows)?;
        self.state.sweep_sessions();
        Ok(guests)
    }

    /// Names of the guests that share the memory of a bundle: those restored from it, and from
    /// deltas of it.
    ///
    /// # Errors
    /// When the state cannot be read or written.
    pub fn users_of(&mut self, bundle: &BundlePath) -> Result<Vec<String>, Error> {
        let mut known = BTreeMap::new();
        let mut users = self.list()?;
        users.retain(|guest| {
            // A dead guest's disk may still be a clone of the checkpoint's.
            (guest.state != GuestState::Dead || guest.row.disk.is_some())
                && *known
                    .entry(guest.row.checkpoint.clone())
                    .or_insert_with(|| shares(&guest.row.checkpoint, bundle))
        });
        Ok(users.into_iter().map(|guest| guest.row.name).collect())
    }

    /// Records guests that live and are not recorded: the database was lost under them.
    fn adopt_unrecorded(&mut self) -> Result<(), Error> {
        let run_dir = self.state.run_dir();
        let recorded: HashSet<GuestId> = self.state.guests()?.iter().map(|row| row.id).collect();
        let seen = self.engine.seen(&run_dir);
        for id in seen.into_iter().filter(|id| !recorded.contains(id)) {
            let Some(process) = self.engine.find(&run_dir, &id) else {
                continue;
            };
            let Some(described) = self.engine.describe(&run_dir, &id, process) else {
                continue;
            };
            // Without the bundle it can be asked and ended, but not suspended.
            let bundle = described
                .checkpoint
                .parse()
                .and_then(|path| Checkpoint::open(&path));
            let disk = bundle.as_ref().ok().and_then(disks::sealed_disk);
            let sha256 = bundle.map_or(String::new(), |b| b.manifest().memory_sha256());
            self.state
                .adopt(id, process, &described, &sha256, disk.as_deref())?;
        }
        Ok(())
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

    fn reconcile(&mut self, rows: Vec<GuestRow>) -> Result<Vec<Guest>, Error> {
        let run_dir = self.state.run_dir();
        let (mut guests, mut running, mut dead, mut gone) = (
            Vec::with_capacity(rows.len()),
            Vec::new(),
            Vec::new(),
            Vec::new(),
        );
        for mut row in rows {
            let mut process = row.process;
            if row.state == RowState::Restoring {
                if self.state.may_come(&row) {
                    guests.push(Guest {
                        row,
                        state: GuestState::Restoring,
                    });
                    continue;
                }
                // Its restore was cut off. Either it is there, or it never will be.
                process = self.engine.find(&run_dir, &row.id);
                let ended = self.engine.ended(&run_dir, &row.id);
                match (process, ended) {
                    (Some(found), _) => {
                        running.push((row.id, found));
                        row.process = process;
                    }
                    (None, Some(_)) => {}
                    (None, None) => {
                        // What is left of it first: a process may have its disk open.
                        self.engine.forget(&run_dir, &row.id)?;
                        match self.release_disk(&row) {
                            Ok(()) => {
                                gone.push(row.id);
                                continue;
                            }
                            // It stays in sight until that can be done.
                            Err(e) => {
                                dead.push((row.id, format!("its disk is left: {e}")));
                                row.reason = dead.last().map(|(_, reason)| reason.clone());
                                row.state = RowState::Dead;
                            }
                        }
                    }
                }
            }
            let state = match (row.state, process) {
                (RowState::Dead, _) => GuestState::Dead,
                (_, Some(process)) if self.state.of_this_boot(&row) => match process.state() {
                    ProcessState::Running => GuestState::Running,
                    ProcessState::Stopped => GuestState::Paused,
                    ProcessState::Gone => GuestState::Dead,
                },
                _ => GuestState::Dead,
            };
            // Whoever sees the end of a process writes the reason a moment after it is gone.
            let unexplained =
                row.state != RowState::Dead || row.reason.as_deref() == Some(UNEXPLAINED);
            if state == GuestState::Dead && unexplained {
                let reason = if self.state.of_this_boot(&row) {
                    self.engine
                        .ended(&run_dir, &row.id)
                        .unwrap_or_else(|| UNEXPLAINED.to_owned())
                } else {
                    "the host was rebooted".to_owned()
                };
                if row.reason.as_ref() != Some(&reason) {
                    dead.push((row.id, reason.clone()));
                    row.reason = Some(reason);
                }
            }
            guests.push(Guest { row, state });
        }
        self.state.record_running(&running)?;
        self.state.record_dead(&dead)?;
        self.state.remove_guests(&gone)?;
        Ok(guests)
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
        match self.ask_id(&guest.row.id, &guest.row.name, words, timeout) {
            Err(Error::Engine {
                source: crate::engine::Error::Gone,
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
                return Error::engine("ask", name, crate::engine::Error::Gone);
            };
            let known = now.row.reason.as_deref().is_some_and(|r| r != UNEXPLAINED);
            let late = begin.elapsed() > REASON_PATIENCE;
            if now.state == GuestState::Dead && (known || late) {
                return alive(&now).expect_err("a dead guest does not live");
            }
            if late {
                return Error::engine("ask", name, crate::engine::Error::Gone);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn ask_id(
        &self,
        id: &GuestId,
        name: &str,
        words: &[String],
        timeout: Duration,
    ) -> Result<Box<dyn Answer>, Error> {
        self.engine
            .ask(&self.state.run_dir(), id, words, timeout)
            .map_err(|source| Error::engine("ask", name, source))
    }

    /// Stops a guest. It keeps its memory and uses no processor time.
    ///
    /// # Errors
    /// When it cannot be stopped.
    pub fn pause(&mut self, guest: &Guest) -> Result<(), Error> {
        let process = alive(guest)?;
        if guest.state == GuestState::Paused {
            return Ok(());
        }
        self.stop(guest, process)?;
        if stopped(process) {
            return Ok(());
        }
        let source = match process.state() {
            ProcessState::Gone => engine::Error::Gone,
            ProcessState::Running | ProcessState::Stopped => engine::Error::Timeout(STOP_PATIENCE),
        };
        Err(Error::engine("stop", &guest.row.name, source))
    }

    /// Stops many guests; returns those that are stopped. Those that died meanwhile are left out.
    ///
    /// # Errors
    /// When one cannot be stopped.
    pub fn pause_all(&mut self, guests: &[Guest]) -> Result<Vec<GuestId>, Error> {
        let mut stopping = Vec::with_capacity(guests.len());
        for guest in guests {
            let Some(process) = guest.process() else {
                continue;
            };
            match self.stop(guest, process) {
                Ok(()) => stopping.push((guest.row.id, process)),
                Err(Error::Engine {
                    source: crate::engine::Error::Gone,
                    ..
                }) => {}
                Err(e) => return Err(e),
            }
        }
        stopping.retain(|(_, process)| stopped(*process));
        Ok(stopping.into_iter().map(|(id, _)| id).collect())
    }

    /// Lets a stopped guest of a pool run on for its claimer, until it has answered. This is the
    /// short way: only this guest's record is looked at.
    ///
    /// # Errors
    /// When it is gone, or does not answer within `timeout`.
    pub fn wake(&mut self, id: &GuestId, timeout: Duration) -> Result<(GuestRow, Process), Error> {
        let gone = || Error::NoSuchGuest(id.to_string());
        let row = self.state.guest(&id.to_string())?.ok_or_else(gone)?;
        let state = GuestState::Paused;
        let guest = Guest { row, state };
        let process = alive(&guest)?;
        self.signal(&guest, process, Signal::SIGCONT)?;
        self.ask_id(id, &guest.row.name, &["ping".to_owned()], timeout)?;
        Ok((guest.row, process))
    }

    /// Lets a stopped guest run on; returns how long it took from the signal to its answer.
    ///
    /// # Errors
    /// When it cannot be continued, or does not answer within `timeout`.
    pub fn resume(&mut self, guest: &Guest, timeout: Duration) -> Result<Duration, Error> {
        let process = alive(guest)?;
        self.free(guest, "resume")?;
        let ping = ["ping".to_owned()];
        let begin = Instant::now();
        self.signal(guest, process, Signal::SIGCONT)?;
        self.ask_id(&guest.row.id, &guest.row.name, &ping, timeout)?;
        Ok(begin.elapsed())
    }

    fn stop(&self, guest: &Guest, process: Process) -> Result<(), Error> {
        Self::signalled(guest, self.engine.stop(process))
    }

    fn signal(&self, guest: &Guest, process: Process, signal: Signal) -> Result<(), Error> {
        Self::signalled(guest, process.signal(signal))
    }

    fn signalled(guest: &Guest, sent: io::Result<bool>) -> Result<(), Error> {
        match sent {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::engine(
                "signal",
                &guest.row.name,
                crate::engine::Error::Gone,
            )),
            Err(source) => {
                let source = crate::engine::Error::Io {
                    action: "signal its process",
                    source,
                };
                Err(Error::engine("signal", &guest.row.name, source))
            }
        }
    }

    /// Suspends a guest into a new bundle and ends it. When anything fails the guest goes on; one
    /// that was paused is paused again. One whose suspend to this bundle was cut off after its end
    /// is brought to its end.
    ///
    /// # Errors
    /// When the guest does not live, its checkpoint cannot be read, or the bundle not be written.
    pub fn suspend(
        &mut self,
        guest: &Guest,
        path: &BundlePath,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Manifest, Error> {
        self.suspend_by(guest, path, |engine, run_dir, from, disks| {
            let (id, name) = (&guest.row.id, &guest.row.name);
            engine.suspend(run_dir, id, name, from.manifest(), path, disks, progress)
        })
    }

    /// The same into a delta of the guest's checkpoint, which has only the pages that the guest has
    /// to itself.
    ///
    /// # Errors
    /// As of [`Self::suspend`], or when the engine has no deltas.
    pub fn suspend_delta(
        &mut self,
        guest: &Guest,
        path: &BundlePath,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Manifest, Error> {
        self.suspend_by(guest, path, |engine, run_dir, from, disks| {
            let (id, name) = (&guest.row.id, &guest.row.name);
            engine.suspend_delta(run_dir, id, name, from, path, disks, progress)
        })
    }

    fn suspend_by(
        &mut self,
        guest: &Guest,
        path: &BundlePath,
        suspend: impl FnOnce(
            &dyn Engine,
            &Path,
            &Checkpoint,
            TakeDisks<'_>,
        ) -> Result<Manifest, engine::Error>,
    ) -> Result<Manifest, Error> {
        let process = if self.was_cut_off(guest, path)? {
            None
        } else {
            Some(alive(guest)?)
        };
        self.free(guest, "suspend")?;
        let name = &guest.row.name;
        let from: BundlePath = guest.row.checkpoint.parse()?;
        let from = Checkpoint::open(&from)?;
        if from.manifest().memory_sha256() != guest.row.sha256 {
            return Err(Error::OtherCheckpoint {
                guest: name.clone(),
                checkpoint: guest.row.checkpoint.clone(),
            });
        }
        let disk = self.disk(&guest.row)?;
        let read = self.engine.own_disk(&self.state.run_dir(), &guest.row.id);
        if let (None, Some(read)) = (&disk, read) {
            // The record was lost and made anew. Memory without its disk would be no guest.
            let refused = engine::Error::Refused(format!(
                "what its disk {} was made of is not recorded",
                read.display()
            ));
            return Err(Error::engine("suspend", name, refused));
        }
        if let Some(process) = process {
            self.signal(guest, process, Signal::SIGCONT)?;
        }
        if disk.is_some() {
            self.note_bundle_place(path)?;
        }
        let mut taken = None;
        let mut take = || match &disk {
            Some(disk) => {
                let snapshot = disks::take(&**disk, &guest.row.id, path)?;
                Ok(vec![taken.insert(snapshot).1.clone()])
            }
            None => Ok(Vec::new()),
        };
        let result = suspend(self.engine, &self.state.run_dir(), &from, &mut take)
            .map_err(|source| Error::engine("suspend", name, source));
        match result {
            Ok(manifest) => {
                self.destroy(std::slice::from_ref(guest))?;
                Ok(manifest)
            }
            Err(e) => {
                if let (Some(disk), Some((bundle, snapshot))) = (disk, taken) {
                    // The guest may have gone when its bundle was sealed already. What cannot be
                    // removed now is found again: it is in no bundle.
                    if let Ok(false) = disks::may_have(&bundle, &snapshot.snapshot) {
                        let _ = disk.discard(&bundle, &snapshot);
                    }
                }
                if let Some(process) = process.filter(|_| guest.state == GuestState::Paused) {
                    let _ = self.engine.stop(process);
                }
                Err(e)
            }
        }
    }

    /// Whether the guest's suspend to this bundle was cut off after its end.
    fn was_cut_off(&self, guest: &Guest, path: &BundlePath) -> Result<bool, Error> {
        if guest.state != GuestState::Dead {
            return Ok(false);
        }
        let unsealed = self.engine.unsealed(&self.state.run_dir(), &guest.row.id);
        Ok(match unsealed {
            Some(unsealed) => unsealed.bundle == path.absolute()?,
            None => false,
        })
    }

    /// The guest with a disk whose memory this file is: its suspend was cut off before it was
    /// sealed. The file alone is not the guest.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn with_disk_and_memory(&self, memory: &Path) -> Result<Option<String>, Error> {
        let run_dir = self.state.run_dir();
        let same = |other: &Path| {
            let file = |path: &Path| fs::metadata(path).map(|facts| (facts.dev(), facts.ino()));
            matches!((file(other), file(memory)), (Ok(a), Ok(b)) if a == b)
        };
        let rows = self.state.guests()?.into_iter();
        let mut with_disks = rows.filter(|row| row.disk.is_some());
        let found = with_disks.find(|row| {
            let unsealed = self.engine.unsealed(&run_dir, &row.id);
            unsealed.is_some_and(|unsealed| same(&unsealed.memory))
        });
        Ok(found.map(|row| row.name))
    }

    /// Makes sure that a guest is not an entry of a pool that nobody has claimed.
    fn free(&self, guest: &Guest, action: &'static str) -> Result<(), Error> {
        match self.state.entry_state(&guest.row.id)? {
            None | Some(EntryState::Claimed) => Ok(()),
            Some(_) => Err(Error::OfAPool {
                action,
                guest: guest.row.name.clone(),
            }),
        }
    }

    /// Memory of a guest that lives.
    ///
    /// # Errors
    /// When it does not, or its process cannot be looked at.
    pub fn usage(&self, guest: &Guest) -> Result<Usage, Error> {
        let process = alive(guest)?;
        self.engine
            .usage(&self.state.run_dir(), &guest.row.id, process)
            .map_err(|source| Error::engine("measure", &guest.row.name, source))
    }

    /// Where the memory of a guest that lives is its own, in at most that many cells; `None` when
    /// its engine cannot tell.
    ///
    /// # Errors
    /// When it does not live, or its process cannot be looked at.
    pub fn memory_map(&self, guest: &Guest, cells: u32) -> Result<Option<MemoryMap>, Error> {
        let process = alive(guest)?;
        self.engine
            .memory_map(process, cells)
            .map_err(|source| Error::engine("measure", &guest.row.name, source))
    }
}

/// Waits until a guest that was told to stop has done so.
fn stopped(process: Process) -> bool {
    let begin = Instant::now();
    loop {
        // One look decides: that of a traced process changes back and forth.
        match process.state() {
            ProcessState::Stopped => return true,
            ProcessState::Gone => return false,
            ProcessState::Running if begin.elapsed() > STOP_PATIENCE => return false,
            ProcessState::Running => thread::sleep(Duration::from_micros(200)),
        }
    }
}

/// Whether the checkpoint at `path` is `bundle` or, as far as it can be read, a delta over it.
fn shares(path: &str, bundle: &BundlePath) -> bool {
    let Ok(path) = path.parse::<BundlePath>() else {
        return false;
    };
    let same =
        |path: &BundlePath| path == bundle || path.absolute().is_ok_and(|path| path == *bundle);
    same(&path)
        || Checkpoint::open(&path)
            .is_ok_and(|opened| opened.layers().iter().any(|layer| same(layer.path())))
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
