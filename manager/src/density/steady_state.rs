//! Steady state: decides whether a host's memory has settled, so that a measurement may begin or
//! end.
//!
//! After many guests died, their kernel memory comes back seconds later: a measurement that begins
//! meanwhile is wrong by hundreds of MiB. This module only decides; its caller samples and waits.

use std::time::Duration;

use brood_core::units::Bytes;

/// How long memory must have been stable.
pub const WINDOW: Duration = Duration::from_secs(1);
/// Fewer samples in the window say nothing.
pub const LEAST_SAMPLES: usize = 4;
/// A host that runs nothing moves by this much all the same.
const NOISE: Bytes = Bytes::kib(512);
/// Besides, the part of the host's available memory that may move within the window: 0.02 %.
const DRIFT_PER_WINDOW: u64 = 5000;

/// `MemAvailable` at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Time since any fixed moment.
    pub at: Duration,
    /// `MemAvailable` then.
    pub available: Bytes,
}

/// Whether memory was stable over the last [`WINDOW`] before the last of `samples`, which are in
/// the order of time: it moved by no more than 0.5 MiB and 0.02 % of what is available.
#[must_use]
pub fn settled(samples: &[Sample]) -> bool {
    let Some(last) = samples.last() else {
        return false;
    };
    let Some(begin) = last.at.checked_sub(WINDOW) else {
        return false;
    };
    // The window starts at the last sample that is old enough, so that all of it is seen.
    let Some(first) = samples.iter().rposition(|sample| sample.at <= begin) else {
        return false;
    };
    let window = &samples[first..];
    let amounts = || window.iter().map(|sample| sample.available);
    let (Some(least), Some(most)) = (amounts().min(), amounts().max()) else {
        return false;
    };
    let tolerance = NOISE + Bytes(most.0 / DRIFT_PER_WINDOW);
    window.len() >= LEAST_SAMPLES && most.saturating_sub(least) <= tolerance
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples every 200 ms.
    fn samples(kib: &[u64]) -> Vec<Sample> {
        let at = |i: usize| Duration::from_millis(200) * u32::try_from(i).unwrap();
        kib.iter()
            .enumerate()
            .map(|(i, kib)| Sample {
                at: at(i),
                available: Bytes::kib(*kib),
            })
            .collect()
    }

    #[test]
    fn stable_memory_settles_after_one_window() {
        let flat = samples(&[1000; 6]);
        assert!(settled(&flat));
        assert!(!settled(&flat[..5]), "only 0.8 s were seen");
        assert!(!settled(&[]));
    }

    #[test]
    fn memory_that_still_comes_back_has_not_settled() {
        assert!(!settled(&samples(&[0, 200, 400, 600, 800, 1000])));
        assert!(
            settled(&samples(&[0, 9000, 9100, 9000, 9100, 9000, 9100])),
            "what was is forgotten"
        );
    }

    #[test]
    fn a_large_host_may_move_more() {
        let mib = 1024;
        let host = 24 * 1024 * mib;
        assert!(settled(&samples(&[
            host,
            host - 4 * mib,
            host,
            host,
            host - 4 * mib,
            host
        ])));
        assert!(!settled(&samples(&[
            host,
            host - 6 * mib,
            host,
            host,
            host,
            host
        ])));
    }

    #[test]
    fn two_samples_far_apart_say_nothing() {
        let at = |s| Sample {
            at: Duration::from_secs(s),
            available: Bytes::gib(1),
        };
        assert!(!settled(&[at(0), at(5)]));
    }
}
