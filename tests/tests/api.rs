//! The API: real clients over the socket and the port, real guests, and a daemon that is killed and
//! replaced under them.

use std::{
    fs::{self, Permissions},
    io::Write,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream,
    },
};

use brood_tests::{Daemon, Home, array, content_type, keys, sha256, signal, text, until, whole};
use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const GUESTS: &str = "/api/v1/guests";

fn restore(daemon: &Daemon, guests: u64, prefix: &str) -> Value {
    let body = json!({ "checkpoint": "demo", "guests": guests, "prefix": prefix });
    daemon.post(GUESTS, &body, 201)
}

fn ask(daemon: &Daemon, guest: &str, words: &[&str], status: u16) -> Value {
    let body = json!({ "request": words });
    daemon.post(&format!("{GUESTS}/{guest}/ask"), &body, status)
}

#[test]
fn the_document_is_what_clients_were_made_for() {
    let document = brood::api::document();
    let document = document.to_pretty_json().expect("plain data");
    insta::assert_snapshot!(document.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
}

#[test]
fn the_api_and_the_command_line_tell_the_same() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    let report = restore(&daemon, 2, "a");
    let mine = home.json(&["restore", &demo.path, "-n", "2", "--prefix", "c"]);
    assert_eq!(keys(&report), keys(&mine));
    assert_eq!(keys(&report["guests"][0]), keys(&mine["guests"][0]));
    assert_eq!(report["checkpoint"], demo.path.as_str());

    assert_eq!(daemon.get(GUESTS), Value::Array(home.list()));
    let names = home.names("running");
    assert_eq!(names, ["a-1", "a-2", "c-1", "c-2"]);
    // What a guest costs may change between two looks; the rest does not.
    let steady = |mut guest: Value| {
        let costs = [
            "private_bytes",
            "shared_bytes",
            "process_bytes",
            "page_table_bytes",
        ];
        for cost in costs {
            assert!(guest[cost].is_u64(), "{cost} of {guest}");
            guest[cost] = Value::Null;
        }
        guest
    };
    let shown = steady(home.json(&["show", "a-1"]));
    assert_eq!(steady(daemon.get(&format!("{GUESTS}/a-1"))), shown);
    let by_id = format!("{GUESTS}/{}", text(&shown["id"]));
    assert_eq!(steady(daemon.get(&by_id)), shown);
    for guest in array(&daemon.get(&format!("{GUESTS}?usage=true"))) {
        let _ = steady(guest.clone());
    }

    let folder = home.checkpoints();
    let listed = home.json(&["checkpoint", "list", folder.to_str().unwrap()]);
    assert_eq!(daemon.get("/api/v1/checkpoints"), listed);
    let inspected = home.json(&["checkpoint", "inspect", &demo.path]);
    assert_eq!(daemon.get("/api/v1/checkpoints/demo"), inspected);
    let encoded = demo.path.replace('/', "%2F");
    assert_eq!(
        daemon.get(&format!("/api/v1/checkpoints/{encoded}")),
        inspected
    );
    let doctor = home.brood(&["doctor", "--json", "--guests", "50"]).json();
    let host = daemon.get("/api/v1/host?guests=50");
    assert_eq!(keys(&host), keys(&doctor));
    assert_eq!(
        (&host["ok"], &host["guests"]),
        (&doctor["ok"], &doctor["guests"])
    );
    assert_eq!(array(&host["checks"]).len(), array(&doctor["checks"]).len());
    assert_eq!(keys(&host["facts"]), keys(&doctor["facts"]));
}

#[test]
fn guests_live_their_lives_over_the_api() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let digest = sha256(&demo.ckp());
    let daemon = Daemon::start(&home);
    let report = restore(&daemon, 3, "g");
    assert_eq!(
        (&report["restored"], &report["failed"]),
        (&3.into(), &0.into())
    );
    let at = |guest: &str, verb: &str| format!("{GUESTS}/{guest}/{verb}");

    let answer = ask(&daemon, "g-1", &["ping", "hello"], 200);
    assert_eq!(answer["text"], "hello");
    let counter = whole(&answer["counter"]);
    let paused = daemon.send(Method::POST, &at("g-1", "pause"), 200);
    assert_eq!(
        (&paused["name"], &paused["state"]),
        (&"g-1".into(), &"paused".into())
    );
    let problem = ask(&daemon, "g-1", &["ping"], 409);
    assert_eq!(problem["type"], "urn:brood:error:guest-paused");
    assert!(text(&problem["hint"]).contains("resume"), "{problem}");
    let resumed = daemon.send(Method::POST, &at("g-1", "resume"), 200);
    assert!(resumed["resume_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(
        whole(&ask(&daemon, "g-1", &["ping"], 200)["counter"]),
        counter + 2
    );

    let _ = ask(&daemon, "g-1", &["poke", "0x200000", "77"], 200);
    let warm = daemon.post(&at("g-1", "suspend"), &json!({ "checkpoint": "warm" }), 201);
    assert_eq!(warm["checkpoint"], home.named("warm").path.as_str());
    let _ = daemon.send(Method::GET, &format!("{GUESTS}/g-1"), 404);
    let body = json!({ "checkpoint": "warm", "guests": 1, "paused": true });
    let report = daemon.post(GUESTS, &body, 201);
    assert_eq!(
        (&report["paused"], &report["guests"][0]["name"]),
        (&true.into(), &"warm-1".into())
    );
    let _ = daemon.send(Method::POST, &at("warm-1", "resume"), 200);
    assert_eq!(home.peek("warm-1", 0x20_0000), 77);
    let body = json!({ "checkpoint": "delta", "delta": true });
    let delta = daemon.post(&at("warm-1", "suspend"), &body, 201);
    assert_eq!(delta["parent"]["path"], "warm", "{delta}");
    let shown = daemon.get("/api/v1/checkpoints/delta");
    assert_eq!(shown["parents"], json!([home.named("warm").path]));
    let needed = daemon.send(Method::DELETE, "/api/v1/checkpoints/warm", 409);
    assert_eq!(needed["type"], "urn:brood:error:checkpoint-needed");

    let problem = ask(&daemon, "g-2", &["crash"], 502);
    assert!(
        text(&problem["detail"]).contains("triple fault"),
        "{problem}"
    );
    let dead = until("its end to be seen", || {
        let shown = daemon.get(&format!("{GUESTS}/g-2"));
        (shown["state"] == "dead").then_some(shown)
    });
    assert!(text(&dead["reason"]).contains("triple fault"), "{dead}");
    let in_use = daemon.send(Method::DELETE, "/api/v1/checkpoints/demo", 409);
    assert_eq!(in_use["type"], "urn:brood:error:checkpoint-in-use");
    let destroyed = daemon.send(Method::DELETE, &format!("{GUESTS}/g-3"), 200);
    assert_eq!(destroyed["guests"], json!(["g-3"]));
    let _ = daemon.send(Method::DELETE, GUESTS, 400);
    let all = daemon.send(Method::DELETE, &format!("{GUESTS}?all=true"), 200);
    assert_eq!(all["destroyed"], 1);
    assert_eq!(home.guests(), []);

    let whole_one = daemon.send(Method::POST, "/api/v1/checkpoints/demo/verify", 200);
    assert_eq!(
        (&whole_one["whole"], &whole_one["sha256"]),
        (&true.into(), &digest.into())
    );
    let _ = daemon.send(Method::DELETE, "/api/v1/checkpoints/demo", 200);
    assert!(!demo.ckp().exists());
    let _ = daemon.send(Method::GET, "/api/v1/checkpoints/demo", 404);
}

