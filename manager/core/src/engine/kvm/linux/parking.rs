//! Budget of a guest's parking: whether it pays to give the virtual machine back until the guest's next
//! timer.
//!
//! A wake-up makes a new virtual machine. On a busy host that takes longer, so guests park less
//! often, and the host is not busy with wake-ups alone.

use std::time::{Duration, Instant};

use brood_machine::park::Rest;

/// Parking and waking up take at most one part in so many of a guest's time: so many guests that park
/// keep one processor busy with that at most.
const SHARE: u32 = 100;
/// How far ahead time is counted on when the guest has no timer: what wakes it is not known.
const FAR: Duration = Duration::from_secs(60);

/// Most that one parking and wake-up count for. One that took longer was held up: its process was
/// stopped, or the whole host.
const MOST: Duration = Duration::from_secs(1);

/// What a guest's parking has cost, as the time that pays for it.
#[derive(Debug)]
pub(super) struct Budget {
    /// When all that was spent is paid for.
    paid_at: Instant,
}

/// What is to be done with a guest whose processors have been looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Park,
    /// It stays awake. It is looked at again when that may be worth it; with none, when nothing has
    /// happened for as long as its client wishes.
    StayAwake(Option<Duration>),
}

impl Budget {
    /// Of a guest whose first virtual machine took so long to make. That is not yet paid for: many
    /// guests that have just been restored do not all park at once.
    pub(super) fn new(made_in: Duration, now: Instant) -> Self {
        let mut budget = Self { paid_at: now };
        budget.spend(made_in, now);
        budget
    }

    /// A parking and the wake-up after it have taken so long.
    pub(super) fn spend(&mut self, took: Duration, now: Instant) {
        self.paid_at = self.paid_at.max(now) + took.min(MOST) * SHARE;
    }

    /// Whether a guest that rests so is to be parked.
    pub(super) fn decide(&self, rest: Rest, now: Instant) -> Decision {
        let time = match rest {
            Rest::No => return Decision::StayAwake(None),
            Rest::For(time) => time.min(FAR),
            Rest::UntilInterrupt => FAR,
        };
        let left = self.paid_at.saturating_duration_since(now);
        match left.checked_sub(time) {
            None | Some(Duration::ZERO) => Decision::Park,
            // It pays then if the timers after this one are as far apart, and not before this one
            // has fired.
            Some(missing) => Decision::StayAwake(Some(missing.max(time))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_guest_is_parked_when_its_time_until_the_timer_pays_for_the_last_wake_up() {
        let now = Instant::now();
        // What the last wake-up took, in ms; when it was, in s; how the guest rests.
        let stay = |s| Decision::StayAwake(Some(seconds(s)));
        let table = [
            (0, 0, Rest::For(Duration::from_millis(1)), Decision::Park),
            (50, 0, Rest::For(seconds(5)), Decision::Park),
            (50, 0, Rest::For(seconds(4)), stay(4)),
            // It is looked at again when this timer has fired, or when more is paid for.
            (200, 0, Rest::For(seconds(5)), stay(15)),
            (200, 14, Rest::For(seconds(5)), stay(5)),
            (200, 15, Rest::For(seconds(5)), Decision::Park),
            (600, 0, Rest::UntilInterrupt, Decision::Park),
            (700, 0, Rest::UntilInterrupt, stay(60)),
            // A far timer pays for no more than that.
            (700, 0, Rest::For(seconds(3600)), stay(60)),
            (0, 0, Rest::No, Decision::StayAwake(None)),
        ];
        for (took, awake, rest, decision) in table {
            let budget = Budget::new(Duration::from_millis(took), now);
            let found = budget.decide(rest, now + seconds(awake));
            assert_eq!(found, decision, "{took} {awake} {rest:?}");
        }
    }

    #[test]
    fn a_guest_that_was_stopped_while_it_parked_parks_again() {
        let now = Instant::now();
        let budget = Budget::new(seconds(86_400), now);
        let rest = Rest::UntilInterrupt;
        let missing = seconds(u64::from(SHARE)) - FAR;
        let stay = Decision::StayAwake(Some(missing.max(FAR)));
        assert_eq!(budget.decide(rest, now), stay);
        assert_eq!(budget.decide(rest, now + missing), Decision::Park);
    }

    #[test]
    fn wake_ups_that_come_before_the_timer_are_paid_for_later() {
        let mut now = Instant::now();
        let mut budget = Budget::new(Duration::ZERO, now);
        let (took, timer, caller) = (Duration::from_millis(60), seconds(10), seconds(1));
        let mut parked = 0;
        for _ in 0..1000 {
            if budget.decide(Rest::For(timer), now) == Decision::Park {
                parked += 1;
                budget.spend(took, now + caller);
            }
            now += caller;
        }
        // One in 6 s, and some on account of the timer.
        assert!((166..=170).contains(&parked), "{parked}");
    }
}
