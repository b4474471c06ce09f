//! API: real clients over the socket, and real guests.

use brood_tests::{Daemon, Home, array, keys, sha256, signal, text, until, whole};
use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

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
    let report = daemon.restore(2, "a");
    let mine = home.json(&["restore", &demo.path, "-n", "2", "--prefix", "c"]);
    assert_eq!(keys(&report), keys(&mine));
    assert_eq!(keys(&report["guests"][0]), keys(&mine["guests"][0]));
    assert_eq!(report["checkpoint"], demo.path.as_str());

    assert_eq!(daemon.get("/api/v1/guests"), Value::Array(home.list()));
    let names = home.names("running");
    assert_eq!(names, ["a-1", "a-2", "c-1", "c-2"]);
    // What a guest costs may change between two looks; the rest does not.
    let steady = |mut guest: Value| {
        let costs = [
            "private_bytes",
            "shared_bytes",
            "process_bytes",
            "page_table_bytes",
            "kernel_bytes",
        ];
        for cost in costs {
            assert!(guest[cost].is_u64(), "{cost} of {guest}");
            guest[cost] = Value::Null;
        }
        guest
    };
    let shown = steady(home.json(&["show", "a-1"]));
    assert_eq!(steady(daemon.get("/api/v1/guests/a-1")), shown);
    let by_id = format!("/api/v1/guests/{}", text(&shown["id"]));
    assert_eq!(steady(daemon.get(&by_id)), shown);
    for guest in array(&daemon.get("/api/v1/guests?usage=true")) {
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
    let report = daemon.restore(3, "g");
    assert_eq!(
        (&report["restored"], &report["failed"]),
        (&3.into(), &0.into())
    );
    let at = |guest: &str, verb: &str| format!("/api/v1/guests/{guest}/{verb}");

    let answer = daemon.ask("g-1", &["ping", "hello"], 200);
    assert_eq!(answer["text"], "hello");
    let counter = whole(&answer["counter"]);
    let paused = daemon.send(Method::POST, &at("g-1", "pause"), 200);
    assert_eq!(
        (&paused["name"], &paused["state"]),
        (&"g-1".into(), &"paused".into())
    );
    let problem = daemon.ask("g-1", &["ping"], 409);
    assert_eq!(problem["type"], "urn:brood:error:guest-paused");
    assert!(text(&problem["hint"]).contains("resume"), "{problem}");
    let resumed = daemon.send(Method::POST, &at("g-1", "resume"), 200);
    assert!(resumed["resume_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(
        whole(&daemon.ask("g-1", &["ping"], 200)["counter"]),
        counter + 2
    );

    let _ = daemon.ask("g-1", &["poke", "0x200000", "77"], 200);
    let warm = daemon.post(&at("g-1", "suspend"), &json!({ "checkpoint": "warm" }), 201);
    assert_eq!(warm["checkpoint"], home.named("warm").path.as_str());
    let _ = daemon.send(Method::GET, "/api/v1/guests/g-1", 404);
    let body = json!({ "checkpoint": "warm", "guests": 1, "paused": true });
    let report = daemon.post("/api/v1/guests", &body, 201);
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

    let problem = daemon.ask("g-2", &["crash"], 502);
    assert!(
        text(&problem["detail"]).contains("triple fault"),
        "{problem}"
    );
    let dead = until("its end to be seen", || {
        let shown = daemon.get("/api/v1/guests/g-2");
        (shown["state"] == "dead").then_some(shown)
    });
    assert!(text(&dead["reason"]).contains("triple fault"), "{dead}");
    let in_use = daemon.send(Method::DELETE, "/api/v1/checkpoints/demo", 409);
    assert_eq!(in_use["type"], "urn:brood:error:checkpoint-in-use");
    let destroyed = daemon.send(Method::DELETE, "/api/v1/guests/g-3", 200);
    assert_eq!(destroyed["guests"], json!(["g-3"]));
    let _ = daemon.send(Method::DELETE, "/api/v1/guests", 400);
    let all = daemon.send(Method::DELETE, "/api/v1/guests?all=true&force=true", 200);
    assert_eq!(all["destroyed"], 1);
    home.nobody_is_left();

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
    let problem = daemon.send(Method::GET, "/api/v1/guests/nobody", 404);
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
    ] {
        let _ = daemon.send(Method::GET, path, status);
    }
    let _ = daemon.send(Method::PATCH, "/api/v1/guests", 405);
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
        let _ = daemon.post("/api/v1/guests", &body, status);
    }
    // What does not fit is refused before anything is started, with the command line's code for it.
    let vast = json!({ "checkpoint": "demo", "guests": 4_000_000_000_u32 });
    let problem = daemon.post("/api/v1/guests", &vast, 507);
    assert_eq!(problem["exit_code"], 4, "{problem}");
    assert_eq!(problem["type"], "urn:brood:error:does-not-fit");
    let form = daemon
        .request(Method::POST, "/api/v1/guests")
        .body("guests=1")
        .send();
    assert_eq!(form.unwrap().status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let cut = daemon
        .request(Method::POST, "/api/v1/guests")
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
    // The answer, and the problem in it.
    assert_eq!(of_first.len(), 1, "{of_first:?}");
    assert_eq!(of_first[0]["status"], 404);
    assert_eq!(of_first[0]["kind"], "urn:brood:error:no-such-pool");
    assert!(
        !ran.stderr.contains(&token),
        "a claim's token is in the log"
    );
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
        .request(Method::POST, "/api/v1/guests")
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
        assert_eq!(event["change"], what, "{event}");
    };
    happens(&mut events, "restored", "new-1");
    let _ = home.brood(&["pause", "old-1"]).ok();
    happens(&mut events, "paused", "old-1");
    let _ = daemon.send(Method::POST, "/api/v1/guests/old-1/resume", 200);
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
