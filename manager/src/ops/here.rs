//! Operations in this process, for a command or for a request to the daemon: the one place that
//! does them.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::{
    Error, OpenFolder, Operations, PoolStep, PutAnswer, PutPool, RestoreObserver, StateFolder,
};
use crate::types::{
    self, AskRequest, Claim, DestroyAnswer, DestroyTargets, FilledPool, Guest, GuestAnswer, Host,
    Leftovers, Pool, PoolAnswer, PoolDetails, RemovedCheckpoint, ResumeClaimRequest, ResumeReport,
    SuspendAnswer, SuspendTarget, SweepReport,
};
use brood_core::{
    checkpoint::{self, BundlePath, Checkpoint, Progress},
    disk::Place,
    host::plan::Plan,
    pool::ClaimSpec,
    restore::{self, RestoreContext, RestoreReport, RestoreSpec, RestoreStep, cost, verify},
    units::Bytes,
};

impl<F: StateFolder> Operations for F {
    fn guests(&mut self, prefix: &str, usage: bool) -> Result<Vec<Guest>, Error> {
        let mut opened = self.open_to_look()?;
        Ok(Guest::with_prefix(&mut opened.guests(), prefix, usage)?)
    }

    fn named_guests(
        &mut self,
        names: &[String],
        ignore_missing: bool,
    ) -> Result<Vec<Guest>, Error> {
        let mut opened = self.open_to_look()?;
        let found = types::named(&mut opened.guests(), names, ignore_missing)?;
        let engine = opened.engine.kind();
        let views = found.iter().map(|guest| Guest::new(guest, engine, None));
        Ok(views.collect())
    }

    fn guest(&mut self, guest: &str) -> Result<Guest, Error> {
        Ok(Guest::one(&mut self.open_to_look()?.guests(), guest)?)
    }

    fn ask(&mut self, guest: &str, asked: &AskRequest) -> Result<GuestAnswer, Error> {
        Ok(asked.put(&mut self.open_to_look()?.guests(), guest)?)
    }

    fn pause(&mut self, name: &str) -> Result<Guest, Error> {
        let mut opened = self.open_to_look()?;
        let mut guests = opened.guests();
        let guest = guests.find(name)?;
        guests.pause(&guest)?;
        let paused = guests.find(name)?;
        Ok(Guest::new(&paused, guests.engine.kind(), None))
    }

    fn resume(&mut self, name: &str, timeout: Duration) -> Result<ResumeReport, Error> {
        let mut opened = self.open_to_look()?;
        let mut guests = opened.guests();
        let guest = guests.find(name)?;
        let took = guests.resume(&guest, timeout)?;
        Ok(ResumeReport {
            name: guest.row.name,
            resume_ms: took.as_secs_f64() * 1e3,
        })
    }

    fn suspend(
        &mut self,
        guest: &str,
        target: &SuspendTarget<'_>,
        progress: checkpoint::Watch<'_>,
    ) -> Result<types::Checkpoint, Error> {
        let _ = progress(Progress::default());
        let mut opened = self.open()?;
        let mut guests = opened.guests();
        let guest = guests.find(guest)?;
        let SuspendTarget { checkpoint, delta } = *target;
        let manifest = guests.suspend(&guest, checkpoint, delta, progress)?;
        Ok(types::Checkpoint::new(checkpoint, &manifest))
    }

    fn destroy(&mut self, targets: DestroyTargets<'_>) -> Result<DestroyAnswer, Error> {
        Ok(DestroyAnswer::of(
            &mut self.open_to_look()?.guests(),
            targets,
        )?)
    }

    fn restore(
        &mut self,
        path: &BundlePath,
        spec: &RestoreSpec,
        observer: &dyn RestoreObserver,
    ) -> Result<RestoreReport, Error> {
        let opened = self.open()?;
        let checkpoint = opened.state.open_checkpoint(path)?;
        let facts = opened.facts(Some(path.dir().to_owned()))?;
        let OpenFolder {
            state,
            engine,
            sessions,
            ..
        } = opened;
        // More guests of it are often wanted soon.
        let slot = match sessions {
            Some(sessions) => Some((sessions, path.absolute()?.to_string())),
            None => None,
        };
        if spec.trust {
            state.trust(&checkpoint)?;
        }
        let begin = Instant::now();
        let in_use = verify(state, engine, &checkpoint, &|p| observer.verifying(p))?;
        let verify_s = in_use
            .as_ref()
            .map_or(0.0, |_| begin.elapsed().as_secs_f64());
        let context = RestoreContext {
            state,
            engine,
            facts: &facts,
            slot: slot.as_ref().map(|(sessions, name)| sessions.named(name)),
            cancelled: observer.cancelled(),
        };
        let step = &mut |step: &RestoreStep<'_>| observer.note(step);
        Ok(RestoreReport {
            verify_s,
            ..restore::restore(context, &checkpoint, spec, step)?
        })
    }

    fn host(&mut self, guests: u64, checkpoint_dir: Option<&Path>) -> Result<Host, Error> {
        let mut facts = self.facts(checkpoint_dir.map(Path::to_owned))?;
        self.engine()?.0.examine(&mut facts);
        Ok(Host::new(&facts, guests))
    }

