//! Guests, commands and clients that hang: only those who want an answer wait for it, and no longer
//! than they say.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use brood_tests::{Daemon, Demo, Home, Proc, Running, array, signal, text, until, whole};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;

/// A checkpoint whose guest does what the program of this name in `cases/hostile/guests.py` says.
fn hostile(home: &Home, demo: &Demo, program: &str) -> Demo {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/hostile");
    let script = "import sys; sys.path.insert(0, sys.argv[1]); import guests; \
                  guests.make(sys.argv[2], sys.argv[3], sys.argv[4], guests.P[sys.argv[4]])";
    let made = Command::new("python3")
        .args(["-c", script])
        .arg(&folder)
        .arg(&demo.path)
        .arg(home.checkpoints())
        .arg(program)
        .output()
        .expect("python3 runs");
    assert!(made.status.success(), "{made:?}");
    home.named(program)
}

/// Waits until nothing of this home runs any more, and nothing is listed.
fn until_nothing_is_left(home: &Home) {
    until("guests to be gone", || {
        (home.list().is_empty() && home.guests().is_empty()).then_some(())
    });
}

#[test]
fn a_silent_guest_is_ended_by_itself_and_its_siblings_go_on() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let odd = hostile(&home, &demo, "odd");
    // One nursery restores them all; those with an odd number never answer.
    let restore = [
        "restore",
        &odd.path,
        "-n",
        "8",
        "-c",
        "8",
        "--prefix",
        "s",
        "--timeout",
        "10",
        "--json",
    ];
    let report = home.brood(&restore).exits(3).json();
    assert_eq!(
        (whole(&report["restored"]), whole(&report["failed"])),
        (4, 4),
        "{report}"
    );
    for error in array(&report["errors"]) {
        assert!(text(&error["error"]).contains("within 10 s"), "{error}");
    }
    assert_eq!(home.converges(), ["s-2", "s-4", "s-6", "s-8"]);
    home.destroy_all();
}

#[test]
fn the_api_keeps_the_limit_of_each_guest() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let spin = hostile(&home, &demo, "spin");
    let daemon = Daemon::start(&home);
    let begin = Instant::now();
    let silent = json!({ "checkpoint": spin.path, "guests": 2, "timeout_s": 1.5 });
    let problem = daemon.post("/api/v1/guests", &silent, 500);
    assert!(problem.to_string().contains("within 1.5 s"), "{problem}");
    assert!(
        begin.elapsed() < Duration::from_secs(30),
        "{:?}",
        begin.elapsed()
    );
    until_nothing_is_left(&home);
    // No client may hold a thread for days.
    let days = json!({ "checkpoint": spin.path, "guests": 1, "timeout_s": 1e6 });
    daemon.post("/api/v1/guests", &days, 400);
    let days = json!({ "request": ["ping"], "timeout_s": 1e6 });
    daemon.post("/api/v1/guests/nobody/ask", &days, 400);
}

#[test]
fn a_client_that_hangs_up_ends_what_was_restored_for_it() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let spin = hostile(&home, &demo, "spin");
    let daemon = Daemon::start(&home);
    let pool = json!({ "name": "evil", "checkpoint": spin.path, "hot": 0 });
    daemon.post("/api/v1/pools", &pool, 201);
    let claim = daemon
        .request(Method::POST, "/api/v1/pools/evil/claims")
        .json(&json!({ "timeout_s": 600 }))
        .timeout(Duration::from_secs(1));
    assert!(claim.send().expect_err("no answer comes").is_timeout());
    // Far sooner than the ten minutes that it would wait.
    until_nothing_is_left(&home);
    let entries = &daemon.get("/api/v1/pools/evil")["entries"];
    assert_eq!(whole(&entries["claimed"]), 0, "{entries}");
}

/// Whoever changes a pool does not wait for a fill that the change makes obsolete.
#[test]
fn a_pool_is_changed_while_its_guests_do_not_come() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let spin = hostile(&home, &demo, "spin");
    let daemon = Daemon::start(&home);
    let path = "/api/v1/pools/evil";
    let wanted = |hot: u64| json!({ "name": "evil", "checkpoint": spin.path, "hot": hot });
    let with_fill = |mut wanted: serde_json::Value| {
        wanted["fill"] = json!({});
        wanted
    };
    daemon.post("/api/v1/pools", &wanted(0), 201);
    let change = json!({ "hot": 0, "fill": {} });
    for (method, body) in [(Method::PUT, with_fill(wanted(0))), (Method::PATCH, change)] {
        daemon.put(path, &wanted(1), 200);
        until("a fill to be under way", || {
            let entries = &daemon.get(path)["entries"];
            (whole(&entries["filling"]) == 1).then_some(())
        });
        let answer = daemon.request(method.clone(), path).json(&body).send();
        assert_eq!(answer.unwrap().status().as_u16(), 200, "{method}");
        let shown = daemon.get(path);
        // The fill would have failed if it had been waited for.
        assert!(shown["failing"].is_null(), "{method}: {shown}");
        assert_eq!(whole(&shown["entries"]["filling"]), 0, "{method}: {shown}");
    }
    // Its nursery may stand by, with spares, as long as there is the pool.
    daemon.send(Method::DELETE, path, 204);
    until_nothing_is_left(&home);
}

