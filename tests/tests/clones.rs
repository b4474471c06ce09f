//! Clones: what makes them the same guest, and what makes each of them another.

use std::{collections::HashSet, time::SystemTime};

use brood_tests::{Home, array, crowd, until};
use serde_json::Value;

const CLONES: usize = 200;

fn now() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.expect("later than 1970").as_secs_f64()
}

/// Each guest's answer to one request.
fn ask_all(home: &Home, prefix: &str, count: usize, request: &str) -> Vec<Value> {
    (1..=count)
        .map(|n| home.ask(&format!("{prefix}-{n}"), request))
        .collect()
}

fn text(value: &Value) -> String {
    brood_tests::text(value).to_owned()
}

fn assert_distinct(what: &str, values: impl IntoIterator<Item = String>) {
    let mut seen = HashSet::new();
    for value in values {
        assert!(seen.insert(value.clone()), "two clones have {what} {value}");
    }
}

#[test]
fn two_hundred_clones_remember_one_boot_and_differ_in_all_else() {
    let Some(home) = Home::with_kvm() else { return };
    let _turn = crowd();
    let demo = home.demo("demo", "8M");
    let report = home.restore(&demo, CLONES, "c");

    // A restore, not a boot: one nonce, and the counter goes on from the checkpoint's one request.
    let nonce = text(&report["guests"][0]["nonce"]);
    for guest in array(&report["guests"]) {
        assert_eq!(
            (&guest["nonce"], &guest["counter"]),
            (&nonce.clone().into(), &2.into()),
            "{guest}"
        );
    }
    let pings = ask_all(&home, "c", CLONES, "ping hello");
    for ping in &pings {
        assert_eq!(ping["nonce"], nonce, "{ping}");
        assert_eq!(ping["counter"], 3, "{ping}");
        assert_eq!(ping["text"], "hello", "{ping}");
    }

    let identities = ask_all(&home, "c", CLONES, "identity");
    for (n, identity) in (1..).zip(&identities) {
        assert_eq!(identity["name"], format!("c-{n}"));
    }
    for what in ["generation", "mac", "seed"] {
        assert_distinct(what, identities.iter().map(|i| text(&i[what])));
    }
    // Locally administered and unicast, so that it collides with no real card.
    for identity in &identities {
        let first = u8::from_str_radix(&text(&identity["mac"])[..2], 16).unwrap();
        assert_eq!(first & 3, 2, "{identity}");
    }
    // What is recorded is what the guest holds.
    for (listed, identity) in home.list().iter().zip(&identities) {
        for what in ["name", "generation", "mac"] {
            assert_eq!(listed[what], identity[what]);
        }
    }

    // Every single number, over all guests and two requests of each.
    let numbers = |answers: &[Value]| -> Vec<String> {
        let words = answers.iter().flat_map(|a| array(&a["random"]));
        words.map(text).collect()
    };
    let mut random = numbers(&ask_all(&home, "c", CLONES, "random 8"));
    random.extend(numbers(&ask_all(&home, "c", CLONES, "random 4")));
    assert_eq!(random.len(), CLONES * 12);
    assert_distinct("random", random);
}

#[test]
fn a_name_restored_again_is_another_guest() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let mut seen: Vec<HashSet<String>> = vec![HashSet::new(); 5];
    for _ in 0..5 {
        home.restore(&demo, 1, "again");
        let identity = home.ask("again-1", "identity");
        let random = home.ask("again-1", "random 1");
        let of_this_time = [
            &identity["generation"],
            &identity["mac"],
            &identity["seed"],
            &random["random"],
            &home.json(&["show", "again-1"])["id"],
        ];
        for (seen, value) in seen.iter_mut().zip(of_this_time) {
            assert!(seen.insert(value.to_string()), "{value} was there before");
        }
        home.destroy_all();
    }
}

#[test]
fn clones_of_a_suspended_clone_differ_from_it_and_from_each_other() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 2, "parent");
    let mut nonces = vec![home.ask("parent-1", "ping")["nonce"].clone()];
    let mut identities = vec![
        home.ask("parent-1", "identity"),
        home.ask("parent-2", "identity"),
    ];
    let mut random = vec![
        home.ask("parent-1", "random 2"),
        home.ask("parent-2", "random 2"),
    ];
    let counter = home.ask("parent-1", "ping")["counter"].as_u64().unwrap();
    let child = home.named("child");
    let _ = home.brood(&["suspend", "parent-1", &child.path]).ok();
    home.restore(&child, 3, "child");
    for n in 1..=3 {
        let name = format!("child-{n}");
        let ping = home.ask(&name, "ping");
        assert_eq!(
            ping["counter"],
            counter + 2,
            "one for the restore, one for this"
        );
        nonces.push(ping["nonce"].clone());
        identities.push(home.ask(&name, "identity"));
        random.push(home.ask(&name, "random 2"));
    }
    assert!(nonces.iter().all(|nonce| *nonce == nonces[0]), "{nonces:?}");
    for what in ["generation", "mac", "seed", "name"] {
        assert_distinct(what, identities.iter().map(|i| text(&i[what])));
    }
    let words = random.iter().flat_map(|r| array(&r["random"]));
    assert_distinct("random", words.map(text));
}

/// The guest's clock, and how far it is from this host's. A request takes a moment, so the true
/// distance may be a little smaller.
fn clock(home: &Home, guest: &str) -> (f64, f64) {
    let before = now();
    let time = home.ask(guest, "time");
    let after = now();
    let guest_time = time["unix_seconds"].as_f64().unwrap();
    let off = if guest_time < before {
        before - guest_time
    } else {
        (guest_time - after).max(0.0)
    };
    (time["uptime_seconds"].as_f64().unwrap(), off)
}

#[test]
fn clocks_are_right_after_restore_and_after_a_pause_and_uptime_leaves_out_the_checkpoint() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let made = now();
    // Old enough that a clock or an uptime that counts the time in between would show.
    until("the checkpoint to be three seconds old", || {
        (now() - made > 3.0).then_some(())
    });
    let restored = now();
    home.restore(&demo, 20, "t");
    let mut uptimes = Vec::new();
    for n in 1..=20 {
        let (uptime, off) = clock(&home, &format!("t-{n}"));
        assert!(off < 1.0, "t-{n} is {off} s off");
        let at_most = now() - restored + 1.0;
        assert!(uptime < at_most, "up {uptime} s: more than {at_most}");
        uptimes.push(uptime);
    }
    let _ = home.brood(&["pause", "t-1"]).ok();
    let paused = now();
    until("the pause to last", || (now() - paused > 1.5).then_some(()));
    let _ = home.brood(&["resume", "t-1"]).ok();
    let (uptime, off) = clock(&home, "t-1");
    assert!(off < 1.0, "{off} s off after a pause");
    assert!(
        uptime > uptimes[0],
        "uptime went from {} to {uptime}",
        uptimes[0]
    );

    // Again from a checkpoint of the resumed guest: uptime goes on from where it was.
    let later = home.named("later");
    let (before, _) = clock(&home, "t-1");
    let _ = home.brood(&["suspend", "t-1", &later.path]).ok();
    let suspended = now();
    until("the new checkpoint to be two seconds old", || {
        (now() - suspended > 2.0).then_some(())
    });
    let restored = now();
    home.restore(&later, 1, "later");
    let (after, off) = clock(&home, "later-1");
    let passed = now() - restored;
    assert!(off < 1.0, "{off} s off after the second restore");
    assert!(
        after >= before && after < before + passed + 1.0,
        "up {before} s, then {after} s, {passed} s after the restore"
    );
}
