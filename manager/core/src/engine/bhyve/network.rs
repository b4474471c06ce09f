//! Taps: one for each network card of a guest.
//!
//! Two properties tell brood's taps from all others: a number from a range that brood has to
//! itself, and a description that names the guest. The number is recorded before the tap is made,
//! so that a tap without any other trace can be found and removed. A tap joins its bridge only
//! after its guest has taken its own identity: until then two clones could have the same address.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    folder_lock::FolderLock,
    host::{Error, Host},
};
use crate::guest_id::GuestId;

/// Numbers of brood's taps. An interface has at most 32,767 (`IF_MAXUNIT` of `net/if.h`).
const FIRST: u16 = 10_000;
const COUNT: u16 = 22_000;
/// How long to wait for a tap that another process is destroying.
const DESTROY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a tap may be without a description that another command has just made.
const UNDESCRIBED: Duration = Duration::from_secs(1);
/// How often it is looked at.
const RETRY: Duration = Duration::from_millis(20);

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
pub(super) fn create(
    lock: &FolderLock,
    host: &Host,
    number: u16,
    id: &GuestId,
) -> Result<bool, Error> {
    let (tap, description) = (tap_name(number), description(id));
    match lock.run(host, "ifconfig", &[&tap, "create", "descr", &description]) {
        Ok(_) => Ok(true),
        Err(Error::Failed { said, .. }) if said.contains("File exists") => Ok(false),
        Err(e) => Err(e),
    }
}

/// Connects a guest's tap.
///
/// # Errors
/// When ifconfig(8) fails.
pub(super) fn connect(
    lock: &FolderLock,
    host: &Host,
    number: u16,
    bridge: Option<&str>,
) -> Result<(), Error> {
    let tap = tap_name(number);
    if let Some(bridge) = bridge {
        lock.run(host, "ifconfig", &[bridge, "addm", &tap])?;
    }
    lock.run(host, "ifconfig", &[&tap, "up"])?;
    Ok(())
}

/// Removes a guest's tap, if it exists and belongs to that guest. A tap without a description was
/// left by a crash between its creation and its description, unless it gets one soon.
///
/// # Errors
/// When ifconfig(8) fails, or the tap stays.
pub(super) fn destroy(
    lock: &FolderLock,
    host: &Host,
    number: u16,
    id: &GuestId,
) -> Result<(), Error> {
    let tap = tap_name(number);
    let begin = Instant::now();
    loop {
        let shown = match lock.run(host, "ifconfig", &[&tap]) {
            Ok(shown) => shown,
            Err(e) if says(&e, &["does not exist"]) => return Ok(()),
            Err(e) => return Err(e),
        };
        match shown.lines().find_map(described) {
            Some(text) if text != description(id) => return Ok(()),
            None if begin.elapsed() < UNDESCRIBED => {}
            _ => match lock.run(host, "ifconfig", &[&tap, "destroy"]) {
                Ok(_) => return Ok(()),
                // Another process is destroying it, or has destroyed it: look again.
                Err(e)
                    if says(
                        &e,
                        &["does not exist", "Device not configured", "Device busy"],
                    ) && begin.elapsed() < DESTROY_TIMEOUT => {}
                Err(e) => return Err(e),
            },
        }
        thread::sleep(RETRY);
    }
}

/// Numbers of the taps whose description names a guest.
///
/// # Errors
/// When ifconfig(8) fails.
pub(super) fn of_guest(host: &Host, id: &GuestId) -> Result<Vec<u16>, Error> {
    Ok(described_as(
        &host.run("ifconfig", &["-a"])?,
        &description(id),
    ))
}

fn described_as(shown: &str, description: &str) -> Vec<u16> {
    let mut found = Vec::new();
    let mut interface = "";
    for line in shown.lines() {
        if !line.starts_with(char::is_whitespace) {
            interface = line.split(':').next().unwrap_or_default();
        } else if described(line) == Some(description) {
            found.extend(
                interface
                    .strip_prefix("tap")
                    .and_then(|n| n.parse::<u16>().ok()),
            );
        }
    }
    found
}

fn described(line: &str) -> Option<&str> {
    line.trim().strip_prefix("description: ")
}

fn says(error: &Error, words: &[&str]) -> bool {
    match error {
        Error::Failed { said, .. } => words.iter().any(|word| said.contains(word)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_taps_are_found_by_their_description() {
        let shown = "\
tap10001: flags=1008843<UP,BROADCAST> metric 0 mtu 1500
\tdescription: brood-0707070707070707
\tgroups: tap
bridge0: flags=8843<UP> metric 0 mtu 1500
\tmember: tap10001 flags=143<LEARNING>
tap10002: flags=1008843<UP> metric 0 mtu 1500
\tdescription: brood-0807070707070707
tap10003: flags=1008843<UP> metric 0 mtu 1500
em0: flags=8843<UP> metric 0 mtu 1500
\tdescription: brood-0707070707070707
";
        assert_eq!(
            described_as(shown, &description(&GuestId([7; 8]))),
            [10_001]
        );
    }

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
