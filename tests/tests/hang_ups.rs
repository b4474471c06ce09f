//! Clients that disconnect: no call of the API waits on for a client that has gone, and many calls
//! of one kind hold up no others.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use brood_tests::{Daemon, Home, PATIENCE, array, signal, text, until, whole};
use nix::sys::signal::Signal;
use reqwest::{Method, blocking::RequestBuilder};
use serde_json::json;

/// Suspends of guests of one checkpoint that it has under way at once.
const OF_SUSPENDS: usize = 8;

/// Sends these requests at once, and disconnects after a while.
fn hang_up(requests: Vec<RequestBuilder>, after: Duration) {
    let clients: Vec<_> = requests
        .into_iter()
        .map(|request| thread::spawn(move || request.timeout(after).send()))
        .collect();
    for client in clients {
        let answer = client.join().expect("a client");
        assert!(answer.expect_err("no answer comes").is_timeout());
    }
}

/// Sockets that the daemon has open: of its clients, and of guests that it waits for.
fn sockets(daemon: &Daemon) -> usize {
    let files = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("it lives");
    let names = files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok());
    names
        .filter(|name| name.to_string_lossy().starts_with("socket:"))
        .count()
}

#[test]
fn whoever_hangs_up_is_waited_for_by_no_guest() {
    let Some(home) = Home::with_kvm() else { return };
    let _demo = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    daemon.restore(1, "g");
    let pid = home.pid("g-1");
    let ask = |words: &[&str]| {
        let asking = json!({ "request": words, "timeout_s": 3000.0 });
        let path = "/api/v1/guests/g-1/ask";
        daemon.request(Method::POST, path).json(&asking)
    };
    assert!(ask(&["ping"]).send().unwrap().status().is_success());
    let before = sockets(&daemon);
    // It takes hours.
    let long = ask(&["spin", "100000000000000"]);
    hang_up(vec![long], Duration::from_secs(1));
    // Fifty minutes before the time that the guest was given.
    until("the call to be over", || {
        (sockets(&daemon) <= before).then_some(())
    });
    signal(pid, Signal::SIGKILL);
}

#[test]
fn suspends_of_silent_guests_are_bounded_and_end_with_their_clients() {
    let Some(home) = Home::with_kvm() else { return };
    let _demo = home.demo("demo", "256M");
    let daemon = Daemon::start(&home);
    let guests = 2 * OF_SUSPENDS;
    let report = daemon.restore(guests as u64, "g");
    let pids: Vec<i32> = array(&report["guests"])
        .iter()
        .map(|guest| i32::try_from(whole(&guest["pid"])).unwrap())
        .collect();
    let before = names(&home);
    // A suspend lets its guest run on first: it is stopped again before it has written its memory.
    let silent = AtomicBool::new(true);
    let keep_silent = || {
        while silent.load(Ordering::Relaxed) {
            pids.iter().for_each(|pid| signal(*pid, Signal::SIGSTOP));
            thread::sleep(Duration::from_millis(1));
        }
    };
    let suspends: Vec<RequestBuilder> = (1..=guests)
        .map(|n| {
            let to = home.named(&format!("s{n}"));
            let path = format!("/api/v1/guests/g-{n}/suspend");
            daemon
                .request(Method::POST, &path)
                .json(&json!({ "checkpoint": to.path }))
        })
        .collect();
    let is_new = |name: &String| name.starts_with('.') && name.ends_with(".ckp.new");
    let under_way = || names(&home).iter().filter(|name| is_new(name)).count();
    thread::scope(|scope| {
        scope.spawn(keep_silent);
        let clients = scope.spawn(|| hang_up(suspends, Duration::from_secs(5)));
        until("as many as may be under way", || {
            (under_way() == OF_SUSPENDS).then_some(())
        });
        // Read-only requests are served, and no more than those calls run.
        while !clients.is_finished() {
            let begin = Instant::now();
            let listed = daemon.get("/api/v1/guests");
            assert_eq!(array(&listed).len(), guests);
            assert!(begin.elapsed() < PATIENCE / 4);
            assert!(under_way() <= OF_SUSPENDS, "{:?}", names(&home));
        }
        clients.join().expect("they hang up");
        until("the calls to be over", || {
            let metrics = daemon.request(Method::GET, "/metrics").send().ok()?;
            let text = metrics.text().ok()?;
            let alone = text.contains("brood_http_requests_in_flight 1\n");
            (alone && names(&home) == before).then_some(())
        });
        silent.store(false, Ordering::Relaxed);
    });
    for pid in pids {
        signal(pid, Signal::SIGCONT);
    }
    // Nothing was suspended.
    assert_eq!(names(&home), before);
    for n in 1..=guests {
        until("each to go on", || {
            let asking = json!({ "request": ["ping"] });
            let path = format!("/api/v1/guests/g-{n}/ask");
            let answer = daemon.request(Method::POST, &path).json(&asking).send();
            answer.ok()?.status().is_success().then_some(())
        });
    }
}

#[test]
fn a_checkpoint_whose_client_hangs_up_is_not_made() {
    let Some(home) = Home::with_kvm() else { return };
    let daemon = Daemon::start(&home);
    let before = names(&home);
    let large = home.named("large");
    let path = format!(
        "/api/v1/checkpoints/{}/demo",
        large.path.replace('/', "%2F")
    );
    let make = daemon
        .request(Method::POST, &path)
        .json(&json!({ "memory_bytes": 1_u64 << 30 }));
    hang_up(vec![make], Duration::from_millis(200));
    until("what was begun to be gone", || {
        (names(&home) == before).then_some(())
    });
    thread::sleep(Duration::from_millis(200));
    assert_eq!(names(&home), before, "it was gone on with");
}

fn names(home: &Home) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(home.checkpoints())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn whoever_waits_for_a_lock_can_be_ended_and_leaves_nothing() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let _ = home
        .brood(&["pool", "create", "p", &demo.path, "--hot", "2"])
        .ok();
    let token = text(&home.json(&["pool", "claim", "p"])["token"]).to_owned();
    let lock = home.state().join("locks/p.lock");
    let file = fs::File::options().append(true).open(&lock).unwrap();
    file.lock().unwrap();
    let commands: [&[&str]; 2] = [&["pool", "fill", "p"], &["pool", "remove", "p", "--force"]];
    for command in commands {
        for which in [Signal::SIGINT, Signal::SIGTERM] {
            let running = home.start(command);
            let pid = running.pid();
            // All that it does with the record before it has the lock is to look.
            until("it to wait", || {
                let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
                let mut names = files.filter_map(|file| fs::read_link(file.path()).ok());
                let is_record = |name: PathBuf| name.ends_with("brood.sqlite");
                names.any(is_record).then_some(())
            });
            let begin = Instant::now();
            running.signal(which);
            let ran = running.wait();
            let told = ran.code() == Some(130);
            assert!(told || ran.killed_by() == Some(which as i32), "{ran:?}");
            assert!(begin.elapsed() < PATIENCE / 4, "{ran:?}");
        }
    }
    drop(file);
    // All goes on as if they had not been.
    let _ = home.brood(&["pool", "fill", "p"]).ok();
    let pool = home.json(&["pool", "show", "p"]);
    assert_eq!(array(&pool["hot_guests"]).len(), 2, "{pool}");
    let _ = home.brood(&["pool", "release", &token]).ok();
    let _ = home.brood(&["pool", "remove", "p", "--force"]).ok();
    until("nothing to run", || home.guests().is_empty().then_some(()));
}