#[test]
fn a_pool_that_cannot_be_filled_says_so_and_is_left_alone_for_longer_each_time() {
    let Some(home) = Home::with_kvm() else { return };
    let (demo, gone) = (home.demo("demo", "4M"), home.demo("gone", "8M"));
    let daemon = Daemon::start(&home);
    let pool = |name: &str, from: &Demo| {
        let pool = json!({ "name": name, "checkpoint": from.path, "hot": 1 });
        daemon.post("/api/v1/pools", &pool, 201);
    };
    let kept = gone.ckp().with_extension("kept");
    // A pool is made of a whole checkpoint: it breaks afterwards.
    let empty = json!({ "name": "bad", "checkpoint": gone.path, "hot": 0 });
    daemon.post("/api/v1/pools", &empty, 201);
    fs::rename(gone.ckp(), &kept).unwrap();
    let more = daemon
        .request(Method::PATCH, "/api/v1/pools/bad")
        .json(&json!({ "hot": 1 }));
    assert!(more.send().unwrap().status().is_success());
    let tries = || {
        let shown = daemon.get("/api/v1/pools/bad");
        let failing = shown["failing"].clone();
        failing.is_object().then(|| whole(&failing["tries"]))
    };
    until("it to fail twice", || (tries()? >= 2).then_some(()));
    let failing = daemon.get("/api/v1/pools/bad")["failing"].clone();
    assert!(whole(&failing["pause_s"]) >= 10, "{failing}");
    let metrics = daemon
        .request(Method::GET, "/metrics")
        .send()
        .unwrap()
        .text()
        .unwrap();
    let line = metrics
        .lines()
        .find(|line| line.starts_with("brood_pool_failing{") && line.contains("pool=\"bad\""));
    assert!(line.is_some_and(|line| !line.ends_with(" 0")), "{line:?}");
    let shown = home.brood(&["pool", "show", "bad"]).ok();
    assert!(shown.stdout.contains("failing since"), "{shown:?}");
    // Others do not wait for it.
    pool("good", &demo);
    until("the other pool to be full", || {
        let shown = daemon.get("/api/v1/pools/good");
        (shown["entries"]["hot"] == 1).then_some(())
    });
    fs::rename(&kept, gone.ckp()).unwrap();
    let _ = home.brood(&["pool", "fill", "bad"]).ok();
    assert!(tries().is_none(), "it could be filled");
}

#[test]
fn whoever_waits_for_a_stopped_command_is_told_of_it() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let slow = home.start(&["pool", "create", "slow", &demo.path, "--hot", "150"]);
    until("it to be at it", || {
        let is_begun = home.guests().len() > 3;
        slow.signal(Signal::SIGSTOP);
        // Stopped with the lock, or not yet: then it goes on.
        if is_begun && home.state().join("locks/slow.lock").exists() {
            return Some(());
        }
        slow.signal(Signal::SIGCONT);
        None
    });
    let said = home.brood(&["pool", "fill", "slow"]).exits(1).stderr;
    let pid = slow.pid().to_string();
    for word in [
        "pool slow",
        &pid,
        "brood pool create",
        "is stopped",
        "kill -CONT",
    ] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
    slow.signal(Signal::SIGKILL);
    slow.signal(Signal::SIGCONT);
    let _ = slow.wait();
    let _ = home.brood(&["pool", "remove", "slow", "--force"]).ok();
}

/// A restore of two guests that never answer, when both are on their way.
fn restore_of_two_silent(home: &Home, demo: &Demo) -> Running {
    let spin = hostile(home, demo, "spin");
    let restore = home.start(&["restore", &spin.path, "-n", "2", "-c", "2"]);
    until("both to be on their way", || {
        let sockets = fs::read_dir(home.run_dir())
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|end| end == "sock"));
        (sockets.count() == 2).then_some(())
    });
    restore
}

#[test]
fn what_a_killed_manager_leaves_silent_ends_by_itself() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let restore = restore_of_two_silent(&home, &demo);
    restore.signal(Signal::SIGKILL);
    let _ = restore.wait();
    // No command destroys them or waits for them. The nursery ends last: by then it has recorded
    // how they ended.
    until("both to end, and their nursery", || {
        let left = home.guests().len() + home.nurseries().len();
        (left == 0).then_some(())
    });
    let listed = home.list();
    let told = listed.iter().all(|guest| {
        guest["state"] == "dead" && text(&guest["reason"]).contains("had not answered")
    });
    assert!(told && listed.len() == 2, "{listed:?}");
    home.destroy_all();
}

