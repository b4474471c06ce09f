//! Several nurseries of one session, one after the other: none gets in the way of guests, of
//! another nursery, or of the session's end.

use brood_tests::{Daemon, Demo, Home, Proc, Running, signal, text, until, whole};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;

/// Guests that a nursery forks before the next one is started; it forks as many meanwhile.
const SHARE: (&str, &str) = ("BROOD_NURSERY_SHARE", "4");
/// The descriptor on which spares reach the manager.
const SOCKET: u64 = 3;

/// A restore of 40 guests by several nurseries, begun.
fn begun(home: &Home, demo: &Demo) -> Running {
    let mut command = home.command(&["restore", &demo.path, "-n", "40", "--prefix", "k"]);
    command.env(SHARE.0, SHARE.1);
    Running::start(command)
}

/// A daemon with a pool of 30 hot guests, which several nurseries forked.
fn pool_of_30() -> Option<(Home, Daemon)> {
    let home = Home::with_kvm()?;
    let demo = home.demo("demo", "4M");
    let daemon = Daemon::with_environment(&home, &[SHARE]);
    let pool = json!({ "name": "p", "checkpoint": demo.path, "hot": 30 });
    daemon.post("/api/v1/pools", &pool, 201);
    until_hot(&daemon, 30);
    assert!(home.nurseries().len() >= 3, "{:?}", home.nurseries());
    Some((home, daemon))
}

fn until_hot(daemon: &Daemon, hot: u64) {
    until(&format!("{hot} hot guests"), || {
        let entries = daemon.get("/api/v1/pools/p")["entries"].clone();
        (whole(&entries["hot"]) == hot).then_some(())
    });
}

fn want(daemon: &Daemon, hot: u64) {
    let body = json!({ "hot": hot });
    let changed = daemon.request(Method::PATCH, "/api/v1/pools/p").json(&body);
    assert_eq!(changed.send().expect("an answer").status(), 200);
}

fn parent(process: &Proc) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap_or_default();
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let parent = after.split_whitespace().nth(1);
    parent.and_then(|parent| parent.parse().ok()).unwrap_or(0)
}

/// Parents of the processes that wait for an order.
fn parents_of_spares(home: &Home) -> Vec<i32> {
    let waits = format!("{} {SOCKET:#x} ", nix::libc::SYS_recvfrom);
    let is_spare = |process: &&Proc| {
        let call = std::fs::read_to_string(format!("/proc/{}/syscall", process.pid));
        call.is_ok_and(|call| call.starts_with(&waits))
    };
    home.guests().iter().filter(is_spare).map(parent).collect()
}

fn until_no_nursery(home: &Home) {
    until("the nurseries' end", || {
        home.nurseries().is_empty().then_some(())
    });
}

#[test]
fn each_nursery_forks_its_share_and_records_how_its_guests_end() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    assert_eq!(begun(&home, &demo).wait().code(), Some(0));
    // One that was started and never took over ends with the command, and so do spares.
    let nurseries = until("only guests, and a nursery of each", || {
        let guests = home.guests();
        let parents: Vec<i32> = guests.iter().map(parent).collect();
        let nurseries: Vec<i32> = home.nurseries().iter().map(|n| n.pid).collect();
        let have_guests = nurseries.iter().all(|pid| parents.contains(pid));
        (guests.len() == 40 && have_guests).then_some(nurseries)
    });
    assert!(nurseries.len() >= 4, "{nurseries:?}");
    let guests = home.guests();
    for nursery in &nurseries {
        let of_it: Vec<&Proc> = guests.iter().filter(|g| parent(g) == *nursery).collect();
        // Beside its share those that it forked while the next one started.
        assert!(of_it.len() <= 8, "{} of 40", of_it.len());
        signal(of_it[0].pid, Signal::SIGKILL);
    }
    let dead = until("the reasons of their ends", || {
        let dead = home.names("dead");
        (dead.len() == nurseries.len()).then_some(dead)
    });
    for name in dead {
        until("the reason of its end", || {
            let reason = home.json(&["show", &name])["reason"].clone();
            text(&reason).contains("SIGKILL").then_some(())
        });
    }
    home.destroy_all();
    until_no_nursery(&home);
}

#[test]
fn a_former_nursery_has_no_spares_and_ends_with_its_last_guest() {
    let Some((home, daemon)) = pool_of_30() else {
        return;
    };
    // The one that takes orders, and the one after it if that was started.
    let with_spares = until("spares of two nurseries at most", || {
        let mut parents = parents_of_spares(&home);
        parents.sort_unstable();
        let whole = !parents.is_empty() && parents.len().is_multiple_of(3);
        parents.dedup();
        (whole && parents.len() <= 2).then_some(parents)
    });
    // One that starts only now has three spares at most.
    let guests = home.guests();
    let is_former = |pid: &i32| {
        !with_spares.contains(pid) && guests.iter().filter(|g| parent(g) == *pid).count() > 3
    };
    let former: Vec<i32> = home.nurseries().iter().map(|n| n.pid).collect();
    let former: Vec<i32> = former.into_iter().filter(is_former).collect();
    assert!(!former.is_empty());
    for guest in &guests {
        if former.contains(&parent(guest)) {
            signal(guest.pid, Signal::SIGKILL);
        }
    }
    until("the former nurseries' end", || {
        let all = home.nurseries();
        let stay = |n: &Proc| former.contains(&n.pid);
        (!all.iter().any(stay)).then_some(())
    });
    until_hot(&daemon, 30);
    daemon.send(Method::DELETE, "/api/v1/pools/p", 204);
    until_no_nursery(&home);
}

