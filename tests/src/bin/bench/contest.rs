//! Contest: brood and the floor in turns, so that changes on the host meanwhile meet both.

use super::{
    Measurement,
    error::Error,
    floor::Slot,
    goal::{Goal, Row},
    workplace::Workplace,
};

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// brood.
    Brood,
    /// The floor, with such a slot.
    Floor(Slot),
}

const SUBJECTS: [Subject; 3] = [
    Subject::Brood,
    Subject::Floor(Slot::Small),
    Subject::Floor(Slot::Full),
];

/// One value of each subject for each round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contest {
    brood: Vec<f64>,
    small: Vec<f64>,
    full: Vec<f64>,
}

impl Contest {
    /// Measures each subject once in each round; every other round goes backwards.
    pub(crate) fn hold(
        workplace: &Workplace,
        measurement: Measurement,
        unit: &str,
        mut measure: impl FnMut(Subject) -> Result<f64, Error>,
    ) -> Result<Self, Error> {
        let mut contest = Self::default();
        for round in 0..workplace.rounds {
            for subject in turns(round) {
                let value = measure(subject)?;
                eprintln!(
                    "{measurement}: round {} of {}: {subject}: {value:.3} {unit}",
                    round + 1,
                    workplace.rounds
                );
                contest.values(subject).push(value);
            }
        }
        Ok(contest)
    }

    fn values(&mut self, subject: Subject) -> &mut Vec<f64> {
        match subject {
            Subject::Brood => &mut self.brood,
            Subject::Floor(Slot::Small) => &mut self.small,
            Subject::Floor(Slot::Full) => &mut self.full,
        }
    }

    /// A line of the table for each floor, each with its goal.
    pub(crate) fn rows(
        &self,
        measurement: Measurement,
        figure: &str,
        unit: &'static str,
        small: Option<Goal>,
        full: Option<Goal>,
    ) -> Vec<Row> {
        let row = || Row::alone(measurement, figure, unit, &self.brood, None);
        vec![
            row().against(Slot::Full, &self.brood, &self.full, full),
            row().against(Slot::Small, &self.brood, &self.small, small),
        ]
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Brood => f.write_str("brood"),
            Self::Floor(slot) => write!(f, "floor, {slot} slot"),
        }
    }
}

/// Who is measured when in a round: A B C, then C B A.
fn turns(round: u32) -> impl Iterator<Item = Subject> {
    let mut turns = SUBJECTS;
    if round % 2 == 1 {
        turns.reverse();
    }
    turns.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_round_goes_backwards() {
        let rounds: Vec<Subject> = (0..2).flat_map(turns).collect();
        let mut backwards = rounds.clone();
        backwards.reverse();
        assert_eq!(rounds, backwards);
        assert_eq!(rounds[0], Subject::Brood);
    }

    #[test]
    fn each_floor_has_its_row_and_its_goal() {
        let contest = Contest {
            brood: vec![2.0, 2.0],
            small: vec![1.0, 1.0],
            full: vec![4.0, 4.0],
        };
        let rows = contest.rows(
            Measurement::Density,
            "each",
            "MiB",
            None,
            Some(Goal::RatioAtMost(0.7)),
        );
        let ratios: Vec<f64> = rows
            .iter()
            .map(|row| row.floor.unwrap().ratio.unwrap().median)
            .collect();
        assert_eq!(ratios, [0.5, 2.0]);
        assert!(rows[0].verdict.is_some() && rows[1].verdict.is_none());
    }
}
