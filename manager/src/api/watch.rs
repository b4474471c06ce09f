//! Sees what happens to guests, whoever does it: the API, the command line, or a guest itself. Looks
//! at them once a second, and at once when the API has done something; tells what is different.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};
use utoipa::ToSchema;

use super::{App, problem::Problem, workers};
use crate::{
    engine::GuestId,
    guests::{GuestState, View},
    pool::Pool,
};

/// How often guests are looked at when nothing is known to have happened.
const PERIOD: Duration = Duration::from_secs(1);
/// How long a guest must be dead before that is told.
const DOUBT: Duration = Duration::from_millis(800);
/// How many looks there are to one sample of what guests cost.
const LOOKS_PER_SAMPLE: u32 = 2;

/// Something happened to a guest.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct GuestEvent {
    /// What.
    pub happened: Happened,
    /// The guest, as it is now, or as it last was.
    pub guest: View,
}

/// Watches until the daemon drains.
pub(super) async fn watch(app: App) {
    let mut ticks = interval(PERIOD);
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
            Ok((guests, pools)) => {
                watcher.saw(&app, guests);
                if watcher.pools != pools {
                    app.events.send("pools", &pools);
                    watcher.pools = pools;
                }
            }
            Err(problem) => tracing::warn!(?problem, "cannot look at the guests"),
        }
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(LOOKS_PER_SAMPLE)
            && app.events.heard()
            && let Ok(sample) = app.sampler.sample(&app.workers).await
        {
            app.events.send("counters", &*sample);
        }
    }
}

async fn look(app: &App) -> Result<(BTreeMap<GuestId, View>, Vec<Pool>), Problem> {
    let workers = Arc::clone(&app.workers);
    workers::blocking(move || {
        let kind = workers.engine().kind();
        let guests = workers.call(|state, engine| workers::guests(state, engine).list())?;
        let guests = guests
            .iter()
            .map(|guest| (guest.row.id, View::new(guest, kind, None)))
            .collect();
        Ok((guests, workers.pools(|pools| pools.list())?))
    })
    .await
}

/// What is known from earlier looks.
#[derive(Debug, Default)]
struct Watcher {
    /// Guests as they were told of; none before the first look.
    known: Option<BTreeMap<GuestId, View>>,
    /// Guests that were found dead, and when: one that is being destroyed is dead for a moment.
    dying: BTreeMap<GuestId, Instant>,
    /// Pools as they were told of.
    pools: Vec<Pool>,
}

impl Watcher {
    fn saw(&mut self, app: &App, mut now: BTreeMap<GuestId, View>) {
        // What was there at the first look is no news.
        let Some(known) = self.known.take() else {
            self.known = Some(now);
            return;
        };
        self.dying.retain(|id, _| now.contains_key(id));
        for (id, guest) in &mut now {
            let was = known.get(id);
            let died = guest.state == GuestState::Dead
                && was.is_none_or(|was| was.state != GuestState::Dead);
            if died && self.dying.entry(*id).or_insert_with(Instant::now).elapsed() < DOUBT {
                if let Some(was) = was {
                    guest.clone_from(was);
                }
                continue;
            }
            let was = was.map(|guest| guest.state);
            if let Some(happened) = happened(was, Some(guest.state)) {
                tell(app, happened, guest);
            }
        }
        for (_, guest) in known.iter().filter(|(id, _)| !now.contains_key(id)) {
            tell(app, Happened::Gone, guest);
        }
        self.known = Some(now);
    }
}

fn tell(app: &App, happened: Happened, guest: &View) {
    if happened == Happened::Ended {
        app.metrics.ended();
        tracing::warn!(guest = guest.name, reason = guest.reason, "a guest ended");
    }
    let guest = guest.clone();
    app.events.send("guest", &GuestEvent { happened, guest });
}

/// What happened to a guest between two looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Happened {
    /// It is being restored.
    Restoring,
    /// It was restored and has answered.
    Restored,
    /// It was paused.
    Paused,
    /// It was resumed.
    Resumed,
    /// It ended, and nobody had asked for that.
    Ended,
    /// It was destroyed or suspended: it is not known any more.
    Gone,
}

/// What happened to a guest that was in state `was` and is in state `now`, none where it was not
/// known.
fn happened(was: Option<GuestState>, now: Option<GuestState>) -> Option<Happened> {
    use GuestState::{Dead, Paused, Restoring, Running};
    match (was, now) {
        (was, now) if was == now => None,
        (_, None) => Some(Happened::Gone),
        (_, Some(Dead)) => Some(Happened::Ended),
        (None, Some(Restoring)) => Some(Happened::Restoring),
        (None | Some(Restoring), Some(_)) => Some(Happened::Restored),
        (Some(_), Some(Paused)) => Some(Happened::Paused),
        (Some(_), Some(Running)) => Some(Happened::Resumed),
        (Some(_), Some(Restoring)) => Some(Happened::Restoring),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_follows_from_two_looks() {
        use GuestState::{Dead, Paused, Restoring, Running};
        for (was, now, expected) in [
            (None, Some(Restoring), Some(Happened::Restoring)),
            (None, Some(Running), Some(Happened::Restored)),
            // Restored and paused between two looks.
            (Some(Restoring), Some(Paused), Some(Happened::Restored)),
            (Some(Running), Some(Paused), Some(Happened::Paused)),
            (Some(Paused), Some(Running), Some(Happened::Resumed)),
            (Some(Paused), Some(Dead), Some(Happened::Ended)),
            (Some(Running), None, Some(Happened::Gone)),
            (Some(Dead), None, Some(Happened::Gone)),
            (Some(Running), Some(Running), None),
            (None, None, None),
        ] {
            assert_eq!(happened(was, now), expected, "{was:?} {now:?}");
        }
    }
}