#[test]
fn mistakes_are_told_with_a_way_out() {
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    let problem = daemon.send(Method::GET, &format!("{GUESTS}/nobody"), 404);
    assert_eq!(problem["type"], "urn:brood:error:no-such-guest");
    assert_eq!(
        (&problem["title"], &problem["exit_code"]),
        (&"Not Found".into(), &1.into())
    );
    assert!(text(&problem["hint"]).contains("brood list"));
    for (path, status) in [
        ("/nothing", 404),
        ("/api/v1/guests?usage=maybe", 400),
        ("/api/v1/guests?unknown=1", 400),
        ("/api/v1/host?guests=1000000001", 400),
        ("/api/v1/checkpoints/missing", 404),
        ("/api/v1/checkpoints/a%2Fb", 400),
        ("/api/v1/checkpoints/%2Fa%2F", 400),
        ("/api/v1/checkpoints?dir=/missing", 404),
        ("/api/v1/checkpoints?dir=a", 400),
        ("/api/v1/pools/missing", 404),
        ("/guests/nobody/api/v1/vm.info", 404),
    ] {
        let _ = daemon.send(Method::GET, path, status);
    }
    let _ = daemon.send(Method::PATCH, GUESTS, 405);
    for (body, status) in [
        (json!({ "checkpoint": "demo" }), 400),
        (json!({ "checkpoint": "demo", "guests": 0 }), 400),
        (json!({ "checkpoint": "demo", "guests": -1 }), 400),
        (
            json!({ "checkpoint": "demo", "guests": 1, "surprise": 1 }),
            400,
        ),
        (
            json!({ "checkpoint": "demo", "guests": 1, "prefix": "a b" }),
            400,
        ),
        (
            json!({ "checkpoint": "demo", "guests": 1, "park_after_s": -1 }),
            400,
        ),
        (json!({ "checkpoint": "missing", "guests": 1 }), 404),
        (json!([]), 400),
    ] {
        let _ = daemon.post(GUESTS, &body, status);
    }
    // What does not fit is refused before anything is started, with the command line's code for it.
    let vast = json!({ "checkpoint": "demo", "guests": 4_000_000_000_u32 });
    let problem = daemon.post(GUESTS, &vast, 507);
    assert_eq!(problem["exit_code"], 4, "{problem}");
    assert_eq!(problem["type"], "urn:brood:error:does-not-fit");
    let form = daemon.request(Method::POST, GUESTS).body("guests=1").send();
    assert_eq!(form.unwrap().status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let cut = daemon
        .request(Method::POST, GUESTS)
        .header("content-type", "application/json")
        .body("{\"checkpoint\":");
    assert_eq!(cut.send().unwrap().status(), StatusCode::BAD_REQUEST);
    assert_eq!(home.list(), Vec::<Value>::new());
}

#[test]
fn a_request_has_an_id_that_is_echoed_and_logged() {
    let home = Home::bare();
    let daemon = Daemon::start(&home);
    let id_of = |given: Option<&str>| {
        let request = daemon.request(Method::GET, "/api/v1/pools/none");
        let request = match given {
            Some(id) => request.header("x-request-id", id),
            None => request,
        };
        let response = request.send().unwrap();
        response.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(id_of(Some("my-own.id:1")), "my-own.id:1");
    let (first, second) = (id_of(None), id_of(None));
    assert_eq!((first.len(), second.len()), (16, 16));
    assert_ne!(first, second);
    // What could break out of a line of the log is not taken over.
    assert_eq!(id_of(Some("a b\"c")).len(), 16);
    assert_eq!(id_of(Some(&"x".repeat(65))).len(), 16);
    let token = "5".repeat(32);
    let _ = daemon.send(Method::DELETE, &format!("/api/v1/claims/{token}"), 404);

    daemon.signal(Signal::SIGTERM);
    let ran = daemon.wait().ok();
    let log: Vec<Value> = ran
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect();
    let of_first: Vec<_> = log
        .iter()
        .filter(|line| line["span"]["request_id"] == first.as_str())
        .collect();
    // The problem, and the answer.
    assert_eq!(of_first.len(), 2, "{of_first:?}");
    assert!(of_first.iter().all(|line| line["status"] == 404));
    assert!(
        !ran.stderr.contains(&token),
        "a claim's token is in the log"
    );
}

#[test]
fn cloud_hypervisors_verbs_work_for_each_guest() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    let at = |verb: &str| format!("/guests/vm0/api/v1/{verb}");
    let ping = daemon.get(&at("vmm.ping"));
    assert_eq!(ping["pid"], daemon.pid());
    let _ = daemon.send(Method::GET, &at("vm.info"), 404);
    let _ = daemon.send(Method::PUT, &at("vm.pause"), 404);
    let source = json!({
        "source_url": format!("file://{}", demo.path), "prefault": true,
        "memory_restore_mode": "OnDemand",
    });
    let _ = daemon.put(&at("vm.restore"), &json!({ "source_url": demo.path }), 400);
    let _ = daemon.put(&at("vm.restore"), &source, 204);
    let info = daemon.get(&at("vm.info"));
    assert_eq!(
        (&info["state"], &info["memory_actual_size"]),
        (&"Paused".into(), &(4 << 20).into())
    );
    assert_eq!(info["config"]["memory"]["size"], 4 << 20);
    assert_eq!(
        info["config"]["cpus"],
        json!({ "boot_vcpus": 1, "max_vcpus": 1 })
    );
    // It is there already.
    let _ = daemon.put(&at("vm.restore"), &source, 404);
    let _ = daemon.send(Method::PUT, &at("vm.pause"), 405);
    let _ = daemon.send(Method::PUT, &at("vm.resume"), 204);
    let _ = daemon.send(Method::PUT, &at("vm.resume"), 405);
    assert_eq!(daemon.get(&at("vm.info"))["state"], "Running");
    assert_eq!(home.names("running"), ["vm0"]);
    let _ = home.ask("vm0", "poke 0x200000 9");
    let _ = daemon.send(Method::PUT, &at("vm.pause"), 204);
    let to = home.named("snapshot");
    let destination = json!({ "destination_url": format!("file://{}", to.path) });
    let _ = daemon.put(&at("vm.snapshot"), &destination, 204);
    let _ = daemon.put(&at("vm.snapshot"), &destination, 404);
    let again = json!({ "source_url": format!("file://{}", to.path), "resume": true });
    let _ = daemon.put("/guests/vm1/api/v1/vm.restore", &again, 204);
    assert_eq!(home.peek("vm1", 0x20_0000), 9);
    assert_eq!(home.names("running"), ["vm1"]);
}

#[test]
fn events_tell_what_happens_whoever_does_it() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 1, "old");
    let daemon = Daemon::start(&home);
    let mut events = daemon.events();
    let first = events.next("guests");
    assert_eq!(array(&first).len(), 1);
    assert_eq!(first[0]["name"], "old-1");
    assert_eq!(events.next("pools"), json!([]));

    let response = daemon
        .request(Method::POST, GUESTS)
        .header("x-request-id", "mine")
        .json(&json!({ "checkpoint": "demo", "guests": 2, "prefix": "new" }))
        .send()
        .unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    let done = events.find("restore", |event| event["restored"] == 2);
    assert_eq!(
        (&done["request_id"], &done["asked"]),
        (&"mine".into(), &2.into())
    );
    let happens = |events: &mut brood_tests::Events, what: &str, guest: &str| {
        let event = events.find("guest", |event| event["guest"]["name"] == guest);
        assert_eq!(event["happened"], what, "{event}");
    };
    happens(&mut events, "restored", "new-1");
    let _ = home.brood(&["pause", "old-1"]).ok();
    happens(&mut events, "paused", "old-1");
    let _ = daemon.send(Method::POST, &format!("{GUESTS}/old-1/resume"), 200);
    happens(&mut events, "resumed", "old-1");
    signal(home.pid("old-1"), Signal::SIGKILL);
    happens(&mut events, "ended", "old-1");
    let _ = home.brood(&["destroy", "old-1"]).ok();
    happens(&mut events, "gone", "old-1");
    let counters = events.find("counters", |event| event["guests"]["running"] == 2);
    assert_eq!(counters["checkpoints"][0]["checkpoint"], demo.path.as_str());
    assert_eq!(counters["checkpoints"][0]["memory_bytes"], 2 * (4 << 20));
    // A daemon that ends does not wait for those who listen.
    daemon.signal(Signal::SIGTERM);
    events.until_end();
    let _ = daemon.wait().ok();
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    restore(&daemon, 3, "g");
    let _ = daemon.send(Method::POST, &format!("{GUESTS}/g-1/pause"), 200);
    let scrape = || {
        let response = daemon.request(Method::GET, "/metrics").send().unwrap();
        assert!(content_type(&response).starts_with("application/openmetrics-text"));
        response.text().unwrap()
    };
    // A sample may be a second old.
    let metrics = until("the guests to be in the metrics", || {
        let metrics = scrape();
        metrics
            .contains("brood_guests{state=\"paused\"} 1")
            .then_some(metrics)
    });
    let line = |start: &str| {
        let found = metrics.lines().find_map(|line| line.strip_prefix(start));
        found
            .unwrap_or_else(|| panic!("no {start} in\n{metrics}"))
            .trim()
            .to_owned()
    };
    assert_eq!(line("brood_guests{state=\"running\"}"), "2");
    let origin = format!("checkpoint=\"{}\",pool=\"\"", demo.path);
    let restores = |outcome: &str| {
        line(&format!(
            "brood_restores_total{{{origin},outcome=\"{outcome}\"}}"
        ))
    };
    assert_eq!(
        (restores("restored"), restores("failed")),
        ("3".to_owned(), "0".to_owned())
    );
    assert_eq!(
        line(&format!("brood_restore_latency_seconds_count{{{origin}}}")),
        "3"
    );
    let of = |kind: &str| {
        let start = format!(
            "brood_checkpoint_memory_bytes{{checkpoint=\"{}\",kind=\"{kind}\"}}",
            demo.path
        );
        line(&start).parse::<u64>().unwrap()
    };
    assert_eq!(of("unshared"), 3 * (4 << 20));
    assert!(of("private") > 0 && of("shared") > 0 && of("page_tables") > 0);
    assert!(of("private") + of("shared") < of("unshared"));
    let total: u64 = line("brood_host_memory_bytes{kind=\"total\"}")
        .parse()
        .unwrap();
    let available: u64 = line("brood_host_memory_bytes{kind=\"available\"}")
        .parse()
        .unwrap();
    assert!(0 < available && available < total);
    assert!(metrics.ends_with("# EOF\n"));
}

