//! Pools in the benchmark: the latency of a claim, and whether ten thousand claims leave nothing
//! behind.
//!
//! It uses the library as a daemon does, not the command line: the start of a process is no part of
//! a pool's latency.

use std::{
    fs,
    path::Path,
    sync::{Barrier, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

use brood_core::{
    engine::kvm::Kvm,
    host::HostSource,
    percentiles::Percentiles,
    pool::{self, ClaimSpec, NewPool, Pools, Refill, Tier},
    restore::SessionCache,
    state::{Policy, State},
    units::Bytes,
};

use super::{
    Measurement,
    error::Error,
    goal::{Goal, Row},
    steady_state::settle,
    workplace::Workplace,
};

/// Claims that a percentile is taken of.
const SAMPLES: u32 = 200;
/// Claimers at once.
const AT_ONCE: u32 = 50;
/// Entries that a pool is rebuilt with.
const SMALL: u64 = 50;
const LARGE: u64 = 1000;
/// Claims and releases of the long run, and entries of its pool.
const CYCLES: u32 = 10_000;
const CYCLED: u64 = 50;
/// The pool's name.
pub(crate) const POOL: &str = "bench";
const WANTED: ClaimSpec = ClaimSpec {
    lease: None,
    timeout: Some(Duration::from_secs(30)),
    wait: Duration::ZERO,
    place: None,
};

/// What a user of the library has open.
pub(crate) struct Manager {
    state: State,
    engine: Kvm,
    sessions: SessionCache,
}

impl Manager {
    pub(crate) fn open(workplace: &Workplace) -> Result<Self, Error> {
        Ok(Self {
            state: State::open(&workplace.brood.state)?,
            engine: Kvm::with_binary(workplace.brood.binary.clone()),
            sessions: SessionCache::default(),
        })
    }

    fn run<T>(
        &mut self,
        work: impl FnOnce(&mut Pools<'_>) -> Result<T, pool::Error>,
    ) -> Result<T, Error> {
        let dir = self.state.dir().to_owned();
        let facts =
            |folder: &Path| HostSource::default().facts(dir.clone(), Some(folder.to_owned()));
        let mut pools = Pools {
            state: &mut self.state,
            engine: &self.engine,
            facts: &facts,
            sessions: &self.sessions,
            cancelled: &brood_core::pool::NEVER,
            lock_limit: brood_core::pool::LOCK_LIMIT,
        };
        Ok(work(&mut pools)?)
    }

    /// Makes an empty pool.
    pub(crate) fn create(&mut self, workplace: &Workplace, policy: Policy) -> Result<(), Error> {
        let checkpoint = workplace.brood.checkpoint.to_string_lossy();
        let new = NewPool {
            name: POOL.to_owned(),
            checkpoint: checkpoint.parse().map_err(pool::Error::from)?,
            policy,
            private_limit: Bytes(1 << 20),
            enforce_private_limit: false,
            network: None,
            publish: Vec::new(),
            trust: false,
        };
        self.run(|pools| pools.create(&new, &brood_core::checkpoint::unwatched))?;
        Ok(())
    }

    /// Fills the pool; returns seconds.
    pub(crate) fn fill(&mut self, workplace: &Workplace) -> Result<f64, Error> {
        let begin = Instant::now();
        let concurrency = workplace.concurrency;
        let never = AtomicBool::new(false);
        let (_, filled) =
            self.run(|pools| pools.fill(POOL, Refill::Whole, concurrency, &never, &mut |_| {}))?;
        if filled.missing > 0 {
            return Err(Error::Short {
                command: "filling a pool",
                done: filled.restored,
                asked: filled.restored + filled.missing,
            });
        }
        Ok(begin.elapsed().as_secs_f64())
    }

    /// Claims an entry that must come from `tier`; returns its token and milliseconds.
    pub(crate) fn claim(&mut self, tier: Tier) -> Result<(String, f64), Error> {
        let claimed = self.run(|pools| pools.claim(POOL, &WANTED))?;
        if claimed.tier != tier {
            return Err(Error::Short {
                command: "claiming an entry of the tier that is measured",
                done: 0,
                asked: 1,
            });
        }
        Ok((claimed.token, claimed.latency.as_secs_f64() * 1e3))
    }

    pub(crate) fn release(&mut self, tokens: &[String]) -> Result<(), Error> {
        self.run(|pools| tokens.iter().try_for_each(|token| pools.release(token)))
    }

    pub(crate) fn remove(&mut self) -> Result<(), Error> {
        self.run(|pools| pools.remove(POOL, true))
    }
}

fn hot(entries: u64) -> Policy {
    Policy::hot(entries, 3600)
}

/// Values of one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    alone: Percentiles,
    together: Percentiles,
    cold: Percentiles,
    rebuilt_s: f64,
    large_s: f64,
}

/// Claims, hot and cold, alone and together, and rebuilds.
pub(crate) fn pool(workplace: &Workplace) -> Result<Vec<Row>, Error> {
    let mut rounds = Vec::new();
    for n in 0..workplace.rounds {
        settle(&workplace.brood.interrupt)?;
        let round = round(workplace)?;
        eprintln!(
            "pool: round {} of {}: hot p50 {:.3} ms, {AT_ONCE} at once p99 {:.1} ms, cold p50 {:.2} ms",
            n + 1,
            workplace.rounds,
            round.alone.p50,
            round.together.p99,
            round.cold.p50
        );
        rounds.push(round);
    }
    let row = |figure: String, unit, value: fn(&Round) -> f64, goal| {
        let values: Vec<f64> = rounds.iter().map(value).collect();
        Row::alone(Measurement::Pool, figure, unit, &values, Some(goal))
    };
    let large = workplace.guests.map_or(LARGE, u64::from);
    Ok(vec![
        row(
            format!("hot claim p50, one at a time, {SAMPLES}"),
            "ms",
            |r| r.alone.p50,
            Goal::AtMost(1.0),
        ),
        row(
            format!("hot claim p99, {AT_ONCE} at once"),
            "ms",
            |r| r.together.p99,
            Goal::AtMost(30.0),
        ),
        row(
            format!("cold claim p50, one at a time, {}", workplace.floor.memory),
            "ms",
            |r| r.cold.p50,
            Goal::AtMost(5.0),
        ),
        row(
            format!("rebuild of a pool of {SMALL}"),
            "ms",
            |r| r.rebuilt_s * 1e3,
            Goal::AtMost(150.0),
        ),
        row(
            format!("rebuild of a pool of {large}"),
            "s",
            |r| r.large_s,
            Goal::AtMost(3.0),
        ),
    ])
}

fn round(workplace: &Workplace) -> Result<Round, Error> {
    let interrupt = &workplace.brood.interrupt;
    let mut manager = Manager::open(workplace)?;
    manager.create(workplace, hot(SMALL))?;
    let rebuilt_s = manager.fill(workplace)?;

    let mut alone = Vec::new();
    while alone.len() < SAMPLES as usize {
        interrupt.check()?;
        let mut tokens = Vec::new();
        for _ in 0..SMALL {
            let (token, ms) = manager.claim(Tier::Hot)?;
            tokens.push(token);
            alone.push(ms);
        }
        manager.release(&tokens)?;
        manager.fill(workplace)?;
    }

    let mut together = Vec::new();
    for _ in 0..4 {
        interrupt.check()?;
        let (tokens, took_ms) = claim_together(workplace)?;
        together.extend(took_ms);
        manager.release(&tokens)?;
        manager.fill(workplace)?;
    }

    manager.run(|pools| pools.evict(POOL, u64::MAX))?;
    let (mut cold, mut tokens) = (Vec::new(), Vec::new());
    for _ in 0..SMALL {
        interrupt.check()?;
        let (token, ms) = manager.claim(Tier::Cold)?;
        tokens.push(token);
        cold.push(ms);
    }
    manager.release(&tokens)?;
    manager.remove()?;

    manager.create(workplace, hot(workplace.guests.map_or(LARGE, u64::from)))?;
    interrupt.check()?;
    let large_s = manager.fill(workplace)?;
    manager.remove()?;
    Ok(Round {
        alone: Percentiles::of(&alone),
        together: Percentiles::of(&together),
        cold: Percentiles::of(&cold),
        rebuilt_s,
        large_s,
    })
}

/// As many claimers as there are entries, each with the state opened for itself, all at once.
fn claim_together(workplace: &Workplace) -> Result<(Vec<String>, Vec<f64>), Error> {
    let start = Barrier::new(AT_ONCE as usize);
    let claims: Vec<Result<(String, f64), Error>> = thread::scope(|scope| {
        let claimers: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    let manager = Manager::open(workplace);
                    start.wait();
                    manager?.claim(Tier::Hot)
                })
            })
            .collect();
        claimers
            .into_iter()
            .map(|claimer| claimer.join().expect("a claimer does not panic"))
            .collect()
    });
    let claims: Result<Vec<_>, _> = claims.into_iter().collect();
    Ok(claims?.into_iter().unzip())
}

