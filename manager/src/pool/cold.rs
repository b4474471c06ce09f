//! Claims that rest: the guest is suspended into a delta of what it was restored from, which has
//! only the pages that it has to itself, and is restored when its claimer wants it again. The claim
//! lasts, through the host's end too, until it is released.

use std::{
    collections::HashSet,
    fs::File,
    sync::atomic::AtomicBool,
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};

use super::{Claimed, Error, Pools, Tier};
use crate::{
    checkpoint::{self, BundlePath, Checkpoint, Progress, manifest::Manifest},
    guests::{self, GuestState},
    restore::mass,
    state::{ColdRow, ColdState, Lease},
};

/// How long a guest whose suspension was cut off may take to answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// How often a restore whose manager is gone is looked at.
const GLANCE: Duration = Duration::from_millis(5);

impl Pools<'_> {
    /// Suspends the guest of a claim. When this returns the guest is gone, and what it was is on
    /// the disk. When anything fails, the guest goes on. Of one that rests already it tells what
    /// was written.
    ///
    /// # Errors
    /// [`Error::NoSuchClaim`], or when the bundle cannot be written.
    pub fn suspend(
        &mut self,
        token: &str,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Manifest, Error> {
        self.settle_claim(token)?;
        let _lock = self.cold_lock(FlockArg::LockShared)?;
        if let Some(cold) = self.state.cold(token)? {
            // Whoever wanted this before was cut off before being told.
            let path: BundlePath = cold.bundle.parse()?;
            return Ok(Checkpoint::open(&path)?.manifest().clone());
        }
        let id = self.state.claimed_by(token)?.ok_or(Error::NoSuchClaim)?;
        let guest = self.guests().find(&id.to_string())?;
        let bundle = self.state.dir().join("cold").join(id.to_string());
        let bundle = BundlePath::new(&bundle)?;
        let pool = self.state.entry_pool(&id)?.ok_or(Error::NoSuchClaim)?;
        let lease_s = self.row(&pool)?.policy.lease_s;
        if !self.state.begin_cold(token, &bundle.to_string())? {
            return Err(Error::NoSuchClaim);
        }
        // Whoever settles the pool meanwhile must not end the guest.
        self.keep(token)?;
        let suspended = match self.guests().suspend_delta(&guest, &bundle, progress) {
            Err(guests::Error::Checkpoint(checkpoint::Error::TooDeep { .. })) => {
                self.guests().suspend(&guest, &bundle, progress)
            }
            Err(guests::Error::Engine {
                source: crate::engine::Error::Bundle(checkpoint::Error::TooDeep { .. }),
                ..
            }) => self.guests().suspend(&guest, &bundle, progress),
            result => result,
        };
        match suspended {
            Ok(manifest) => {
                self.state.mark_cold(token)?;
                Ok(manifest)
            }
            Err(e) => {
                if Checkpoint::open(&bundle).is_err() {
                    self.state.forget_cold(token, false)?;
                    self.state.renew_claim(&Lease {
                        token: token.to_owned(),
                        lasts: Duration::from_secs(lease_s),
                    })?;
                }
                Err(e.into())
            }
        }
    }

    /// Restores the guest of a claim that rests. It has answered when this returns.
    ///
    /// # Errors
    /// [`Error::NoSuchClaim`] when there is none that rests, or when there is no room for the guest.
    pub fn resume(
        &mut self,
        token: &str,
        lease: Option<Duration>,
        timeout: Duration,
    ) -> Result<Claimed, Error> {
        let begin = Instant::now();
        self.settle_claim(token)?;
        let _lock = self.cold_lock(FlockArg::LockShared)?;
        if let Some(id) = self.state.claimed_by(token)? {
            // It is there already: whoever wanted this before was cut off before being told.
            let (guest, process) = self.guests().wake(&id, timeout)?;
            let pool = self.state.entry_pool(&id)?.ok_or(Error::NoSuchClaim)?;
            return Ok(Claimed {
                guest: guest.name,
                id,
                process,
                token: token.to_owned(),
                lease: lease.unwrap_or(Duration::from_secs(self.row(&pool)?.policy.lease_s)),
                tier: Tier::Hot,
                latency: begin.elapsed(),
            });
        }
        let cold = self.state.begin_resume(token)?.ok_or(Error::NoSuchClaim)?;
        match self.restore_cold(&cold, lease, begin) {
            Ok(claimed) => {
                self.state.forget_cold(token, false)?;
                Ok(claimed)
            }
            Err(e) => {
                self.state.mark_cold(token)?;
                Err(e)
            }
        }
    }

    fn restore_cold(
        &mut self,
        cold: &ColdRow,
        lease: Option<Duration>,
        begin: Instant,
    ) -> Result<Claimed, Error> {
        let pool = self.row(&cold.pool)?;
        let lasts = lease.unwrap_or(Duration::from_secs(pool.policy.lease_s));
        let path: BundlePath = cold.bundle.parse()?;
        let checkpoint = Checkpoint::open(&path)?;
        mass::verify(self.state, &checkpoint, &|_| {})?;
        let facts = (self.facts)(checkpoint.path().dir())?;
        let lease = Lease {
            token: cold.token.clone(),
            lasts,
        };
        let request = self.request(&pool, &checkpoint, 1, 1, Some(lease))?;
        let report = mass::restore(
            self.state,
            self.engine,
            &facts,
            &checkpoint,
            &request,
            &AtomicBool::new(false),
            &mut |_| {},
        )?;
        Self::only(&pool, report, cold.token.clone(), lasts, begin)
    }

    /// Brings a claim whose suspension or restore was cut off to where that leads; one that
    /// somebody is at is waited for.
    pub(super) fn settle_claim(&mut self, token: &str) -> Result<(), Error> {
        match self.state.cold(token)? {
            None
            | Some(ColdRow {
                state: ColdState::Cold,
                ..
            }) => Ok(()),
            Some(_) => {
                let _lock = self.cold_lock(FlockArg::LockExclusive)?;
                self.settle_cold_locked()
            }
        }
    }

    /// Brings suspensions and restores that were cut off to their end, and removes bundles that
    /// nobody needs. Does nothing while somebody is at one.
    pub(super) fn settle_cold(&mut self) -> Result<(), Error> {
        let Ok(_lock) = self.cold_lock(FlockArg::LockExclusiveNonblock) else {
            return Ok(());
        };
        self.settle_cold_locked()
    }

    fn settle_cold_locked(&mut self) -> Result<(), Error> {
        for cold in self.state.all_cold()? {
            match cold.state {
                ColdState::Cold => {}
                ColdState::Suspending => self.settle_suspend(cold)?,
                ColdState::Resuming => self.settle_resume(&cold)?,
            }
        }
        self.sweep_bundles()
    }

    /// A suspension that was cut off. A guest that still answers has gone on, and knows more than
    /// its bundle; one that does not is what the bundle holds.
    fn settle_suspend(&mut self, cold: ColdRow) -> Result<(), Error> {
        let goes_on = self.guests().wake(&cold.guest, ANSWER_PATIENCE).is_ok();
        if !goes_on && sealed(&cold.bundle) {
            self.destroy(&[cold.guest])?;
            self.state.mark_cold(&cold.token)?;
            return Ok(());
        }
        self.state.forget_cold(&cold.token, false)?;
        if let Some(pool) = self.state.pool(&cold.pool)? {
            self.state.renew_claim(&Lease {
                token: cold.token,
                lasts: Duration::from_secs(pool.policy.lease_s),
            })?;
        }
        Ok(())
    }

    fn settle_resume(&mut self, cold: &ColdRow) -> Result<(), Error> {
        let begin = Instant::now();
        loop {
            let guest = match self.state.claimed_by(&cold.token)? {
                Some(id) => match self.guests().find(&id.to_string()) {
                    Ok(guest) => Some(guest),
                    Err(guests::Error::NoSuchGuest(_)) => None,
                    Err(e) => return Err(e.into()),
                },
                None => None,
            };
            match guest.map(|guest| (guest.state, guest)) {
                // Its claimer was not told; the claim is good all the same.
                Some((GuestState::Running | GuestState::Paused, _)) => {
                    self.state.forget_cold(&cold.token, false)?;
                }
                // Its manager is gone, and so it ends soon, or is there.
                Some((GuestState::Restoring, _)) if begin.elapsed() < ANSWER_PATIENCE => {
                    thread::sleep(GLANCE);
                    continue;
                }
                Some((GuestState::Restoring, _)) => {}
                Some((GuestState::Dead, guest)) => {
                    self.guests().destroy(&[guest])?;
                    self.state.mark_cold(&cold.token)?;
                }
                None => {
                    self.state.mark_cold(&cold.token)?;
                }
            }
            return Ok(());
        }
    }

    /// Removes bundles of claims that neither rest nor were restored from them.
    fn sweep_bundles(&mut self) -> Result<(), Error> {
        let dir = self.state.dir().join("cold");
        if !dir.exists() {
            return Ok(());
        }
        let mut needed = HashSet::new();
        let resting = self.state.all_cold()?.into_iter().map(|cold| cold.bundle);
        let living = self.guests().list()?.into_iter().map(|g| g.row.checkpoint);
        for bundle in resting.chain(living) {
            let path: BundlePath = bundle.parse()?;
            needed.insert(path.to_string());
            if path.dir() != dir {
                continue;
            }
            // What cannot be read now may be read later: then nothing is removed.
            let Ok(checkpoint) = Checkpoint::open(&path) else {
                return Ok(());
            };
            for layer in checkpoint.layers() {
                needed.insert(layer.path().absolute()?.to_string());
            }
        }
        let dir = BundlePath::new(&dir.join("any"))?.absolute()?;
        for listed in checkpoint::list(dir.dir())? {
            if !needed.contains(&listed.path.absolute()?.to_string()) {
                self.guests().remove_checkpoint(&listed.path, &[])?;
            }
        }
        Ok(())
    }

    fn keep(&mut self, token: &str) -> Result<(), Error> {
        // Longer than a host runs.
        let lasts = Duration::from_secs(u32::MAX.into());
        self.state.renew_claim(&Lease {
            token: token.to_owned(),
            lasts,
        })?;
        Ok(())
    }

    fn cold_lock(&self, how: FlockArg) -> Result<Flock<File>, Error> {
        let path = self.state.dir().join("cold.lock");
        let failed = |source| Error::Lock {
            path: path.clone(),
            source,
        };
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(failed)?;
        Flock::lock(file, how).map_err(|(_, e)| failed(e.into()))
    }
}

fn sealed(bundle: &str) -> bool {
    let path: Result<BundlePath, _> = bundle.parse();
    path.is_ok_and(|path| Checkpoint::open(&path).is_ok())
}