#[test]
fn pools_are_kept_filled_and_claimed_from() {
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    let mut events = daemon.events();
    let new = json!({ "name": "web", "checkpoint": "demo", "hot": 2, "most": 3, "lease_s": 60 });
    let made = daemon.post("/api/v1/pools", &new, 201);
    assert_eq!((&made["name"], &made["hot"]), (&"web".into(), &2.into()));
    let _ = daemon.post("/api/v1/pools", &new, 409);
    let full = events.find("pools", |pools| pools[0]["entries"]["hot"] == 2);
    assert_eq!(full, home.json(&["pool", "list"]));
    assert_eq!(
        daemon.get("/api/v1/pools/web"),
        home.json(&["pool", "show", "web"])
    );

    let claims = "/api/v1/pools/web/claims";
    // What is being restored for the pool is nobody's yet: a claim may have to wait for it.
    let claim = || daemon.post(claims, &json!({ "wait_s": 60.0 }), 201);
    let first = claim();
    assert_eq!(
        (&first["tier"], &first["lease_s"]),
        (&"hot".into(), &60.into())
    );
    assert_eq!(
        ask(&daemon, text(&first["guest"]), &["ping"], 200)["counter"],
        4
    );
    let told = events.next("claim");
    assert_eq!(
        (&told["guest"], &told["tier"]),
        (&first["guest"], &first["tier"])
    );
    assert!(told.get("token").is_none());
    let (second, third) = (claim(), claim());
    let mut guests: Vec<&str> = [&first, &second, &third].map(|c| text(&c["guest"])).into();
    guests.sort_unstable();
    guests.dedup();
    assert_eq!(guests.len(), 3, "a guest was handed out twice");
    // The pool has as many as it may have.
    let problem = daemon.post(claims, &json!({}), 503);
    assert_eq!(problem["type"], "urn:brood:error:pool-full");
    // A claim that waits gets what is released meanwhile.
    let token = |claim: &Value| format!("/api/v1/claims/{}", text(&claim["token"]));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| daemon.post(claims, &json!({ "wait_s": 60.0 }), 201));
        until("the claim to wait", || {
            let metrics = daemon.request(Method::GET, "/metrics").send().ok()?;
            let metrics = metrics.text().ok()?;
            // The scrape itself, the stream has been answered, and the claim.
            metrics
                .contains("brood_http_requests_in_flight 2\n")
                .then_some(())
        });
        let _ = daemon.send(Method::DELETE, &token(&first), 204);
        let fourth = waiting.join().unwrap();
        assert_ne!(fourth["token"], first["token"]);
        let _ = daemon.send(Method::DELETE, &token(&fourth), 204);
    });
    let _ = daemon.send(Method::DELETE, &token(&first), 404);
    let renewed = daemon.put(&token(&second), &json!({ "lease_s": 1000 }), 200);
    assert_eq!(renewed["lease_s"], 1000);
    let held = daemon.get("/api/v1/pools/web");
    let lease = array(&held["claims"])
        .iter()
        .find(|c| c["guest"] == second["guest"]);
    assert!(whole(&lease.unwrap()["lease_left_s"]) > 900, "{held}");
    let _ = daemon.put(&token(&second), &json!({ "lease_s": 0 }), 400);
    let _ = daemon.send(Method::DELETE, &token(&second), 204);
    // A lease that is over is seen without anybody's asking.
    let _ = daemon.put(&token(&third), &json!({ "lease_s": 1 }), 200);
    events.find("pools", |pools| {
        pools[0]["entries"]["claimed"] == 0 && pools[0]["entries"]["hot"] == 2
    });

    let changed = daemon
        .request(Method::PATCH, "/api/v1/pools/web")
        .json(&json!({ "hot": 1 }))
        .send()
        .unwrap();
    assert_eq!(changed.status(), StatusCode::OK);
    events.find("pools", |pools| pools[0]["entries"]["hot"] == 1);
    let filled = daemon.send(Method::POST, "/api/v1/pools/web/fill", 200);
    assert_eq!(
        (&filled["missing"], &filled["entries"]["hot"]),
        (&0.into(), &1.into())
    );
    let evicted = daemon.post("/api/v1/pools/web/evict", &json!({ "entries": 1 }), 200);
    assert_eq!(evicted["evicted"], 1);
    let metrics = daemon
        .request(Method::GET, "/metrics")
        .send()
        .unwrap()
        .text()
        .unwrap();
    assert!(metrics.contains("brood_claim_latency_seconds_count{pool=\"web\",tier=\"hot\"}"));
    for line in [
        "brood_claims_failed_total{pool=\"web\",reason=\"no_room\"} 1",
        "brood_pool_evictions_total{pool=\"web\",reason=\"asked\"} 1",
        "brood_pool_evictions_total{pool=\"web\",reason=\"policy\"}",
    ] {
        assert!(metrics.contains(line), "no {line} in\n{metrics}");
    }
    let kept = claim();
    let _ = daemon.send(Method::DELETE, "/api/v1/pools/web", 409);
    let _ = daemon.send(Method::DELETE, "/api/v1/pools/web?force=true", 204);
    let _ = daemon.send(Method::DELETE, &token(&kept), 404);
    assert_eq!(daemon.get("/api/v1/pools"), json!([]));
    assert_eq!(home.list(), Vec::<Value>::new());
}

