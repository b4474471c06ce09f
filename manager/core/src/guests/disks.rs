//! Disks of guests: their release with the guest, and the sweep of those whose guest or bundle is
//! gone.

use std::{collections::HashSet, path::PathBuf};

use super::{Error, Guests};
use crate::{
    checkpoint::{self, BundlePath, Checkpoint, Watch, manifest::DiskSnapshot},
    disk::{self, Choice, Command, FoundItem, Owner, Place, Provider, Source, Token},
    faults::{self, Point},
    guest_id::GuestId,
    state::{BundleAction, GuestRow},
    units::Bytes,
};

/// A disk or snapshot that belongs to no guest and no bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// What it is.
    pub found: FoundItem,
    /// What it belonged to.
    pub of: String,
}

impl Guests<'_> {
    /// What made a guest's disk; `None` when it has none.
    pub(super) fn disk(&self, row: &GuestRow) -> Result<Option<Box<dyn Provider>>, disk::Error> {
        of(self.state.owner(), row)
    }

    /// Path of a guest's disk; `None` when it has none.
    ///
    /// # Errors
    /// When it cannot be asked for.
    pub fn disk_location(&self, row: &GuestRow) -> Result<Option<PathBuf>, Error> {
        match self.disk(row)? {
            Some(disk) => Ok(disk.location(&row.id)?),
            None => Ok(None),
        }
    }

    /// Bytes that a guest's disk takes where it lies, without those that it shares with others;
    /// `None` when it has none.
    ///
    /// # Errors
    /// When it cannot be asked for.
    pub fn disk_own_bytes(&self, row: &GuestRow) -> Result<Option<Bytes>, Error> {
        match self.disk(row)? {
            Some(disk) => Ok(disk.own_bytes(&row.id)?),
            None => Ok(None),
        }
    }

    /// Removes the disk of a guest that is gone, if it has one.
    pub(super) fn release_disk(&self, row: &GuestRow) -> Result<(), disk::Error> {
        release(self.state.owner(), row)
    }

    /// Disks without a recorded guest, and snapshots without a bundle. Looks in these places, or in
    /// all recorded ones when none is given.
    ///
    /// # Errors
    /// When a place cannot be looked at.
    pub fn leftovers(&mut self, places: &[Place]) -> Result<Vec<Leftover>, Error> {
        let recorded = self.state.disk_places()?;
        let places = if places.is_empty() { &recorded } else { places };
        let (owner, zfs) = (self.state.owner(), Command::holding(None));
        let mut all = Vec::new();
        for place in places {
            all.extend(disk::find(place, owner, &zfs)?);
        }
        // Only now: a disk that existed at the search and has no record now belongs to nothing.
        let mut known: HashSet<GuestId> = self.list()?.iter().map(|guest| guest.row.id).collect();
        known.extend(self.engine.sweep_templates(&self.state.run_dir())?);
        let mut left = Vec::new();
        for found in all {
            let of = match (found.guest(), found.bundle()) {
                (Some(guest), _) if known.contains(&guest) => continue,
                (Some(guest), _) => format!("guest {guest}"),
                (_, Some((bundle, name))) if disk::may_have(bundle, &name)? => continue,
                (_, Some((bundle, _))) => format!("checkpoint {bundle}"),
                (None, None) => "snapshots that are gone".to_owned(),
            };
            left.push(Leftover { found, of });
        }
        Ok(left)
    }

    /// Removes leftovers, snapshots of bundles first: the disk that a snapshot was taken of may go
    /// with it. Returns those that could not be removed, and why.
    pub fn sweep(&self, leftovers: &[Leftover]) -> Vec<(Leftover, disk::Error)> {
        let (snapshots, others): (Vec<_>, Vec<_>) = leftovers
            .iter()
            .partition(|left| left.found.bundle().is_some());
        // Some may be in use by others that are removed later: those are tried again.
        let mut todo: Vec<&Leftover> = [snapshots, others].concat();
        loop {
            let before = todo.len();
            let mut failed = Vec::new();
            for left in todo {
                let zfs = Box::new(Command::holding(None));
                if let Err(e) = left.found.remove(self.state.owner(), zfs) {
                    failed.push((left, e));
                }
            }
            if failed.is_empty() || failed.len() == before {
                let failed = failed.into_iter();
                return failed.map(|(left, e)| (left.clone(), e)).collect();
            }
            todo = failed.into_iter().map(|(left, _)| left).collect();
        }
    }

    /// Removes a bundle that nobody uses, with the snapshots of its disks. With `force` only
    /// guests count as users: deltas, pools and suspended claims lose what they need. Returns the
    /// bytes that its own files had.
    ///
    /// # Errors
    /// When the bundle is in use or cannot be removed, or a snapshot cannot.
    pub fn remove_checkpoint(&mut self, path: &BundlePath, force: bool) -> Result<Bytes, Error> {
        let _use = self.state.use_bundle(path, BundleAction::Remove)?;
        self.spare(path, force)?;
        // Without its manifest, only a search for leftovers finds its disks.
        let disks = checkpoint::manifest_of(path)?.map_or_else(Vec::new, |manifest| manifest.disks);
        let bundle = path.absolute().unwrap_or_else(|_| path.clone());
        let freed = checkpoint::remove(path)?;
        for disk in &disks {
            let place = disk::sealed_source(&bundle, disk)?.place();
            for left in self.leftovers(&[place])? {
                let same = |(_, name): (&BundlePath, String)| name == disk.snapshot;
                if left.found.bundle().is_some_and(same) {
                    let zfs = Box::new(Command::holding(None));
                    left.found.remove(self.state.owner(), zfs)?;
                }
            }
        }
        Ok(freed)
    }
}

