//! Sweep of claims that are over: removes the bundles, and the disk snapshots beside them, that
//! they left on the disk.

use std::{
    collections::HashSet,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{Error, Pools};
use crate::{
    checkpoint::{self, BundlePath},
    disk::Place,
    guests,
};

/// How long to wait for another process that removes the same bundle.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

impl Pools<'_> {
    /// Removes bundles that no suspended claim and no guest uses, and that are the parent of no
    /// delta. Names decide, so a lost or damaged bundle does not keep the others.
    pub(super) fn sweep_bundles(&mut self) -> Result<(), Error> {
        let dir = self.state.suspended_dir();
        if !dir.exists() {
            return Ok(());
        }
        let mut needed = HashSet::new();
        for bundle in self.state.bundles_of_claim_files()? {
            needed.insert(BundlePath::new(&bundle)?);
        }
        let resting = self
            .state
            .suspended_claims()?
            .into_iter()
            .map(|suspended| suspended.bundle);
        let living = self.guests().list()?.into_iter().map(|g| g.row.checkpoint);
        for bundle in resting.chain(living) {
            needed.insert(bundle.parse()?);
        }
        let dir = BundlePath::new(&dir.join("any"))?.absolute()?;
        let mut names = HashSet::new();
        for path in needed {
            let parents = checkpoint::parents_of(&path)?;
            for path in parents.into_iter().chain([path]) {
                names.insert(path.absolute().unwrap_or(path));
            }
        }
        let mut doomed: Vec<BundlePath> = Vec::new();
        for listed in checkpoint::list(dir.dir())? {
            if !names.contains(&listed.path.absolute()?) {
                doomed.push(listed.path);
            }
        }
        // A bundle goes after the deltas over it.
        let swept = loop {
            let before = doomed.len();
            let mut result = Ok(());
            let mut left = Vec::new();
            for path in doomed {
                match self.sweep_bundle(&path) {
                    Ok(true) => {}
                    Ok(false) => left.push(path),
                    Err(error) => {
                        result = Err(error);
                        left.push(path);
                    }
                }
            }
            if left.is_empty() || left.len() == before {
                break result;
            }
            doomed = left;
        };
        swept.and(self.sweep_snapshots(dir.dir()))
    }

    /// Removes the bundle of a released claim, and the parents that no other bundle needs. Works
    /// while another process is at another claim.
    pub(super) fn sweep_released(&mut self, bundle: &BundlePath) -> Result<(), Error> {
        let dir = BundlePath::new(&self.state.suspended_dir().join("any"))?;
        let Ok(dir) = dir.absolute() else {
            return Ok(());
        };
        let under = checkpoint::parents_of(bundle)?;
        for path in std::iter::once(bundle.clone()).chain(under) {
            let own = path.absolute().is_ok_and(|path| path.dir() == dir.dir());
            if own && checkpoint::is_sealed(&path)? {
                self.sweep_bundle(&path)?;
            }
        }
        Ok(())
    }

    /// Removes the bundle of a claim that is over, unless a delta needs it; returns whether it is
    /// gone. Waits for another process that removes it at the same moment.
    pub(super) fn sweep_bundle(&mut self, path: &BundlePath) -> Result<bool, Error> {
        let begin = Instant::now();
        loop {
            let removed = self.guests().remove_checkpoint(path, false);
            let Err(guests::Error::Checkpoint(error)) = removed else {
                return Ok(removed.map(|_| true)?);
            };
            match error {
                checkpoint::Error::Needed { .. } | checkpoint::Error::InUse { .. } => {
                    return Ok(false);
                }
                checkpoint::Error::NotFound { .. } => return Ok(true),
                checkpoint::Error::Busy { .. } if begin.elapsed() < REMOVAL_TIMEOUT => {
                    thread::sleep(POLL_INTERVAL);
                }
                error => return Err(error.into()),
            }
        }
    }

    /// Removes disk snapshots, beside the bundles, that have no bundle: the process that took or
    /// removed them was killed.
    fn sweep_snapshots(&mut self, dir: &Path) -> Result<(), Error> {
        let of_bundle = |name: &str| {
            name.split_once(".ckp.disk-")
                .map(|(bundle, _)| bundle.to_owned())
        };
        let mut entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let strays = entries.any(|entry| {
            let bundle = of_bundle(&entry.file_name().to_string_lossy());
            bundle.is_some_and(|bundle| !dir.join(format!("{bundle}.ckp.brood")).exists())
        });
        if strays {
            self.sweep_disks(&[Place::Folder(dir.to_owned())], |_| true)?;
        }
        Ok(())
    }

    /// Removes snapshots of the named bundles if the bundle does not exist. Looks in these places,
    /// or in all recorded ones when none is given. A later sweep finds what could not be removed.
    pub(super) fn sweep_disks(
        &mut self,
        places: &[Place],
        whose: impl Fn(&BundlePath) -> bool,
    ) -> Result<(), Error> {
        let mut guests = self.guests();
        let mut left = guests.leftovers(places)?;
        left.retain(|left| left.found.bundle().is_some_and(|(bundle, _)| whose(bundle)));
        guests.sweep(&left);
        Ok(())
    }
}
