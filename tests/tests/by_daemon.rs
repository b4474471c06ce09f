//! Commands that the daemon carries out: that it does, and what becomes of them when it is killed,
//! stopped, replaced or of another version.

use std::{
    fs::{self, Permissions},
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener, process::CommandExt},
    path::Path,
    process::Command,
    thread,
};

use brood_tests::{
    Daemon, Demo, EngineKind, Home, Ran, Running, array, by_engine, on_both_engines, skip, text,
    until, whole,
};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::Value;

on_both_engines! {
    a_claim_takes_the_daemons_way,
    an_interrupted_restore_tells_what_stands,
    a_daemon_that_is_killed_in_the_middle_is_an_error_that_says_so,
    a_claim_that_waits_outlives_an_upgrade_and_not_a_kill,
    commands_do_without_a_daemon_that_is_stopped_or_keeps_other_guests,
    a_daemon_of_another_version_is_used_for_what_it_knows,
    the_limits_that_doctor_tells_of_are_the_daemons,
    whoever_may_use_the_socket_alone_sees_and_asks_through_the_daemon,
}

/// A home with a daemon.
fn kept(on: EngineKind) -> Option<(Home, Demo, Daemon)> {
    let home = Home::on(on)?;
    let demo = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    Some((home, demo, daemon))
}

/// The values of a metric with these labels, together; 0 when there is none yet.
fn metric(daemon: &Daemon, name: &str, labels: &[&str]) -> f64 {
    let text = daemon.request(Method::GET, "/metrics").send().unwrap();
    let text = text.text().unwrap();
    let found = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let rest = series.strip_prefix(name)?;
        let whole = rest.is_empty() || rest.starts_with('{');
        (whole && labels.iter().all(|label| rest.contains(label))).then_some(value)
    });
    found
        .map(|value| value.parse::<f64>().expect("a number"))
        .sum()
}

/// Runs a command that says how it is done.
fn said(home: &Home, args: &[&str]) -> Ran {
    home.brood(&[&["--verbose"], args].concat())
}

