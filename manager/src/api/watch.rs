//! Watcher of guests: finds every change, whether the API, the command line or a guest itself made
//! it. It compares all guests once a second, and at once after an action of the API, and reports
//! the differences.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};
use utoipa::ToSchema;

use super::{
    App,
    events::About,
    problem::Problem,
    types::{Guest, Pool},
    workers,
};
use brood_core::{guest_id::GuestId, guests::GuestState, state::EntryState};

/// How often guests are looked at when nothing is known to have happened.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// How many looks there are to one sample of what guests cost.
const LOOKS_PER_SAMPLE: u32 = 2;

/// Something happened to a guest.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct GuestEvent {
    /// What.
    pub change: GuestChange,
    /// The guest, as it is now, or as it last was.
    pub guest: Guest,
}

/// A claim is over.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct ReleaseEvent {
    /// The pool.
    pub pool: String,
    /// Name of the guest, which is gone or goes.
    pub guest: String,
    /// Why.
    pub reason: ReleaseReason,
}

/// Why a claim is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ReleaseReason {
    /// It was released, or its guest destroyed.
    Released,
    /// Its lease was over.
    LeaseOver,
    /// Its guest had ended.
    GuestEnded,
}

/// Watches until the daemon drains.
pub(super) async fn watch(app: App) {
    let mut ticks = interval(WATCH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut draining = app.draining.subscribe();
    let mut watcher = Watcher::default();
    let mut looks = 0_u32;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = app.events.poked() => {}
            _ = draining.wait_for(|draining| *draining) => return,
        }
        match look(&app).await {
            Ok(look) => {
                app.guest_sockets.reconcile(&look);
                watcher.saw(&app, look);
            }
            Err(problem) => tracing::warn!("cannot look at the guests: {}", problem.detail),
        }
        app.workers.close_idle();
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(LOOKS_PER_SAMPLE)
            && app.events.heard()
            && let Ok(sample) = app.sampler.sample(&app.workers).await
        {
            app.events.send_passing("counters", &*sample);
        }
    }
}

/// The guests, pools and host at one moment.
#[derive(Debug)]
pub(super) struct Observation {
    pub(super) at: Instant,
    pub(super) guests: BTreeMap<GuestId, ObservedGuest>,
    pub(super) pools: Vec<Pool>,
    /// Guests that ended by themselves.
    unasked: HashSet<GuestId>,
    /// Guests whose claims are suspended: those are not over.
    suspended: HashSet<GuestId>,
}

/// A guest that was seen.
#[derive(Clone, Debug)]
pub(super) struct ObservedGuest {
    pub(super) view: Guest,
    /// The pool that it is an entry of, and how far that has come.
    entry: Option<(String, EntryState)>,
    /// What was left of its claim's lease.
    lease: Option<Duration>,
}

impl ObservedGuest {
    /// The pool that it is of.
    pub(super) fn pool(&self) -> Option<&str> {
        self.entry.as_ref().map(|(pool, _)| pool.as_str())
    }

    fn is_claimed(&self) -> bool {
        matches!(self.entry, Some((_, EntryState::Claimed)))
    }
}

/// Looks at the guests and the pools.
pub(super) async fn look(app: &App) -> Result<Observation, Problem> {
    let workers = Arc::clone(&app.workers);
    workers::blocking(move || {
        let at = Instant::now();
        let kind = workers.engine().kind();
        workers.call(|opened| {
            let pools = opened.pools(|pools| pools.list())?;
            let guests = opened.guests().list()?;
            let state = &mut *opened.state;
            let mut seen: BTreeMap<GuestId, ObservedGuest> = guests
                .iter()
                .map(|guest| {
                    let view = Guest::new(guest, kind, None);
                    let (entry, lease) = (None, None);
                    (guest.row.id, ObservedGuest { view, entry, lease })
                })
                .collect();
            for pool in &pools {
                let name = &pool.row.name;
                for row in state.entries(name)? {
                    if let Some(seen) = seen.get_mut(&row.guest) {
                        seen.entry = Some((name.clone(), row.state));
                        seen.lease = row.lease;
                    }
                }
            }
            // Only now: a process that ends a guest notes that before.
            let unasked = state.ended_unasked()?;
            let suspended = state
                .suspended_claims()?
                .iter()
                .map(|suspended| suspended.guest)
                .collect();
            Ok(Observation {
                at,
                guests: seen,
                pools: pools.into_iter().map(Into::into).collect(),
                unasked,
                suspended,
            })
        })
    })
    .await
}

/// The state from earlier looks.
#[derive(Debug, Default)]
struct Watcher {
    /// The last look; none before the first.
    known: Option<Observation>,
}

