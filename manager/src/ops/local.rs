//! Operations in this process: the state folder, the engine and facts of the host.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Error, Operations, PoolStep, PutPool, progress::LocalProgress};
use crate::{
    api::{
        guests::TIMEOUT,
        host::Host,
        restores::verified_restore,
        types::{
            self, AskRequest, Claim, ClaimRequest, DestroyAnswer, DestroyTargets, FilledPool,
            Guest, GuestAnswer, Leftovers, Pool, PoolAnswer, PoolDetails, RemovedCheckpoint,
            ResumeClaimRequest, ResumeReport, SuspendAnswer, SuspendTarget, SweepReport,
        },
    },
    client::Watch,
    config::Config,
    failure::Failure,
};
use brood_core::{
    checkpoint::{self, BundlePath, Checkpoint, Progress},
    disk::Place,
    engine::{self, Engine, EngineConfig},
    guests::{self, Guests},
    host::{facts::HostFacts, plan::Plan},
    pool::{self, ClaimSpec, LOCK_LIMIT, NEVER, Pools},
    restore::{RestoreContext, RestoreReport, RestoreSpec, RestoreStep, SessionCache, cost},
    state::State,
    units::Bytes,
};

/// The state folder, opened.
pub(crate) fn state(config: &Config) -> Result<State, Failure> {
    Ok(State::open(config.state_dir()?)?)
}

/// The engine of this host, as it is configured.
pub(crate) fn engine(config: &Config) -> Result<Box<dyn Engine>, Failure> {
    engine_with(&config.engines())
}

/// The engine of this host, configured so.
pub(crate) fn engine_with(engines: &EngineConfig) -> Result<Box<dyn Engine>, Failure> {
    let program = std::env::current_exe().map_err(|source| engine::Error::Io {
        action: "find the brood binary",
        source,
    })?;
    Ok(engine::choose(&program, engines)?)
}

/// Facts of the host that an engine's guests run on.
pub(crate) fn facts(
    config: &Config,
    engine: &dyn Engine,
    checkpoint: Option<PathBuf>,
) -> Result<HostFacts, Failure> {
    let state = config.state_dir()?.to_owned();
    Ok(engine.host().facts(state, checkpoint)?)
}

/// This process, with what it needs to do the work. It opens the state folder when it first needs
/// it.
pub(crate) struct Local {
    pub(super) config: Config,
    /// Shows a warning to the user.
    warn: fn(&str),
    opened: Option<OpenFolder>,
}

/// The state folder, and the engine of this host.
pub(crate) struct OpenFolder {
    state: State,
    engine: Box<dyn Engine>,
}

impl Local {
    pub(crate) fn new(config: &Config, warn: fn(&str)) -> Self {
        Self {
            config: config.clone(),
            warn,
            opened: None,
        }
    }

    /// Opens the state folder, unless it is open.
    ///
    /// # Errors
    /// When it cannot be opened, or this host has no engine.
    pub(crate) fn open(&mut self) -> Result<&mut OpenFolder, Failure> {
        let unwritable = |opened: &mut OpenFolder| opened.state.unwritable().is_some();
        drop(self.opened.take_if(unwritable));
        self.open_by(state)
    }

    /// The same to list or end guests, which works even if the folder cannot be written. The user
    /// is warned then.
    fn open_to_look(&mut self) -> Result<&mut OpenFolder, Failure> {
        let warn = self.warn;
        self.open_by(|config| {
            let state = State::open_to_look(config.state_dir()?)?;
            if let Some(why) = state.unwritable() {
                warn(&format!(
                    "{why}; guests are seen as they are, and what is done now is recorded by the \
                     next command that can write"
                ));
            }
            Ok(state)
        })
    }

    fn open_by(
        &mut self,
        open: impl FnOnce(&Config) -> Result<State, Failure>,
    ) -> Result<&mut OpenFolder, Failure> {
        Ok(match &mut self.opened {
            Some(opened) => opened,
            none => none.insert(OpenFolder {
                state: open(&self.config)?,
                engine: engine(&self.config)?,
            }),
        })
    }

