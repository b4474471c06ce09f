//! Destruction of guests, a few or thousands at a time.

use std::{
    collections::HashMap,
    num::NonZero,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{Error, Guest, GuestState, Guests, disks};
use crate::{
    engine::{self, ProcessHandle, process, restore_lock},
    faults::{self, Point},
    guest_id::GuestId,
};

/// Guests whose descriptors are held at once: far fewer than the lowest usual limit.
const BATCH: usize = 128;
/// How long a killed process may take to go. Under load thousands are waiting for the processor.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a restore may take to end by itself after its manager has died.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(1);
/// How long to wait for a restore by another command.
const RESTORE_PATIENCE: Duration = Duration::from_secs(30);

/// Result of a destruction.
#[derive(Debug, Default)]
pub struct DestroyReport {
    /// Names, in the order given.
    pub names: Vec<String>,
    /// Guests that could not be destroyed; they stay recorded.
    pub left: Vec<Left>,
}

/// A guest that could not be destroyed.
#[derive(Debug)]
pub struct Left {
    /// Which.
    pub id: GuestId,
    /// Its name.
    pub name: String,
    /// Why.
    pub error: Error,
}

impl DestroyReport {
    /// The names, when nothing is left.
    ///
    /// # Errors
    /// The first guest's that is left.
    pub fn whole(self) -> Result<Vec<String>, Error> {
        match self.left.into_iter().next() {
            Some(left) => Err(left.error),
            None => Ok(self.names),
        }
    }
}

impl Guests<'_> {
    /// Destroys these guests: when this returns, their processes are gone and nothing of them is
    /// left in the state folder. Waits for guests that another command is still restoring. A guest
    /// that cannot be destroyed does not hold up the others.
    ///
    /// # Errors
    /// When the record cannot be read or written.
    pub fn destroy(&mut self, guests: &[Guest]) -> Result<DestroyReport, Error> {
        let (coming, there): (Vec<_>, Vec<_>) = guests
            .iter()
            .cloned()
            .partition(|g| g.state == GuestState::Restoring);
        let mut left = HashMap::new();
        self.destroy_settled(&there, &mut left)?;
        let (arrived, still_coming) = self.wait_for(coming)?;
        self.destroy_settled(&arrived, &mut left)?;
        let guests_coming = still_coming.len();
        for guest in still_coming {
            let guests = guests_coming;
            left.insert(guest.row.id, Error::BeingRestored { guests });
        }
        restore_lock::sweep(&self.state.run_dir());
        // Should one of those end later, it does so by itself.
        let staying: Vec<GuestId> = left.keys().copied().collect();
        self.record_if_possible(|state| state.forget_ending(&staying))?;
        let mut destroyed = DestroyReport::default();
        for guest in guests {
            let (id, name) = (guest.row.id, guest.row.name.clone());
            match left.remove(&id) {
                Some(error) => destroyed.left.push(Left { id, name, error }),
                None => destroyed.names.push(name),
            }
        }
        Ok(destroyed)
    }

    /// Waits for the end of restores; returns the guests that were restored, and those that are
    /// still being restored.
    fn wait_for(&mut self, mut coming: Vec<Guest>) -> Result<(Vec<Guest>, Vec<Guest>), Error> {
        let begin = Instant::now();
        let mut arrived = Vec::new();
        let cancelled = self.cancelled;
        let is_wanted = || !cancelled.load(Ordering::Relaxed);
        while !coming.is_empty() && begin.elapsed() < RESTORE_PATIENCE && is_wanted() {
            if begin.elapsed() > ORPHAN_PATIENCE {
                for guest in &coming {
                    restore_lock::end_orphans(&self.state.run_dir(), &guest.row.session);
                }
            }
            thread::sleep(Duration::from_millis(20));
            let ids: Vec<_> = coming.iter().map(|guest| guest.row.id).collect();
            let settled;
            (coming, settled) = self
                .with_ids(&ids)?
                .into_iter()
                .partition(|guest: &Guest| guest.state == GuestState::Restoring);
            arrived.extend(settled);
        }
        Ok((arrived, coming))
    }

    fn destroy_settled(
        &mut self,
        guests: &[Guest],
        left: &mut HashMap<GuestId, Error>,
    ) -> Result<(), Error> {
        let run_dir = self.state.run_dir();
        let begin = Instant::now();
        for batch in guests.chunks(BATCH) {
            let ids: Vec<GuestId> = batch.iter().map(|guest| guest.row.id).collect();
            self.record_if_possible(|state| state.note_ending(&ids))?;
            let mut ending = Vec::with_capacity(batch.len());
            for guest in batch {
                match self.kill(guest) {
                    Ok(Some(handle)) => ending.push((guest, handle)),
                    Ok(None) => {}
                    Err(e) => drop(left.insert(guest.row.id, e)),
                }
            }
            for (guest, handle) in ending {
                // Waits only once for processes that hang in the kernel, not once for each.
                let patience = EXIT_TIMEOUT.saturating_sub(begin.elapsed());
                if let Err(e) = wait_for_end(&guest.row.name, &handle, patience) {
                    left.insert(guest.row.id, e);
                }
            }
            let gone: Vec<&Guest> = batch
                .iter()
                .filter(|guest| !left.contains_key(&guest.row.id))
                .collect();
            // Only now: a guest that runs can be reached, also when this command is killed here.
            // One whose files or disk cannot be removed stays recorded.
            let (engine, owner) = (self.engine, self.state.owner());
            let unwritable = self.state.unwritable().is_some();
            let removed = each(&gone, |guest| {
                let forget = faults::at(Point::DestroyFiles)
                    .map_err(|source| engine::Error::Io {
                        action: "remove its files",
                        source,
                    })
                    .and_then(|()| engine.forget(guest.row.in_folder(&run_dir)));
                match forget {
                    // Its process is gone, and no record of that can be kept either.
                    Err(engine::Error::Io { source, .. })
                        if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem
                            && unwritable => {}
                    forgotten => forgotten?,
                }
                disks::release(owner, &guest.row).map_err(|source| Error::Release {
                    guest: guest.row.name.clone(),
                    source,
                })
            });
            let mut ids: Vec<GuestId> = Vec::with_capacity(gone.len());
            for (guest, removed) in gone.iter().zip(removed) {
                match removed {
                    Ok(()) => ids.push(guest.row.id),
                    Err(e) => drop(left.insert(guest.row.id, e)),
                }
            }
            self.record_if_possible(|state| state.remove_guests(&ids))?;
        }
        Ok(())
    }

    /// Kills a guest's process; returns it, if there is one.
    fn kill(&self, guest: &Guest) -> Result<Option<ProcessHandle>, Error> {
        let failed = |e| io(&guest.row.name, e);
        // Looks again at a guest that is recorded as dead: it must not outlive its record.
        let process = guest.row.process;
        let Some(process) = process.filter(|_| self.state.of_this_boot(&guest.row)) else {
            return Ok(None);
        };
        let Some(handle) = process.open().map_err(failed)? else {
            return Ok(None);
        };
        faults::at(Point::DestroyKill)
            .and_then(|()| process::send(&handle, Signal::SIGKILL))
            .map_err(failed)?;
        Ok(Some(handle))
    }
}

