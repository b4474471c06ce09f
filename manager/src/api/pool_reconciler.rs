//! Pool reconciler of the daemon: ends entries that died or whose lease is over, and restores those
//! that are missing. It looks at every pool once a second, and at once when a pool was changed or
//! claimed from.
//!
//! Pools are independent: each has its own thread while it is reconciled, and after a failure its
//! pause grows with each further one. Leases end before anything waits.
//!
//! Two reconcilers at once do no harm, as when one daemon takes over from another: a pool is
//! reconciled and filled under its lock.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use super::{
    App,
    events::RestoreEvent,
    metrics::{EvictReason, Origin},
    problem::Problem,
    types::at_once,
    workers::blocking,
};
use crate::ops::RestoreObserver;
use brood_core::{
    guest_id::GuestId,
    pool::{self, Pace, Pools},
    restore::RestoreStep,
    state::{self, PoolRow},
};

/// How often pools are looked at when nothing is known to have happened.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a nursery stands by that is no pool's.
const STANDS_BY: Duration = Duration::from_secs(10);
/// How long a pool that has no room for more is only reconciled.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Pools that are looked at at once.
const AT_ONCE: usize = 32;
/// Pools that failed the last time and are worked at at once.
const FAILING_AT_ONCE: usize = 4;
/// How long another process may hold a pool before the daemon logs it.
const LOCKED_FOR_LONG: Duration = Duration::from_secs(60);

/// The reconciler's state of a pool.
#[derive(Debug, Default)]
struct PoolRecord {
    /// Whether a thread works at it now.
    busy: bool,
    /// How fast it may be filled.
    pace: Pace,
    /// It is only reconciled until then.
    backs_off_until: Option<Instant>,
    /// Since when another process holds it, and whether that was logged.
    locked_since: Option<(Instant, bool)>,
}