impl Watcher {
    fn saw(&mut self, app: &App, mut now: Observation) {
        // Guests of the first look are no news.
        let Some(known) = self.known.take() else {
            self.known = Some(now);
            return;
        };
        for (id, guest) in &mut now.guests {
            let was = known.guests.get(id);
            let died = guest.view.state == GuestState::Dead
                && was.is_none_or(|was| was.view.state != GuestState::Dead);
            // A guest that is being destroyed is dead for a moment.
            if died && !now.unasked.contains(id) {
                if let Some(was) = was {
                    guest.view.clone_from(&was.view);
                }
                continue;
            }
            let was = was.map(|was| was.view.state);
            if let Some(change) = change(was, Some(guest.view.state)) {
                tell(app, change, guest);
            }
        }
        for (id, guest) in &known.guests {
            let is = now.guests.get(id);
            let is_over = guest.is_claimed() && !is.is_some_and(ObservedGuest::is_claimed);
            if is_over && !now.suspended.contains(id) {
                tell_release(app, guest, is, now.at.duration_since(known.at));
            }
            if is.is_none() {
                tell(app, GuestChange::Gone, guest);
            }
        }
        if known.pools != now.pools {
            app.events.send("pools", About::default(), &now.pools);
        }
        self.known = Some(now);
    }
}

fn tell(app: &App, change: GuestChange, guest: &ObservedGuest) {
    let view = &guest.view;
    if change == GuestChange::Ended {
        app.metrics.ended();
        tracing::warn!(guest = view.name, reason = view.reason, "a guest ended");
    }
    let about = About {
        pool: guest.pool(),
        ..About::default()
    };
    let guest = view.clone();
    app.events
        .send("guest", about, &GuestEvent { change, guest });
}

/// A claim is over that there was `ago`.
fn tell_release(app: &App, was: &ObservedGuest, is: Option<&ObservedGuest>, ago: Duration) {
    let Some((pool, _)) = &was.entry else {
        return;
    };
    let ended = is.is_some_and(|is| is.view.state == GuestState::Dead);
    let reason = if was.lease.is_some_and(|left| left <= ago) {
        ReleaseReason::LeaseOver
    } else if ended || was.view.state == GuestState::Dead {
        ReleaseReason::GuestEnded
    } else {
        ReleaseReason::Released
    };
    let event = ReleaseEvent {
        pool: pool.clone(),
        guest: was.view.name.clone(),
        reason,
    };
    app.events.send("release", About::pool(pool), &event);
}

/// What happened to a guest between two looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum GuestChange {
    /// It is being restored.
    Restoring,
    /// It was restored and has answered.
    Restored,
    /// It was paused.
    Paused,
    /// It was resumed.
    Resumed,
    /// It ended by itself.
    Ended,
    /// It was destroyed or suspended: it is not known any more.
    Gone,
}

/// What happened to a guest that was in state `was` and is in state `now`, none where it was not
/// known.
fn change(was: Option<GuestState>, now: Option<GuestState>) -> Option<GuestChange> {
    use GuestState::{Dead, Paused, Restoring, Running};
    match (was, now) {
        (was, now) if was == now => None,
        (_, None) => Some(GuestChange::Gone),
        (_, Some(Dead)) => Some(GuestChange::Ended),
        (None, Some(Restoring)) => Some(GuestChange::Restoring),
        (None | Some(Restoring), Some(_)) => Some(GuestChange::Restored),
        (Some(_), Some(Paused)) => Some(GuestChange::Paused),
        (Some(_), Some(Running)) => Some(GuestChange::Resumed),
        (Some(_), Some(Restoring)) => Some(GuestChange::Restoring),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_follows_from_two_looks() {
        use GuestState::{Dead, Paused, Restoring, Running};
        for (was, now, expected) in [
            (None, Some(Restoring), Some(GuestChange::Restoring)),
            (None, Some(Running), Some(GuestChange::Restored)),
            // Restored and paused between two looks.
            (Some(Restoring), Some(Paused), Some(GuestChange::Restored)),
            (Some(Running), Some(Paused), Some(GuestChange::Paused)),
            (Some(Paused), Some(Running), Some(GuestChange::Resumed)),
            (Some(Paused), Some(Dead), Some(GuestChange::Ended)),
            (Some(Running), None, Some(GuestChange::Gone)),
            (Some(Dead), None, Some(GuestChange::Gone)),
            (Some(Running), Some(Running), None),
            (None, None, None),
        ] {
            assert_eq!(change(was, now), expected, "{was:?} {now:?}");
        }
    }
}