fn wait_for_end(name: &str, handle: &ProcessHandle, patience: Duration) -> Result<(), Error> {
    let begin = Instant::now();
    // A signal to this process is no reason to leave a guest.
    let ended = loop {
        match process::wait_for_end(handle, patience.saturating_sub(begin.elapsed())) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            result => break result.map_err(|e| io(name, e))?,
        }
    };
    if ended {
        return Ok(());
    }
    let source = engine::Error::Timeout(EXIT_TIMEOUT);
    Err(Error::engine("see the end of", name, source))
}

/// Runs `act` for each guest, in as many threads as there are cores: most of the time goes into
/// waiting for commands. The results are in the guests' order.
fn each<T: Send>(guests: &[&Guest], act: impl Fn(&Guest) -> T + Sync) -> Vec<T> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(guest) = guests.get(place) else {
                return done;
            };
            done.push((place, act(guest)));
        }
    };
    let mut done = thread::scope(|scope| {
        let workers: Vec<_> = (1..cores.min(guests.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let mut done = work();
        for worker in workers {
            done.extend(worker.join().expect("a worker does not panic"));
        }
        done
    });
    done.sort_unstable_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, result)| result).collect()
}

fn io(name: &str, source: std::io::Error) -> Error {
    Error::engine(
        "destroy",
        name,
        engine::Error::Io {
            action: "kill its process",
            source,
        },
    )
}
