//! Percentiles of latencies by the nearest-rank method: each is a value that was measured.

use serde::{Deserialize, Serialize};

/// Percentiles of a set of samples, in the samples' own unit (milliseconds in a density step).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// 90 % are not longer.
    pub p90: f64,
    /// 99 % are not longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Percentiles {
    /// Percentiles of `samples`, in any order. Of none, all are zero.
    #[must_use]
    pub fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |percent| rank(&sorted, percent).unwrap_or_default();
        Self {
            p50: at(50),
            p90: at(90),
            p99: at(99),
            max: at(100),
        }
    }
}

/// The smallest sample such that `percent` of all are not greater.
fn rank(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_values() {
        let samples: Vec<f64> = (1..=10).rev().map(f64::from).collect();
        let expected = Percentiles {
            p50: 5.0,
            p90: 9.0,
            p99: 10.0,
            max: 10.0,
        };
        assert_eq!(Percentiles::of(&samples), expected);
        assert_eq!(Percentiles::of(&[]), Percentiles::default());
    }

    /// Straight from the definition: the smallest sample with enough samples at or below it.
    fn slow(samples: &[f64], percent: usize) -> f64 {
        let at_or_below = |x: f64| samples.iter().filter(|y| **y <= x).count();
        let enough = |x: &f64| at_or_below(*x) * 100 >= percent * samples.len();
        samples
            .iter()
            .copied()
            .filter(enough)
            .fold(f64::INFINITY, f64::min)
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(samples in prop::collection::vec(0.0..50.0_f64, 1..300), coarse: bool) {
            // Coarse samples repeat, so that ties are tried too.
            let samples: Vec<f64> = samples.into_iter().map(|x| if coarse { x.trunc() } else { x }).collect();
            let fast = Percentiles::of(&samples);
            prop_assert_eq!(fast.p50, slow(&samples, 50));
            prop_assert_eq!(fast.p90, slow(&samples, 90));
            prop_assert_eq!(fast.p99, slow(&samples, 99));
            prop_assert_eq!(fast.max, slow(&samples, 100));
        }
    }
}