#[test]
fn claims_rest_and_come_back_over_the_api() {
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    let mut events = daemon.events();
    let new = json!({ "name": "web", "checkpoint": "demo", "hot": 0, "most": 1, "lease_s": 60 });
    let _ = daemon.post("/api/v1/pools", &new, 201);
    let claims = "/api/v1/pools/web/claims";
    let claimed = daemon.post(claims, &json!({}), 201);
    let token = text(&claimed["token"]);
    let claim = format!("/api/v1/claims/{token}");
    let at = |verb: &str| format!("{claim}/{verb}");
    let shown = daemon.get(&claim);
    assert_eq!(
        (
            &shown["pool"],
            &shown["state"],
            &shown["guest"],
            &shown["id"]
        ),
        (
            &"web".into(),
            &"claimed".into(),
            &claimed["guest"],
            &claimed["id"]
        )
    );
    assert!((1..=60).contains(&whole(&shown["lease_left_s"])), "{shown}");
    let _ = ask(
        &daemon,
        text(&claimed["guest"]),
        &["poke", "0x200000", "5"],
        200,
    );
    let counts = |entries: &Value| (whole(&entries["claimed"]), whole(&entries["cold"]));

    let rested = daemon.send(Method::POST, &at("suspend"), 200);
    assert_eq!(
        (&rested["pool"], &rested["guest"]),
        (&"web".into(), &claimed["guest"])
    );
    assert!(
        (4096..1 << 18).contains(&whole(&rested["written_bytes"])),
        "{rested}"
    );
    let told = events.next("suspend");
    assert_eq!(told["written_bytes"], rested["written_bytes"]);
    assert!(told.get("token").is_none());
    events.find("pools", |pools| counts(&pools[0]["entries"]) == (0, 1));
    assert_eq!(daemon.get(GUESTS), json!([]), "its guest is gone");
    let shown = daemon.get(&claim);
    assert_eq!(
        (
            &shown["state"],
            &shown["guest"],
            &shown["id"],
            &shown["lease_left_s"]
        ),
        (
            &"cold".into(),
            &claimed["guest"],
            &Value::Null,
            &Value::Null
        )
    );
    assert_eq!(shown["written_bytes"], rested["written_bytes"]);
    let pool = daemon.get("/api/v1/pools/web");
    assert_eq!(pool["resting"][0]["guest"], claimed["guest"]);
    assert_eq!(pool, home.json(&["pool", "show", "web"]));
    // Said again, it is the same; a lease it has none.
    let again = daemon.send(Method::POST, &at("suspend"), 200);
    assert_eq!(again["written_bytes"], rested["written_bytes"]);
    let problem = daemon.put(&claim, &json!({ "lease_s": 9 }), 409);
    assert_eq!(problem["type"], "urn:brood:error:claim-rests");

    // Somebody else has taken its room meanwhile.
    let other = daemon.post(claims, &json!({}), 201);
    let full = daemon.post(&at("resume"), &json!({}), 503);
    assert_eq!(full["type"], "urn:brood:error:pool-full");
    assert_eq!(daemon.get(&claim)["state"], "cold");
    let resumed = std::thread::scope(|scope| {
        let body = json!({ "wait_s": 60.0, "lease_s": 1000 });
        let (daemon, path) = (&daemon, at("resume"));
        let waiting = scope.spawn(move || daemon.post(&path, &body, 200));
        let other = format!("/api/v1/claims/{}", text(&other["token"]));
        let _ = daemon.send(Method::DELETE, &other, 204);
        waiting.join().unwrap()
    });
    assert_eq!(
        (&resumed["token"], &resumed["tier"], &resumed["lease_s"]),
        (&claimed["token"], &"cold".into(), &1000.into())
    );
    assert_eq!(events.next("resume")["guest"], resumed["guest"]);
    assert_eq!(home.peek(text(&resumed["guest"]), 0x20_0000), 5);
    let again = daemon.post(&at("resume"), &json!({}), 200);
    assert_eq!(again["id"], resumed["id"], "it is there already");
    let _ = daemon.post(&at("resume"), &json!({ "lease_s": 0 }), 400);
    let _ = daemon.post(&at("resume"), &json!({ "wait_s": -1.0 }), 400);
    let scraped = daemon.request(Method::GET, "/metrics").send().unwrap();
    let metrics = scraped.text().unwrap();
    for line in [
        "brood_claim_suspend_duration_seconds_count{pool=\"web\"} 1",
        "brood_claim_resume_latency_seconds_count{pool=\"web\"} 1",
        "brood_claim_resumes_failed_total 1",
    ] {
        assert!(metrics.contains(line), "no {line} in\n{metrics}");
    }

    // A daemon that is killed leaves what rests, and another finds it.
    let _ = daemon.send(Method::POST, &at("suspend"), 200);
    daemon.signal(Signal::SIGKILL);
    let _ = daemon.wait();
    let daemon = Daemon::start(&home);
    let back = daemon.post(&at("resume"), &json!({}), 200);
    assert_eq!(home.peek(text(&back["guest"]), 0x20_0000), 5);
    let _ = daemon.send(Method::POST, &at("suspend"), 200);
    let _ = daemon.send(Method::DELETE, &claim, 204);
    for verb in ["suspend", "resume"] {
        let gone = daemon.post(&at(verb), &json!({}), 404);
        assert_eq!(gone["type"], "urn:brood:error:no-such-claim");
    }
    let _ = daemon.send(Method::GET, &claim, 404);
    assert_eq!(daemon.get("/api/v1/pools/web")["resting"], json!([]));
}

