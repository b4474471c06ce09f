//! Daemon: who may reach it, and its death and replacement under real guests.

use std::{
    fs::{self, Permissions},
    io::Write,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream,
    },
};

use brood_tests::{
    Daemon, EngineKind, Home, array, by_engine, content_type, on_both_engines, signal, text, until,
};
use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

on_both_engines! {
    guests_outlive_a_daemon_that_is_killed,
    a_daemon_takes_over_from_another_that_drains,
    ended_children_are_not_left_as_zombies,
    a_client_that_hangs_up_ends_its_restore_but_not_its_guests,
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
        "/api/v1/guests",
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
    let destroy = daemon.over_port(Method::DELETE, "/api/v1/guests?all=true&force=true");
    assert_eq!(status(destroy), StatusCode::UNAUTHORIZED);
    assert_eq!(
        status(daemon.over_port(Method::GET, "/health")),
        StatusCode::OK
    );
    let listed = Daemon::with_token(daemon.over_port(Method::GET, "/api/v1/guests")).send();
    assert_eq!(listed.unwrap().json::<Value>().unwrap(), json!([]));
    // The socket needs none.
    assert_eq!(daemon.get("/api/v1/guests"), json!([]));
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

fn guests_outlive_a_daemon_that_is_killed(on: EngineKind) {
    let Some(home) = Home::on(on) else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    daemon.restore(3, "g");
    let new = json!({ "name": "p", "checkpoint": "demo", "hot": 2 });
    let _ = daemon.post("/api/v1/pools", &new, 201);
    let _ = daemon.send(Method::POST, "/api/v1/pools/p/fill", 200);
    let claimed = daemon.post("/api/v1/pools/p/claims", &json!({}), 201);
    let before: Vec<i64> = array(&daemon.get("/api/v1/guests"))
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
        let _ = daemon.ask(name, &["ping"], 200);
    }
    let after: Vec<i64> = array(&daemon.get("/api/v1/guests"))
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

fn a_daemon_takes_over_from_another_that_drains(on: EngineKind) {
    let Some(home) = Home::on(on) else { return };
    let _ = home.demo("demo", "4M");
    let old = Daemon::on_a_port(&home);
    old.restore(1, "g");
    let events = old.events();
    // A request that is under way when the other daemon comes.
    let slow = old
        .request(Method::POST, "/api/v1/guests/g-1/ask")
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
    let _ = new.ask("g-1", &["ping"], 200);
}

fn ended_children_are_not_left_as_zombies(on: EngineKind) {
    let Some(home) = Home::on(on) else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    for round in 0..3 {
        daemon.restore(2, &format!("r{round}"));
    }
    let all = daemon.send(Method::DELETE, "/api/v1/guests?all=true&force=true", 200);
    assert_eq!(all["destroyed"], 6);
    let children = format!("/proc/{0}/task/{0}/children", daemon.pid());
    until("all of them to be waited for", || {
        let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).ok()?;
        let mut left = String::new();
        for thread in threads {
            left += &fs::read_to_string(thread.ok()?.path().join("children")).ok()?;
        }
        left.trim().is_empty().then_some(())
    });
    assert_eq!(fs::read_to_string(children).unwrap(), "");
}

fn a_client_that_hangs_up_ends_its_restore_but_not_its_guests(on: EngineKind) {
    let Some(home) = Home::on(on) else { return };
    let _ = home.demo("demo", "4M");
    // Held up, so that the client is sure to be gone before the end: on KVM by a nursery that is
    // stopped, on bhyve by guests that take seconds for an answer.
    let (asked, slow) = by_engine(on, (150, ""), (8, "guest.answer:slow"));
    let daemon = Daemon::with_environment(&home, &[("BROOD_STANDIN_FAIL", slow)]);
    let body = json!({ "checkpoint": "demo", "guests": asked, "concurrency": 1 }).to_string();
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    let head = format!(
        "POST /api/v1/guests HTTP/1.1\r\nhost: brood\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    until("it to begin", || match on {
        EngineKind::Kvm => home.nurseries().pop(),
        EngineKind::Bhyve | EngineKind::Qemu => home.guests().pop(),
    });
    let nurseries = home.nurseries();
    for nursery in &nurseries {
        signal(nursery.pid, Signal::SIGSTOP);
    }
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
    for nursery in &nurseries {
        signal(nursery.pid, Signal::SIGCONT);
    }
    // Those that were begun stand, and nothing goes on.
    let there = home.converges();
    assert!(there.len() < asked, "it went on to its end");
    assert_eq!(home.guests().len(), there.len());
}
