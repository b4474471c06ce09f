//! Parked guests, which gave their virtual machine back while they were idle: only a clock can tell
//! a client the difference.

use std::{
    fs::{self, File},
    time::{Duration, Instant, SystemTime},
};

use brood_tests::{Daemon, Demo, Home, Random, array, sha256, text, until, whole};
use reqwest::Method;
use serde_json::json;

/// Guests that park as soon as they are idle.
fn restore(home: &Home, from: &Demo, guests: usize, prefix: &str) {
    let count = guests.to_string();
    let args = [
        "restore",
        &from.path,
        "-n",
        &count,
        "--prefix",
        prefix,
        "--park-after",
        "0",
    ];
    assert_eq!(home.json(&args)["restored"], guests);
}

/// Seconds since 1970 by this host's clock.
fn now() -> f64 {
    let since = SystemTime::UNIX_EPOCH.elapsed();
    since.expect("it is later").as_secs_f64()
}

/// Whether a guest's process has no virtual machine.
fn parked(pid: i32) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives");
    let mut links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    !links.any(|link| link.to_string_lossy().contains("kvm-v"))
}

/// Waits for a guest to park. One that holds something that cannot be kept without its virtual
/// machine stays awake, and must be right all the same.
fn until_parked(home: &Home, guest: &str) {
    let (pid, begin) = (home.pid(guest), Instant::now());
    until("the guest to park, or not", || {
        (parked(pid) || begin.elapsed() > Duration::from_millis(300)).then_some(())
    });
}

#[test]
fn a_parked_guest_is_the_guest_that_it_was() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "8M");
    let words = demo.words();
    restore(&home, &demo, 2, "p");
    let nonce = home.ask("p-1", "ping")["nonce"].clone();
    let identity = home.ask("p-1", "identity");
    let mut counter = whole(&identity["counter"]);
    let (mut uptime, mut random) = (0.0, Vec::new());
    for round in 1..=10_u64 {
        until_parked(&home, "p-1");
        let ping = home.ask("p-1", "ping");
        counter += 1;
        assert_eq!(
            (&ping["nonce"], whole(&ping["counter"])),
            (&nonce, counter),
            "round {round}"
        );
        until_parked(&home, "p-1");
        let again = home.ask("p-1", "identity");
        for what in ["name", "generation", "mac", "seed"] {
            assert_eq!(again[what], identity[what]);
        }
        // Written in one life, read in the next; also where a memory slot was made on demand.
        let address = 0x20_0000 + round * 0x8_0000;
        let _ = home.ask("p-1", &format!("poke {address} {round}"));
        until_parked(&home, "p-1");
        assert_eq!(home.peek("p-1", address), round);
        assert_eq!(home.peek("p-1", address + 8), words.at(address + 8));
        until_parked(&home, "p-1");
        random.extend(array(&home.ask("p-1", "random 4")["random"]).to_vec());
        until_parked(&home, "p-1");
        let before = now();
        let time = home.ask("p-1", "time");
        let after = now();
        let up = time["uptime_seconds"].as_f64().unwrap();
        assert!(up >= uptime, "uptime went from {uptime} to {up}");
        uptime = up;
        let told = time["unix_seconds"].as_f64().unwrap();
        assert!(
            before - 0.5 < told && told < after + 0.5,
            "{before} {told} {after}"
        );
        counter += 6;
    }
    random.sort_by_key(ToString::to_string);
    random.dedup();
    assert_eq!(random.len(), 40, "a generator went back");
    let sum = home.ask("p-2", "sum 0x10000 0x7f0000 4104");
    assert_eq!(sum["sum"], words.sum(0x1_0000, 0x7f_0000, 4104));
}

#[test]
fn a_parked_guest_is_paused_resumed_and_suspended_like_any() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let digest = sha256(&demo.ckp());
    restore(&home, &demo, 3, "p");
    let _ = home.ask("p-1", "poke 0x200000 5");
    until_parked(&home, "p-1");
    let _ = home.brood(&["pause", "p-1"]).ok();
    let _ = home
        .brood(&["ask", "p-1", "ping"])
        .exits(1)
        .says(&["is paused"]);
    let _ = home.brood(&["resume", "p-1"]).ok();
    until_parked(&home, "p-1");
    let to = home.named("to");
    let counter = whole(&home.ask("p-1", "ping")["counter"]);
    until_parked(&home, "p-1");
    let _ = home.brood(&["suspend", "p-1", &to.path]).ok();
    let report = home.restore(&to, 2, "q");
    assert_eq!(report["guests"][0]["counter"], counter + 1);
    assert_eq!(home.peek("q-2", 0x20_0000), 5);
    // A suspend that fails leaves it as it was.
    until_parked(&home, "p-2");
    let _ = home
        .brood(&["suspend", "p-2", &to.path])
        .exits(1)
        .says(&["exists"]);
    let _ = home.ask("p-2", "ping");
    until_parked(&home, "p-3");
    let _ = home
        .brood(&["ask", "p-3", "crash"])
        .exits(1)
        .says(&["triple fault"]);
    assert_eq!(home.converges(), ["p-2", "q-1", "q-2"]);
    assert_eq!(sha256(&demo.ckp()), digest);
}

#[test]
fn a_guest_is_paused_also_while_it_parks() {
    const ROUNDS: u32 = 400;
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    restore(&home, &demo, 1, "p");
    let daemon = Daemon::start(&home);
    let mut random = Random::seeded();
    for round in 0..ROUNDS {
        let request = json!({ "request": ["poke", "0x200000", round.to_string()] });
        daemon.post("/api/v1/guests/p-1/ask", &request, 200);
        // It gives its virtual machine back in one of the next moments.
        std::thread::sleep(Duration::from_micros(random.below(2000)));
        let paused = daemon.send(Method::POST, "/api/v1/guests/p-1/pause", 200);
        assert_eq!(paused["state"], "paused", "round {round}");
        daemon.send(Method::POST, "/api/v1/guests/p-1/resume", 200);
    }
    assert_eq!(home.peek("p-1", 0x20_0000), u64::from(ROUNDS) - 1);
}

#[test]
fn a_parked_guest_does_not_wake_on_a_changed_checkpoint() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    restore(&home, &demo, 2, "p");
    until_parked(&home, "p-1");
    File::options()
        .write(true)
        .open(demo.ckp())
        .unwrap()
        .set_len(0)
        .unwrap();
    for guest in ["p-1", "p-2"] {
        let _ = home
            .brood(&["ask", guest, "peek 0x200000"])
            .exits(1)
            .says(&["checkpoint was changed"]);
        assert!(text(&home.json(&["show", guest])["reason"]).contains("checkpoint was changed"));
    }
}

#[test]
fn guests_park_only_when_they_were_told_to() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 1, "awake");
    restore(&home, &demo, 1, "parks");
    until("it to park", || {
        until_parked(&home, "parks-1");
        let is = parked(home.pid("parks-1"));
        let _ = home.ask("parks-1", "ping");
        is.then_some(())
    });
    assert!(!parked(home.pid("awake-1")));
}