#[test]
fn what_the_command_line_can_do_the_api_can() {
    let Some(home) = Home::with_kvm() else { return };
    let daemon = Daemon::start(&home);
    let of = |name: &str, verb: &str| format!("/api/v1/checkpoints/{name}/{verb}");
    let made = daemon.post(
        &of("demo", "demo"),
        &json!({ "memory_bytes": 4 << 20 }),
        201,
    );
    let demo = home.named("demo");
    assert_eq!(made["checkpoint"], demo.path.as_str());
    let _ = daemon.post(&of("demo", "demo"), &json!({}), 409);
    let _ = daemon.post(&of("tiny", "demo"), &json!({ "memory_bytes": 1 }), 422);
    let plan = daemon.get(&of("demo", "plan"));
    assert_eq!(keys(&plan), keys(&home.json(&["plan", &demo.path])));
    let planned = daemon.get(&of("demo", "plan?host_memory_bytes=1073741824"));
    let told = home.json(&["plan", &demo.path, "--host-memory", "1G"]);
    assert_eq!(planned["worst"], told["worst"]);

    // Guests' memory: a page that is written is the guest's own, where it was written.
    restore(&daemon, 2, "g");
    let memory = |guest: &str| {
        let path = format!("/api/v1/memory?guests=nobody,{guest}&cells=64");
        let told = daemon.get(&path);
        assert_eq!(array(&told).len(), 1, "{told}");
        told[0].clone()
    };
    let before = memory("g-1");
    assert_eq!(
        (
            &before["name"],
            &before["memory_bytes"],
            &before["map"]["cell_pages"]
        ),
        (&"g-1".into(), &(4 << 20).into(), &16.into())
    );
    let _ = ask(&daemon, "g-1", &["poke", "0x200000", "7"], 200);
    let after = memory("g-1");
    let in_cell = |memory: &Value| whole(&memory["map"]["private"][32]);
    assert_eq!(in_cell(&after), in_cell(&before) + 1);
    assert_eq!(in_cell(&memory("g-2")), in_cell(&before));
    let shown = daemon.get(&format!("{GUESTS}/g-1"));
    assert_eq!(
        shown["private_bytes"], after["private_bytes"],
        "both tell the same"
    );
    for query in ["", "?guests=g-1&cells=0", "?guests=g-1&cells=1025"] {
        let _ = daemon.send(Method::GET, &format!("/api/v1/memory{query}"), 400);
    }
    let many = vec!["g"; 101].join(",");
    let _ = daemon.send(Method::GET, &format!("/api/v1/memory?guests={many}"), 400);

    let body = json!({ "checkpoint": "delta", "delta": true });
    let _ = daemon.post(&format!("{GUESTS}/g-1/suspend"), &body, 201);
    let body = json!({ "checkpoint": "full" });
    let full = daemon.post(&of("delta", "flatten"), &body, 201);
    assert_eq!(full["parent"], Value::Null);
    let again = daemon.post(
        &of("full", "flatten"),
        &json!({ "checkpoint": "more" }),
        409,
    );
    assert_eq!(again["type"], "urn:brood:error:checkpoint-not-a-delta");
    let body = json!({ "checkpoint": "full", "guests": 1, "disk": "none" });
    let _ = daemon.post(GUESTS, &body, 201);
    assert_eq!(home.peek("full-1", 0x20_0000), 7);
    for disk in ["reflink:a/file", "floppy:a", "reflink:"] {
        let body = json!({ "checkpoint": "full", "guests": 1, "disk": disk });
        let _ = daemon.post(GUESTS, &body, 400);
    }

    assert_eq!(
        daemon.get("/api/v1/disks/leftovers"),
        home.json(&["disk", "leftovers"])
    );
    let swept = daemon.post("/api/v1/disks/sweep", &json!({}), 200);
    assert_eq!(swept, home.json(&["disk", "sweep"]));
    let _ = daemon.send(Method::GET, "/api/v1/disks/leftovers?place=tape:1", 400);
    let missing = "reflink:/missing/file";
    let body = json!({ "checkpoint": "full", "guests": 1, "disk": missing });
    let problem = daemon.post(GUESTS, &body, 404);
    assert_eq!(problem["type"], "urn:brood:error:no-such-disk");

    let pool = "/api/v1/pools/web";
    let wanted = |hot: u32| json!({ "name": "web", "checkpoint": "demo", "hot": hot });
    for (hot, status, applied) in [(0, 201, "made"), (0, 200, "same"), (1, 200, "changed")] {
        let told = daemon.put(pool, &wanted(hot), status);
        assert_eq!(
            (&told["applied"], &told["hot"]),
            (&applied.into(), &hot.into())
        );
    }
    let filled = daemon.send(Method::POST, &format!("{pool}/fill?concurrency=1"), 200);
    assert_eq!(filled["missing"], 0);
    let _ = daemon.send(Method::POST, &format!("{pool}/fill?concurrency=0"), 400);
    let _ = daemon.put("/api/v1/pools/other", &wanted(0), 400);
    let fixed = json!({ "name": "web", "checkpoint": "full", "hot": 1 });
    assert_eq!(
        daemon.put(pool, &fixed, 409)["type"],
        "urn:brood:error:pool-fixed"
    );
    let _ = daemon.send(Method::DELETE, pool, 204);
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    // What is counted is told once it has happened.
    restore(&daemon, 1, "g");
    let _ = daemon.send(Method::POST, &format!("{GUESTS}/g-1/pause"), 200);
    let _ = daemon.send(Method::POST, &format!("{GUESTS}/g-1/resume"), 200);
    let new = json!({ "name": "web", "checkpoint": "demo", "hot": 2, "most": 2 });
    let _ = daemon.post("/api/v1/pools", &new, 201);
    let _ = daemon.send(Method::POST, "/api/v1/pools/web/fill", 200);
    let _ = daemon.post("/api/v1/pools/web/evict", &json!({ "entries": 1 }), 200);
    let _ = daemon.send(Method::POST, "/api/v1/pools/web/fill", 200);
    let claims = "/api/v1/pools/web/claims";
    let claimed = daemon.post(claims, &json!({}), 201);
    let token = format!("/api/v1/claims/{}", text(&claimed["token"]));
    let _ = daemon.send(Method::POST, &format!("{token}/suspend"), 200);
    let _ = daemon.post(&format!("{token}/resume"), &json!({ "wait_s": 60.0 }), 200);
    until("the pool to be full", || {
        let body = json!({});
        let claim = daemon
            .request(Method::POST, claims)
            .json(&body)
            .send()
            .ok()?;
        (claim.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    });
    let metrics = until("the pool to be in the metrics", || {
        let scraped = daemon.request(Method::GET, "/metrics").send().ok()?;
        let metrics = scraped.text().ok()?;
        metrics
            .contains("brood_pool_memory_bytes")
            .then_some(metrics)
    });
    let samples: Vec<&str> = metrics
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    let name_of = |sample: &str| sample.split(['{', ' ']).next().unwrap_or("").to_owned();

    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/grafana.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let queries: Vec<&str> = array(&dashboard["panels"])
        .iter()
        .filter_map(|panel| panel["targets"].as_array())
        .flatten()
        .map(|target| text(&target["expr"]))
        .collect();
    assert!(queries.len() > 20, "{queries:?}");
    for query in &queries {
        let asked = metrics_in(query);
        assert!(!asked.is_empty(), "{query} asks for nothing");
        for (metric, labels) in asked {
            let of_it: Vec<_> = samples.iter().filter(|s| name_of(s) == metric).collect();
            assert!(
                !of_it.is_empty(),
                "{query}: there is no {metric} in\n{metrics}"
            );
            for label in labels {
                let has = |sample: &&&str| {
                    sample.contains(&format!("{{{label}="))
                        || sample.contains(&format!(",{label}="))
                };
                assert!(of_it.iter().any(has), "{query}: {metric} has no {label}");
            }
        }
    }
    // And the other way round: what is told of pools and checkpoints is shown.
    for sample in &samples {
        let name = name_of(sample);
        let shown = queries.iter().any(|query| {
            metrics_in(query).iter().any(|(metric, _)| {
                let base = |name: &str| {
                    let ends = ["_bucket", "_sum", "_count"];
                    let end = ends.iter().find_map(|end| name.strip_suffix(end));
                    end.unwrap_or(name).to_owned()
                };
                base(metric) == base(&name)
            })
        });
        let apart = [
            "brood_build_info",
            "brood_http_requests_in_flight",
            "brood_http_request_duration_seconds",
        ];
        let apart = apart.iter().any(|apart| name.starts_with(apart));
        assert!(shown || apart, "no panel shows {name}");
    }
    let _ = daemon.send(Method::DELETE, "/api/v1/pools/web?force=true", 204);
}

/// The metrics that a query asks for, each with the labels that it chooses or sums by.
fn metrics_in(query: &str) -> Vec<(String, Vec<String>)> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut by = Vec::new();
    for part in query.split(" by (").skip(1) {
        let labels = part.split(')').next().unwrap_or("");
        by.extend(labels.split(',').map(|label| label.trim().to_owned()));
    }
    let mut found = Vec::new();
    for (at, _) in query.match_indices("brood_") {
        let rest = &query[at..];
        let name: String = rest.chars().take_while(|c| word(*c)).collect();
        let after = &rest[name.len()..];
        let selector = after.strip_prefix('{').and_then(|s| s.split('}').next());
        let chosen = selector.unwrap_or("").split(',').filter_map(|matcher| {
            let label: String = matcher.chars().take_while(|c| word(*c)).collect();
            (!label.is_empty()).then_some(label)
        });
        // Prometheus adds the instance; a bucket's bound is one of its own.
        let labels = chosen.chain(by.iter().cloned());
        let labels = labels.filter(|label| label != "instance").collect();
        found.push((name, labels));
    }
    found
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let home = Home::bare();
    let daemon = Daemon::on_a_port(&home);
    for (path, kind) in [
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/theme.js", "text/javascript"),
        ("/page.js", "text/javascript"),
        ("/api.js", "text/javascript"),
        ("/dom.js", "text/javascript"),
        ("/pools.js", "text/javascript"),
        ("/claims.js", "text/javascript"),
        ("/guests.js", "text/javascript"),
        ("/strip.js", "text/javascript"),
        ("/curve.js", "text/javascript"),
    ] {
        let response = daemon.over_port(Method::GET, path).send().unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert!(content_type(&response).starts_with(kind), "{path}");
        let policy = response.headers()["content-security-policy"]
            .to_str()
            .unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"));
        let text = response.text().unwrap();
        let elsewhere = text
            // A namespace, which nobody fetches.
            .replace("http://www.w3.org/2000/svg", "")
            .contains("://");
        assert!(!elsewhere, "{path} names another host");
        // The policy forbids these.
        assert!(
            !text.contains(" style=") && !text.contains("<script>"),
            "{path}"
        );
    }
}

