//! Nursery and spares, killed or stopped at the moments that matter: no process waits for something
//! that will never come.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, ScopedJoinHandle},
};

use brood_tests::{
    Call, Daemon, Demo, Home, Proc, Running, Then, Tracer, processes_in, signal, until, whole,
};
use nix::{libc, sys::signal::Signal};
use reqwest::Method;
use serde_json::json;

/// The descriptor on which guests and spares reach the manager.
const SOCKET: u64 = 3;

/// A daemon with a pool of one hot guest, whose nursery stands by.
fn standing_by() -> Option<(Home, Daemon)> {
    let home = Home::with_kvm()?;
    let demo = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    let pool = json!({ "name": "p", "checkpoint": demo.path, "hot": 1 });
    daemon.post("/api/v1/pools", &pool, 201);
    until_hot(&daemon, 1);
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

/// Orders one guest after the other until it has happened what was waited for; returns how many
/// there should be.
fn order_until(daemon: &Daemon, happened: &AtomicBool) -> u64 {
    let happened = || happened.load(Ordering::Relaxed);
    for hot in 2.. {
        want(daemon, hot);
        until("a guest, or what should happen to it", || {
            let there = whole(&daemon.get("/api/v1/pools/p")["entries"]["hot"]) == hot;
            (there || happened()).then_some(())
        });
        if happened() {
            return hot;
        }
    }
    unreachable!("it happens or the test ends")
}

/// Traces spares; the first that makes such a call is killed or stopped at it, which is noted.
fn at_first(
    spares: &[i32],
    is_it: impl Fn(&Call) -> bool + Send + 'static,
    then: Then,
) -> (Tracer, Arc<AtomicBool>) {
    let happened = Arc::new(AtomicBool::new(false));
    let happens = Arc::clone(&happened);
    let tracer = Tracer::attach(spares, move |call| {
        if is_it(call) && !happens.swap(true, Ordering::Relaxed) {
            return then;
        }
        Then::GoOn
    });
    (tracer, happened)
}

/// Processes that wait for an order: they hold the socket, and are no guests yet.
fn spares(home: &Home) -> Vec<i32> {
    until("spares", || {
        let spares: Vec<i32> = home
            .guests()
            .iter()
            .filter(|guest| waits_for_an_order(guest))
            .map(|guest| guest.pid)
            .collect();
        (spares.len() == 3).then_some(spares)
    })
}

fn waits_for_an_order(process: &Proc) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{}/syscall", process.pid));
    let waits = format!("{} {SOCKET:#x} ", libc::SYS_recvfrom);
    call.is_ok_and(|call| call.starts_with(&waits))
}

#[test]
fn a_spare_killed_with_an_order_in_its_hands_is_missed_at_once() {
    let Some((home, daemon)) = standing_by() else {
        return;
    };
    let received =
        |call: &Call| call.number == libc::SYS_recvfrom && call.result.is_some_and(|n| n > 0);
    let (tracer, killed) = at_first(&spares(&home), received, Then::Kill);
    let hot = order_until(&daemon, &killed);
    until_hot(&daemon, hot);
    let at = tracer.end().expect("one was killed");
    assert!(home.guests().iter().all(|guest| guest.pid != at.pid));
    daemon.send(Method::DELETE, "/api/v1/pools/p", 204);
}

#[test]
fn the_end_of_a_nursery_is_noticed_though_a_stopped_guest_holds_its_socket() {
    let Some((home, daemon)) = standing_by() else {
        return;
    };
    let told = |call: &Call| {
        call.number == libc::SYS_sendto
            && call.arguments[0] == SOCKET
            && call.result.is_some_and(|n| n > 0)
    };
    let (tracer, stopped) = at_first(&spares(&home), told, Then::Stop);
    let hot = order_until(&daemon, &stopped);
    until_hot(&daemon, hot);
    let guest = tracer.end().expect("a guest was stopped").pid;
    for nursery in home.nurseries() {
        signal(nursery.pid, Signal::SIGKILL);
    }
    let socket = std::fs::read_link(format!("/proc/{guest}/fd/{SOCKET}"));
    assert!(socket.is_ok(), "the guest does not hold the socket");
    want(&daemon, hot + 1);
    until_hot(&daemon, hot + 1);
    daemon.send(Method::DELETE, "/api/v1/pools/p", 204);
    until("its guest to be gone", || {
        home.guests().iter().all(|g| g.pid != guest).then_some(())
    });
}

