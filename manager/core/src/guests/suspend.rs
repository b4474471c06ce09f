//! Suspend and snapshot of guests: writes a guest into a bundle, and ends it or leaves it paused.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use super::{Error, Guest, GuestState, Guests, alive, disks};
use crate::{
    checkpoint::{BundlePath, Checkpoint, Watch, manifest::Manifest},
    disk,
    engine::{self, After, Process, Suspend},
    faults::{self, Point},
    state::BundleAction,
};
use jiff::Timestamp;

/// What is to be written.
struct Bundle<'a> {
    to: &'a BundlePath,
    delta: bool,
    after: After,
    progress: Watch<'a>,
}

impl Bundle<'_> {
    /// What is done to the guest, in a word.
    fn action(&self) -> &'static str {
        match self.after {
            After::End => "suspend",
            After::Pause => "snapshot",
        }
    }
}

impl Guests<'_> {
    /// Writes all memory of a paused guest into a new bundle. The guest stays paused, whether this
    /// succeeds or not.
    ///
    /// # Errors
    /// When the guest is not paused, its checkpoint cannot be read, the bundle not be written, or
    /// the engine ends guests that it writes.
    pub fn snapshot(
        &mut self,
        guest: &Guest,
        path: &BundlePath,
        progress: Watch<'_>,
    ) -> Result<Manifest, Error> {
        let process = alive(guest)?;
        if guest.state != GuestState::Paused {
            return Err(Error::NotPaused(guest.row.name.clone()));
        }
        let written = self.write(
            guest,
            Some(process),
            &Bundle {
                to: path,
                delta: false,
                after: After::Pause,
                progress,
            },
        );
        // It ran to be written, and stops by itself.
        let stopped = self.until_stopped(guest, process);
        let manifest = written?;
        stopped?;
        Ok(manifest)
    }

    /// Suspends a guest into a new bundle and ends it. A full bundle holds all of its memory, a
    /// delta only its private pages. When anything fails, the guest goes on, paused if it was
    /// paused. If an earlier suspend to this bundle was interrupted after the guest's end, this
    /// completes it.
    ///
    /// # Errors
    /// When the guest does not live, its checkpoint cannot be read, the bundle not be written, or
    /// the engine has no deltas.
    pub fn suspend(
        &mut self,
        guest: &Guest,
        path: &BundlePath,
        delta: bool,
        progress: Watch<'_>,
    ) -> Result<Manifest, Error> {
        let id = guest.row.id;
        self.state.note_ending(&[id])?;
        let suspended = self.suspend_or_take_up(guest, path, delta, progress);
        if suspended.is_err() {
            // What failed matters more than that this did.
            let _ = self.state.forget_ending(&[id]);
        }
        suspended
    }

    fn suspend_or_take_up(
        &mut self,
        guest: &Guest,
        path: &BundlePath,
        delta: bool,
        progress: Watch<'_>,
    ) -> Result<Manifest, Error> {
        match self.try_suspend(guest, path, delta, progress) {
            // It was completing an earlier, interrupted suspend, and has just ended.
            Err(Error::Engine {
                source: engine::Error::Gone,
                ..
            }) if guest.state != GuestState::Dead => {
                let now = self.find(&guest.row.id.to_string())?;
                let again = self.try_suspend(&now, path, delta, progress);
                match now.process() {
                    Some(process) => {
                        again.map_err(|e| self.unreachable("suspend", &now, process, e))
                    }
                    None => again,
                }
            }
            result => result,
        }
    }

    fn try_suspend(
        &mut self,
        guest: &Guest,
        path: &BundlePath,
        delta: bool,
        progress: Watch<'_>,
    ) -> Result<Manifest, Error> {
        let process = if self.was_cut_off(guest, path)? {
            None
        } else if let Some(manifest) = sealed_already(guest, path) {
            self.destroy(std::slice::from_ref(guest))?.whole()?;
            return Ok(manifest);
        } else {
            Some(alive(guest)?)
        };
        let manifest = self.write(
            guest,
            process,
            &Bundle {
                to: path,
                delta,
                after: After::End,
                progress,
            },
        )?;
        faults::at(Point::SuspendEnded).map_err(|source| {
            let action = "record its end";
            Error::engine(
                "suspend",
                &guest.row.name,
                engine::Error::Io { action, source },
            )
        })?;
        // Who has a program in it is told so, until its record is gone.
        let reason = format!("it was suspended to {path}");
        self.state.record_dead(&[(guest.row.id, reason)])?;
        self.destroy(std::slice::from_ref(guest))?.whole()?;
        Ok(manifest)
    }

    /// Writes a guest into a bundle. It has no process when it has ended for that already.
    fn write(
        &mut self,
        guest: &Guest,
        process: Option<Process>,
        bundle: &Bundle<'_>,
    ) -> Result<Manifest, Error> {
        let (action, path) = (bundle.action(), bundle.to);
        self.free(guest, action)?;
        let name = &guest.row.name;
        let from: BundlePath = guest.row.checkpoint.parse()?;
        let from = self.state.open_checkpoint(&from)?;
        if from.manifest().memory_sha256() != guest.row.sha256 {
            return Err(Error::OtherCheckpoint {
                guest: name.clone(),
                checkpoint: guest.row.checkpoint.clone(),
            });
        }
        let _use = self.state.use_bundle(path, BundleAction::Write)?;
        let disk = self.disk(&guest.row)?;
        let read = self
            .engine
            .own_disk(guest.row.in_folder(&self.state.run_dir()));
        let read = read.map_err(|e| Error::engine(action, name, e))?;
        if let (None, Some(read)) = (&disk, read) {
            // The record was lost and rebuilt. Memory without its disk would be no guest.
            let refused = engine::Error::Refused(format!(
                "what its disk {} was made of is not recorded",
                read.display()
            ));
            return Err(Error::engine(action, name, refused));
        }
        // One that stays runs no more than it takes to write it: its engine sees to that.
        if let Some(process) = process.filter(|_| bundle.after == After::End) {
            self.unfreeze(guest, process)?;
        }
        // What all of its guests read lies beside the bundle, too.
        if disk.is_some() || !from.manifest().disks.is_empty() {
            self.state.note_bundle_place(path)?;
        }
        if bundle.delta {
            self.state.note_bundle_folder(path.dir())?;
        }
        let mut taken = None;
        let mut take = || match &disk {
            Some(disk) => {
                let snapshot = disks::take(&**disk, &guest.row.id, path, bundle.progress)?;
                Ok(vec![taken.insert(snapshot).1.clone()])
            }
            None => Ok(Vec::new()),
        };
        let state = &*self.state;
        let suspend = Suspend {
            name,
            from: &from,
            to: path,
            delta: bundle.delta,
            after: bundle.after,
            disks: &mut take,
            // It wants what the guest had here.
            note: &mut |manifest, sha256| state.trust_seal(manifest, sha256),
            progress: bundle.progress,
        };
        let run_dir = self.state.run_dir();
        let guest_ref = guest.row.in_folder(&run_dir);
        let suspended = faults::at(Point::SuspendWrite)
            .map_err(|source| engine::Error::Io {
                action: "write it",
                source,
            })
            .and_then(|()| self.engine.suspend(guest_ref, suspend));
        if suspended.is_err() {
            if let (Some(disk), Some((path, snapshot))) = (disk, taken) {
                // The guest may have gone when its bundle was sealed already. What cannot be removed
                // now is found again: it is in no bundle.
                if let Ok(false) = disk::may_have(&path, &snapshot.snapshot) {
                    let _ = disk.discard(&path, &snapshot);
                }
            }
            let stays = bundle.after == After::End && guest.state == GuestState::Paused;
            if let Some(process) = process.filter(|_| stays) {
                let _ = self.engine.stop(guest_ref, process);
            }
        }
        suspended.map_err(|source| Error::engine(action, name, source))
    }

    /// Whether the guest's suspend to this bundle was interrupted after the guest's end.
    fn was_cut_off(&self, guest: &Guest, path: &BundlePath) -> Result<bool, Error> {
        if guest.state != GuestState::Dead {
            return Ok(false);
        }
        let unsealed = self
            .engine
            .unsealed(guest.row.in_folder(&self.state.run_dir()));
        let unsealed = unsealed.map_err(|e| Error::engine("suspend", &guest.row.name, e))?;
        Ok(match unsealed {
            Some(unsealed) => unsealed.bundle == path.absolute()?,
            None => false,
        })
    }

    /// The guest with a disk whose memory this file is: its suspend was interrupted before the
    /// seal. The file alone is not the guest.
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
        for row in rows.filter(|row| row.disk.is_some()) {
            let unsealed = self.engine.unsealed(row.in_folder(&run_dir));
            let unsealed = unsealed.map_err(|e| Error::engine("look at", &row.name, e))?;
            if unsealed.is_some_and(|unsealed| same(&unsealed.memory)) {
                return Ok(Some(row.name));
            }
        }
        Ok(None)
    }
}

/// The manifest of the bundle at `path` if the guest was suspended into it, and the interrupted
/// command did not remove the guest from the record.
fn sealed_already(guest: &Guest, path: &BundlePath) -> Option<Manifest> {
    if guest.state != GuestState::Dead {
        return None;
    }
    let manifest = Checkpoint::open(path).ok()?.manifest().clone();
    let at = |text: &str| text.parse::<Timestamp>().ok();
    let since = at(&manifest.created_at)? > at(&guest.row.created_at)?;
    (since && manifest.guest == guest.row.name).then_some(manifest)
}
