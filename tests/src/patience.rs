//! Patience: waits for a condition, with a limit, instead of sleeping and hoping.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long anything in a test may take before the test fails. A loaded machine is slow, not wrong.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks again and again until `look` finds something.
///
/// # Panics
/// When it finds nothing within [`PATIENCE`]; `what` says what was waited for.
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, look)
}

/// As [`until`], with a limit of the caller's.
///
/// # Panics
/// When it finds nothing within `limit`.
pub fn until_within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            begin.elapsed() < limit,
            "waited {} s for {what}",
            limit.as_secs()
        );
        thread::sleep(Duration::from_millis(2));
    }
}
