//! Policy of a pool: every process that fills it or claims from it keeps its limits, and waiting
//! claimers are served in the order in which they came.

use std::{sync::Mutex, thread, time::Instant};

use brood_tests::{
    Daemon, Demo, EngineKind, Home, Running, array, by_engine, on_both_engines, signal, text,
    until, whole,
};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

on_both_engines! {
    its_entries_may_hold_so_much_memory_and_no_more,
    it_is_filled_when_few_are_left_and_not_before,
    a_guest_that_has_waited_too_long_is_replaced,
    the_daemon_restores_no_more_in_a_second_than_it_may,
    who_waits_longest_is_served_first,
    the_daemon_keeps_the_order_too,
}

/// A home with a pool `p` of guests that may have 1 MiB each.
fn pool(on: EngineKind, args: &[&str]) -> Option<(Home, Demo)> {
    let home = Home::on(on)?;
    let demo = home.demo("demo", "4M");
    let mut command = vec!["pool", "create", "p", &demo.path];
    command.extend(args);
    let _ = home.brood(&command).ok();
    Some((home, demo))
}

fn show(home: &Home) -> Value {
    home.json(&["pool", "show", "p"])
}

fn entries(home: &Home, state: &str) -> u64 {
    whole(&show(home)["entries"][state])
}

fn claim(home: &Home) -> Value {
    home.json(&["pool", "claim", "p"])
}

fn release(home: &Home, claimed: &Value) {
    let _ = home
        .brood(&["pool", "release", text(&claimed["token"])])
        .ok();
}

fn its_entries_may_hold_so_much_memory_and_no_more(on: EngineKind) {
    // Each counts with its 16 MiB and with what it costs besides: less than 2 MiB, and a bhyve with
    // its boot ROM 7.2.
    let (three, four) = by_engine(on, (54, 72), (72, 96));
    let (most, more) = (format!("{three}M"), format!("{four}M"));
    let limits = [
        "--private-limit",
        "16M",
        "--max-memory",
        &most,
        "--hot",
        "2",
        "--empty",
    ];
    let Some((home, _)) = pool(on, &limits) else {
        return;
    };
    let held: Vec<Value> = (0..3).map(|_| claim(&home)).collect();
    assert_eq!((entries(&home, "claimed"), entries(&home, "hot")), (3, 0));
    let _ = home
        .brood(&["pool", "claim", "p"])
        .exits(4)
        .says(&["takes no more entries", "--max-memory"]);
    let filled = home.brood(&["pool", "fill", "p"]).exits(1);
    assert!(
        filled.stdout.contains("2 are missing")
            && filled.stdout.contains(&format!("{three} MiB in all")),
        "{}",
        filled.stdout
    );

    // A limit can be widened, and taken away.
    let _ = home
        .brood(&["pool", "set", "p", "--max-memory", &more])
        .exits(3);
    assert_eq!(entries(&home, "hot"), 1);
    let set = home.json(&["pool", "set", "p", "--max-memory", "none"]);
    assert_eq!(
        (&set["max_memory"], &set["missing"]),
        (&Value::Null, &0.into())
    );
    for claimed in &held {
        release(&home, claimed);
    }
}

fn it_is_filled_when_few_are_left_and_not_before(on: EngineKind) {
    let Some((home, _)) = pool(on, &["--hot", "6", "--hot-min", "3"]) else {
        return;
    };
    let daemon = Daemon::start(&home);
    // The pool reconciler has looked at the pool after each of these.
    let mut held = Vec::new();
    for left in (3..6).rev() {
        held.push(claim(&home));
        kept(&daemon);
        assert_eq!(entries(&home, "hot"), left, "it has enough");
    }
    held.push(claim(&home));
    until("the pool to be filled", || {
        (entries(&home, "hot") == 6).then_some(())
    });
    for claimed in &held {
        release(&home, claimed);
    }
    end(daemon);
}

/// Waits until the daemon's pool reconciler has looked at all pools once more: a pool that is made now is
/// filled after those whose names come before.
fn kept(daemon: &Daemon) {
    let pool = |what: &str| format!("/api/v1/pools/{what}");
    let checkpoint = daemon.get(&pool("p"))["checkpoint"].clone();
    let new = json!({ "name": "z", "checkpoint": checkpoint, "hot": 1 });
    let _ = daemon.post("/api/v1/pools", &new, 201);
    until("the pool reconciler to come by", || {
        (daemon.get(&pool("z"))["entries"]["hot"] == 1).then_some(())
    });
    let _ = daemon.send(Method::DELETE, &pool("z"), 204);
}

