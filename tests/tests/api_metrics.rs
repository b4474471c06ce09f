//! Metrics of the daemon, and their dashboard.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use brood_tests::{Daemon, Home, array, content_type, signal, skip, text, until, whole};
use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

#[test]
fn metrics_are_what_prometheus_reads() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    daemon.restore(3, "g");
    let _ = daemon.send(Method::POST, "/api/v1/guests/g-1/pause", 200);
    let scrape = || {
        let request = daemon.request(Method::GET, "/metrics");
        let accept = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;q=0.5";
        let response = request.header("accept", accept).send().unwrap();
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
    // The general cost of guests without a measurement: 768 KiB each besides their private memory.
    let overhead = of("process") + of("page_tables") + of("kernel");
    assert_eq!(overhead, 3 * (768 << 10));
    let measured = format!(
        "brood_checkpoint_kernel_measured{{checkpoint=\"{}\"}}",
        demo.path
    );
    assert_eq!(line(&measured), "0");
    assert_eq!(
        line("process_max_fds").parse::<u64>().ok(),
        most_descriptors(daemon.pid())
    );
    assert!(
        line("process_resident_memory_bytes")
            .parse::<u64>()
            .unwrap()
            > 1 << 20
    );
    assert!(line("process_open_fds").parse::<u64>().unwrap() > 5);
    assert!(line("process_cpu_seconds_total").parse::<f64>().unwrap() > 0.0);
    assert!(line("process_start_time_seconds").parse::<u64>().unwrap() > 1_700_000_000);
    let total: u64 = line("brood_host_memory_bytes{kind=\"total\"}")
        .parse()
        .unwrap();
    let available: u64 = line("brood_host_memory_bytes{kind=\"available\"}")
        .parse()
        .unwrap();
    assert!(0 < available && available < total);
    assert!(metrics.ends_with("# EOF\n"));
}

/// The hard limit of descriptors of a process.
fn most_descriptors(pid: i32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(4)?.parse().ok()
}

