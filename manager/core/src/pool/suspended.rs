//! Suspended claims: claims whose guest lies on disk.
//!
//! Suspending writes the guest into a delta of the checkpoint that it was restored from, or into a
//! full checkpoint where the engine writes no deltas. Resuming restores it for its claimer. A
//! suspended claim has no lease: it lasts until it is released, and survives reboots of the host.

use std::{
    fs::File,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::Flock;

use super::{ClaimGrant, Error, Pools, Tier, WAKE_TIMEOUT};
use crate::{
    checkpoint::{self, BundlePath, Watch, manifest::Manifest, until},
    engine::{self, GuestRef, restore_lock},
    guest_id::GuestId,
    guests::{self, GuestState},
    restore::{RestoreContext, RestoreSpec, restore, verify},
    state::{
        self, Lease, SuspendedClaimRow, SuspendedClaimState, TokenDigest,
        lock::{self, Wait},
    },
};

/// How long a guest may take to answer after its suspension was interrupted.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// How long a restore may take to end by itself after its manager has died.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(1);
/// A lease that is longer than a host runs.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);
/// Interval between looks at a restore whose manager has died.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The locks that a process holds while it works at a claim.
#[derive(Debug)]
struct ClaimLock {
    dir: PathBuf,
    name: String,
    _own: Flock<File>,
    _all: Option<Flock<File>>,
}

impl Drop for ClaimLock {
    fn drop(&mut self) {
        // While it is held, so that no other process has it.
        lock::remove(&self.dir, &self.name);
    }
}

impl Pools<'_> {
    /// Suspends the guest of a claim. When this returns, the guest is gone and its state is on the
    /// disk. When anything fails, the guest goes on. For a claim that is suspended already, this
    /// returns the manifest of its bundle.
    ///
    /// # Errors
    /// [`Error::NoSuchClaim`], or when the bundle cannot be written.
    pub fn suspend(&mut self, token: &str, progress: Watch<'_>) -> Result<Manifest, Error> {
        let token = &TokenDigest::of(token);
        let _lock = self.claim_to_work_at(token)?;
        if let Some(suspended) = self.state.suspended_claim(token)? {
            // An earlier, interrupted call has done this already.
            let path: BundlePath = suspended.bundle.parse()?;
            return Ok(self.state.open_checkpoint(&path)?.manifest().clone());
        }
        let id = self.state.claimed_by(token)?.ok_or(Error::NoSuchClaim)?;
        let guest = self.guests().find(&id.to_string())?;
        let bundle = self.state.suspended_dir().join(id.to_string());
        let bundle = BundlePath::new(&bundle)?;
        let pool = self.state.entry_pool(&id)?.ok_or(Error::NoSuchClaim)?;
        let lease_s = self.row(&pool)?.policy.lease_s;
        // A suspension that was interrupted after the seal has left the bundle, and the guest has
        // gone on since.
        if checkpoint::is_sealed(&bundle)? {
            self.sweep_bundle(&bundle)?;
        }
        if !self
            .state
            .begin_suspended_claim(token, &bundle.to_string())?
        {
            return Err(Error::NoSuchClaim);
        }
        // A reconciliation of the pool meanwhile must not end the guest.
        self.set_lease(token, FOR_EVER)?;
        let run_dir = self.state.run_dir();
        let delta = self.engine.writes_deltas(guest.row.in_folder(&run_dir));
        let suspended = match self.guests().suspend(&guest, &bundle, delta, progress) {
            Err(
                guests::Error::Checkpoint(checkpoint::Error::TooDeep { .. })
                | guests::Error::Engine {
                    source: engine::Error::Bundle(checkpoint::Error::TooDeep { .. }),
                    ..
                },
            ) => self.guests().suspend(&guest, &bundle, false, progress),
            result => result,
        };
        match suspended {
            Ok(manifest) => {
                // Its record stays when nothing could be written just then: nobody is to find the
                // claim in two states.
                if self.state.claimed_by(token)?.is_some() {
                    self.destroy(&[id])?;
                }
                self.state.mark_suspended(token)?;
                Ok(manifest)
            }
            Err(e) => {
                // If it is unknown whether the bundle is sealed, or the guest's process still
                // writes it, the next reconciliation of claims finds out.
                if matches!(checkpoint::is_sealed(&bundle), Ok(false))
                    && !self.is_suspending(&id, &bundle)
                {
                    self.state.forget_suspended_claim(token, false)?;
                    self.set_lease(token, Duration::from_secs(lease_s))?;
                }
                Err(e.into())
            }
        }
    }

    /// Restores the guest of a suspended claim. The guest has answered when this returns.
    ///
    /// # Errors
    /// [`Error::NoSuchClaim`] when no suspended claim has this token; an admission error when the
    /// host has no room for the guest.
    pub fn resume(
        &mut self,
        token: &str,
        lease: Option<Duration>,
        timeout: Option<Duration>,
    ) -> Result<ClaimGrant, Error> {
        let begin = Instant::now();
        let digest = TokenDigest::of(token);
        let _lock = self.claim_to_work_at(&digest)?;
        if let Some(id) = self.state.claimed_by(&digest)?
            && let Some(claimed) = self.resumed(token, id, lease, timeout, begin)?
        {
            return Ok(claimed);
        }
        let suspended = self
            .state
            .begin_resume(&digest)?
            .ok_or(Error::NoSuchClaim)?;
        match self.restore_suspended(&suspended, token, lease, timeout, begin) {
            Ok(claimed) => {
                self.set_lease(&digest, claimed.lease)?;
                self.state.forget_suspended_claim(&digest, false)?;
                Ok(claimed)
            }
            Err(e) => {
                // The guest may have come all the same: one that could not be looked at is kept.
                if let Err(error) = self.reconcile_resume(&suspended) {
                    tracing::warn!(%error, guest = %suspended.guest, "cannot tell yet what came of a resume");
                }
                Err(e)
            }
        }
    }

    /// The guest of a claim that an earlier, interrupted call has resumed already. If the guest has
    /// died since, the claim is suspended again with its last bundle.
    fn resumed(
        &mut self,
        token: &str,
        id: GuestId,
        lease: Option<Duration>,
        timeout: Option<Duration>,
        begin: Instant,
    ) -> Result<Option<ClaimGrant>, Error> {
        let pool = self.state.entry_pool(&id)?.ok_or(Error::NoSuchClaim)?;
        let lasts = lease.unwrap_or(Duration::from_secs(self.row(&pool)?.policy.lease_s));
        let digest = TokenDigest::of(token);
        let woken = self.guests().wake(&id, timeout.unwrap_or(WAKE_TIMEOUT));
        let error = match woken {
            Ok((guest, process)) => {
                self.set_lease(&digest, lasts)?;
                return Ok(Some(ClaimGrant {
                    guest: guest.name,
                    id,
                    pid: process.pid,
                    token: token.to_owned(),
                    lease: lasts,
                    tier: Tier::Hot,
                    forwards: guest.forwards,
                    latency: begin.elapsed(),
                }));
            }
            Err(error) => error,
        };
        let guest = match self.guests().find(&id.to_string()) {
            Ok(guest) if guest.state == GuestState::Dead => guest,
            _ => return Err(error.into()),
        };
        let bundle: BundlePath = guest.row.checkpoint.parse()?;
        let folder = BundlePath::new(&self.state.suspended_dir().join("any"))?;
        let rested = match bundle.name().parse::<GuestId>() {
            Ok(id) if folder.absolute()?.dir() == bundle.dir() => {
                checkpoint::is_sealed(&bundle)?.then_some(id)
            }
            _ => None,
        };
        let Some(rested) = rested else {
            return Err(error.into());
        };
        if !self
            .state
            .suspend_again(&digest, &rested, &guest.row.checkpoint)?
        {
            return Err(Error::NoSuchClaim);
        }
        self.destroy(&[id])?;
        Ok(None)
    }

    fn restore_suspended(
        &mut self,
        suspended: &SuspendedClaimRow,
        token: &str,
        lease: Option<Duration>,
        timeout: Option<Duration>,
        begin: Instant,
    ) -> Result<ClaimGrant, Error> {
        let pool = self.row(&suspended.pool)?;
        let lasts = lease.unwrap_or(Duration::from_secs(pool.policy.lease_s));
        let path: BundlePath = suspended.bundle.parse()?;
        let checkpoint = self.state.open_checkpoint(&path)?;
        // The claim itself is a user of it.
        drop(verify(
            self.state,
            self.engine,
            &checkpoint,
            &until(self.cancelled),
        )?);
        let facts = (self.facts)(checkpoint.path().dir())?;
        // It begins when the guest has answered.
        let lease = Lease {
            token: suspended.token.clone(),
            lasts: FOR_EVER,
        };
        let spec = RestoreSpec {
            timeout,
            // Its claimer may know it by that.
            name: Some(checkpoint.manifest().guest.clone()),
            ..self.restore_spec(&pool, &checkpoint, Some(lease))?
        };
        let context = RestoreContext {
            state: self.state,
            engine: self.engine,
            facts: &facts,
            slot: None,
            cancelled: self.cancelled,
        };
        let report = restore(context, &checkpoint, &spec, &mut |_| {})?;
        self.only(&pool, report, token.to_owned(), lasts, begin)
    }

    /// Completes or undoes an interrupted suspension or restore of a claim. If another process
    /// works at the claim, waits for it first.
    pub(super) fn reconcile_claim(&mut self, token: &TokenDigest) -> Result<(), Error> {
        match self.state.suspended_claim(token)? {
            None
            | Some(SuspendedClaimRow {
                state: SuspendedClaimState::Suspended,
                ..
            }) => Ok(()),
            Some(_) => self.claim_to_work_at(token).map(drop),
        }
    }

    /// Takes the lock of a claim, and reconciles the claim.
    fn claim_to_work_at(&mut self, token: &TokenDigest) -> Result<ClaimLock, Error> {
        let lock = self.claim_lock(token, self.lock_limit)?;
        if let Some(suspended) = self.state.suspended_claim(token)? {
            self.reconcile_suspended_claim(&suspended)?;
        }
        Ok(lock)
    }

    fn reconcile_suspended_claim(&mut self, suspended: &SuspendedClaimRow) -> Result<(), Error> {
        match suspended.state {
            // A guest that is the claim's is more than the bundle that it came from.
            SuspendedClaimState::Suspended
                if self.state.claimed_by(&suspended.token)?.is_some() =>
            {
                self.reconcile_resume(suspended)
            }
            SuspendedClaimState::Suspended => Ok(()),
            SuspendedClaimState::Suspending => self.reconcile_suspend(suspended),
            SuspendedClaimState::Resuming => self.reconcile_resume(suspended),
        }
    }

    /// Completes interrupted suspensions and restores, except of claims whose lock another process
    /// holds. Removes bundles that no claim needs, if no process works at any claim. Failures are
    /// logged and retried by the next call: they hold up neither the other claims nor the pool.
    pub(super) fn reconcile_suspended_claims(&mut self) {
        let reconciled = self.reconcile_claims();
        let swept = match self.suspended_lock(true, Duration::ZERO) {
            Ok(_lock) => {
                self.state.sweep_claim_files();
                self.recall_claims().and(self.sweep_bundles())
            }
            Err(Error::State(state::Error::Locked {
                pid, stopped: true, ..
            })) => {
                tracing::warn!(
                    pid,
                    "released claims stay on the disk, because this process is stopped while it suspends or resumes one"
                );
                Ok(())
            }
            Err(_) => Ok(()),
        };
        if let Err(error) = reconciled.and(swept) {
            tracing::warn!(%error, "cannot reconcile all suspended claims");
        }
    }

    /// Reconciles all claims whose lock is free; returns the first error.
    fn reconcile_claims(&mut self) -> Result<(), Error> {
        let mut result = Ok(());
        for suspended in self.state.suspended_claims()? {
            if suspended.state == SuspendedClaimState::Suspended
                && self.state.claimed_by(&suspended.token)?.is_none()
            {
                continue;
            }
            let Ok(_lock) = self.claim_lock(&suspended.token, Duration::ZERO) else {
                continue;
            };
            // The process that worked at it may have ended just now.
            if let Some(now) = self.state.suspended_claim(&suspended.token)? {
                result = result.and(self.reconcile_suspended_claim(&now));
            }
        }
        result
    }

    /// Records claims again that the record has lost and whose recovery file lies beside their
    /// bundle. Drops a recovery file that has neither a record nor a bundle: that suspension
    /// failed.
    fn recall_claims(&mut self) -> Result<(), Error> {
        for kept in self.state.claims_not_recorded()? {
            let path: BundlePath = kept.bundle.parse()?;
            if !checkpoint::is_sealed(&path)? {
                tracing::warn!(
                    guest = kept.guest,
                    pool = kept.pool,
                    "dropped a suspended claim without a record and without a checkpoint"
                );
                self.state.drop_claim_file(&kept)?;
                continue;
            }
            let lives = match self.guests().find(&kept.guest) {
                Ok(guest) => guest.process().is_some(),
                Err(guests::Error::NoSuchGuest(_)) => false,
                Err(e) => return Err(e.into()),
            };
            if !lives {
                self.state.recall_suspended_claim(&kept)?;
            }
        }
        Ok(())
    }

    /// Ends an interrupted suspension. A guest that still answers has gone on and is newer than its
    /// bundle, so it counts. If the guest does not answer, the bundle counts.
    fn reconcile_suspend(&mut self, suspended: &SuspendedClaimRow) -> Result<(), Error> {
        let bundle: BundlePath = suspended.bundle.parse()?;
        if self.is_suspending(&suspended.guest, &bundle)
            && self.finish_suspend(suspended, &bundle)?
        {
            return Ok(());
        }
        let sealed = checkpoint::is_sealed(&bundle)?;
        let goes_on = match self.guests().wake(&suspended.guest, ANSWER_PATIENCE) {
            Ok(_) => true,
            Err(e) if e.is_unknown() || e.is_interrupted() => return Err(e.into()),
            Err(_) => false,
        };
        if !goes_on && sealed {
            // A guest that cannot be ended does not answer any more, and the reconciliation of its
            // pool finds it.
            self.destroy(&[suspended.guest])?;
            self.state.mark_suspended(&suspended.token)?;
            return Ok(());
        }
        // A snapshot of its disk may have been taken for the bundle that never came to be.
        let has_disk = self
            .state
            .guest(&suspended.guest.to_string())?
            .is_none_or(|row| row.disk.is_some());
        // Where there is no folder yet, there is no snapshot.
        if has_disk && let Ok(bundle) = bundle.absolute() {
            self.sweep_disks(&[], |of| *of == bundle)?;
        }
        self.state.forget_suspended_claim(&suspended.token, false)?;
        if let Some(pool) = self.state.pool(&suspended.pool)? {
            self.set_lease(&suspended.token, Duration::from_secs(pool.policy.lease_s))?;
        }
        Ok(())
    }

    /// Whether the guest's process was ordered to suspend the guest to this bundle, and no manager
    /// has seen the result.
    fn is_suspending(&self, id: &GuestId, bundle: &BundlePath) -> bool {
        match self
            .engine
            .suspending(GuestRef::new(&self.state.run_dir(), id))
        {
            Ok(Some(begun)) => bundle.absolute().is_ok_and(|bundle| bundle == begun),
            Ok(None) => false,
            // Unknown: not a reason to give the claim up.
            Err(_) => true,
        }
    }

    /// Whether the bundle of a guest that was being suspended may be complete, or may still become
    /// so.
    fn may_be_written(&mut self, id: &GuestId) -> Result<bool, Error> {
        let unsealed = self
            .engine
            .unsealed(GuestRef::new(&self.state.run_dir(), id));
        if !matches!(unsealed, Ok(None)) {
            return Ok(true);
        }
        match self.guests().find(&id.to_string()) {
            Ok(guest) => Ok(guest.process().is_some()),
            Err(guests::Error::NoSuchGuest(_)) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for a suspension that the guest's process still carries out: that guest would end a
    /// moment after it had answered, and its bundle holds its state. `false` when the guest goes on
    /// after all, or has died.
    fn finish_suspend(
        &mut self,
        suspended: &SuspendedClaimRow,
        bundle: &BundlePath,
    ) -> Result<bool, Error> {
        let guest = match self.guests().find(&suspended.guest.to_string()) {
            Ok(guest) => guest,
            Err(guests::Error::NoSuchGuest(_)) => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        let watch = until(self.cancelled);
        match self.guests().suspend(&guest, bundle, false, &watch) {
            Ok(_) => {
                self.state.mark_suspended(&suspended.token)?;
                Ok(true)
            }
            // It is still at it, or has ended for it and is not sealed yet: nothing else holds it.
            Err(e)
                if self.is_suspending(&suspended.guest, bundle)
                    && self.may_be_written(&suspended.guest)? =>
            {
                Err(e.into())
            }
            Err(error) => {
                tracing::warn!(%error, guest = guest.row.name, "cannot complete an interrupted suspension");
                Ok(false)
            }
        }
    }

    fn reconcile_resume(&mut self, suspended: &SuspendedClaimRow) -> Result<(), Error> {
        let begin = Instant::now();
        loop {
            let guest = match self.state.claimed_by(&suspended.token)? {
                Some(id) => match self.guests().find(&id.to_string()) {
                    Ok(guest) => Some(guest),
                    Err(guests::Error::NoSuchGuest(_)) => None,
                    Err(e) => return Err(e.into()),
                },
                None => None,
            };
            match guest.map(|guest| (guest.state, guest)) {
                // Its claimer was not told; the claim is good all the same, and lasts from now.
                Some((GuestState::Running | GuestState::Paused, _)) => {
                    if let Some(pool) = self.state.pool(&suspended.pool)? {
                        self.set_lease(&suspended.token, Duration::from_secs(pool.policy.lease_s))?;
                    }
                    self.state.forget_suspended_claim(&suspended.token, false)?;
                }
                // Its manager is gone, and so it ends soon, or is there.
                Some((GuestState::Restoring, guest)) if begin.elapsed() < ANSWER_PATIENCE => {
                    if begin.elapsed() > ORPHAN_PATIENCE {
                        restore_lock::end_orphans(&self.state.run_dir(), &guest.row.session);
                    }
                    thread::sleep(LOCK_POLL_INTERVAL);
                    continue;
                }
                Some((GuestState::Restoring, _)) => {}
                Some((GuestState::Dead, guest)) => {
                    self.guests().destroy(&[guest])?.whole()?;
                    self.state.mark_suspended(&suspended.token)?;
                }
                None => {
                    self.state.mark_suspended(&suspended.token)?;
                }
            }
            return Ok(());
        }
    }

    /// Sets the lease of a claim, counted from now.
    fn set_lease(&mut self, token: &TokenDigest, lasts: Duration) -> Result<(), Error> {
        self.state.renew_claim(&Lease {
            token: token.clone(),
            lasts,
        })?;
        Ok(())
    }

    /// The exclusive lock of a claim, for suspending, resuming or reconciling it.
    fn claim_lock(&self, token: &TokenDigest, limit: Duration) -> Result<ClaimLock, Error> {
        let (dir, name) = (self.state.dir().to_owned(), lock::of_claim(token));
        let cancelled = self.cancelled;
        let own = lock::take(&dir, &name, true, Wait { limit, cancelled })?;
        let mut lock = ClaimLock {
            dir,
            name,
            _own: own,
            _all: None,
        };
        lock._all = Some(self.suspended_lock(false, limit)?);
        Ok(lock)
    }

    fn suspended_lock(&self, exclusive: bool, limit: Duration) -> Result<Flock<File>, Error> {
        let cancelled = self.cancelled;
        let wait = Wait { limit, cancelled };
        Ok(lock::take(
            self.state.dir(),
            lock::SUSPENDED,
            exclusive,
            wait,
        )?)
    }
}