/// Keeps pools until the daemon drains.
pub(super) async fn keep(app: App) {
    let mut ticks = interval(RECONCILE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut draining = app.draining.subscribe();
    let mut reconciler = PoolReconciler {
        app: app.clone(),
        kept: HashMap::new(),
        at_once: Arc::new(Semaphore::new(AT_ONCE)),
        failing_at_once: Arc::new(Semaphore::new(FAILING_AT_ONCE)),
        in_flight: JoinSet::new(),
    };
    loop {
        let done = tokio::select! {
            _ = ticks.tick() => None,
            () = app.pools_changed.notified() => None,
            Some(done) = reconciler.in_flight.join_next() => Some(done),
            _ = draining.wait_for(|draining| *draining) => break,
        };
        match done {
            None => reconciler.look().await,
            Some(done) => reconciler.note(done.ok()),
        }
    }
    app.fills.end();
    while reconciler.in_flight.join_next().await.is_some() {}
}

/// Result of a look at a pool.
struct PoolVisit {
    pool: String,
    pace: Pace,
    /// Why entries are still missing; none when it was not the reconciler's turn.
    outcome: Result<Option<String>, pool::Error>,
}

struct PoolReconciler {
    app: App,
    kept: HashMap<String, PoolRecord>,
    at_once: Arc<Semaphore>,
    failing_at_once: Arc<Semaphore>,
    /// Tasks that end guests have no result.
    in_flight: JoinSet<Option<PoolVisit>>,
}

impl PoolReconciler {
    /// Ends leases that are over, and begins to reconcile each pool that no thread works at.
    async fn look(&mut self) {
        let app = self.app.clone();
        let pools = match blocking(move || Ok(app.pools_to_keep()?)).await {
            Ok(pools) => pools,
            Err(problem) => {
                tracing::warn!(?problem, "cannot look at the pools");
                return;
            }
        };
        let names: BTreeSet<String> = pools.iter().map(|(pool, _)| pool.name.clone()).collect();
        self.kept
            .retain(|name, kept| kept.busy || names.contains(name));
        let sessions = self.app.workers.sessions();
        sessions.end_unused(STANDS_BY, |name| names.contains(name));
        for (row, expired) in pools {
            if !expired.is_empty() {
                self.end_expired(row.name.clone(), expired);
            }
            let kept = self.kept.entry(row.name.clone()).or_default();
            if kept.busy {
                continue;
            }
            kept.busy = true;
            let backs_off = kept.backs_off_until.is_some_and(|at| Instant::now() < at);
            let pace = kept.pace;
            self.begin(row, pace, backs_off);
        }
    }

    fn begin(&mut self, row: PoolRow, pace: Pace, backs_off: bool) {
        let app = self.app.clone();
        let (all, failing) = (Arc::clone(&self.at_once), Arc::clone(&self.failing_at_once));
        self.in_flight.spawn(async move {
            let cancelled = app.fills.begin(&row.name);
            let (failed, alone) = app.failed(&row.name).await.unwrap_or_default();
            // Pools that fail wait for each other, and not the others for them.
            let turn = if failed { failing } else { all };
            let turn = turn.acquire_owned().await;
            let backs_off = backs_off || alone;
            let (reconciler, flag) = (app.clone(), Arc::clone(&cancelled));
            let pool = row.name.clone();
            let looked = tokio::task::spawn_blocking(move || {
                let mut pace = pace;
                let outcome = reconciler.keep_one(&row, &mut pace, backs_off, &flag);
                PoolVisit {
                    pool: row.name,
                    pace,
                    outcome,
                }
            })
            .await;
            drop(turn);
            app.fills.done(&pool);
            Some(looked.unwrap_or_else(|panic| {
                tracing::error!("{panic}");
                let outcome = Ok(None);
                PoolVisit {
                    pool,
                    pace,
                    outcome,
                }
            }))
        });
    }

    fn end_expired(&mut self, pool: String, guests: Vec<GuestId>) {
        let app = self.app.clone();
        self.in_flight.spawn(async move {
            let ended = blocking(move || {
                app.workers
                    .call(|opened| opened.pools(|pools| pools.end_expired(&guests)))?;
                app.events.poke();
                // Waiting claims may have room now.
                app.room.notify_waiters();
                Ok(())
            });
            if let Err(problem) = ended.await {
                tracing::warn!(pool, ?problem, "cannot end guests whose lease is over");
            }
            None
        });
    }

    /// Notes the result of a look at a pool.
    fn note(&mut self, looked: Option<Option<PoolVisit>>) {
        let Some(Some(looked)) = looked else { return };
        let PoolVisit {
            pool,
            pace,
            outcome,
        } = looked;
        let kept = self.kept.entry(pool.clone()).or_default();
        (kept.busy, kept.pace) = (false, pace);
        let why_not = match outcome {
            Err(pool::Error::State(e @ state::Error::Locked { .. })) => {
                let (since, told) = kept
                    .locked_since
                    .get_or_insert_with(|| (Instant::now(), false));
                if since.elapsed() > LOCKED_FOR_LONG && !*told {
                    *told = true;
                    tracing::warn!(pool, "not kept: {e}");
                }
                return;
            }
            Err(pool::Error::NoSuchPool(_) | pool::Error::State(state::Error::Cancelled)) => None,
            Err(e) => Some(e.to_string()),
            Ok(why_not) => why_not,
        };
        kept.locked_since = None;
        kept.backs_off_until = why_not.as_ref().map(|_| Instant::now() + RETRY_AFTER);
        if let Some(why_not) = why_not {
            tracing::warn!(pool, "not filled: {why_not}");
        }
    }
}

impl App {
    /// All pools, each with the guests of claims that have just ended with their lease.
    fn pools_to_keep(&self) -> Result<Vec<(PoolRow, Vec<GuestId>)>, pool::Error> {
        self.workers.call(|opened| {
            opened.pools(|pools| {
                let rows = pools.state.pools()?;
                let expiring = rows.into_iter().map(|row| {
                    let expired = pools.expire(&row.name)?;
                    Ok((row, expired))
                });
                expiring.collect()
            })
        })
    }

    /// Whether a pool failed the last time, and whether it is to be left alone for that now.
    async fn failed(&self, pool: &str) -> Result<(bool, bool), Problem> {
        let (workers, pool) = (Arc::clone(&self.workers), pool.to_owned());
        let look = move || {
            workers.call(|opened| {
                let state = &mut *opened.state;
                let failed = state.failing(&pool)?.is_some();
                Ok::<_, Problem>((failed, failed && state.is_left_alone(&pool)?))
            })
        };
        blocking(look).await
    }

    /// Reconciles a pool, and fills it unless it backs off; returns why entries are still missing.
    fn keep_one(
        &self,
        pool: &PoolRow,
        pace: &mut Pace,
        backs_off: bool,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<Option<String>, pool::Error> {
        let (name, origin) = (pool.name.as_str(), Origin::from(pool));
        let mut keep = |pools: &mut Pools<'_>| {
            if backs_off {
                return Ok((pools.reconcile(name)?, None));
            }
            let refill = pace.next(&pool.policy, Instant::now());
            let now = pools.show(name)?;
            // A full pool is only looked at, which does not count as a restore.
            let is_short = now.entries.hot < pool.policy.enough();
            let begun = is_short.then(|| {
                let progress = RestoreEvent {
                    pool: Some(name.to_owned()),
                    checkpoint: pool.checkpoint.clone(),
                    ..RestoreEvent::default()
                };
                self.begin(progress, None, None)
            });
            if let Some(begun) = &begun {
                begun.fills(&now);
            }
            let note = &mut |step: &RestoreStep<'_>| match &begun {
                Some(begun) => begun.note(step),
                None => self.count(step, &origin),
            };
            let (reconciled, filled) = pools.fill(name, refill, at_once(), cancelled, note)?;
            pace.done(&filled);
            Ok((reconciled, Some(filled)))
        };
        // Another process at the pool does the same work: do not wait for it.
        let now = Duration::ZERO;
        let (reconciled, filled) = self
            .workers
            .call(|opened| opened.pools_within(now, &mut keep))?;
        self.metrics
            .evicted(name, EvictReason::policy, reconciled.evicted);
        let restored = filled.as_ref().map_or(0, |filled| filled.restored);
        if reconciled.destroyed + reconciled.evicted + reconciled.saved + restored > 0 {
            tracing::info!(
                pool = name,
                restored,
                saved = reconciled.saved,
                destroyed = reconciled.destroyed,
                evicted = reconciled.evicted,
                "kept"
            );
            self.events.poke();
            // Waiting claims may have a hot guest now, or room for one.
            self.room.notify_waiters();
        }
        if filled
            .as_ref()
            .is_some_and(|filled| !filled.failures.is_empty())
        {
            self.events.poke();
        }
        if let Some(left) = reconciled.left.first() {
            tracing::warn!(
                pool = name,
                "{} guests are left: {left}",
                reconciled.left.len()
            );
        }
        Ok(filled.and_then(|filled| {
            let failed = filled.failures.into_iter().next();
            let failed = failed.filter(|_| !cancelled.load(Ordering::Relaxed));
            filled.no_room.or(failed.map(|failure| failure.error))
        }))
    }
}