/// Runs promtool; `None` where it must be skipped for want of it.
fn promtool(args: &[&str], input: &str) -> Option<(bool, String)> {
    let spawned = Command::new("promtool")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = spawned else {
        skip("no promtool (package prometheus)");
        return None;
    };
    let mut stdin = promtool.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    Some((
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

#[test]
fn prometheus_own_tool_finds_nothing_wrong() {
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    daemon.restore(2, "g");
    let new = json!({ "name": "web", "checkpoint": "demo", "hot": 1 });
    let _ = daemon.post("/api/v1/pools", &new, 201);
    let claimed = daemon.post("/api/v1/pools/web/claims", &json!({}), 201);
    let token = format!("/api/v1/claims/{}", text(&claimed["token"]));
    let _ = daemon.send(Method::DELETE, &token, 204);
    for accept in [None, Some("text/plain;version=0.0.4"), Some("*/*")] {
        let request = daemon.request(Method::GET, "/metrics");
        let request = match accept {
            Some(accept) => request.header("accept", accept),
            None => request,
        };
        let response = request.send().unwrap();
        let kind = content_type(&response);
        assert_eq!(
            kind, "text/plain; version=0.0.4; charset=utf-8",
            "{accept:?}"
        );
        let metrics = response.text().unwrap();
        assert!(metrics.contains("# TYPE brood_http_requests_total counter\n"));
        let Some((good, said)) = promtool(&["check", "metrics"], &metrics) else {
            return;
        };
        assert!(good, "{said}\n{metrics}");
    }
    let _ = daemon.send(Method::DELETE, "/api/v1/pools/web?force=true", 204);
}

#[test]
fn the_alerts_are_rules_about_what_there_is() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/alerts.yml");
    let Some((good, said)) = promtool(&["check", "rules", file], "") else {
        return;
    };
    assert!(good, "{said}");
    // Each asks for metrics that the daemon has.
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    daemon.restore(1, "g");
    let new = json!({ "name": "web", "checkpoint": "demo", "hot": 1, "max": 1 });
    let _ = daemon.post("/api/v1/pools", &new, 201);
    let _ = daemon.send(Method::POST, "/api/v1/pools/web/fill", 200);
    let _ = daemon.post("/api/v1/pools/web/claims", &json!({}), 201);
    let _ = daemon.post("/api/v1/pools/web/claims", &json!({}), 503);
    let rules = fs::read_to_string(file).unwrap();
    let metrics = until("the pool to be in the metrics", || {
        let scraped = daemon.request(Method::GET, "/metrics").send().ok()?;
        let metrics = scraped.text().ok()?;
        metrics.contains("brood_pool_entries").then_some(metrics)
    });
    let asked: Vec<String> = rules
        .lines()
        .filter(|line| line.trim_start().starts_with("expr:"))
        .flat_map(|line| metrics_in(line).into_iter().map(|(metric, _)| metric))
        .collect();
    assert!(asked.len() > 5, "{asked:?}");
    for metric in asked {
        let there = metrics.lines().any(|line| {
            line.strip_prefix(&metric)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        assert!(there, "there is no {metric}");
    }
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/alerts_test.yml");
    let (good, said) = promtool(&["test", "rules", tests], "").unwrap();
    assert!(good, "{said}");
    let _ = daemon.send(Method::DELETE, "/api/v1/pools/web?force=true", 204);
}

#[test]
fn only_what_ends_unasked_is_counted() {
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    let mut events = daemon.events();
    let new = json!({ "name": "web", "checkpoint": "demo", "hot": 2 });
    let _ = daemon.post("/api/v1/pools", &new, 201);
    daemon.restore(4, "g");
    // A process that ends slowly: its pages are given back while the record still has it.
    for _ in 0..8 {
        let claimed = daemon.post("/api/v1/pools/web/claims", &json!({}), 201);
        let token = format!("/api/v1/claims/{}", text(&claimed["token"]));
        let _ = daemon.send(Method::DELETE, &token, 204);
    }
    let state = home.state().join("brood.sqlite");
    let record = rusqlite::Connection::open(state).unwrap();
    // A command ends it, and is stopped between its end and its removal from the record.
    let guest = daemon.get("/api/v1/guests/g-1");
    let id = text(&guest["id"]).to_owned();
    record
        .execute("INSERT INTO ending VALUES (?1)", [&id])
        .unwrap();
    let pid = i32::try_from(whole(&guest["pid"])).unwrap();
    signal(pid, Signal::SIGKILL);
    until("its end to be seen", || {
        let shown = daemon.get("/api/v1/guests/g-1");
        (shown["state"] == "dead").then_some(())
    });
    let body = json!({ "checkpoint": "warm" });
    let _ = daemon.post("/api/v1/guests/g-2/suspend", &body, 201);
    let _ = home.brood(&["--no-daemon", "destroy", "g-1", "g-3"]).ok();
    // And one that ends unasked.
    let _ = daemon.ask("g-4", &["crash"], 502);
    let ended = events.find("guest", |event| event["change"] == "ended");
    assert_eq!(ended["guest"]["name"], "g-4");
    let metrics = daemon.request(Method::GET, "/metrics").send().unwrap();
    let metrics = metrics.text().unwrap();
    assert!(
        metrics.contains("\nbrood_guests_ended_total 1\n"),
        "{metrics}"
    );
    let told = daemon.log().matches("a guest ended").count();
    assert_eq!(told, 1);
    let _ = daemon.send(Method::DELETE, "/api/v1/pools/web?force=true", 204);
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    // What is counted is told once it has happened.
    daemon.restore(1, "g");
    let _ = daemon.send(Method::POST, "/api/v1/guests/g-1/pause", 200);
    let _ = daemon.send(Method::POST, "/api/v1/guests/g-1/resume", 200);
    let new = json!({ "name": "web", "checkpoint": "demo", "hot": 2, "max": 2 });
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
            "brood_checkpoint_kernel_measured",
            "process_",
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
    let of = |prefix| query.match_indices(prefix);
    for (at, _) in of("brood_").chain(of("process_")) {
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