#[test]
fn guests_and_the_session_outlive_the_end_of_any_nursery() {
    let Some((home, daemon)) = pool_of_30() else {
        return;
    };
    let mut hot = 30;
    for _ in 0..2 {
        for nursery in home.nurseries() {
            signal(nursery.pid, Signal::SIGKILL);
            hot += 1;
            want(&daemon, hot);
            until_hot(&daemon, hot);
        }
    }
    let listed = home.list();
    assert_eq!(listed.len() as u64, hot);
    assert!(listed.iter().all(|guest| guest["state"] == "paused"));
    daemon.send(Method::DELETE, "/api/v1/pools/p", 204);
    until_no_nursery(&home);
}

#[test]
fn what_a_killed_manager_of_several_nurseries_leaves_is_found() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let manager = begun(&home, &demo);
    until("the second nursery", || {
        (home.nurseries().len() > 1).then_some(())
    });
    manager.signal(Signal::SIGKILL);
    let _ = manager.wait();
    let standing = home.converges();
    assert!(!standing.is_empty() && standing.len() <= 40);
    assert!(home.names("dead").is_empty());
    home.destroy_all();
    until_no_nursery(&home);
}

#[test]
fn a_nursery_killed_during_a_restore_costs_no_guest() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let manager = begun(&home, &demo);
    let nurseries = until("the second nursery", || {
        let nurseries = home.nurseries();
        (nurseries.len() > 1).then_some(nurseries)
    });
    for nursery in &nurseries[..2] {
        signal(nursery.pid, Signal::SIGKILL);
    }
    assert_eq!(manager.wait().code(), Some(0));
    assert_eq!(home.converges().len(), 40);
    home.destroy_all();
    until_no_nursery(&home);
}

#[test]
fn an_unused_session_ends_with_all_its_nurseries() {
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::with_environment(&home, &[SHARE]);
    daemon.restore(20, "g");
    assert!(home.nurseries().len() >= 2);
    // Nurseries stay for their guests, and no spare stays for orders.
    until("the spares' end", || {
        parents_of_spares(&home).is_empty().then_some(())
    });
    assert_eq!(home.names("running").len(), 20);
    assert!(home.nurseries().len() >= 2);
    daemon.send(Method::DELETE, "/api/v1/guests?all=true&force=true", 200);
    until_no_nursery(&home);
}

/// Nurseries that take orders at once, where the host's cores would not say so.
const THREE: (&str, &str) = ("BROOD_NURSERIES", "3");

/// How many of these guests each nursery forked.
fn forked(home: &Home) -> Vec<usize> {
    let guests = home.guests();
    let of = |nursery: &Proc| guests.iter().filter(|g| parent(g) == nursery.pid).count();
    home.nurseries().iter().map(of).collect()
}

#[test]
fn orders_are_shared_out_among_nurseries_when_many_are_under_way() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let restore = |at_once: &str, prefix: &str| {
        let args = [
            "restore", &demo.path, "-n", "300", "-c", at_once, "--prefix", prefix,
        ];
        let mut command = home.command(&args);
        command.env(THREE.0, THREE.1);
        assert_eq!(Running::start(command).wait().code(), Some(0));
        until("only guests and their parents", || {
            let forked = forked(&home);
            (forked.iter().sum::<usize>() == 300 && !forked.contains(&0)).then_some(forked)
        })
    };
    assert_eq!(restore("1", "one").len(), 1);
    home.destroy_all();
    until_no_nursery(&home);
    // The second comes after 128 guests, the third after 256.
    let forked = restore("8", "eight");
    assert_eq!(forked.len(), 3, "{forked:?}");
    home.destroy_all();
    until_no_nursery(&home);
}

#[test]
fn a_session_that_rests_has_spares_of_one_nursery() {
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::with_environment(&home, &[THREE, ("BROOD_NURSERY_SHARE", "16")]);
    let body = json!({ "checkpoint": "demo", "guests": 60, "concurrency": 8, "prefix": "g" });
    for _ in 0..2 {
        daemon.post("/api/v1/guests", &body, 201);
        until("spares of one nursery", || {
            let mut parents = parents_of_spares(&home);
            let spares = parents.len();
            parents.dedup();
            (spares == 3 && parents.len() == 1).then_some(())
        });
    }
    assert_eq!(home.names("running").len(), 120);
    daemon.send(Method::DELETE, "/api/v1/guests?all=true&force=true", 200);
    until_no_nursery(&home);
}

#[test]
fn any_of_several_nurseries_at_work_can_be_killed() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    for which in 0..3 {
        let mut command = home.command(&["restore", &demo.path, "-n", "120", "-c", "12"]);
        command.envs([THREE, ("BROOD_NURSERY_SHARE", "16")]);
        let manager = Running::start(command);
        let nurseries = until("three nurseries", || {
            let nurseries = home.nurseries();
            (nurseries.len() >= 3).then_some(nurseries)
        });
        signal(nurseries[which].pid, Signal::SIGKILL);
        assert_eq!(manager.wait().code(), Some(0));
        assert_eq!(home.converges().len(), 120);
        assert!(home.names("dead").is_empty());
        home.destroy_all();
        until_no_nursery(&home);
    }
}
