//! Ending guests for good, a few or thousands.

use std::{
    num::NonZero,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{Error, Guest, GuestState, Guests, disks};
use crate::engine::{self, GuestId, process};

/// Guests whose descriptors are held at once: far fewer than the lowest usual limit.
const BATCH: usize = 128;
/// How long a killed process may take to go. Under load thousands are waiting for the processor.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a restore whose manager is gone may take to end by itself.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(1);
/// How long a restore by another command is waited for.
const RESTORE_PATIENCE: Duration = Duration::from_secs(30);

/// What was destroyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destroyed {
    /// Names, in the order given.
    pub names: Vec<String>,
}

impl Guests<'_> {
    /// Destroys these guests: their processes are gone when this returns, and nothing of them is
    /// left in the state folder. Guests that another command is still restoring are waited for.
    ///
    /// # Errors
    /// When a guest cannot be killed, or a restore by another command does not end.
    pub fn destroy(&mut self, guests: &[Guest]) -> Result<Destroyed, Error> {
        let (coming, there): (Vec<_>, Vec<_>) = guests
            .iter()
            .cloned()
            .partition(|g| g.state == GuestState::Restoring);
        self.destroy_settled(&there)?;
        let arrived = self.wait_for(coming)?;
        self.destroy_settled(&arrived)?;
        self.state.sweep_sessions();
        Ok(Destroyed {
            names: guests.iter().map(|g| g.row.name.clone()).collect(),
        })
    }

    fn wait_for(&mut self, mut coming: Vec<Guest>) -> Result<Vec<Guest>, Error> {
        let begin = Instant::now();
        let mut arrived = Vec::new();
        while !coming.is_empty() {
            if begin.elapsed() > RESTORE_PATIENCE {
                return Err(Error::BeingRestored {
                    guests: coming.len(),
                });
            }
            if begin.elapsed() > ORPHAN_PATIENCE {
                for guest in &coming {
                    self.state.end_orphans(&guest.row.session);
                }
            }
            thread::sleep(Duration::from_millis(20));
            let mut rows = Vec::new();
            for guest in &coming {
                rows.extend(self.state.guest(&guest.row.id.to_string())?);
            }
            let settled;
            (coming, settled) = self
                .reconcile(rows)?
                .into_iter()
                .partition(|guest: &Guest| guest.state == GuestState::Restoring);
            arrived.extend(settled);
        }
        Ok(arrived)
    }

    fn destroy_settled(&mut self, guests: &[Guest]) -> Result<(), Error> {
        let run_dir = self.state.run_dir();
        for batch in guests.chunks(BATCH) {
            let mut ending = Vec::with_capacity(batch.len());
            for guest in batch {
                let name = &guest.row.name;
                // One that is recorded as dead is looked at again: it must not outlive its record.
                let process = guest.row.process;
                let Some(handle) = process
                    .filter(|_| self.state.of_this_boot(&guest.row))
                    .map(|p| p.open())
                    .transpose()
                    .map_err(|e| io(name, e))?
                    .flatten()
                else {
                    continue;
                };
                process::send(&handle, Signal::SIGKILL).map_err(|e| io(name, e))?;
                ending.push((name, handle));
            }
            for (name, handle) in ending {
                if !process::wait_for_end(&handle, PATIENCE).map_err(|e| io(name, e))? {
                    let source = engine::Error::Timeout(PATIENCE);
                    return Err(Error::engine("see the end of", name, source));
                }
            }
            // Only now: a guest that runs can be reached, also when this command is killed here.
            let (engine, owner) = (self.engine, self.state.owner());
            for forgotten in each(batch, |guest| engine.forget(&run_dir, &guest.row.id)) {
                forgotten?;
            }
            // One whose disk cannot be removed stays recorded, and does not hold up the others.
            let released = each(batch, |guest| disks::release(owner, &guest.row));
            let mut failed = None;
            let mut ids: Vec<GuestId> = Vec::with_capacity(batch.len());
            for (guest, released) in batch.iter().zip(released) {
                match released {
                    Ok(()) => ids.push(guest.row.id),
                    Err(source) => failed = Some((guest.row.name.clone(), source)),
                }
            }
            self.state.remove_guests(&ids)?;
            if let Some((guest, source)) = failed {
                return Err(Error::Release { guest, source });
            }
        }
        Ok(())
    }
}

/// Does something for each guest, as many at once as there are cores: most of it is waiting for
/// commands. The results are in the guests' order.
fn each<T: Send>(guests: &[Guest], act: impl Fn(&Guest) -> T + Sync) -> Vec<T> {
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