    /// Works on guests, to list or to end them.
    fn with_guests<T>(
        &mut self,
        work: impl FnOnce(&mut Guests<'_>) -> Result<T, guests::Error>,
    ) -> Result<T, Error> {
        Ok(on_guests(self.open_to_look()?, work)?)
    }

    /// Works on guests, and records each step.
    pub(super) fn change_guests<T>(
        &mut self,
        work: impl FnOnce(&mut Guests<'_>) -> Result<T, guests::Error>,
    ) -> Result<T, Failure> {
        Ok(on_guests(self.open()?, work)?)
    }

    /// Works on pools.
    fn with_pools<T>(
        &mut self,
        work: impl FnOnce(&mut Pools<'_>) -> Result<T, pool::Error>,
    ) -> Result<T, Error> {
        let OpenFolder { state, engine } = self.open()?;
        let dir = state.dir().to_owned();
        Ok(work(&mut Pools {
            state,
            engine: &**engine,
            facts: &|folder| engine.host().facts(dir.clone(), Some(folder.to_owned())),
            sessions: &SessionCache::default(),
            cancelled: &NEVER,
            lock_limit: LOCK_LIMIT,
        })?)
    }
}

fn on_guests<T>(
    opened: &mut OpenFolder,
    work: impl FnOnce(&mut Guests<'_>) -> Result<T, guests::Error>,
) -> Result<T, guests::Error> {
    work(&mut Guests {
        state: &mut opened.state,
        engine: &*opened.engine,
        cancelled: &NEVER,
    })
}

impl Operations for Local {
    fn guests(&mut self, usage: bool) -> Result<Vec<Guest>, Error> {
        self.with_guests(|guests| Guest::all(guests, usage))
    }

    fn named_guests(
        &mut self,
        names: &[String],
        ignore_missing: bool,
    ) -> Result<Vec<Guest>, Error> {
        self.with_guests(|guests| {
            let found = types::named(guests, names, ignore_missing)?;
            let engine = guests.engine.kind();
            let views = found.iter().map(|guest| Guest::new(guest, engine, None));
            Ok(views.collect())
        })
    }

    fn guest(&mut self, guest: &str) -> Result<Guest, Error> {
        self.with_guests(|guests| Guest::one(guests, guest))
    }

    fn ask(&mut self, guest: &str, asked: &AskRequest) -> Result<GuestAnswer, Error> {
        let timeout = asked.timeout_s.map_or(TIMEOUT, Duration::from_secs_f64);
        self.with_guests(|guests| asked.put(guests, guest, timeout))
    }

    fn pause(&mut self, guest: &str) -> Result<(), Error> {
        self.with_guests(|guests| {
            let guest = guests.find(guest)?;
            guests.pause(&guest)
        })
    }

    fn resume(&mut self, guest: &str, timeout: Duration) -> Result<ResumeReport, Error> {
        self.with_guests(|guests| Ok(ResumeReport::of(guests, guest, timeout)?.0))
    }

    fn suspend(
        &mut self,
        guest: &str,
        target: &SuspendTarget<'_>,
        progress: checkpoint::Watch<'_>,
    ) -> Result<types::Checkpoint, Error> {
        let _ = progress(Progress::default());
        let suspend =
            |guests: &mut Guests<'_>| types::Checkpoint::suspended(guests, guest, target, progress);
        Ok(self.change_guests(suspend)?)
    }

    fn destroy(&mut self, targets: DestroyTargets<'_>) -> Result<DestroyAnswer, Error> {
        self.with_guests(|guests| DestroyAnswer::of(guests, targets))
    }

    fn restore(
        &mut self,
        path: &BundlePath,
        spec: &RestoreSpec,
        watch: Watch<'_>,
    ) -> Result<RestoreReport, Error> {
        let progress = LocalProgress::new(watch, spec.guests);
        let dir = self.config.state_dir()?.to_owned();
        let OpenFolder { state, engine } = self.open()?;
        let checkpoint = state.open_checkpoint(path)?;
        let facts = engine.host().facts(dir, Some(path.dir().to_owned()));
        let context = RestoreContext {
            state,
            engine: &**engine,
            facts: &facts?,
            slot: None,
            cancelled: progress.cancelled(),
        };
        let verifying = |p| progress.verifying(p);
        let step = &mut |step: &RestoreStep<'_>| progress.note(step);
        Ok(verified_restore(
            context,
            &checkpoint,
            spec,
            &verifying,
            step,
        )?)
    }

    fn host(&mut self, guests: u64, checkpoint_dir: Option<&Path>) -> Result<Host, Error> {
        let engine = engine(&self.config)?;
        let mut facts = facts(&self.config, &*engine, checkpoint_dir.map(Path::to_owned))?;
        engine.examine(&mut facts);
        Ok(Host::new(&facts, guests))
    }

    fn plan(&mut self, checkpoint: &BundlePath, host_memory: Option<Bytes>) -> Result<Plan, Error> {
        let checkpoint = Checkpoint::open(checkpoint)?;
        let dir = self.config.state_dir()?.to_owned();
        let OpenFolder { state, engine } = self.open()?;
        let folder = checkpoint.path().dir().to_owned();
        let facts = engine.host().facts(dir, Some(folder))?;
        let plan = cost::plan(state, &**engine, &facts, &checkpoint, host_memory);
        Ok(plan?)
    }

    fn trust(&mut self, checkpoint: &BundlePath) -> Result<types::Checkpoint, Error> {
        let checkpoint = Checkpoint::open(checkpoint)?;
        state(&self.config)?.trust(&checkpoint)?;
        Ok(types::Checkpoint::of(&checkpoint, Some(true)))
    }

    fn remove_checkpoint(
        &mut self,
        checkpoint: &BundlePath,
        force: bool,
    ) -> Result<RemovedCheckpoint, Error> {
        let remove = |guests: &mut Guests<'_>| RemovedCheckpoint::of(guests, checkpoint, force);
        Ok(self.change_guests(remove)?)
    }

    fn leftovers(&mut self, places: &[Place]) -> Result<Leftovers, Error> {
        Ok(self.change_guests(|guests| Leftovers::of(guests, places))?)
    }

    fn sweep(&mut self, places: &[Place]) -> Result<SweepReport, Error> {
        Ok(self.change_guests(|guests| SweepReport::of(guests, places))?)
    }

    fn pools(&mut self) -> Result<Vec<Pool>, Error> {
        let pools = self.with_pools(|pools| pools.list())?;
        Ok(pools.into_iter().map(Into::into).collect())
    }

    fn pool(&mut self, pool: &str) -> Result<PoolDetails, Error> {
        Ok(self.with_pools(|pools| pools.details(pool))?.into())
    }

    fn put_pool(&mut self, put: &PutPool<'_>, watch: Watch<'_>) -> Result<PoolAnswer, Error> {
        let progress = LocalProgress::new(watch, 0);
        self.with_pools(|pools| {
            let verifying = |p| progress.verifying(p);
            let name = match put.first {
                PoolStep::Create(new) => {
                    pools.create(new, &verifying)?;
                    &new.name
                }
                PoolStep::Apply(new) => {
                    pools.apply(new, &verifying)?;
                    &new.name
                }
                PoolStep::Change(name, change) => {
                    pools.change(name, change)?;
                    name
                }
                PoolStep::Fill(name) => name,
            };
            let pool = pools.show(name)?;
            let Some(fill) = put.fill else {
                return Ok(PoolAnswer::Pool(pool.into()));
            };
            progress.asks_for(pool.missing());
            let step = &mut |step: &RestoreStep<'_>| progress.note(step);
            let filled = FilledPool::of(pools, name, fill, progress.cancelled(), step)?;
            Ok(PoolAnswer::Filled(filled))
        })
    }

    fn evict(&mut self, pool: &str, entries: u32) -> Result<u64, Error> {
        self.with_pools(|pools| pools.evict(pool, entries.into()))
    }

    fn remove_pool(&mut self, pool: &str, force: bool) -> Result<(), Error> {
        self.with_pools(|pools| pools.remove(pool, force))
    }

    fn claim(&mut self, pool: &str, claiming: &ClaimRequest) -> Result<Claim, Error> {
        let wanted = ClaimSpec {
            lease: claiming.lease_s.map(|s| Duration::from_secs(s.into())),
            timeout: claiming.timeout_s.map(Duration::from_secs_f64),
            wait: Duration::from_secs_f64(claiming.wait_s),
            place: None,
        };
        Ok(self.with_pools(|pools| pools.claim(pool, &wanted))?.into())
    }

    fn renew(&mut self, token: &str, lease_s: u32) -> Result<(), Error> {
        let lasts = Duration::from_secs(lease_s.into());
        self.with_pools(|pools| pools.renew(token, lasts))
    }

    fn release(&mut self, token: &str) -> Result<(), Error> {
        self.with_pools(|pools| pools.release(token))
    }

    fn suspend_claim(
        &mut self,
        token: &str,
        progress: checkpoint::Watch<'_>,
    ) -> Result<SuspendAnswer, Error> {
        let _ = progress(Progress::default());
        self.with_pools(|pools| Ok(SuspendAnswer::of(pools, token, progress)?.0))
    }

    fn resume_claim(&mut self, token: &str, resuming: &ResumeClaimRequest) -> Result<Claim, Error> {
        let lease = resuming.lease_s.map(|s| Duration::from_secs(s.into()));
        let timeout = resuming.timeout_s.map(Duration::from_secs_f64);
        let claimed = self.with_pools(|pools| pools.resume(token, lease, timeout))?;
        Ok(claimed.into())
    }
}