fn a_guest_that_has_waited_too_long_is_replaced(on: EngineKind) {
    let Some((home, _)) = pool(on, &["--hot", "3", "--max-age", "3600"]) else {
        return;
    };
    let fill = || home.json(&["pool", "fill", "p"]);
    assert_eq!(fill()["reconciled"]["evicted"], 0);
    let young = array(&show(&home)["hot_guests"]).len();
    let ids = |home: &Home| -> Vec<String> {
        let guests = home.json(&["list"]);
        array(&guests)
            .iter()
            .map(|g| text(&g["id"]).to_owned())
            .collect()
    };
    let before = ids(&home);
    let _ = home.brood(&["pool", "set", "p", "--max-age", "1"]).ok();
    // One at a time, so that there are others meanwhile.
    until("all of them to be replaced", || {
        let filled = fill();
        assert!(whole(&filled["reconciled"]["evicted"]) <= 1, "{filled}");
        let hot = array(&show(&home)["hot_guests"]).len();
        assert_eq!(hot, young, "as many as before");
        ids(&home)
            .iter()
            .all(|id| !before.contains(id))
            .then_some(())
    });
}

fn the_daemon_restores_no_more_in_a_second_than_it_may(on: EngineKind) {
    let Some((home, _)) = pool(on, &["--hot", "6", "--empty", "--refill-rate", "2"]) else {
        return;
    };
    let begin = Instant::now();
    let daemon = Daemon::start(&home);
    until("the pool to be filled", || {
        let hot = entries(&home, "hot");
        let allowed = 2.0 + 2.0 * begin.elapsed().as_secs_f64();
        assert!(
            f64::from(u32::try_from(hot).unwrap()) <= allowed,
            "{hot} after {:?}",
            begin.elapsed()
        );
        (hot == 6).then_some(())
    });
    assert!(begin.elapsed().as_secs_f64() > 1.0, "{:?}", begin.elapsed());
    end(daemon);
}

fn who_waits_longest_is_served_first(on: EngineKind) {
    let Some((home, _)) = pool(on, &["--hot", "1", "--max", "1"]) else {
        return;
    };
    let held = claim(&home);
    let wait = |home: &Home| home.start(&["pool", "claim", "p", "--wait", "60", "--json"]);
    let in_line = |n: u64| {
        until("somebody to stand in line", || {
            let refused = home.brood(&["pool", "claim", "p"]).exits(4);
            refused
                .stderr
                .contains(&format!("{n} others wait"))
                .then_some(())
        });
    };
    let mut waiters: Vec<Running> = Vec::new();
    for n in 1..=4 {
        waiters.push(wait(&home));
        in_line(n);
    }
    // One that is killed has no place any more.
    let killed = waiters.remove(1);
    signal(killed.pid(), Signal::SIGKILL);
    drop(killed);
    in_line(3);
    // Nor has one whose time is over.
    let _ = home
        .brood(&["pool", "claim", "p", "--wait", "1"])
        .exits(4)
        .says(&["3 others wait"]);
    release(&home, &held);
    for waiter in waiters {
        let claimed = waiter.wait().ok().json();
        release(&home, &claimed);
    }
}

/// Ends a daemon, and with it its nurseries.
fn end(daemon: Daemon) {
    daemon.signal(Signal::SIGTERM);
    let _ = daemon.wait().ok();
}

fn give_back(daemon: &Daemon, claimed: &Value) {
    let path = format!("/api/v1/claims/{}", text(&claimed["token"]));
    let _ = daemon.send(Method::DELETE, &path, 204);
}

fn the_daemon_keeps_the_order_too(on: EngineKind) {
    let Some((home, _)) = pool(on, &["--hot", "1", "--max", "1"]) else {
        return;
    };
    let daemon = Daemon::start(&home);
    let first = daemon.post("/api/v1/pools/p/claims", &json!({}), 201);
    let order = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for n in 0..3_u64 {
            let (daemon, order) = (&daemon, &order);
            scope.spawn(move || {
                let claimed = daemon.post("/api/v1/pools/p/claims", &json!({ "wait_s": 60 }), 201);
                order.lock().unwrap().push(n);
                give_back(daemon, &claimed);
            });
            until("it to stand in line", || {
                let refused = home.brood(&["pool", "claim", "p"]).exits(4);
                refused
                    .stderr
                    .contains(&format!("{} others wait", n + 1))
                    .then_some(())
            });
        }
        give_back(&daemon, &first);
    });
    assert_eq!(*order.lock().unwrap(), [0, 1, 2]);
    end(daemon);
}