#[test]
fn the_socket_is_its_owners_alone() {
    let home = Home::bare();
    let daemon = Daemon::start(&home);
    let facts = fs::symlink_metadata(daemon.socket()).unwrap();
    assert!(facts.file_type().is_socket());
    assert_eq!(facts.permissions().mode() & 0o777, 0o600);
    daemon.signal(Signal::SIGTERM);
    let socket = daemon.socket().clone();
    let _ = daemon.wait().ok();
    assert!(!socket.exists(), "the socket is left behind");
}

#[test]
fn the_port_is_for_those_who_bear_the_token() {
    let home = Home::bare();
    let daemon = Daemon::on_a_port(&home);
    let status = |request: reqwest::blocking::RequestBuilder| request.send().unwrap().status();
    for path in [
        GUESTS,
        "/metrics",
        "/openapi.json",
        "/api/v1/events",
        "/none",
    ] {
        let refused = daemon.over_port(Method::GET, path).send().unwrap();
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(refused.headers()["www-authenticate"], "Bearer");
        assert_eq!(refused.headers()["x-request-id"].len(), 16);
        assert_eq!(content_type(&refused), "application/problem+json");
        let wrong = daemon
            .over_port(Method::GET, path)
            .bearer_auth("not-the-token");
        assert_eq!(status(wrong), StatusCode::UNAUTHORIZED, "{path}");
    }
    let destroy = daemon.over_port(Method::DELETE, &format!("{GUESTS}?all=true"));
    assert_eq!(status(destroy), StatusCode::UNAUTHORIZED);
    assert_eq!(
        status(daemon.over_port(Method::GET, "/health")),
        StatusCode::OK
    );
    let listed = Daemon::with_token(daemon.over_port(Method::GET, GUESTS)).send();
    assert_eq!(listed.unwrap().json::<Value>().unwrap(), json!([]));
    // The socket needs none.
    assert_eq!(daemon.get(GUESTS), json!([]));
}