fn a_claim_takes_the_daemons_way(on: EngineKind) {
    let Some((home, demo, daemon)) = kept(on) else {
        return;
    };
    let claims = || {
        let labels = [r#"pool="p""#, r#"tier="hot""#];
        metric(&daemon, "brood_claim_latency_seconds_count", &labels)
    };
    let mut events = daemon.events();
    let _ = said(&home, &["pool", "create", "p", &demo.path, "--hot", "2"])
        .ok()
        .says(&["with the daemon"]);
    let restored = metric(&daemon, "brood_restores_total", &[r#"outcome="restored""#]);
    assert!(restored >= 2.0, "the daemon restores");
    let claimed = home.json(&["pool", "claim", "p"]);
    let told = events.find("claim", |claim| claim["guest"] == claimed["guest"]);
    assert_eq!(told["tier"], "hot");
    assert!((claims() - 1.0).abs() < 0.5);
    let _ = home.json(&["pool", "fill", "p"]);
    // And does without it on request.
    for (args, env) in [
        (&["--no-daemon", "-v", "pool", "claim", "p"][..], None),
        (&["-v", "pool", "claim", "p"], Some(("BROOD_DAEMON", "off"))),
    ] {
        let mut command = home.command(args);
        command.envs(env);
        let _ = Running::start(command).wait().ok().says(&["switched off"]);
    }
    assert!((claims() - 1.0).abs() < 0.5);

    home.restore(&demo, 1, "g");
    let _ = home.brood(&["pause", "g-1"]).ok();
    let _ = home.brood(&["resume", "g-1"]).ok();
    let resumes = metric(&daemon, "brood_resume_latency_seconds_count", &[]);
    assert!((resumes - 1.0).abs() < 0.5);
    let _ = home.brood(&["pool", "remove", "p", "--force"]).ok();
}

fn an_interrupted_restore_tells_what_stands(on: EngineKind) {
    let asked = by_engine(on, 200, 40);
    let Some((home, demo, _daemon)) = kept(on) else {
        return;
    };
    let guests = asked.to_string();
    let args = ["restore", &demo.path, "-n", &guests, "-c", "1", "--json"];
    let restoring = home.start(&args);
    until("some guests", || (home.guests().len() > 5).then_some(()));
    restoring.signal(Signal::SIGINT);
    let ran = restoring.wait();
    let report = ran.json();
    let (stand, not_begun) = (whole(&report["restored"]), whole(&report["not_begun"]));
    assert_eq!(stand + not_begun, asked, "{report}");
    assert_eq!(ran.code(), Some(if not_begun > 0 { 130 } else { 0 }));
    assert_eq!(report["interrupted"], not_begun > 0);
    assert_eq!(array(&report["guests"]).len() as u64, stand);
    assert_eq!(
        home.list().len() as u64,
        stand,
        "all that stand are told of"
    );
}

fn a_daemon_that_is_killed_in_the_middle_is_an_error_that_says_so(on: EngineKind) {
    let asked: usize = by_engine(on, 200, 40);
    let Some(home) = Home::on(on) else { return };
    let demo = home.demo("demo", "4M");
    let guests = asked.to_string();
    // A restore that is done before the daemon is killed shows nothing: then another one is tried.
    let cut_off = (0..10).find_map(|_| {
        let daemon = Daemon::start(&home);
        let restoring = home.start(&["restore", &demo.path, "-n", &guests, "-c", "1"]);
        until("some guests", || (home.guests().len() > 5).then_some(()));
        daemon.signal(Signal::SIGKILL);
        let _ = daemon.wait();
        let ran = restoring.wait();
        if ran.code() == Some(0) {
            let _ = home.brood(&["destroy", "--all"]).ok();
            return None;
        }
        Some(ran)
    });
    let _ = cut_off.expect("one that was cut off").exits(1).says(&[
        "the result is unknown",
        "restore guests",
        "brood list",
    ]);
    // Nothing was tried again: there are those that the daemon had begun, and no others come.
    let stand = home.converges().len();
    assert!((1..asked).contains(&stand), "{stand} guests");
    // A socket without a listener is no obstacle.
    let _ = said(&home, &["destroy", "--all"])
        .ok()
        .says(&["without a daemon", "is gone"]);
    home.nobody_is_left();
}

fn a_claim_that_waits_outlives_an_upgrade_and_not_a_kill(on: EngineKind) {
    let Some((home, demo, first)) = kept(on) else {
        return;
    };
    let _ = home
        .brood(&[
            "pool", "create", "p", &demo.path, "--hot", "0", "--max", "1",
        ])
        .ok();
    let claimed = home.json(&["pool", "claim", "p"]);
    let waits = |daemon: &Daemon| {
        until("a claim that waits", || {
            (metric(daemon, "brood_http_requests_in_flight", &[]) > 1.5).then_some(())
        });
    };
    let claiming = home.start(&["pool", "claim", "p", "--wait", "100", "--json"]);
    waits(&first);
    // Another daemon takes over: the claim waits on there.
    let second = Daemon::start(&home);
    let _ = first.wait();
    waits(&second);
    let _ = home
        .brood(&["pool", "release", text(&claimed["token"])])
        .ok();
    let claimed = claiming.wait().ok().json();

    let claiming = home.start(&["pool", "claim", "p", "--wait", "100"]);
    waits(&second);
    second.signal(Signal::SIGKILL);
    let _ = second.wait();
    let _ = claiming.wait().exits(1).says(&[
        "claim a guest",
        "the result is unknown",
        "brood pool list",
    ]);
    let shown = home.json(&["pool", "show", "p"]);
    assert_eq!(shown["claims"][0]["guest"], claimed["guest"]);
    assert_eq!(array(&shown["claims"]).len(), 1);
    let _ = home.brood(&["pool", "remove", "p", "--force"]).ok();
}

fn commands_do_without_a_daemon_that_is_stopped_or_keeps_other_guests(on: EngineKind) {
    let Some((home, demo, daemon)) = kept(on) else {
        return;
    };
    daemon.signal(Signal::SIGSTOP);
    let ran = said(&home, &["restore", &demo.path, "-n", "1", "--prefix", "g"]);
    daemon.signal(Signal::SIGCONT);
    let _ = ran.ok().says(&["does not answer"]);

    let Some(other) = Home::on(on) else { return };
    let mut command = other.command(&["-v", "destroy", "--all"]);
    command.env("BROOD_SERVE_SOCKET", daemon.socket());
    let _ = Running::start(command)
        .wait()
        .ok()
        .says(&["without a daemon", "keeps the state folder"]);
    assert_eq!(home.names("running"), ["g-1"]);
}

/// Answers requests on a socket as a daemon might that is of another version.
fn another_version(socket: &Path, knows: &'static [(&'static str, &'static str)], home: &Home) {
    let listener = UnixListener::bind(socket).expect("a socket");
    let dir = home.state().canonicalize().expect("the folder is there");
    let daemon = format!(
        r#"{{"version":"99.0.0","pid":1,"state_dir":"{}","engines":["{}"],"new":[]}}"#,
        dir.display(),
        by_engine(home.engine(), "kvm", "bhyve"),
    );
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(&stream);
            loop {
                let mut first = String::new();
                let mut line = String::new();
                let mut length = 0;
                if reader.read_line(&mut first).unwrap_or(0) == 0 {
                    break;
                }
                while reader.read_line(&mut line).unwrap_or(0) > 2 {
                    if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().expect("a length");
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                std::io::Read::read_exact(&mut reader, &mut body).expect("a body");
                let known = knows.iter().find(|(begin, _)| first.starts_with(begin));
                let (status, kind, body) = match known {
                    _ if first.starts_with("GET /api/v1/daemon ") => {
                        ("200 OK", "application/json", daemon.as_str())
                    }
                    Some((_, body)) => ("200 OK", "application/json", *body),
                    None => ("404 Not Found", "text/html", "<p>nothing here</p>"),
                };
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                if (&stream).write_all(answer.as_bytes()).is_err() {
                    break;
                }
            }
        }
    });
}

fn a_daemon_of_another_version_is_used_for_what_it_knows(on: EngineKind) {
    let Some(home) = Home::on(on) else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 1, "g");
    let socket = home.state().join("api.sock");
    another_version(
        &socket,
        &[
            ("POST /api/v1/pools/p/evict", r#"{"evicted":7,"more":1}"#),
            ("POST /api/v1/pools/q/evict", r#"{"nothing":"known"}"#),
        ],
        &home,
    );
    // What it does not know is done without it.
    let _ = said(&home, &["pause", "g-1"])
        .ok()
        .says(&["brood 99.0.0", "without the daemon"]);
    assert_eq!(home.names("paused"), ["g-1"]);
    let made = home.json(&["pool", "create", "p", &demo.path, "--hot", "1"]);
    assert_eq!(made["restored"], 1);
    // What it knows it does, and more of an answer is no harm.
    let evicted = home.json(&["pool", "evict", "p", "--entries", "9"]);
    assert_eq!(evicted["evicted"], 7);
    // What it may have done is not done again.
    let _ = said(&home, &["pool", "evict", "q", "--entries", "1"])
        .exits(1)
        .says(&["is invalid", "brood pool list"]);
    let shown = home.json(&["--no-daemon", "pool", "show", "p"]);
    assert_eq!(shown["entries"]["hot"], 1);
    let _ = home.brood(&["--no-daemon", "pool", "remove", "p"]).ok();
}

fn the_limits_that_doctor_tells_of_are_the_daemons(on: EngineKind) {
    let Some((home, _, daemon)) = kept(on) else {
        return;
    };
    let facts = |args: &[&str]| -> Value { home.brood(args).json() };
    let by_daemon = facts(&["doctor", "--json"]);
    let told = daemon.get("/api/v1/host");
    assert_eq!(by_daemon["guests"], told["guests"]);
    assert_eq!(
        array(&by_daemon["checks"]).len(),
        array(&told["checks"]).len()
    );
    let here = facts(&["doctor", "--json", "--no-daemon"]);
    assert_eq!(
        brood_tests::keys(&by_daemon["facts"]),
        brood_tests::keys(&here["facts"])
    );
}

/// A user of the socket's group who may not enter the state folder.
fn whoever_may_use_the_socket_alone_sees_and_asks_through_the_daemon(on: EngineKind) {
    const GROUP: u32 = 12345;
    const USER: u32 = 65534;
    let Some(home) = Home::on(on) else { return };
    if !nix::unistd::geteuid().is_root() {
        return skip("not root: cannot become another user");
    }
    let demo = home.demo("demo", "4M");
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let socket = folder.path().join("api.sock");
    let with_socket = |mut command: Command| {
        command.env("BROOD_SERVE_SOCKET", &socket);
        command
    };
    let mut serve = with_socket(home.command(&["serve"]));
    serve.env("BROOD_SERVE_SOCKET_MODE", "0660").gid(GROUP);
    let daemon = Running::start(serve);
    let other = |args: &[&str]| {
        let mut command = with_socket(home.command(args));
        command.current_dir("/").uid(USER).gid(GROUP);
        Running::start(command).wait()
    };
    until("the daemon", || {
        (other(&["list"]).code() == Some(0)).then_some(())
    });
    let _ = other(&["pool", "create", "p", &demo.path, "--hot", "1"]).ok();
    let claim = other(&["pool", "claim", "p", "--json"]).ok().json();
    let guest = text(&claim["guest"]);
    let shows = |args: &[&str], words: &[&str]| {
        let shown = other(args).ok().stdout;
        assert!(words.iter().all(|word| shown.contains(word)), "{shown}");
    };
    shows(&["list"], &[guest, "running", "4 MiB"]);
    shows(&["show", guest], &["private", "4 MiB"]);
    let answer = other(&["ask", guest, "ping", "hello", "--json"]);
    // Each answer is counted.
    let counter = whole(&answer.ok().json()["counter"]);
    assert_eq!(whole(&home.ask(guest, "ping")["counter"]), counter + 1);
    // For people it reads as the answer that this user would have without the daemon.
    let read = |ran: Ran| ran.ok().stdout.replace(char::is_numeric, "");
    let by_daemon = read(other(&["ask", guest, "identity"]));
    assert_eq!(by_daemon, read(home.brood(&["ask", guest, "identity"])));
    shows(&["pool", "list"], &["p ", &demo.path]);
    shows(&["pool", "show", "p"], &[guest, "s left"]);
    // What concerns the record is done for this user, too.
    let plan = other(&["plan", &demo.path, "--host-memory", "1G", "--json"]);
    let own = home.json(&["plan", &demo.path, "--host-memory", "1G"]);
    assert_eq!(plan.ok().json()["worst"], own["worst"]);
    let warm = home.named("warm").path;
    let suspended = other(&["suspend", guest, &warm, "--json"]).ok().json();
    assert_eq!(suspended["guest"], guest);
    assert_eq!(suspended["checkpoint"], *warm);
    let inspected = home.json(&["checkpoint", "inspect", &warm]);
    assert_eq!(suspended["sha256"], inspected["memory_sha256"]);
    shows(&["checkpoint", "trust", &warm], &[&warm]);
    shows(&["checkpoint", "remove", &warm], &["removed", &warm]);
    shows(&["disk", "leftovers"], &["nothing is left over"]);
    shows(&["disk", "sweep"], &["nothing is left over"]);
    let _ = other(&["checkpoint", "flatten", &warm, &demo.path])
        .exits(1)
        .says(&["Permission denied"]);
    let _ = other(&["--no-daemon", "list"])
        .exits(1)
        .says(&["Permission denied"]);
    let _ = other(&["pool", "remove", "p", "--force"]).ok();
    daemon.signal(Signal::SIGTERM);
    let _ = daemon.wait().ok();
}
