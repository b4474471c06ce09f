//! Noise: whether other activity on the host drowns the cost of guests.

use std::time::Duration;

use super::steady_state::{Sample, WINDOW};
use brood_core::units::Bytes;

/// A movement of host memory by this part of the measured value, or more, drowns it.
const DROWNS: f64 = 0.5;

/// By how much memory moved in the last [`WINDOW`] of samples, which are in the order of time.
#[must_use]
pub fn moved(samples: &[Sample]) -> Bytes {
    let since = samples
        .last()
        .map_or(Duration::ZERO, |last| last.at.saturating_sub(WINDOW));
    let recent = samples.iter().filter(|sample| sample.at >= since);
    let amounts = recent.map(|sample| sample.available);
    let (least, most) = (amounts.clone().min(), amounts.max());
    most.unwrap_or_default()
        .saturating_sub(least.unwrap_or_default())
}

/// Why a figure cannot be relied on: guests took `taken` MiB of the host's memory, which moved by
/// `moved` within a second before they came or after, when nothing was done; they can have taken
/// `most`. `None` when it can.
#[must_use]
pub fn noise(guests: u64, taken: f64, moved: Bytes, most: Bytes) -> Option<String> {
    if guests == 0 {
        return None;
    }
    if taken <= 0.0 {
        return Some(format!(
            "more memory became free while the guests came ({:.1} MiB) than they took",
            -taken
        ));
    }
    if taken > most.as_mib() {
        return Some(format!(
            "{taken:.1} MiB were taken meanwhile, and the guests can have taken {:.1} MiB",
            most.as_mib()
        ));
    }
    let moved = moved.as_mib();
    (moved >= taken * DROWNS).then(|| {
        format!(
            "memory moved by {moved:.1} MiB within a second when nothing was done; the guests took \
             {taken:.1} MiB"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(mib: &[(u64, u64)]) -> Vec<Sample> {
        let sample = |(ms, mib): &(u64, u64)| Sample {
            at: Duration::from_millis(*ms),
            available: Bytes::mib(*mib),
        };
        mib.iter().map(sample).collect()
    }

    #[test]
    fn only_the_last_second_counts() {
        assert_eq!(moved(&[]), Bytes(0));
        let calm = samples(&[(0, 900), (200, 100), (700, 102), (1300, 101)]);
        assert_eq!(moved(&calm), Bytes::mib(1));
        let restless = samples(&[(0, 900), (400, 140), (900, 100), (1300, 101)]);
        assert_eq!(moved(&restless), Bytes::mib(40));
    }

    #[test]
    fn a_figure_is_noise_when_it_is_negative_or_drowned() {
        let most = Bytes::mib(800);
        assert_eq!(noise(50, 35.0, Bytes::mib(2), most), None);
        assert_eq!(noise(1000, 700.0, Bytes::mib(300), most), None);
        assert_eq!(noise(0, -3.0, Bytes::mib(300), most), None, "of no guests");
        let others = noise(50, 801.0, Bytes(0), most).unwrap();
        assert!(
            others.contains("801.0 MiB") && others.contains("800.0 MiB"),
            "{others}"
        );
        let shrank = noise(50, -42.5, Bytes(0), most).unwrap();
        assert!(shrank.contains("42.5 MiB"), "{shrank}");
        let drowned = noise(8, 5.6, Bytes::mib(3), most).unwrap();
        assert!(
            drowned.contains("3.0 MiB") && drowned.contains("5.6 MiB"),
            "{drowned}"
        );
    }
}
