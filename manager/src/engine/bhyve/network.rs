//! Taps: one for each network card of a guest.
//!
//! A tap is told apart from everybody else's by its number, of a range that brood has to itself,
//! and by its description, which names the guest. Its number is recorded before it is made, so
//! that a tap of which nothing else is known can be found and removed. It is made a member of its
//! bridge only when its guest has taken its own identity: until then two clones could have the
//! same address.

use super::host::{Error, Host};
use crate::engine::GuestId;

/// Numbers of brood's taps. An interface has at most 32,767 (`IF_MAXUNIT` of `net/if.h`).
const FIRST: u16 = 10_000;
const COUNT: u16 = 22_000;

/// The tap of this number.
pub(super) fn tap_name(number: u16) -> String {
    format!("tap{number}")
}

/// Where a guest begins to look for a free number, so that guests rarely look at the same.
pub(super) fn first_number(id: &GuestId) -> u16 {
    let bits = u64::from_be_bytes(id.0) % u64::from(COUNT);
    FIRST + u16::try_from(bits).expect("below the count")
}

/// The number to try after this one.
pub(super) fn next_number(number: u16) -> u16 {
    FIRST + (number - FIRST + 1) % COUNT
}

fn description(id: &GuestId) -> String {
    format!("brood-{id}")
}

/// Makes a tap for a guest; `false` when the number is taken.
///
/// # Errors
/// When ifconfig(8) fails for another reason.
pub(super) fn create(host: &Host, number: u16, id: &GuestId) -> Result<bool, Error> {
    let (tap, description) = (tap_name(number), description(id));
    match host.run("ifconfig", &[&tap, "create", "descr", &description]) {
        Ok(_) => Ok(true),
        Err(Error::Failed { said, .. }) if said.contains("File exists") => Ok(false),
        Err(e) => Err(e),
    }
}

/// Connects a guest's tap.
///
/// # Errors
/// When ifconfig(8) fails.
pub(super) fn connect(host: &Host, number: u16, bridge: Option<&str>) -> Result<(), Error> {
    let tap = tap_name(number);
    if let Some(bridge) = bridge {
        host.run("ifconfig", &[bridge, "addm", &tap])?;
    }
    host.run("ifconfig", &[&tap, "up"])?;
    Ok(())
}

/// Removes a guest's tap, if it is there and is that guest's. One without a description is what a
/// crash left between its creation and its description.
///
/// # Errors
/// When ifconfig(8) fails.
pub(super) fn destroy(host: &Host, number: u16, id: &GuestId) -> Result<(), Error> {
    let tap = tap_name(number);
    let shown = match host.run("ifconfig", &[&tap]) {
        Ok(shown) => shown,
        Err(Error::Failed { said, .. }) if said.contains("does not exist") => return Ok(()),
        Err(e) => return Err(e),
    };
    let described = shown
        .lines()
        .find_map(|line| line.trim().strip_prefix("description: "));
    if described.is_some_and(|text| text != description(id)) {
        return Ok(());
    }
    match host.run("ifconfig", &[&tap, "destroy"]) {
        Err(Error::Failed { said, .. }) if said.contains("does not exist") => Ok(()),
        other => other.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_in_the_range_and_come_to_all_of_it() {
        for bytes in [[0; 8], [0xff; 8], [7; 8]] {
            let first = first_number(&GuestId(bytes));
            let mut number = first;
            let mut seen = 0;
            loop {
                assert!((FIRST..FIRST + COUNT).contains(&number));
                number = next_number(number);
                seen += 1;
                if number == first {
                    break;
                }
            }
            assert_eq!(seen, COUNT);
        }
    }
}
