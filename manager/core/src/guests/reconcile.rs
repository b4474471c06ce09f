//! Reconciliation of the record of guests with the processes that run.

use std::{collections::HashMap, time::Duration};

use nix::sys::signal::Signal;

use super::{Error, Guest, GuestState, Guests, disks};
use crate::{
    checkpoint::{self, Checkpoint, manifest::Manifest},
    engine::{GuestRef, ProcessState, process},
    faults::{self, Point},
    guest_id::GuestId,
    state::{self, AdoptedGuest, AnsweredGuest, GuestRow, RowState, State},
};

/// How long a guest that is killed may take to end, before it is left to the next look.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// The reason of an end that no process has seen, or not yet.
pub(super) const UNEXPLAINED: &str = "its process is gone; nothing was left to see why";

/// What the processes show that the record does not have yet.
#[derive(Default)]
struct RecordChanges {
    running: Vec<AnsweredGuest>,
    /// With the reason of each one's end.
    dead: Vec<(GuestId, String)>,
    /// Nothing is left of these.
    gone: Vec<GuestId>,
}

impl Guests<'_> {
    /// Records guests that live and have no record, because the database was lost while they ran.
    pub(super) fn adopt_unrecorded(&mut self) -> Result<(), Error> {
        let run_dir = self.state.run_dir();
        let recorded = self.state.guest_ids()?;
        for id in self.seen()?.into_iter().filter(|id| !recorded.contains(id)) {
            let found = self.engine.find(GuestRef::new(&run_dir, &id));
            let found = found.map_err(|e| Error::engine("look at", &id.to_string(), e))?;
            let Some(process) = found else {
                continue;
            };
            let described = self.engine.describe(GuestRef::new(&run_dir, &id), process);
            let described = described.map_err(|e| Error::engine("look at", &id.to_string(), e))?;
            let Some(described) = described else {
                continue;
            };
            // Without the bundle it can be asked and ended, but not suspended.
            let bundle = described
                .checkpoint
                .parse()
                .and_then(|path| Checkpoint::open(&path));
            // A bundle that cannot be read now is not missing.
            if let Err(error @ checkpoint::Error::Io { .. }) = bundle {
                return Err(error.into());
            }
            let disk = bundle.as_ref().ok().and_then(disks::sealed_disk);
            let manifest = bundle.as_ref().ok().map(Checkpoint::manifest);
            let adopted = AdoptedGuest {
                sha256: &manifest.map_or(String::new(), Manifest::memory_sha256),
                disk: disk.as_deref(),
                engine: self.engine.kind_of(GuestRef::new(&run_dir, &id)),
                accelerator: manifest.and_then(|m| Some(m.qemu.as_ref()?.accelerator)),
            };
            self.state.adopt(id, process, &described, &adopted)?;
        }
        Ok(())
    }

    /// Ends guests whose memory the engine has lost, and records why.
    pub(super) fn end_lost(&mut self, guests: &mut [Guest]) -> Result<(), Error> {
        let lost: HashMap<GuestId, String> = self.engine.lost().into_iter().collect();
        if lost.is_empty() {
            return Ok(());
        }
        let mut dead = Vec::new();
        for guest in guests {
            let (Some(process), Some(why)) = (guest.process(), lost.get(&guest.row.id)) else {
                continue;
            };
            // A guest that cannot be killed is tried again with the next look.
            let killed = process.open().ok().flatten().is_some_and(|handle| {
                process::send(&handle, Signal::SIGKILL).is_ok()
                    && process::wait_for_end(&handle, KILL_PATIENCE).unwrap_or(false)
            });
            if killed {
                tracing::warn!(guest = guest.row.name, "ended: {why}");
                dead.push((guest.row.id, why.clone()));
                guest.row.reason = Some(why.clone());
                guest.row.state = RowState::Dead;
                guest.state = GuestState::Dead;
            }
        }
        Ok(self.state.record_dead(&dead)?)
    }

    /// The state of recorded guests, decided by what runs.
    pub(super) fn reconcile(&mut self, rows: Vec<GuestRow>) -> Result<Vec<Guest>, Error> {
        let mut changes = RecordChanges::default();
        let mut guests = Vec::with_capacity(rows.len());
        for mut row in rows {
            self.recognise_boot(&mut row)?;
            self.in_this_namespace(&row)?;
            if row.state == RowState::Restoring {
                if self.state.may_come(&row)? {
                    let state = GuestState::Restoring;
                    guests.push(Guest { row, state });
                    continue;
                }
                if !self.interrupted(&mut row, &mut changes)? {
                    continue;
                }
            }
            let state = self.look(&mut row, &mut changes)?;
            guests.push(Guest { row, state });
        }
        self.record_if_possible(|state| {
            state.record_running(&changes.running)?;
            state.record_dead(&changes.dead)?;
            state.remove_guests(&changes.gone)
        })?;
        Ok(guests)
    }

    /// Takes a guest for one of this boot when it lives, whatever its row says of the boot: which id
    /// a command sees is for its mount namespace to say. systemd-nspawn mounts an id of its own over
    /// the kernel's, and a service with `ProtectKernelTunables=` sees the kernel's there.
    fn recognise_boot(&self, row: &mut GuestRow) -> Result<(), Error> {
        let Some(process) = row.process.filter(|_| !self.state.of_this_boot(row)) else {
            return Ok(());
        };
        let found = self.engine.find(row.in_folder(&self.state.run_dir()));
        match found.map_err(|e| Error::engine("look at", &row.name, e))? {
            Some(found) if found == process => {
                self.state.count_to_this_boot(row);
                Ok(())
            }
            // Its process is another one's here: it was recorded in another PID namespace.
            Some(_) => Err(Error::OtherNamespace {
                guest: row.name.clone(),
            }),
            None => Ok(()),
        }
    }

    /// A guest whose restore was interrupted: either it is there now, or it never will be. Says
    /// whether anything of it is left.
    fn interrupted(&self, row: &mut GuestRow, changes: &mut RecordChanges) -> Result<bool, Error> {
        let run_dir = self.state.run_dir();
        let found = self.engine.find(row.in_folder(&run_dir));
        row.process = found.map_err(|e| Error::engine("look at", &row.name, e))?;
        let ended = self.engine.ended(row.in_folder(&run_dir));
        let ended = ended.map_err(|e| Error::engine("look at", &row.name, e))?;
        if let Some(process) = row.process {
            changes.running.push((row.id, process, row.landlock));
        } else if ended.is_none() {
            // Its other parts first: a process may have its disk open.
            self.engine.forget(row.in_folder(&run_dir))?;
            match self.release_disk(row) {
                Ok(()) => {
                    changes.gone.push(row.id);
                    return Ok(false);
                }
                // It stays in sight until that can be done.
                Err(e) => {
                    let reason = format!("its disk is left: {e}");
                    changes.dead.push((row.id, reason.clone()));
                    row.reason = Some(reason);
                    row.state = RowState::Dead;
                }
            }
        }
        Ok(true)
    }

    /// What a guest does that is not being restored, and why it ended if it did.
    fn look(&self, row: &mut GuestRow, changes: &mut RecordChanges) -> Result<GuestState, Error> {
        let state = match row.process {
            Some(process) if self.state.of_this_boot(row) => {
                let state = faults::at(Point::GuestLook).and_then(|()| process.state());
                match state.map_err(|source| Error::look(&row.name, source))? {
                    ProcessState::Running => GuestState::Running,
                    ProcessState::Stopped => GuestState::Paused,
                    ProcessState::Gone => GuestState::Dead,
                }
            }
            _ => GuestState::Dead,
        };
        // Its record as dead was wrong.
        if let (RowState::Dead, Some(process)) = (row.state, row.process)
            && state != GuestState::Dead
        {
            changes.running.push((row.id, process, row.landlock));
            row.state = RowState::Running;
            row.reason = None;
        }
        // The reason is written a moment after the process has ended.
        let unexplained = row.state != RowState::Dead || row.reason.as_deref() == Some(UNEXPLAINED);
        if state == GuestState::Dead && unexplained {
            let reason = if self.state.of_this_boot(row) {
                // The next look asks again for one that cannot be read now.
                let run_dir = self.state.run_dir();
                let ended = self.engine.ended(row.in_folder(&run_dir)).ok().flatten();
                ended.unwrap_or_else(|| UNEXPLAINED.to_owned())
            } else {
                "the host was rebooted".to_owned()
            };
            if row.reason.as_ref() != Some(&reason) {
                changes.dead.push((row.id, reason.clone()));
                row.reason = Some(reason);
            }
        }
        Ok(state)
    }

    /// Changes the record, unless it cannot be written because the file system is full or read-only,
    /// or another process has it: what runs is what counts, and the next command that can write
    /// finds the same.
    pub(super) fn record_if_possible(
        &mut self,
        change: impl FnOnce(&mut State) -> Result<(), state::Error>,
    ) -> Result<(), Error> {
        match self.state.soon(change) {
            Err(error) if error.is_unwritable() || error.is_busy() => {
                tracing::warn!(%error, "cannot record the state of guests");
                Ok(())
            }
            recorded => Ok(recorded?),
        }
    }

    /// Refuses to judge a guest whose process belongs to another PID namespace, unless the guest is
    /// certainly gone: a socket in the file system is the same from every namespace, and no process
    /// listens on it.
    fn in_this_namespace(&self, row: &GuestRow) -> Result<(), Error> {
        if !self.state.of_other_namespace(row) {
            return Ok(());
        }
        let found = self.engine.find(row.in_folder(&self.state.run_dir()));
        if matches!(found, Ok(None)) && self.seen()?.contains(&row.id) {
            return Ok(());
        }
        Err(Error::OtherNamespace {
            guest: row.name.clone(),
        })
    }

    /// Guests that have something in the run folder.
    fn seen(&self) -> Result<Vec<GuestId>, Error> {
        let run_dir = self.state.run_dir();
        self.engine.seen(&run_dir).map_err(|source| {
            Error::from(state::Error::Io {
                action: "read the folder",
                path: run_dir,
                source,
            })
        })
    }
}