#[test]
fn a_port_is_not_opened_without_a_good_token_or_for_others() {
    let home = Home::bare();
    let token = home.path().join("token");
    fs::write(&token, "0123456789abcdef").unwrap();
    fs::set_permissions(&token, Permissions::from_mode(0o644)).unwrap();
    let file = token.to_str().unwrap();
    let serve =
        |listen: &str, more: &[&str]| home.brood(&[&["serve", "--listen", listen], more].concat());
    let _ = serve("127.0.0.1:0", &[])
        .exits(1)
        .says(&["serve.token_file"]);
    let with = ["--token-file", file];
    let _ = serve("127.0.0.1:0", &with).exits(1).says(&["chmod 600"]);
    fs::set_permissions(&token, Permissions::from_mode(0o600)).unwrap();
    let _ = serve("0.0.0.0:0", &with)
        .exits(1)
        .says(&["in the clear", "proxy"]);
    fs::write(&token, "short\n").unwrap();
    let _ = serve("127.0.0.1:0", &with).exits(1).says(&["at least 16"]);
    fs::remove_file(&token).unwrap();
    let _ = serve("127.0.0.1:0", &with)
        .exits(1)
        .says(&["No such file", "umask 077"]);
    assert!(!home.state().join("api.sock").exists());
}

#[test]
fn guests_outlive_a_daemon_that_is_killed() {
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    restore(&daemon, 3, "g");
    let new = json!({ "name": "p", "checkpoint": "demo", "hot": 2 });
    let _ = daemon.post("/api/v1/pools", &new, 201);
    let _ = daemon.send(Method::POST, "/api/v1/pools/p/fill", 200);
    let claimed = daemon.post("/api/v1/pools/p/claims", &json!({}), 201);
    let before: Vec<i64> = array(&daemon.get(GUESTS))
        .iter()
        .filter_map(|g| g["pid"].as_i64())
        .collect();
    // Nothing of the daemon is open in what it has started.
    for guest in home.guests() {
        let files = fs::read_dir(format!("/proc/{}/fd", guest.pid)).unwrap();
        for file in files.filter_map(|file| fs::read_link(file.ok()?.path()).ok()) {
            let file = file.to_string_lossy().into_owned();
            assert!(!file.contains("sqlite") && !file.contains("api."), "{file}");
        }
    }
    // The whole process group, as a terminal would.
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(daemon.pid()), Signal::SIGKILL).unwrap();
    assert_eq!(daemon.wait().killed_by(), Some(9));
    let daemon = Daemon::start(&home);
    for name in ["g-1", "g-2", "g-3", text(&claimed["guest"])] {
        let _ = ask(&daemon, name, &["ping"], 200);
    }
    let after: Vec<i64> = array(&daemon.get(GUESTS))
        .iter()
        .filter_map(|g| g["pid"].as_i64())
        .collect();
    assert!(
        before.iter().filter(|pid| after.contains(pid)).count() >= 5,
        "{before:?} {after:?}"
    );
    let token = text(&claimed["token"]);
    let _ = daemon.send(Method::DELETE, &format!("/api/v1/claims/{token}"), 204);
    let _ = daemon.send(Method::DELETE, "/api/v1/pools/p", 204);
    assert_eq!(home.converges(), ["g-1", "g-2", "g-3"]);
}

