//! A thousand guests through the bhyve engine: what the manager itself needs for them. The guests
//! are stand-ins; their cost says nothing about bhyve's.

use std::collections::HashSet;

use brood_tests::{Lab, Peak, array, crowd, text};
use serde_json::Value;

const FEW: usize = 100;
const MANY: usize = 1_000;

/// Memory in bytes that the manager may come to need for one guest more. What it keeps of a guest
/// is a row, a line to print, and a child to wait for.
const EACH: u64 = 16 << 10;
/// Threads of a manager that may be counted beside those that took their place.
const ENDING: u64 = 8;

fn restore(lab: &Lab, from: &str, guests: usize) -> (Value, Peak) {
    let count = guests.to_string();
    let arguments = [
        "restore",
        from,
        "-n",
        &count,
        "--prefix",
        "g",
        "--overcommit",
    ];
    let (report, peak) = lab.watched(&arguments);
    assert_eq!(report["restored"], guests, "{report}");
    (report, peak)
}

/// What the manager needs grows by no more than [`EACH`] for a guest.
#[track_caller]
fn grows_little(few: Peak, many: Peak) {
    let more = many.memory.saturating_sub(few.memory);
    let guests = (MANY - FEW) as u64;
    assert!(more <= guests * EACH, "{more} bytes for {guests} guests");
    // No thread for a guest: as many for a thousand as for a hundred, but for those that end while
    // others begin.
    assert!(many.threads <= few.threads + ENDING, "{few:?} {many:?}");
}

#[test]
fn a_crowd_of_a_thousand_costs_the_manager_little_and_leaves_nothing() {
    let _turn = crowd();
    let (lab, web) = Lab::with_checkpoint();
    let web = web.to_string();
    let (_, few) = restore(&lab, &web, FEW);
    let (_, few_gone) = lab.watched(&["destroy", "--all", "--force"]);
    lab.nothing_is_left();

    let (report, many) = restore(&lab, &web, MANY);
    assert_eq!(array(&report["guests"]).len(), MANY);
    assert_eq!(lab.machine.processes().len(), MANY);
    grows_little(few, many);
    let listed = lab.list();
    let macs: HashSet<&str> = listed.iter().map(|guest| text(&guest["mac"])).collect();
    assert_eq!(macs.len(), MANY, "MAC addresses are each guest's own");
    for guest in ["g-1", "g-500", "g-1000"] {
        assert_eq!(lab.ask(guest, "identity")["name"], guest);
    }
    let (_, many_gone) = lab.watched(&["destroy", "--all", "--force"]);
    grows_little(few_gone, many_gone);
    lab.nothing_is_left();
}
