//! Metrics of the daemon, and the dashboard of them.

use std::fs::{self};

use brood_tests::{Daemon, Home, array, content_type, text, until};
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
fn the_dashboard_asks_for_what_there_is() {
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    // What is counted is told once it has happened.
    daemon.restore(1, "g");
    let _ = daemon.send(Method::POST, "/api/v1/guests/g-1/pause", 200);
    let _ = daemon.send(Method::POST, "/api/v1/guests/g-1/resume", 200);
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
