//! Durations on the command line: seconds, or a number with a unit.

use std::time::Duration;

use brood_core::units::parse_duration;

/// The longest that anybody may want to wait.
const LONGEST: Duration = Duration::from_secs(1_000_000);

/// A time to wait, which may be none.
pub(super) fn wait(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(wait) if wait <= LONGEST => Ok(wait),
        Ok(_) => Err(format!("it is more than {} seconds", LONGEST.as_secs())),
        Err(e) => Err(e.to_string()),
    }
}

/// A time limit.
pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    match wait(text)? {
        Duration::ZERO => Err("it must be more than nothing".to_owned()),
        timeout => Ok(timeout),
    }
}

/// A time that is kept in whole seconds: a lease, an age.
pub(super) fn whole_seconds(text: &str) -> Result<u32, String> {
    let duration = parse_duration(text).map_err(|e| e.to_string())?;
    if duration < Duration::from_secs(1) {
        return Err("it must be one second or more".to_owned());
    }
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    u32::try_from(seconds).map_err(|_| format!("it is more than {} seconds", u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_whole_seconds() {
        assert_eq!(whole_seconds("1h"), Ok(3600));
        assert_eq!(whole_seconds("1500ms"), Ok(2));
        for bad in ["0", "0.5", "5000000000", "soon"] {
            assert!(whole_seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_time_limit_is_more_than_nothing() {
        assert_eq!(timeout("10"), Ok(Duration::from_secs(10)));
        assert_eq!(wait("0"), Ok(Duration::ZERO));
        for bad in ["0", "-1", "2000000", "ten"] {
            assert!(timeout(bad).is_err(), "{bad}");
        }
    }
}
