//! Wall clock that jumps by years under a daemon: leases keep their length. The host's clock is
//! left alone: libfaketime sets the one that the daemon sees.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use brood_tests::{Daemon, Home, skip, text, until, whole};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

/// Where Debian has it.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// The wall clock of a daemon.
struct Clock {
    file: PathBuf,
}

impl Clock {
    fn set(&self, offset: &str) {
        let new = self.file.with_extension("new");
        fs::write(&new, offset).unwrap();
        fs::rename(new, &self.file).unwrap();
    }
}

fn daemon_with_a_clock(home: &Home) -> Option<(Daemon, Clock)> {
    if !Path::new(LIBRARY).exists() {
        skip("no libfaketime");
        return None;
    }
    let clock = Clock {
        file: home.path().join("clock"),
    };
    clock.set("+0");
    let file = clock.file.to_str().expect("plain letters").to_owned();
    let daemon = Daemon::with_environment(
        home,
        &[
            ("LD_PRELOAD", LIBRARY),
            ("FAKETIME_TIMESTAMP_FILE", &file),
            ("FAKETIME_NO_CACHE", "1"),
            // Only the wall clock: the others cannot be set.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ],
    );
    Some((daemon, clock))
}

/// The year of the daemon's log, as a proof that its clock was set.
fn year_of_a_new_pool(daemon: &Daemon, checkpoint: &str, name: &str) -> i64 {
    let pool = json!({ "name": name, "checkpoint": checkpoint, "hot": 0 });
    let made = daemon.post("/api/v1/pools", &pool, 201);
    daemon.send(Method::DELETE, &format!("/api/v1/pools/{name}"), 204);
    text(&made["created_at"])[..4].parse().expect("a year")
}

#[test]
fn leases_do_not_care_what_the_wall_clock_says() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let Some((daemon, clock)) = daemon_with_a_clock(&home) else {
        return;
    };
    let pool = json!({ "name": "p", "checkpoint": demo.path, "hot": 1, "lease_s": 3600 });
    daemon.post("/api/v1/pools", &pool, 201);
    let claim = |lease_s: u64| {
        let begin = Instant::now();
        let body = json!({ "lease_s": lease_s });
        let claim = daemon.post("/api/v1/pools/p/claims", &body, 201);
        (
            begin,
            text(&claim["token"]).to_owned(),
            text(&claim["guest"]).to_owned(),
        )
    };
    let now = year_of_a_new_pool(&daemon, &demo.path, "now");
    let (_, long, guest) = claim(1000);
    for (offset, years) in [("+10y", 10), ("-10y", -10), ("+0", 0)] {
        let (begin, _, short) = claim(3);
        clock.set(offset);
        let there = year_of_a_new_pool(&daemon, &demo.path, "then");
        assert!((there - now - years).abs() <= 1, "the clock says {there}");
        // The long one is there, with what is left of it.
        let left = |guest: &str| -> Option<u64> {
            let shown = daemon.get("/api/v1/pools/p");
            let claims: Vec<Value> = shown["claims"].as_array().expect("claims").clone();
            let found = claims.into_iter().find(|claim| claim["guest"] == *guest)?;
            Some(whole(&found["lease_left_s"]))
        };
        let of_long = left(&guest).expect("the long lease is not over");
        assert!(
            (900..=1000).contains(&of_long),
            "{of_long} s are left of it"
        );
        // The short one ends when its time is over, and not before.
        until("the short lease to be over", || match left(&short) {
            Some(_) => None,
            None => Some(()),
        });
        assert!(
            begin.elapsed() >= Duration::from_secs(3),
            "its lease ended early"
        );
        let renew = json!({ "lease_s": 1000 });
        daemon.put(&format!("/api/v1/claims/{long}"), &renew, 200);
        assert_eq!(daemon.get("/api/v1/pools/p")["hot"], 1);
    }
    // A suspended claim knows no time at all.
    daemon.send(Method::POST, &format!("/api/v1/claims/{long}/suspend"), 200);
    clock.set("+20y");
    daemon.post(&format!("/api/v1/claims/{long}/resume"), &json!({}), 200);
    daemon.send(Method::DELETE, &format!("/api/v1/claims/{long}"), 204);
    daemon.send(Method::DELETE, "/api/v1/pools/p?force=true", 204);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
}
