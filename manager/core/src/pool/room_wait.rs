//! Wait of a claim for room: its place in the pool's queue, and when it tries again.
//!
//! This decides, and blocks nobody. A command's thread sleeps as long as it is told ([`Pools::claim`]);
//! a task of the daemon holds no thread meanwhile, and is woken when there may be room.
//!
//! [`Pools::claim`]: super::Pools::claim

use std::time::{Duration, Instant};

use crate::state::QueuePlace;

/// Longest pause of a claim with others before it in the queue, in intervals.
const MAX_BACKOFF_INTERVALS: u32 = 20;

/// How a claim waits.
#[derive(Debug)]
pub struct RoomWait {
    until: Instant,
    interval: Duration,
    has_queue: bool,
    place: Option<QueuePlace>,
}

/// What a refused claim does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// It takes a place in the queue, and tries again at once.
    TakePlace,
    /// It tries again after this time, or earlier when there may be room.
    Pause(Duration),
}

impl RoomWait {
    /// Waits no longer than `limit`. The first in the queue tries again after each `interval`, one
    /// with others before it less often.
    #[must_use]
    pub fn new(limit: Duration, interval: Duration) -> Self {
        Self {
            until: Instant::now() + limit,
            interval,
            has_queue: true,
            place: None,
        }
    }

    /// The same without a queue: nobody else waits for this.
    #[must_use]
    pub fn alone(limit: Duration, interval: Duration) -> Self {
        Self {
            has_queue: false,
            ..Self::new(limit, interval)
        }
    }

    /// The place that it has.
    #[must_use]
    pub fn place(&self) -> Option<QueuePlace> {
        self.place
    }

    /// It has taken this place.
    pub fn stand_at(&mut self, place: QueuePlace) {
        self.place = Some(place);
    }

    /// For how long it still waits.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// What to do after a refusal, of which [`super::Error::waiters`] says how many others came
    /// first; `None` when it stands: waiting does not help, or the time is up.
    #[must_use]
    pub fn after(&self, waiters: Option<u64>) -> Option<NextStep> {
        let waiters = waiters?;
        let left = self.left();
        if left.is_zero() {
            return None;
        }
        if self.has_queue && self.place.is_none() {
            return Some(NextStep::TakePlace);
        }
        let intervals = u32::try_from(waiters).unwrap_or(u32::MAX);
        let pause = self.interval * intervals.clamp(1, MAX_BACKOFF_INTERVALS);
        Some(NextStep::Pause(pause.min(left)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_claim_stands_in_line_and_asks_the_less_often_the_more_came_first() {
        let mut wait = RoomWait::new(LONG, INTERVAL);
        assert_eq!(wait.after(Some(3)), Some(NextStep::TakePlace));
        wait.place = Some(QueuePlace::default());
        for (waiters, intervals) in [(0, 1), (1, 1), (3, 3), (1000, 20), (u64::MAX, 20)] {
            let pause = INTERVAL * intervals;
            assert_eq!(wait.after(Some(waiters)), Some(NextStep::Pause(pause)));
        }
        assert_eq!(wait.after(None), None);
    }

    #[test]
    fn nobody_waits_longer_than_they_want() {
        assert_eq!(RoomWait::new(Duration::ZERO, INTERVAL).after(Some(0)), None);
        let wait = RoomWait::alone(LONG, LONG * 2);
        let Some(NextStep::Pause(pause)) = wait.after(Some(5)) else {
            panic!("it stands in no line");
        };
        assert!(pause <= LONG);
    }
}
