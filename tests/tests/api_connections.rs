//! Connections to the daemon: those of strangers, idle ones and half-sent ones cost little, are
//! closed, and never keep the socket's owner out.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    os::unix::{fs::symlink, net::UnixStream},
    time::Duration,
};

use brood_tests::{Daemon, Home, PATIENCE, text, until, whole};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use reqwest::Method;
use serde_json::json;

/// As many descriptors as this process may have.
fn raise_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// Anonymous memory of a process, in KiB.
fn anonymous_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse().unwrap()
}

/// How many files a process has open whose name has this in it.
fn open_files(pid: i32, name: &str) -> usize {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    links
        .filter(|link| link.to_string_lossy().contains(name))
        .count()
}

/// Whether the other side has closed this connection.
fn is_closed(stream: &mut (impl Read + Write)) -> bool {
    match stream.read(&mut [0; 64]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(e) => e.kind() != ErrorKind::WouldBlock,
    }
}

#[test]
fn a_thousand_idle_connections_cost_little_and_the_owner_notices_nothing() {
    raise_descriptors();
    let home = Home::bare();
    let daemon = Daemon::on_a_port(&home);
    for _ in 0..20 {
        let _ = daemon.get("/api/v1/pools");
    }
    let before = anonymous_kib(daemon.pid());
    let idle: Vec<UnixStream> = (0..500)
        .map(|_| UnixStream::connect(daemon.socket()).unwrap())
        .collect();
    let half_sent: Vec<TcpStream> = (0..500)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", daemon.port())).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nx: ").unwrap();
            stream
        })
        .collect();
    let sockets = || open_files(daemon.pid(), "socket:");
    until("all to be accepted", || (sockets() >= 1000).then_some(()));
    let _ = daemon.get("/api/v1/pools");
    let after = anonymous_kib(daemon.pid());
    let cost = after.saturating_sub(before);
    println!("1,000 idle connections: {before} KiB before, {cost} KiB more");
    assert!(cost <= 20 << 10, "{cost} KiB");
    drop((idle, half_sent));
    until("all to be closed", || (sockets() < 50).then_some(()));
}

#[test]
fn a_stranger_who_comes_when_all_connections_are_taken_takes_the_place_of_an_idle_one() {
    raise_descriptors();
    let home = Home::bare();
    // Descriptors are few: 512 are for connections, 128 of them for the port.
    let daemon = Daemon::on_a_port_with_descriptors(&home, 1024);
    let mut strangers: Vec<TcpStream> = (0..300)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", daemon.port())).unwrap();
            let _ = stream.write_all(b"GET / HTTP/1.1\r\n");
            stream.set_nonblocking(true).unwrap();
            stream
        })
        .collect();
    // The port itself is open to clients with the token, and the socket to its owner.
    let listed = Daemon::with_token(daemon.over_port(Method::GET, "/api/v1/guests")).send();
    assert_eq!(listed.unwrap().status(), 200);
    assert_eq!(daemon.get("/api/v1/guests"), json!([]));
    until("the first to have been closed", || {
        let closed = strangers
            .iter_mut()
            .filter_map(|s| is_closed(s).then_some(()));
        (closed.count() >= 300 - 128).then_some(())
    });
    assert!(open_files(daemon.pid(), "socket:") < 200);
}

#[test]
fn a_request_that_is_not_sent_to_its_end_is_not_waited_for_when_the_daemon_ends() {
    let home = Home::bare();
    let daemon = Daemon::on_a_port(&home);
    let mut half_sent = UnixStream::connect(daemon.socket()).unwrap();
    half_sent
        .write_all(b"GET /health HTTP/1.1\r\nhost")
        .unwrap();
    // This one is asked for its body, and sends none of it.
    let mut without_body = UnixStream::connect(daemon.socket()).unwrap();
    without_body
        .write_all(
            b"POST /api/v1/pools HTTP/1.1\r\nhost: brood\r\ncontent-type: application/json\r\n\
              content-length: 10\r\nexpect: 100-continue\r\n\r\n",
        )
        .unwrap();
    let mut asked = [0; 12];
    without_body.set_read_timeout(Some(PATIENCE)).unwrap();
    without_body.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100");
    let idle = TcpStream::connect(("127.0.0.1", daemon.port())).unwrap();
    let _ = daemon.get("/health");
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    let _ = daemon.wait().ok();
    drop((half_sent, without_body, idle));
}

#[test]
fn databases_are_closed_when_they_are_not_used() {
    let Some(home) = Home::with_kvm() else { return };
    let _ = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    daemon.restore(10, "g");
    let open = || open_files(daemon.pid(), "brood.sqlite");
    std::thread::scope(|scope| {
        for n in 1..=10 {
            // Each waits for a guest of its own, with a database of its own: a file and its
            // journal's two.
            let (daemon, guest) = (&daemon, format!("g-{n}"));
            scope.spawn(move || daemon.ask(&guest, &["spin", "500000"], 200));
        }
        until("databases to be open", || (open() >= 18).then_some(()));
    });
    until("those of the busiest moment to be closed", || {
        (open() <= 12).then_some(())
    });
}