#[test]
fn a_guest_whose_end_is_not_recorded_yet_is_not_forgotten() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let restore = restore_of_two_silent(&home, &demo);
    let nurseries = home.nurseries();
    assert_eq!(nurseries.len(), 1, "{nurseries:?}");
    let nursery = nurseries[0].pid;
    restore.signal(Signal::SIGKILL);
    let _ = restore.wait();
    // Its end of the conversation is descriptor 3.
    let socket = format!("/proc/{nursery}/fd/3");
    until("the nursery to see it", || {
        fs::read_link(&socket).is_err().then_some(())
    });
    // It is held up between the guests' ends and its record of them.
    signal(nursery, Signal::SIGSTOP);
    let guests = until("its spares to have ended", || {
        let guests = home.guests();
        (guests.len() == 2).then_some(guests)
    });
    for guest in &guests {
        signal(guest.pid, Signal::SIGKILL);
    }
    until("both to end", || {
        let ended = |guest: &Proc| {
            let stat = fs::read_to_string(format!("/proc/{}/stat", guest.pid));
            stat.is_ok_and(|stat| stat.contains(") Z "))
        };
        guests.iter().all(ended).then_some(())
    });
    let listed = home.list();
    assert_eq!(listed.len(), 2, "{listed:?}");
    signal(nursery, Signal::SIGCONT);
    until("the nursery to end", || {
        home.nurseries().is_empty().then_some(())
    });
    let listed = home.list();
    let told = listed
        .iter()
        .all(|guest| guest["state"] == "dead" && text(&guest["reason"]).contains("SIGKILL"));
    assert!(told && listed.len() == 2, "{listed:?}");
    home.destroy_all();
}

#[test]
fn a_stopped_suspend_holds_up_no_other_claim_and_is_named() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "128M");
    for pool in ["a", "b"] {
        let _ = home
            .brood(&["pool", "create", pool, &demo.path, "--hot", "0"])
            .ok();
    }
    let claim = |pool: &str| {
        let claim = home.json(&["pool", "claim", pool]);
        let _ = home.ask(text(&claim["guest"]), "dirty 8000");
        text(&claim["token"]).to_owned()
    };
    let claims = home.state().join("claims");
    let is_held = || fs::read_dir(&claims).is_ok_and(|mut files| files.next().is_some());
    // It writes the guest's memory, and has nothing else in hand.
    let cold = home.suspended();
    let writes = || {
        let files = fs::read_dir(&cold).into_iter().flatten().flatten();
        files.map(|file| file.path()).any(|file| {
            let is_new = file.extension().is_some_and(|end| end == "new");
            is_new && fs::metadata(&file).is_ok_and(|facts| facts.len() > 0)
        })
    };
    let (token, stopped) = (0..20)
        .find_map(|_| {
            let token = claim("a");
            let mut suspend = home.start(&["pool", "suspend", &token]);
            while !writes() && !suspend.ended() {}
            suspend.signal(Signal::SIGSTOP);
            if writes() && is_held() && !suspend.ended() {
                return Some((token, suspend));
            }
            suspend.signal(Signal::SIGCONT);
            let _ = suspend.wait();
            let _ = home.brood(&["pool", "release", &token]).ok();
            None
        })
        .expect("one is stopped in the middle");
    // Those of this pool and of another one come and go.
    for pool in ["a", "b"] {
        let other = claim(pool);
        let _ = home.brood(&["pool", "suspend", &other]).ok();
        let _ = home.brood(&["pool", "resume", &other]).ok();
        let _ = home.brood(&["pool", "suspend", &other]).ok();
        let _ = home.brood(&["pool", "release", &other]).ok();
        let _ = home.brood(&["pool", "fill", pool]).ok();
    }
    // A request for this one gets an error.
    for command in ["suspend", "resume"] {
        let pid = stopped.pid().to_string();
        let ran = home.brood(&["pool", command, &token]).exits(1);
        let words = [
            &pid[..],
            "brood pool suspend",
            "the claim",
            "is stopped",
            "kill -CONT",
        ];
        let ran = ran.says(&words);
        assert!(!ran.stderr.contains(&token), "{ran:?}");
    }
    stopped.signal(Signal::SIGCONT);
    let _ = stopped.wait().ok();
    assert!(!is_held(), "a lock that nobody has is not kept");
    let _ = home.brood(&["pool", "resume", &token]).ok();
    for pool in ["a", "b"] {
        let _ = home.brood(&["pool", "remove", pool, "--force"]).ok();
    }
}
