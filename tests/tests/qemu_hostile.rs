//! Linux guests whose agent means harm: only that guest suffers.

use std::time::{Duration, Instant};

use brood_tests::{
    Daemon, Home, array,
    linux_agent::{GUEST_PROGRAM, put_guest_program, said},
    text, until, whole,
};
use serde_json::json;

const MANNERS: [&str; 8] = [
    "garbage", "endless", "deaf", "silent", "wrong", "lengths", "flood", "halves",
];
/// How long one who asks such a guest waits for it.
const LIMIT: &str = "5";
/// How long anything may take that has to do with other guests, on a machine that is busy.
const IN_TIME: Duration = Duration::from_secs(30);
/// How much memory a daemon may come to need for such guests.
const MEMORY: u64 = 64 << 20;

/// Memory of the daemon.
fn memory(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line.unwrap().trim_end_matches("kB").trim().parse().unwrap();
    kib << 10
}

/// Puts an agent of this manner in the place of the guest's own.
fn arm(home: &Home, guest: &str, manner: &str) {
    let agent = home.agent(guest);
    let line = format!(
        "printf '#!/bin/sh\\nexec {GUEST_PROGRAM} agent {manner} /dev/virtio-ports/brood.agent\\n' \
         >/sbin/agent.new; chmod +x /sbin/agent.new; mv /sbin/agent.new /sbin/brood-agent; \
         (sleep 0.3; killall -9 brood-agent) </dev/null >/dev/null 2>&1 &"
    );
    let _ = said(&agent, &line);
    drop(agent);
}

#[test]
fn only_the_guest_of_a_hostile_agent_suffers() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    // One guest takes the program; the others are its clones.
    home.restore(&linux, 1, "seed");
    let seed = home.agent("seed-1");
    if put_guest_program(&seed).is_none() {
        return;
    }
    drop(seed);
    let armed = home.named("armed");
    let _ = home.brood(&["suspend", "seed-1", &armed.path]).ok();
    home.restore(&armed, MANNERS.len(), "bad");
    home.restore(&armed, 1, "good");
    let daemon = Daemon::start(&home);
    let pool = json!({ "name": "p", "checkpoint": armed.path, "hot": 1, "lease_s": 3600 });
    daemon.post("/api/v1/pools", &pool, 201);
    let hot = || {
        until("the pool to be full", || {
            let shown = daemon.get("/api/v1/pools/p");
            (whole(&shown["entries"]["hot"]) == 1).then_some(())
        });
    };
    hot();
    let bad = |number: usize| format!("bad-{}", number + 1);
    for (number, manner) in MANNERS.iter().enumerate() {
        arm(&home, &bad(number), manner);
    }
    std::thread::sleep(Duration::from_secs(2));
    let before = memory(&daemon);
    for round in 0..2 {
        let asking = MANNERS.iter().enumerate().map(|(number, _)| {
            let guest = bad(number);
            let mut words = vec!["ask", "--timeout", LIMIT, &guest];
            match round {
                0 => words.push("ping"),
                _ => words.extend(["--", "exec", "cat", "/etc/passwd"]),
            }
            home.start(&words)
        });
        let asking: Vec<_> = asking.collect();
        let in_time = |what: &str, act: &dyn Fn()| {
            let began = Instant::now();
            act();
            let took = began.elapsed();
            assert!(took < IN_TIME, "{what} took {took:?}");
        };
        in_time("a good guest's answer", &|| {
            let said = home.ask("good-1", "exec echo fine");
            assert_eq!(said["output"], "fine\n");
        });
        in_time("a list", &|| {
            assert_eq!(home.names("running").len(), MANNERS.len() + 1);
        });
        in_time("a claim and the pool's next guest", &|| {
            let claim = daemon.post("/api/v1/pools/p/claims", &json!({}), 201);
            let ended = format!("/api/v1/claims/{}", text(&claim["token"]));
            let _ = daemon.send(reqwest::Method::DELETE, &ended, 204);
            hot();
        });
        for (ran, manner) in asking.into_iter().zip(MANNERS) {
            let ran = ran.wait();
            assert_eq!(ran.code(), Some(1), "{manner}: {ran:?}");
            assert!(!ran.stderr.is_empty(), "{manner}: {ran:?}");
        }
    }
    let grown = memory(&daemon).saturating_sub(before);
    assert!(grown < MEMORY, "the daemon grew by {grown} bytes");
    // They are guests as others are to whoever ends them.
    for number in 0..MANNERS.len() {
        let _ = home.brood(&["destroy", &bad(number)]).ok();
    }
    let left = home.list();
    let names: Vec<&str> = left.iter().map(|guest| text(&guest["name"])).collect();
    assert!(names.contains(&"good-1"), "{names:?}");
    daemon.send(reqwest::Method::DELETE, "/api/v1/pools/p?force=true", 204);
    assert_eq!(array(&daemon.get("/api/v1/guests")).len(), 1);
}