#[test]
fn event_streams_leave_room_for_other_requests() {
    raise_descriptors();
    let home = Home::bare();
    let daemon = Daemon::with_descriptors(&home, 80);
    let request = "GET /api/v1/events HTTP/1.1\r\nhost: brood\r\n\r\n";
    let mut streams = Vec::new();
    let mut refused = 0;
    for _ in 0..90 {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        match &head[9..] {
            b"200" => streams.push(stream),
            b"503" => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(streams.len() >= 10 && refused >= 60, "{refused}");
    assert_eq!(daemon.get("/api/v1/guests"), json!([]));
    let _ = streams[0].shutdown(Shutdown::Both);
    drop(streams);
    // They are free again.
    until("a stream", || {
        let stream = daemon.request(Method::GET, "/api/v1/events").send().ok()?;
        (stream.status() == 200).then_some(())
    });
}

/// A metric of the daemon, as it is now.
fn metric(daemon: &Daemon, name: &str) -> u64 {
    let metrics = daemon.request(Method::GET, "/metrics").send().unwrap();
    let metrics = metrics.text().unwrap();
    let found = metrics.lines().find_map(|line| line.strip_prefix(name));
    let found = found.unwrap_or_else(|| panic!("no {name} in\n{metrics}"));
    found.trim().parse().unwrap()
}

#[test]
fn connections_and_event_streams_are_counted_while_they_are_open() {
    raise_descriptors();
    let home = Home::bare();
    // 512 connections, 128 of them over the port; half of the socket's may be event streams.
    let daemon = Daemon::on_a_port_with_descriptors(&home, 1024);
    let max = |by: &str| {
        let name = format!("brood_http_connections_max{{by=\"{by}\"}}");
        metric(&daemon, &name)
    };
    assert_eq!((max("socket"), max("port")), (384, 128));
    let open = |by: &str| {
        let name = format!("brood_http_connections{{by=\"{by}\"}}");
        metric(&daemon, &name)
    };
    let streams = || metric(&daemon, "brood_event_streams{by=\"socket\"}");
    let (before, none) = (open("socket"), open("port"));
    // The test's own client may keep some open.
    assert!((1..10).contains(&before) && none == 0, "{before} {none}");

    let request = "GET /api/v1/events HTTP/1.1\r\nhost: brood\r\n\r\n";
    let mut listeners = Vec::new();
    for _ in 0..200 {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        listeners.push(stream);
    }
    assert_eq!(streams(), 192);
    let refused = metric(&daemon, "brood_event_streams_refused_total{by=\"socket\"}");
    assert_eq!(refused, 8);
    assert!(open("socket") >= 200);

    // More than there is room for: the first make room.
    let strangers: Vec<TcpStream> = (0..150)
        .map(|_| TcpStream::connect(("127.0.0.1", daemon.port())).unwrap())
        .collect();
    let displaced = || {
        let name = "brood_http_connections_displaced_total{by=\"port\"}";
        metric(&daemon, name)
    };
    until("some to make room", || (displaced() == 22).then_some(()));
    until("the others to be taken", || {
        (open("port") == 128).then_some(())
    });
    assert_eq!(
        metric(
            &daemon,
            "brood_http_connections_displaced_total{by=\"socket\"}"
        ),
        0
    );

    drop((listeners, strangers));
    until("all to be closed", || {
        let closed = open("socket") < 10 && open("port") == 0 && streams() == 0;
        closed.then_some(())
    });
}

#[test]
fn a_socket_that_was_removed_is_there_again() {
    let home = Home::bare();
    let daemon = Daemon::start(&home);
    let events = daemon.events();
    for _ in 0..2 {
        fs::remove_file(daemon.socket()).unwrap();
        until("the socket", || daemon.socket().exists().then_some(()));
        assert_eq!(daemon.get("/health")["pid"], daemon.pid());
    }
    // The whole folder goes and comes back.
    let (state, away) = (home.state(), home.path().join("away"));
    fs::rename(&state, &away).unwrap();
    until("it to be noticed", || {
        daemon
            .log()
            .contains("the socket was removed")
            .then_some(())
    });
    fs::rename(&away, &state).unwrap();
    assert_eq!(daemon.get("/health")["pid"], daemon.pid());
    // Another daemon still takes over, and that is what the log says.
    let new = Daemon::start(&home);
    let ran = daemon.wait().ok();
    assert!(ran.stderr.contains("another daemon has taken over"));
    assert!(ran.stderr.contains("listening on it again"));
    events.until_end();
    // And so does another file.
    let socket = new.socket().clone();
    let other = home.path().join("other");
    symlink("/dev/null", &other).unwrap();
    fs::rename(&other, &socket).unwrap();
    let ran = new.wait().ok();
    assert!(
        ran.stderr
            .contains("another file has the name of the socket")
    );
    assert!(socket.is_symlink(), "what is not its own was removed");
}

#[test]
fn pools_of_the_configuration_are_there_when_the_daemon_has_started() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let config = home.path().join("brood.toml");
    let pools = format!(
        "[[pool]]\nname = 'web'\ncheckpoint = '{0}'\nhot = 2\n\
         [[pool]]\nname = 'lost'\ncheckpoint = '{0}-that-is-not-there'\nhot = 1\n\
         [[pool]]\nname = 'api'\ncheckpoint = '{0}'\nhot = 1\n",
        demo.path
    );
    fs::write(&config, pools).unwrap();
    let environment = [("BROOD_CONFIG", config.to_str().unwrap())];
    let daemon = Daemon::with_environment(&home, &environment);
    for (pool, hot) in [("web", 2), ("api", 1)] {
        until("hot entries", || {
            let path = format!("/api/v1/pools/{pool}");
            let shown = daemon.request(Method::GET, &path).send().ok()?;
            let shown: serde_json::Value = shown.json().ok()?;
            (shown["entries"]["hot"] == hot).then_some(())
        });
    }
    // A pool that cannot be made is reported, and holds up no other.
    let log = daemon.log();
    assert!(log.contains("configured: made"), "{log}");
    assert!(log.contains("not as configured"), "{log}");
    let claimed = daemon.post("/api/v1/pools/web/claims", &json!({}), 201);
    assert!(!text(&claimed["token"]).is_empty() && whole(&claimed["pid"]) > 0);
    for pool in ["web", "api"] {
        let _ = daemon.send(
            Method::DELETE,
            &format!("/api/v1/pools/{pool}?force=true"),
            204,
        );
    }
}

#[test]
fn a_head_that_makes_no_sense_is_refused_at_once() {
    let home = Home::bare();
    let daemon = Daemon::start(&home);
    let status = |request: &str| {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        String::from_utf8_lossy(&head[9..]).into_owned()
    };
    assert_eq!(status("GET /health HTTP/1.1\r\n\r\n"), "400");
    assert_eq!(
        status("GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"),
        "400"
    );
    assert_eq!(status("GET /health HTTP/1.1\r\nhost:\r\n\r\n"), "200");
    assert_eq!(status("GET /health HTTP/1.0\r\n\r\n"), "200");
    // Nothing of such a body is waited for.
    let vast = "POST /api/v1/pools HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
                content-length: 99999999999\r\n\r\n";
    assert_eq!(status(vast), "413");
    let form = daemon
        .request(Method::POST, "/api/v1/pools")
        .body("name=web")
        .send()
        .unwrap();
    assert_eq!(form.status(), 415);
    let problem: serde_json::Value = form.json().unwrap();
    assert_eq!(problem["exit_code"], 2);
    assert!(text(&problem["hint"]).contains("application/json"));
}

#[test]
fn the_log_tells_each_request_once_and_rounds() {
    let home = Home::bare();
    let daemon = Daemon::start(&home);
    for path in ["/health", "/metrics", "/openapi.json", "/", "/page.js"] {
        let _ = daemon.request(Method::GET, path).send().unwrap();
    }
    let _ = daemon.get("/api/v1/pools");
    let _ = daemon.send(Method::GET, "/api/v1/pools/none", 404);
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    let ran = daemon.wait().ok();
    let lines = ran.stderr.lines().map(|line| {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"))
    });
    let of_requests: Vec<_> = lines.filter(|line| line["span"].is_object()).collect();
    let paths: Vec<&str> = of_requests
        .iter()
        .map(|l| text(&l["span"]["path"]))
        .collect();
    assert_eq!(
        paths,
        ["/api/v1/pools", "/api/v1/pools/none"],
        "{}",
        ran.stderr
    );
    for line in &of_requests {
        assert!(line.get("spans").is_none(), "{line}");
        let ms = line["ms"].to_string();
        let decimals = ms.split_once('.').map_or(0, |(_, decimals)| decimals.len());
        assert!(decimals <= 3, "{line}");
    }
    assert!(text(&of_requests[1]["message"]).contains("no pool \"none\""));
    assert!(!ran.stderr.contains("Some("), "{}", ran.stderr);
}

#[test]
fn where_to_listen_is_said_as_people_say_it() {
    let home = Home::bare();
    let token = home.path().join("token");
    fs::write(&token, "a-token-of-a-test-0123456789").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&token, mode).unwrap();
    let token = token.to_str().unwrap();
    for listen in ["localhost:7399", ":7399", "7399", "127.0.0.1:7399"] {
        let shown = home
            .brood(&[
                "serve",
                "--listen",
                listen,
                "--token-file",
                "/nonexistent/token",
            ])
            .exits(1);
        let _ = shown.says(&["/nonexistent/token"]);
    }
    let _ = home
        .brood(&["serve", "--listen", "here", "--token-file", token])
        .exits(2)
        .says(&["127.0.0.1:7300"]);
    let _ = home
        .brood(&["serve", "--log", "yaml"])
        .exits(2)
        .says(&["json"]);
}
