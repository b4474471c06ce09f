//! Keeps every pool as it should be: entries whose lease is over or that died are ended, and what is
//! missing is restored. Looks once a second, and at once when a pool was changed or claimed from.
//!
//! More than one keeper does no harm, as while one daemon takes over from another: pools are settled
//! and filled under a lock.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval};

use super::{
    App,
    events::RestoreEvent,
    metrics::{Evicted, Origin},
    pools::at_once,
    problem::Problem,
    workers::blocking,
};
use crate::{pool::Pace, restore::mass::Event, state::PoolRow};

/// How often pools are looked at when nothing is known to have happened.
const PERIOD: Duration = Duration::from_secs(1);
/// How long a nursery stands by that is no pool's.
const STANDS_BY: Duration = Duration::from_secs(10);
/// How long a pool that could not be filled is only settled.
const REST: Duration = Duration::from_secs(5);

/// Keeps pools until the daemon drains.
pub(super) async fn keep(app: App) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut draining = app.draining.subscribe();
    let mut kept = Kept::default();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = app.pools_changed.notified() => {}
            _ = draining.wait_for(|draining| *draining) => return,
        }
        let (keeper, mut now) = (app.clone(), std::mem::take(&mut kept));
        let keeping = blocking(move || {
            keeper.keep_all(&mut now)?;
            Ok(now)
        });
        match keeping.await {
            Ok(now) => kept = now,
            Err(problem) => tracing::warn!(?problem, "cannot look at the pools"),
        }
    }
}

/// What the keeper knows of pools.
#[derive(Debug, Default)]
struct Kept {
    /// Those that could not be filled, and when.
    resting: HashMap<String, Instant>,
    /// How fast each may be filled.
    paces: HashMap<String, Pace>,
}

impl App {
    /// Brings each pool to what it should be, as far as that can be.
    fn keep_all(&self, kept: &mut Kept) -> Result<(), Problem> {
        let pools = self.workers.call(|state, _| state.pools())?;
        let names: BTreeSet<String> = pools.iter().map(|pool| pool.name.clone()).collect();
        let standing = self.workers.standing();
        standing.end_unused(STANDS_BY, |name| names.contains(name));
        kept.paces.retain(|name, _| names.contains(name));
        kept.resting.retain(|_, since| since.elapsed() < REST);
        for pool in &pools {
            let name = &pool.name;
            let pace = kept.paces.entry(name.clone()).or_default();
            // One that cannot be kept does not hold up the others.
            let why_not = match self.keep_one(pool, pace, kept.resting.contains_key(name)) {
                Ok(why_not) => why_not,
                Err(error) => Some(error.to_string()),
            };
            if let Some(why_not) = why_not {
                tracing::warn!(pool = name, "not filled: {why_not}");
                kept.resting.insert(name.clone(), Instant::now());
            }
        }
        Ok(())
    }

    /// Settles a pool, and fills it unless it rests; returns why entries are still missing.
    fn keep_one(
        &self,
        pool: &PoolRow,
        pace: &mut Pace,
        rests: bool,
    ) -> Result<Option<String>, crate::pool::Error> {
        let (name, origin) = (pool.name.as_str(), Origin::from(pool));
        let (settled, filled) = self.workers.pools(|pools| {
            if rests {
                return Ok((pools.settle(name)?, None));
            }
            let stop = Arc::clone(&self.stop);
            let refill = pace.next(&pool.policy, Instant::now());
            let now = pools.show(name)?;
            let missing = pool.policy.hot.saturating_sub(now.entries.hot);
            // What is as it should be is only looked at: that is no restore.
            let is_short = now.entries.hot < pool.policy.enough();
            let begun = is_short.then(|| {
                let progress = RestoreEvent {
                    pool: Some(name.to_owned()),
                    checkpoint: pool.checkpoint.clone(),
                    ..RestoreEvent::default()
                };
                self.begin(progress, None)
            });
            if let Some(begun) = &begun {
                begun.asks_for(missing);
            }
            let note = &mut |event: &Event<'_>| match &begun {
                Some(begun) => begun.note(event, &origin),
                None => self.count(event, &origin),
            };
            let (settled, filled) = pools.fill(name, refill, at_once(), &stop, note)?;
            pace.done(&filled);
            Ok((settled, Some(filled)))
        })?;
        self.metrics.evicted(name, Evicted::policy, settled.evicted);
        let restored = filled.as_ref().map_or(0, |filled| filled.restored);
        if settled.destroyed + settled.evicted + settled.saved + restored > 0 {
            tracing::info!(
                pool = name,
                restored,
                saved = settled.saved,
                destroyed = settled.destroyed,
                evicted = settled.evicted,
                "kept"
            );
            self.events.poke();
        }
        // Whoever waits may have a hot one, or room for one.
        if settled.destroyed + settled.evicted + settled.saved + restored > 0 {
            self.room.notify_waiters();
        }
        Ok(filled.and_then(|filled| {
            let failed = filled.failures.into_iter().next();
            filled.no_room.or(failed.map(|failure| failure.error))
        }))
    }
}
