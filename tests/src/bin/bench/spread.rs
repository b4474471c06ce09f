//! Statistics over rounds: the median with the least and the most, and ratios round by round.

use serde::Serialize;

/// Values of several rounds: what is typical, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// Half of the rounds are not greater; between two middle ones, their mean.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The most.
    pub(crate) max: f64,
}

impl Spread {
    /// Of `values` in any order; none if there are none, or one is not a number.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        values
            .iter()
            .all(|value| value.is_finite())
            .then_some(Self { median, min, max })
    }

    /// Of the ratios of each round's `values` to the same round's `floors`; none if a floor is not
    /// above zero, as host memory can be measured on a host that is too busy.
    pub(crate) fn of_ratios(values: &[f64], floors: &[f64]) -> Option<Self> {
        if values.len() != floors.len() || floors.iter().any(|floor| *floor <= 0.0) {
            return None;
        }
        let ratios: Vec<f64> = values
            .iter()
            .zip(floors)
            .map(|(value, floor)| value / floor)
            .collect();
        Self::of(&ratios)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(median: f64, min: f64, max: f64) -> Option<Spread> {
        Some(Spread { median, min, max })
    }

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_the_two_middle_ones() {
        assert_eq!(Spread::of(&[3.0]), spread(3.0, 3.0, 3.0));
        assert_eq!(Spread::of(&[9.0, 1.0, 2.0]), spread(2.0, 1.0, 9.0));
        assert_eq!(Spread::of(&[4.0, 1.0, 3.0, 2.0]), spread(2.5, 1.0, 4.0));
    }

    #[test]
    fn nothing_comes_of_nothing() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[1.0, f64::NAN]), None);
        assert_eq!(Spread::of(&[1.0, f64::INFINITY]), None);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // A host that is three times slower in the second round: the ratio does not move.
        assert_eq!(
            Spread::of_ratios(&[2.0, 6.0, 2.0], &[1.0, 3.0, 1.0]),
            spread(2.0, 2.0, 2.0)
        );
        assert_eq!(
            Spread::of_ratios(&[1.0, 2.0, 6.0], &[1.0, 1.0, 2.0]),
            spread(2.0, 1.0, 3.0)
        );
    }

    #[test]
    fn a_floor_that_was_not_measured_gives_no_ratio() {
        assert_eq!(Spread::of_ratios(&[1.0, 1.0], &[1.0, 0.0]), None);
        assert_eq!(Spread::of_ratios(&[1.0], &[-0.5]), None);
        assert_eq!(Spread::of_ratios(&[1.0, 1.0], &[1.0]), None);
    }
}
