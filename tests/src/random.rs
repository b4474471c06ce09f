//! Repeatable randomness: the seed is printed, and `BROOD_TEST_SEED` sets it.

use std::{env, time::SystemTime};

/// A seeded generator (SplitMix64, Steele, Lea and Flood 2014).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// A generator with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator with a seed of its own, which is printed when the test fails.
    ///
    /// # Panics
    /// When `BROOD_TEST_SEED` is no number.
    #[must_use]
    pub fn seeded() -> Self {
        let seed = match env::var("BROOD_TEST_SEED") {
            Ok(seed) => seed.parse().expect("BROOD_TEST_SEED is a number"),
            Err(_) => SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |now| u64::from(now.subsec_nanos())),
        };
        println!("to repeat: BROOD_TEST_SEED={seed}");
        Self(seed)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    /// One of these.
    pub fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let at = self.below(from.len() as u64);
        &from[usize::try_from(at).expect("an index")]
    }
}
