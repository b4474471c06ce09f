//! Refill rate: limits how many guests a second the daemon restores for a pool, because restores
//! take processor time from guests at work.

use std::time::Instant;

use super::{FillReport, Refill};
use crate::state::Policy;

/// How a pool's refills have gone so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    under_way: bool,
    /// Guests that may be restored, and when that was counted; nothing was, at the beginning.
    counted: Option<(f64, Instant)>,
}

impl Pace {
    /// What may be refilled now.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "guests a second, of which there are thousands at most, and never fewer than none"
    )]
    pub fn next(&mut self, policy: &Policy, now: Instant) -> Refill {
        let at_most = policy.refill_per_s.map_or(u64::MAX, |rate| {
            let rate = rate as f64;
            let saved = self.counted.map_or(rate, |(guests, then)| {
                let since = now.saturating_duration_since(then).as_secs_f64();
                (guests + rate * since).min(rate)
            });
            self.counted = Some((saved, now));
            saved as u64
        });
        Refill::Kept {
            under_way: self.under_way,
            at_most,
        }
    }

    /// Counts what came of it.
    #[expect(
        clippy::cast_precision_loss,
        reason = "guests of one refill, of which there are thousands at most"
    )]
    pub fn done(&mut self, filled: &FillReport) {
        self.under_way = filled.missing > 0;
        if let Some((guests, _)) = &mut self.counted {
            *guests = (*guests - filled.restored as f64).max(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn restored(restored: u64, missing: u64) -> FillReport {
        FillReport {
            restored,
            missing,
            ..FillReport::default()
        }
    }

    #[test]
    fn no_second_has_more_than_its_share() {
        let policy = Policy {
            refill_per_s: Some(4),
            ..Policy::hot(100, 60)
        };
        let begin = Instant::now();
        let mut pace = Pace::default();
        let mut total = 0;
        // Looked at every 100 ms, for ten seconds.
        for tick in 0..=100 {
            let now = begin + Duration::from_millis(tick * 100);
            let Refill::Kept { at_most, under_way } = pace.next(&policy, now) else {
                panic!("it is kept");
            };
            assert_eq!(under_way, tick > 0);
            total += at_most;
            pace.done(&restored(at_most, 100));
        }
        assert_eq!(total, 4 + 4 * 10);
    }

    #[test]
    fn what_is_not_limited_is_not() {
        let mut pace = Pace::default();
        let whole = Refill::Kept {
            under_way: false,
            at_most: u64::MAX,
        };
        assert_eq!(pace.next(&Policy::hot(5, 60), Instant::now()), whole);
        pace.done(&restored(5, 0));
        assert_eq!(pace.next(&Policy::hot(5, 60), Instant::now()), whole);
    }
}