/// What may leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    guests: usize,
    descriptors: usize,
    run_files: usize,
    rows: usize,
}

/// Ten thousand claims and releases; fails when anything is left of them.
pub(crate) fn cycles(workplace: &Workplace) -> Result<Vec<Row>, Error> {
    let cycles = workplace.guests.unwrap_or(CYCLES);
    let mut manager = Manager::open(workplace)?;
    manager.create(workplace, hot(CYCLED))?;
    manager.fill(workplace)?;
    let before = held(&manager)?;
    let resident_before = resident_kib()?;
    let begin = Instant::now();
    for n in 0..cycles {
        let (token, _) = manager.claim(Tier::Hot)?;
        manager.release(&[token])?;
        if u64::from(n) % CYCLED == CYCLED - 1 {
            workplace.brood.interrupt.check()?;
            manager.fill(workplace)?;
        }
    }
    manager.fill(workplace)?;
    let took = begin.elapsed().as_secs_f64();
    let (after, resident) = (held(&manager)?, resident_kib()?);
    manager.remove()?;
    if before != after {
        return Err(Error::Leak {
            before: format!("{before:?}"),
            after: format!("{after:?}"),
        });
    }
    let row = |figure: &str, unit, value, goal| {
        let figure = format!("{cycles} claims and releases: {figure}");
        Row::alone(Measurement::PoolCycles, figure, unit, &[value], goal)
    };
    Ok(vec![
        row(
            "processes, descriptors, files, rows left",
            "",
            0.0,
            Some(Goal::AtMost(0.0)),
        ),
        row(
            "the manager's memory grew by",
            "MiB",
            (resident - resident_before).max(0.0) / 1024.0,
            Some(Goal::AtMost(1.0)),
        ),
        row(
            "each, with its restore",
            "ms",
            took * 1e3 / f64::from(cycles),
            None,
        ),
    ])
}

fn held(manager: &Manager) -> Result<Held, Error> {
    let count = |dir: &Path| -> Result<usize, Error> {
        let entries = fs::read_dir(dir).map_err(Error::io(format!("read {}", dir.display())))?;
        Ok(entries.count())
    };
    let run = manager.state.run_dir();
    let processes = fs::read_dir("/proc").map_err(Error::io("read /proc"))?;
    let guests = processes
        .flatten()
        .filter(|process| fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == run))
        .count();
    Ok(Held {
        guests,
        descriptors: count(Path::new("/proc/self/fd"))?,
        run_files: count(&run)?,
        rows: manager.state.guests()?.len(),
    })
}

/// Resident anonymous memory of this process, in KiB.
fn resident_kib() -> Result<f64, Error> {
    let status = fs::read_to_string("/proc/self/status").map_err(Error::io("read memory"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    Ok(number.unwrap_or(f64::NAN))
}
