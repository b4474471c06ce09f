//! Goals: the figures that brood is to reach, compared with the measured ones.

use std::fmt;

use serde::Serialize;

use super::{Measurement, floor::Slot, spread::Spread};

/// What a figure is to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", content = "limit", rename_all = "snake_case")]
pub(crate) enum Goal {
    /// The ratio to the floor is at most this.
    RatioAtMost(f64),
    /// The figure is at most this.
    AtMost(f64),
    /// The figure is less than this.
    LessThan(f64),
    /// The figure is at least this.
    AtLeast(f64),
}

/// Whether it was reached.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// It was.
    Reached,
    /// It was not, by this much, in the goal's own unit.
    MissedBy(f64),
    /// The host was too busy to say.
    Unknown,
}

/// Who a figure of brood's is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Baseline {
    /// A script that starts QEMU by hand.
    Script,
    /// The floor, with such a slot.
    #[serde(untagged)]
    Floor(Slot),
}

impl From<Slot> for Baseline {
    fn from(slot: Slot) -> Self {
        Self::Floor(slot)
    }
}

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Floor(slot) => write!(f, "{slot} slot"),
            Self::Script => f.write_str("QEMU script"),
        }
    }
}

/// Brood's figure beside the floor's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Against {
    /// Which floor.
    #[serde(rename = "slot")]
    pub(crate) baseline: Baseline,
    /// The floor's own figure; none if it could not be measured.
    pub(crate) measured: Option<Spread>,
    /// Brood's by the floor's, round by round; none if either could not be measured.
    pub(crate) ratio: Option<Spread>,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// What it belongs to.
    #[serde(serialize_with = "name")]
    pub(crate) measurement: Measurement,
    /// What is measured, for people.
    pub(crate) figure: String,
    /// Unit of the figure: `ms`, `s`, `MiB`, or empty.
    pub(crate) unit: &'static str,
    /// Brood's figure, over the rounds.
    pub(crate) measured: Option<Spread>,
    /// The floor it is held against, if it is.
    pub(crate) floor: Option<Against>,
    /// What is to be reached, if anything is.
    pub(crate) goal: Option<Goal>,
    /// Whether it was.
    pub(crate) verdict: Option<Verdict>,
}

fn name<S: serde::Serializer>(measurement: &Measurement, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&measurement.to_string())
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Latency => "latency",
            Self::Wall => "wall",
            Self::Density => "density",
            Self::Resume => "resume",
            Self::Pool => "pool",
            Self::PoolCycles => "pool-cycles",
            Self::Api => "api",
            Self::Connections => "connections",
            Self::Delta => "delta",
            Self::BhyveManager => "bhyve-manager",
            Self::Linux => "linux",
            Self::KvmLinux => "kvm-linux",
            Self::TenThousand => "ten-thousand",
            Self::Crowd => "crowd",
        })
    }
}

impl Row {
    /// A figure of brood's alone, one value for each round.
    pub(crate) fn alone(
        measurement: Measurement,
        figure: impl Into<String>,
        unit: &'static str,
        values: &[f64],
        goal: Option<Goal>,
    ) -> Self {
        let row = Self {
            measurement,
            figure: figure.into(),
            unit,
            measured: Spread::of(values),
            floor: None,
            goal,
            verdict: None,
        };
        row.judged()
    }

    /// The same, held against a floor with one value for each of the same rounds.
    pub(crate) fn against(
        mut self,
        baseline: impl Into<Baseline>,
        values: &[f64],
        floors: &[f64],
        goal: Option<Goal>,
    ) -> Self {
        let ratio = Spread::of_ratios(values, floors);
        self.floor = Some(Against {
            baseline: baseline.into(),
            measured: Spread::of(floors),
            ratio,
        });
        self.goal = goal;
        self.judged()
    }

    fn judged(mut self) -> Self {
        let figure = self.measured.map(|spread| spread.median);
        let ratio = self
            .floor
            .and_then(|floor| floor.ratio)
            .map(|spread| spread.median);
        self.verdict = self.goal.map(|goal| goal.judge(figure, ratio));
        self
    }
}

impl Goal {
    /// Judges medians.
    fn judge(self, figure: Option<f64>, ratio: Option<f64>) -> Verdict {
        let (value, limit, reached): (_, _, fn(f64, f64) -> bool) = match self {
            Self::RatioAtMost(limit) => (ratio, limit, |value, limit| value <= limit),
            Self::AtMost(limit) => (figure, limit, |value, limit| value <= limit),
            Self::LessThan(limit) => (figure, limit, |value, limit| value < limit),
            Self::AtLeast(limit) => (figure, limit, |value, limit| value >= limit),
        };
        match value {
            None => Verdict::Unknown,
            Some(value) if reached(value, limit) => Verdict::Reached,
            Some(value) => Verdict::MissedBy((value - limit).abs()),
        }
    }

    /// The limit that it is measured by.
    pub(crate) fn limit(self) -> f64 {
        match self {
            Self::RatioAtMost(limit)
            | Self::AtMost(limit)
            | Self::LessThan(limit)
            | Self::AtLeast(limit) => limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_at_its_limit_is_reached_unless_less_is_asked() {
        let judge = |goal: Goal, value| goal.judge(Some(value), None);
        assert_eq!(judge(Goal::AtMost(8.0), 8.0), Verdict::Reached);
        assert_eq!(judge(Goal::AtMost(8.0), 8.5), Verdict::MissedBy(0.5));
        assert_eq!(judge(Goal::LessThan(1.0), 1.0), Verdict::MissedBy(0.0));
        assert_eq!(judge(Goal::AtLeast(10.0), 10.0), Verdict::Reached);
        assert_eq!(judge(Goal::AtLeast(10.0), 7.0), Verdict::MissedBy(3.0));
    }

    #[test]
    fn a_ratio_goal_judges_the_median_of_the_ratios() {
        let goal = Some(Goal::RatioAtMost(1.3));
        let row = Row::alone(Measurement::Latency, "p50", "ms", &[1.0, 3.0, 4.5], None);
        assert_eq!(row.verdict, None);
        let row = row.against(Slot::Full, &[1.0, 3.0, 4.5], &[1.0, 2.0, 3.0], goal);
        let Some(Verdict::MissedBy(by)) = row.verdict else {
            panic!("{row:?}")
        };
        assert!((by - 0.2).abs() < 1e-9, "{by}");
    }

    #[test]
    fn without_a_floor_nothing_is_known() {
        let goal = Some(Goal::RatioAtMost(0.7));
        let row = Row::alone(Measurement::Density, "each", "MiB", &[1.0], None);
        assert_eq!(
            row.against(Slot::Full, &[1.0], &[-1.0], goal).verdict,
            Some(Verdict::Unknown)
        );
    }
}