/// What made a guest's disk; `None` when it has none.
fn of(owner: Owner, row: &GuestRow) -> Result<Option<Box<dyn Provider>>, disk::Error> {
    let source: Option<Source> = row.disk.as_ref().map(|disk| disk.parse()).transpose()?;
    Ok(source.map(|source| disk::provider(&source, owner, None)))
}

/// Removes the disk of a guest that is gone, if it has one.
pub(super) fn release(owner: Owner, row: &GuestRow) -> Result<(), disk::Error> {
    match of(owner, row)? {
        Some(disk) => {
            faults::at(Point::DestroyDisk).map_err(|cause| disk::Error::Io {
                action: "remove",
                file: PathBuf::from(row.disk.clone().unwrap_or_default()),
                cause,
            })?;
            disk.release(&row.id)
        }
        None => Ok(()),
    }
}

/// Takes the snapshot of a guest's disk for a bundle that is being written. Returns it with the
/// bundle's absolute path.
pub(super) fn take(
    disk: &dyn Provider,
    guest: &GuestId,
    bundle: &BundlePath,
    watch: Watch<'_>,
) -> Result<(BundlePath, DiskSnapshot), disk::Error> {
    let bundle = bundle.absolute().map_err(|e| disk::Error::Io {
        action: "find the folder",
        file: bundle.dir().to_owned(),
        cause: std::io::Error::other(e.to_string()),
    })?;
    let token = Token::random().map_err(|cause| disk::Error::Io {
        action: "name the snapshot of",
        file: bundle.ckp(),
        cause,
    })?;
    let snapshot = disk.snapshot(guest, &bundle, &token, watch)?;
    Ok((bundle, snapshot))
}

/// The disk that guests restored from a bundle get when the request names no other.
pub(super) fn sealed_disk(checkpoint: &Checkpoint) -> Option<String> {
    let (bundle, disks) = (checkpoint.path(), &checkpoint.manifest().disks);
    let (source, _) = disk::choose(bundle, disks, &Choice::Sealed).ok()??;
    Some(source.to_string())
}
