//! Pools and claims over the API.

use brood_tests::{Daemon, Home, array, keys, text, until, whole};
use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

#[test]
fn pools_are_kept_filled_and_claimed_from() {
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    let mut events = daemon.events();
    let new = json!({ "name": "web", "checkpoint": "demo", "hot": 2, "max": 3, "lease_s": 60 });
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
    // A guest that is being restored for the pool cannot be claimed yet: a claim may have to wait
    // for it.
    let claim = || daemon.post(claims, &json!({ "wait_s": 60.0 }), 201);
    let first = claim();
    assert_eq!(
        (&first["tier"], &first["lease_s"]),
        (&"hot".into(), &60.into())
    );
    assert_eq!(
        daemon.ask(text(&first["guest"]), &["ping"], 200)["counter"],
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
        // It waits no more: nobody is before the next claimer.
        let problem = daemon.post(claims, &json!({}), 503);
        assert_eq!(problem["type"], "urn:brood:error:pool-full");
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
        "brood_claims_failed_total{pool=\"web\",reason=\"no_room\"} 2",
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
    let new = json!({ "name": "web", "checkpoint": "demo", "hot": 0, "max": 1, "lease_s": 60 });
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
    let _ = daemon.ask(text(&claimed["guest"]), &["poke", "0x200000", "5"], 200);
    let counts = |entries: &Value| (whole(&entries["claimed"]), whole(&entries["suspended"]));

    let rested = daemon.send(Method::POST, &at("suspend"), 200);
    assert_eq!(
        (&rested["pool"], &rested["guest"]),
        (&"web".into(), &claimed["guest"])
    );
    assert!(
        (4096..1 << 18).contains(&whole(&rested["written_bytes"])),
        "{rested}"
    );
    // The suspension and what it makes of the pool are told in either order.
    let (mut told, mut counted) = (None, false);
    while told.is_none() || !counted {
        let (kind, data) = events.read().expect("the stream goes on");
        match &*kind {
            "suspend" => told = Some(data),
            "pools" if data[0].is_object() => counted |= counts(&data[0]["entries"]) == (0, 1),
            _ => {}
        }
    }
    let told = told.unwrap();
    assert_eq!(told["written_bytes"], rested["written_bytes"]);
    assert!(told.get("token").is_none());
    assert_eq!(daemon.get("/api/v1/guests"), json!([]), "its guest is gone");
    let shown = daemon.get(&claim);
    assert_eq!(
        (
            &shown["state"],
            &shown["guest"],
            &shown["id"],
            &shown["lease_left_s"]
        ),
        (
            &"suspended".into(),
            &claimed["guest"],
            &Value::Null,
            &Value::Null
        )
    );
    assert_eq!(shown["written_bytes"], rested["written_bytes"]);
    let pool = daemon.get("/api/v1/pools/web");
    assert_eq!(pool["suspended"][0]["guest"], claimed["guest"]);
    assert_eq!(pool, home.json(&["pool", "show", "web"]));
    // Said again, it is the same; a lease it has none.
    let again = daemon.send(Method::POST, &at("suspend"), 200);
    assert_eq!(again["written_bytes"], rested["written_bytes"]);
    let problem = daemon.put(&claim, &json!({ "lease_s": 9 }), 409);
    assert_eq!(problem["type"], "urn:brood:error:claim-suspended");

    // Another guest has taken its room meanwhile.
    let other = daemon.post(claims, &json!({}), 201);
    let full = daemon.post(&at("resume"), &json!({}), 503);
    assert_eq!(full["type"], "urn:brood:error:pool-full");
    assert_eq!(daemon.get(&claim)["state"], "suspended");
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
    assert_eq!(daemon.get("/api/v1/pools/web")["suspended"], json!([]));
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
    daemon.restore(2, "g");
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
    let _ = daemon.ask("g-1", &["poke", "0x200000", "7"], 200);
    let after = memory("g-1");
    let in_cell = |memory: &Value| whole(&memory["map"]["private"][32]);
    assert_eq!(in_cell(&after), in_cell(&before) + 1);
    assert_eq!(in_cell(&memory("g-2")), in_cell(&before));
    let shown = daemon.get("/api/v1/guests/g-1");
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
    let _ = daemon.post("/api/v1/guests/g-1/suspend", &body, 201);
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
    let _ = daemon.post("/api/v1/guests", &body, 201);
    assert_eq!(home.peek("full-1", 0x20_0000), 7);
    for disk in ["reflink:a/file", "floppy:a", "reflink:"] {
        let body = json!({ "checkpoint": "full", "guests": 1, "disk": disk });
        let _ = daemon.post("/api/v1/guests", &body, 400);
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
    let problem = daemon.post("/api/v1/guests", &body, 404);
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
