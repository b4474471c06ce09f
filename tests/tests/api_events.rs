//! Event stream: what a listener receives, and that a listener that was disconnected misses
//! nothing.

use brood_tests::{Daemon, Home, array, text, until};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;

fn release(daemon: &Daemon, claimed: &serde_json::Value) {
    let token = format!("/api/v1/claims/{}", text(&claimed["token"]));
    let _ = daemon.send(Method::DELETE, &token, 204);
}

#[test]
fn a_listener_that_was_cut_off_is_told_what_it_has_missed() {
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    let mut events = daemon.events();
    let _ = events.next("pools");
    assert_eq!(events.retry, Some(2000));
    daemon.restore(1, "a");
    let _ = events.find("guest", |event| event["guest"]["name"] == "a-1");
    let last = events.id.clone();
    drop(events);
    daemon.restore(1, "b");
    until("the guest to have been told of", || {
        let mut events = daemon.events_of("", Some(&last));
        let (kind, _) = events.read()?;
        // No event comes twice.
        assert_ne!(kind, "guests");
        Some(())
    });
    let mut events = daemon.events_of("?types=guest", Some(&last));
    let event = events.find("guest", |event| event["change"] == "restored");
    assert_eq!(event["guest"]["name"], "b-1");
    // With an id of another daemon, or none at all, the stream starts with everything.
    daemon.signal(Signal::SIGTERM);
    let last = events.id.clone();
    let _ = daemon.wait().ok();
    let daemon = Daemon::start(&home);
    for id in [last.as_str(), "nonsense"] {
        let mut events = daemon.events_of("", Some(id));
        let (kind, guests) = events.read().unwrap();
        assert_eq!((kind.as_str(), array(&guests).len()), ("guests", 2));
    }
}

#[test]
fn claims_that_are_over_are_told_of_with_the_reason() {
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    for pool in ["web", "api"] {
        let new = json!({ "name": pool, "checkpoint": "demo", "hot": 1 });
        let _ = daemon.post("/api/v1/pools", &new, 201);
        let _ = daemon.send(Method::POST, &format!("/api/v1/pools/{pool}/fill"), 200);
    }
    let mut events = daemon.events_of("?types=claim,release,pools&pool=web", None);
    let pools = events.next("pools");
    assert_eq!((array(&pools).len(), &pools[0]["name"]), (1, &"web".into()));
    let claim = |pool: &str, lease_s: u32| {
        let path = format!("/api/v1/pools/{pool}/claims");
        daemon.post(&path, &json!({ "lease_s": lease_s }), 201)
    };
    // What is not asked for is not told.
    let other = claim("api", 300);
    let first = claim("web", 300);
    assert_eq!(events.next("claim")["guest"], first["guest"]);
    // The watcher has seen the claim when it reported the pool.
    let _ = events.find("pools", |pools| pools[0]["entries"]["claimed"] == 1);
    release(&daemon, &other);
    release(&daemon, &first);
    let event = events.next("release");
    assert_eq!(
        event,
        json!({ "pool": "web", "guest": first["guest"], "reason": "released" })
    );
    let second = claim("web", 3);
    let event = events.next("release");
    let over = json!({ "pool": "web", "guest": second["guest"], "reason": "lease-over" });
    assert_eq!(event, over);
    // A suspended claim is not over.
    let third = claim("web", 300);
    let _ = events.find("pools", |pools| pools[0]["entries"]["claimed"] == 1);
    let token = format!("/api/v1/claims/{}", text(&third["token"]));
    let _ = daemon.send(Method::POST, &format!("{token}/suspend"), 200);
    let _ = events.find("pools", |pools| pools[0]["entries"]["suspended"] == 1);
    let _ = daemon.send(Method::DELETE, &token, 204);
    let fourth = claim("web", 300);
    let _ = events.find("pools", |pools| pools[0]["entries"]["claimed"] == 1);
    let _ = home
        .brood(&["--no-daemon", "pool", "release", text(&fourth["token"])])
        .ok();
    assert_eq!(events.next("release")["guest"], fourth["guest"]);
    let problem = daemon.send(Method::GET, "/api/v1/events?types=claims", 400);
    assert!(text(&problem["hint"]).contains("release"), "{problem}");
    for pool in ["web", "api"] {
        let _ = daemon.send(
            Method::DELETE,
            &format!("/api/v1/pools/{pool}?force=true"),
            204,
        );
    }
}