#[test]
fn a_guest_that_outlives_its_nursery_untold_is_not_there_twice() {
    let Some((home, daemon)) = standing_by() else {
        return;
    };
    // It has its control socket and lives on without its nursery, but has not said so.
    let freed = |call: &Call| {
        call.number == libc::SYS_prctl
            && call.arguments[..2] == [libc::PR_SET_PDEATHSIG as u64, 0]
            && call.result == Some(0)
    };
    let spares = spares(&home);
    let (tracer, stopped) = at_first(&spares, freed, Then::Stop);
    let hot = order_until(&daemon, &stopped);
    let guest = until("the guest to be stopped", || {
        let mut guests = home.guests().into_iter();
        guests.find(|guest| guest.stopped() && spares.contains(&guest.pid))
    });
    for nursery in home.nurseries() {
        signal(nursery.pid, Signal::SIGKILL);
    }
    until_hot(&daemon, hot);
    let _ = tracer.end();
    until("it to be gone", || {
        let mut guests = home.guests().into_iter();
        guests.all(|g| g.pid != guest.pid).then_some(())
    });
    assert_eq!(home.list().len() as u64, hot);
    daemon.send(Method::DELETE, "/api/v1/pools/p", 204);
}

#[test]
fn whoever_looks_at_a_pool_does_not_take_its_nursery() {
    let Some((home, daemon)) = standing_by() else {
        return;
    };
    let stood = home.nurseries();
    thread::scope(|scope| {
        let look = || (0..300).for_each(|_| drop(daemon.get("/api/v1/pools")));
        let looking = [(); 3].map(|()| scope.spawn(look));
        for hot in (2..40).take_while(|_| !looking.iter().all(ScopedJoinHandle::is_finished)) {
            want(&daemon, hot);
            until_hot(&daemon, hot);
        }
    });
    let pids = |nurseries: Vec<Proc>| nurseries.iter().map(|n| n.pid).collect::<Vec<_>>();
    let stood = pids(stood);
    assert_eq!(stood.len(), 1);
    assert_eq!(pids(home.nurseries()), stood);
    daemon.send(Method::DELETE, "/api/v1/pools/p", 204);
}

#[test]
fn restores_one_after_the_other_share_a_nursery_which_ends_when_there_are_no_more() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    let restore = json!({ "checkpoint": demo.path, "guests": 2 });
    let mut stood = Vec::new();
    for _ in 0..3 {
        daemon.post("/api/v1/guests", &restore, 201);
        stood.extend(home.nurseries().iter().map(|nursery| nursery.pid));
    }
    assert_eq!(stood, [stood[0]; 3]);
    daemon.send(Method::DELETE, "/api/v1/guests?all=true&force=true", 200);
    until("the nursery's end", || {
        home.nurseries().is_empty().then_some(())
    });
}

/// Guests of a restore that is stopped.
const MANY: usize = 300;

/// A restore of many guests, whose nursery is stopped and whose manager is killed.
fn left_stopped(whom: fn(&Home) -> Vec<Proc>) -> Option<(Home, Demo)> {
    let home = Home::with_kvm()?;
    let demo = home.demo("demo", "4M");
    let many = MANY.to_string();
    let args = [
        "restore", &demo.path, "-n", &many, "-c", "1", "--prefix", "k",
    ];
    let manager: Running = home.start(&args);
    until("some guests to exist", || {
        (home.guests().len() >= 10).then_some(())
    });
    // It must not get to the end meanwhile: a nursery that was stopped after that stays so.
    manager.signal(Signal::SIGSTOP);
    until("them to stop", || {
        // One may have been forked before its nursery was stopped.
        for process in whom(&home) {
            signal(process.pid, Signal::SIGSTOP);
        }
        whom(&home).iter().all(Proc::stopped).then_some(())
    });
    manager.signal(Signal::SIGKILL);
    let _ = manager.wait();
    Some((home, demo))
}

#[test]
fn a_stopped_nursery_without_a_manager_goes_on_and_lets_its_guests_go() {
    let Some((home, _)) = left_stopped(Home::nurseries) else {
        return;
    };
    let standing = home.converges();
    assert!(standing.len() < MANY, "the restore was over before");
    assert!(home.names("dead").is_empty());
}

#[test]
fn what_a_killed_manager_left_stopped_can_be_destroyed() {
    let Some((home, _)) = left_stopped(|home| processes_in(&home.state())) else {
        return;
    };
    home.destroy_all();
}

#[test]
fn a_guest_that_died_of_a_request_is_seen_dead_by_whoever_made_it() {
    let Some(home) = Home::with_kvm() else {
        return;
    };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 1, "a");
    // It records the reason late.
    for nursery in home.nurseries() {
        signal(nursery.pid, Signal::SIGSTOP);
    }
    let _ = home.brood(&["ask", "a-1", "crash"]).exits(1);
    assert_eq!(home.names("dead"), ["a-1"]);
    for nursery in home.nurseries() {
        signal(nursery.pid, Signal::SIGCONT);
    }
    home.destroy_all();
}