    fn plan(&mut self, checkpoint: &BundlePath, host_memory: Option<Bytes>) -> Result<Plan, Error> {
        let checkpoint = Checkpoint::open(checkpoint)?;
        let opened = self.open()?;
        let facts = opened.facts(Some(checkpoint.path().dir().to_owned()))?;
        let OpenFolder { state, engine, .. } = opened;
        Ok(cost::plan(state, engine, &facts, &checkpoint, host_memory)?)
    }

    fn trust(&mut self, checkpoint: &BundlePath) -> Result<types::Checkpoint, Error> {
        let checkpoint = Checkpoint::open(checkpoint)?;
        self.state()?.trust(&checkpoint)?;
        Ok(types::Checkpoint::of(&checkpoint, Some(true)))
    }

    fn remove_checkpoint(
        &mut self,
        checkpoint: &BundlePath,
        force: bool,
    ) -> Result<RemovedCheckpoint, Error> {
        let mut opened = self.open()?;
        if let Some(sessions) = opened.sessions {
            // One that stands by has its files open.
            sessions.end(&checkpoint.absolute()?.to_string());
        }
        let freed = opened.guests().remove_checkpoint(checkpoint, force)?;
        Ok(RemovedCheckpoint {
            checkpoint: checkpoint.to_string(),
            freed,
        })
    }

    fn leftovers(&mut self, places: &[Place]) -> Result<Leftovers, Error> {
        Ok(Leftovers::of(&mut self.open()?.guests(), places)?)
    }

    fn sweep(&mut self, places: &[Place]) -> Result<SweepReport, Error> {
        Ok(SweepReport::of(&mut self.open()?.guests(), places)?)
    }

    fn pools(&mut self) -> Result<Vec<Pool>, Error> {
        let pools = self.open()?.pools(|pools| pools.list())?;
        Ok(pools.into_iter().map(Into::into).collect())
    }

    fn pool(&mut self, pool: &str) -> Result<PoolDetails, Error> {
        Ok(self.open()?.pools(|pools| pools.details(pool))?.into())
    }

    fn put_pool(
        &mut self,
        put: &PutPool,
        observer: &dyn RestoreObserver,
    ) -> Result<PutAnswer, Error> {
        let mut opened = self.open()?;
        Ok(opened.pools(|pools| {
            let verifying = |p| observer.verifying(p);
            let mut applied = None;
            match &put.first {
                PoolStep::Create(new) => drop(pools.create(new, &verifying)?),
                PoolStep::Apply(new) => applied = Some(pools.apply(new, &verifying)?),
                PoolStep::Change(name, change) => drop(pools.change(name, change)?),
                PoolStep::Fill(_) => {}
            }
            let name = put.first.pool();
            let pool = pools.show(name)?;
            let pool = match put.fill {
                None => PoolAnswer::Pool(pool.into()),
                Some(fill) => {
                    observer.fills(&pool);
                    let step = &mut |step: &RestoreStep<'_>| observer.note(step);
                    let cancelled = observer.cancelled();
                    PoolAnswer::Filled(FilledPool::of(pools, name, fill, cancelled, step)?)
                }
            };
            Ok(PutAnswer { pool, applied })
        })?)
    }

    fn evict(&mut self, pool: &str, entries: u32) -> Result<u64, Error> {
        let mut opened = self.open()?;
        Ok(opened.pools(|pools| pools.evict(pool, entries.into()))?)
    }

    fn remove_pool(&mut self, pool: &str, force: bool) -> Result<(), Error> {
        Ok(self.open()?.pools(|pools| pools.remove(pool, force))?)
    }

    fn claim(&mut self, pool: &str, wanted: &ClaimSpec) -> Result<Claim, Error> {
        let claimed = self.open()?.pools(|pools| pools.claim(pool, wanted))?;
        Ok(claimed.into())
    }

    fn renew(&mut self, token: &str, lease_s: u32) -> Result<(), Error> {
        let lasts = Duration::from_secs(lease_s.into());
        Ok(self.open()?.pools(|pools| pools.renew(token, lasts))?)
    }

    fn release(&mut self, token: &str) -> Result<(), Error> {
        Ok(self.open()?.pools(|pools| pools.release(token))?)
    }

    fn suspend_claim(
        &mut self,
        token: &str,
        progress: checkpoint::Watch<'_>,
    ) -> Result<SuspendAnswer, Error> {
        let _ = progress(Progress::default());
        let mut opened = self.open()?;
        Ok(opened.pools(|pools| SuspendAnswer::of(pools, token, progress))?)
    }

    fn resume_claim(&mut self, token: &str, resuming: &ResumeClaimRequest) -> Result<Claim, Error> {
        let lease = resuming.lease_s.map(|s| Duration::from_secs(s.into()));
        let timeout = resuming.timeout_s.map(Duration::from_secs_f64);
        let mut opened = self.open()?;
        let claimed = opened.pools(|pools| pools.resume(token, lease, timeout))?;
        Ok(claimed.into())
    }
}