#[test]
fn a_daemon_takes_over_from_another_that_drains() {
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let old = Daemon::on_a_port(&home);
    restore(&old, 1, "g");
    let events = old.events();
    // A request that is under way when the other daemon comes.
    let slow = old
        .request(Method::POST, &format!("{GUESTS}/g-1/ask"))
        .json(&json!({ "request": ["spin", "2000000"], "timeout_s": 60 }));
    let (slow, new) = std::thread::scope(|scope| {
        let slow = scope.spawn(|| slow.send().unwrap().status());
        until("the guest to be asked", || {
            let metrics = old
                .request(Method::GET, "/metrics")
                .send()
                .ok()?
                .text()
                .ok()?;
            metrics
                .contains("brood_http_requests_in_flight 2\n")
                .then_some(())
        });
        let new = Daemon::start(&home);
        (slow.join().unwrap(), new)
    });
    assert_eq!(slow, StatusCode::OK);
    events.until_end();
    let _ = old.wait().ok();
    // The old one has left the socket to the new one.
    assert_eq!(new.get("/health")["pid"], new.pid());
    let _ = ask(&new, "g-1", &["ping"], 200);
}

#[test]
fn ended_nurseries_are_not_left_as_zombies() {
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    for round in 0..3 {
        restore(&daemon, 2, &format!("r{round}"));
    }
    let all = daemon.send(Method::DELETE, &format!("{GUESTS}?all=true"), 200);
    assert_eq!(all["destroyed"], 6);
    let children = format!("/proc/{0}/task/{0}/children", daemon.pid());
    until("all nurseries to be waited for", || {
        let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).ok()?;
        let mut left = String::new();
        for thread in threads {
            left += &fs::read_to_string(thread.ok()?.path().join("children")).ok()?;
        }
        left.trim().is_empty().then_some(())
    });
    assert_eq!(fs::read_to_string(children).unwrap(), "");
}

#[test]
fn a_client_that_hangs_up_ends_its_restore_but_not_its_guests() {
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    let body = json!({ "checkpoint": "demo", "guests": 150, "concurrency": 1 }).to_string();
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    let head = format!(
        "POST {GUESTS} HTTP/1.1\r\nhost: brood\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    // Held up, so that the client is sure to be gone before the end.
    let nursery = until("the nursery", || home.nurseries().pop());
    signal(nursery.pid, Signal::SIGSTOP);
    drop(stream);
    until("the request to be over", || {
        let metrics = daemon
            .request(Method::GET, "/metrics")
            .send()
            .ok()?
            .text()
            .ok()?;
        metrics
            .contains("brood_http_requests_in_flight 1\n")
            .then_some(())
    });
    signal(nursery.pid, Signal::SIGCONT);
    // Those that were begun stand, and nothing goes on.
    let there = home.converges();
    assert!(there.len() < 150, "it went on to its end");
    assert_eq!(home.guests().len(), there.len());
}
