//! Bounds on what clients can have the daemon hold: each is tried at twice the bound, and meanwhile
//! other clients are served.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    os::unix::net::UnixStream,
    thread,
};

use brood_tests::{Daemon, Home, PATIENCE, TOKEN, array, text, until, until_within, whole};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// Descriptors of the daemons, and what follows from that (`brood_http_connections_max`).
const DESCRIPTORS: u64 = 1024;
const OVER_SOCKET: usize = 384;
const OVER_PORT: usize = 128;
/// Requests for long calls at guests, of clients of the socket.
const LONG_REQUESTS: usize = OVER_SOCKET / 8;
/// Websockets over the socket.
const WEBSOCKETS: usize = OVER_SOCKET / 16;
/// Memory for bodies of requests, and for answers, over the socket.
const BODIES: usize = OVER_SOCKET * (32 << 10);
/// Sessions with a nursery that stand by.
const NURSERIES: usize = 32;

fn daemon(home: &Home) -> Daemon {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    Daemon::on_a_port_with_descriptors(home, DESCRIPTORS)
}

/// A field of /proc/PID/status, which is a number.
fn status(daemon: &Daemon, field: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.unwrap().split_whitespace().nth(1);
    number.unwrap().parse().unwrap()
}

fn anonymous_mib(daemon: &Daemon) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    line.unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse::<usize>()
        .unwrap()
        >> 10
}

fn descriptors(daemon: &Daemon) -> usize {
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    open.count()
}

/// A client of the socket that has sent this, and does not wait.
fn sent(daemon: &Daemon, text: &str) -> UnixStream {
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream
}

/// The status that a client was answered with, if it was.
fn answer(stream: &mut UnixStream) -> Option<String> {
    let mut head = [0; 12];
    match stream.read(&mut head) {
        Ok(12) => Some(String::from_utf8_lossy(&head[9..]).into_owned()),
        Ok(_) => Some("none".to_owned()),
        Err(e) if e.kind() == ErrorKind::WouldBlock => None,
        Err(e) => Some(e.to_string()),
    }
}

fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: brood\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Takes those out that were refused for want of room; all others still wait.
fn take_refused(clients: &mut Vec<UnixStream>) -> usize {
    let all = clients.len();
    clients.retain_mut(|client| match answer(client).as_deref() {
        None => true,
        Some("503") => false,
        Some(other) => panic!("{other}"),
    });
    all - clients.len()
}

fn get_over_port(daemon: &Daemon, path: &str) -> StatusCode {
    let request = Daemon::with_token(daemon.over_port(Method::GET, path));
    request.send().unwrap().status()
}

#[test]
fn twice_as_many_connections_as_may_be_keep_nobody_out() {
    let home = Home::bare();
    let daemon = daemon(&home);
    let before = anonymous_mib(&daemon);
    // Each has sent half of a head, with as much in it as there is room for.
    let head = format!("GET /health HTTP/1.1\r\nx: {}", "x".repeat(48 << 10));
    let by_socket: Vec<UnixStream> = (0..2 * OVER_SOCKET)
        .map(|_| {
            let mut stream = UnixStream::connect(daemon.socket()).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            // One that has made room for another cannot send the rest.
            let _ = stream.write_all(head.as_bytes());
            stream
        })
        .collect();
    let by_port: Vec<TcpStream> = (0..2 * OVER_PORT)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", daemon.port())).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            let _ = stream.write_all(head.as_bytes());
            stream
        })
        .collect();
    assert_eq!(daemon.get("/api/v1/guests"), json!([]));
    assert_eq!(get_over_port(&daemon, "/api/v1/guests"), 200);
    let (memory, open) = (anonymous_mib(&daemon), descriptors(&daemon));
    println!(
        "{} connections: {before} MiB before, {memory} MiB, {open} descriptors",
        by_socket.len() + by_port.len()
    );
    assert!(open <= OVER_SOCKET + OVER_PORT + 100, "{open}");
    // A head has 64 KiB of room, and what the connection is made of.
    let most = before + (OVER_SOCKET + OVER_PORT) * 160 / 1024;
    assert!(memory <= most, "{memory} MiB, at most {most}");
}

#[test]
fn twice_as_many_long_requests_as_may_be_leave_room_for_others() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let daemon = daemon(&home);
    daemon.restore(3, "g");
    let threads = status(&daemon, "Threads");
    let mut clients: Vec<UnixStream> = (0..2 * LONG_REQUESTS)
        .map(|_| {
            // It takes hours.
            let body = json!({ "request": ["spin", "100000000000000"], "timeout_s": 3000 });
            sent(&daemon, &post("/api/v1/guests/g-1/ask", &body.to_string()))
        })
        .collect();
    let mut refused = 0;
    until("half to be refused", || {
        refused += take_refused(&mut clients);
        assert!(clients.len() >= LONG_REQUESTS, "{refused} were refused");
        (refused == LONG_REQUESTS).then_some(())
    });
    let more = status(&daemon, "Threads") - threads;
    println!(
        "{} held, {refused} refused, {more} more threads",
        clients.len()
    );
    assert!(more <= 60, "{more}");
    // Others see, restore, claim, stop and end guests; also those that are waited for.
    assert_eq!(array(&daemon.get("/api/v1/guests")).len(), 3);
    let _ = daemon.get("/api/v1/guests/g-2");
    let _ = daemon.post("/api/v1/guests/g-1/pause", &json!({}), 200);
    let _ = daemon.send(Method::DELETE, "/api/v1/guests/g-3", 200);
    daemon.restore(1, "other");
    let pool = json!({ "name": "p", "checkpoint": demo.path, "hot": 1, "fill": {} });
    daemon.post("/api/v1/pools", &pool, 201);
    let claimed = daemon.post("/api/v1/pools/p/claims", &json!({}), 201);
    let token = text(&claimed["token"]);
    let _ = daemon.send(Method::DELETE, &format!("/api/v1/claims/{token}"), 204);
    // The port's clients have their own.
    let path = format!("/api/v1/guests/{}/ask", "other-1");
    let ask = Daemon::with_token(daemon.over_port(Method::POST, &path));
    let asked = ask.json(&json!({ "request": ["ping"], "timeout_s": PATIENCE.as_secs() }));
    assert_eq!(asked.send().unwrap().status(), 200);
    // When they hang up, their places are free, and who is waited for can be ended before that.
    let _ = daemon.send(Method::DELETE, "/api/v1/guests/g-1", 200);
    drop(clients);
    until("a place", || {
        let body = json!({ "request": ["ping"], "timeout_s": PATIENCE.as_secs() });
        let path = "/api/v1/guests/other-1/ask";
        let asked = daemon.request(Method::POST, path).json(&body).send().ok()?;
        (asked.status() == 200).then_some(())
    });
    let _ = daemon.send(Method::DELETE, "/api/v1/pools/p?force=true", 204);
    let _ = daemon.send(Method::DELETE, "/api/v1/guests?all=true", 200);
}

#[test]
fn twice_the_memory_for_bodies_of_requests_is_not_taken() {
    let home = Home::bare();
    let daemon = daemon(&home);
    let before = anonymous_mib(&daemon);
    // All but the last byte of the largest bodies.
    let length: usize = 2 << 20;
    let head = format!(
        "POST /api/v1/pools HTTP/1.1\r\nhost: brood\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n"
    );
    let body = vec![b' '; length - 1];
    let clients = 2 * BODIES / length;
    thread::scope(|scope| {
        let sending: Vec<_> = (0..clients)
            .map(|_| {
                let mut stream = UnixStream::connect(daemon.socket()).unwrap();
                let (head, body) = (&head, &body);
                let other = stream.try_clone().unwrap();
                scope.spawn(move || {
                    // Half of them are not read before the others' time is over.
                    let _ = stream.write_all(head.as_bytes());
                    let _ = stream.write_all(body);
                });
                other
            })
            .collect();
        until("memory to be taken", || {
            (anonymous_mib(&daemon) >= before + BODIES / 2 / (1 << 20)).then_some(())
        });
        // Small requests are answered.
        assert_eq!(daemon.get("/api/v1/guests"), json!([]));
        let _ = daemon.post("/api/v1/pools", &json!({}), 400);
        // And so are large ones over the port.
        let name = "x".repeat(1 << 20);
        let large = Daemon::with_token(daemon.over_port(Method::POST, "/api/v1/pools"));
        let large = large.json(&json!({ "name": name })).send().unwrap();
        assert_eq!(large.status(), 400);
        let memory = anonymous_mib(&daemon);
        println!("{clients} bodies of 2 MiB: {before} MiB before, {memory} MiB");
        // A body grows in a buffer that doubles.
        assert!(
            memory <= before + 2 * BODIES / (1 << 20) + 10,
            "{memory} MiB"
        );
        for stream in &sending {
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
    until("the memory to be free", || {
        let large = daemon.request(Method::POST, "/api/v1/pools");
        let large = large.json(&json!({ "name": "x".repeat(1 << 20) }));
        (large.send().ok()?.status() == 400).then_some(())
    });
}

#[test]
fn twice_the_memory_for_answers_is_not_taken_and_who_reads_is_answered() {
    let home = Home::bare();
    let daemon = daemon(&home);
    // More than a connection's buffers take.
    let folder = home.path().join("many");
    fs::create_dir(&folder).unwrap();
    for n in 0..1000 {
        let name = format!("{}{n}.ckp.brood", "x".repeat(180));
        fs::write(folder.join(name), "none").unwrap();
    }
    let path = format!("/api/v1/checkpoints?dir={}", folder.display());
    let whole = || {
        let answer = daemon.request(Method::GET, &path).send().unwrap();
        let status = answer.status();
        (status, answer.bytes().unwrap().len())
    };
    let (_, length) = whole();
    assert!(length > 512 << 10, "{length}");
    let before = anonymous_mib(&daemon);
    let many = 120;
    assert!(many * length > 4 * BODIES, "{length}");
    let request = format!("GET {path} HTTP/1.1\r\nhost: brood\r\n\r\n");
    let mut clients: Vec<UnixStream> = (0..many).map(|_| sent(&daemon, &request)).collect();
    let mut refused = 0;
    let mut answered = Vec::new();
    until_within(3 * PATIENCE, "all to be answered or refused", || {
        clients.retain_mut(|client| match answer(client).as_deref() {
            None => true,
            Some("503") => {
                refused += 1;
                false
            }
            Some("200") => {
                answered.push(client.try_clone().unwrap());
                false
            }
            // It has made room for another.
            Some(_) => false,
        });
        clients.is_empty().then_some(())
    });
    println!("{} answered, {refused} refused", answered.len());
    for _ in 0..3 {
        assert_eq!(whole(), (StatusCode::OK, length));
    }
    let memory = anonymous_mib(&daemon);
    println!(
        "{many} answers of {} KiB that nobody reads: {before} MiB before, {memory} MiB",
        length >> 10
    );
    // Beside the answers that have room, 16 wait for it, and 25 are being made, each of two lists and
    // of a text that grows in a buffer; what they had the allocator keeps.
    let most = before + (BODIES + (16 + 25 * 6) * length) / (1 << 20);
    assert!(memory <= most, "{memory} MiB, at most {most}");
}

#[test]
fn twice_as_many_websockets_as_may_be_leave_room_for_others() {
    let home = Home::bare();
    let daemon = daemon(&home);
    let open = "GET /api/v1/guests/nobody/exec HTTP/1.1\r\nhost: brood\r\n\
                connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let before = anonymous_mib(&daemon);
    let mut opened = Vec::new();
    let mut refused = 0;
    for _ in 0..2 * WEBSOCKETS {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(open.as_bytes()).unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        match &head[9..] {
            b"101" => opened.push(stream),
            b"503" => refused += 1,
            other => panic!("{other:?}"),
        }
        assert!(opened.len() <= WEBSOCKETS);
    }
    println!("{} websockets, {refused} refused", opened.len());
    assert!(refused > 0);
    // A long message that does not end.
    for stream in &mut opened {
        let mut frame = vec![0x82, 0xff];
        frame.extend((1_u64 << 20).to_be_bytes());
        frame.extend([0; 4]);
        frame.resize(512 << 10, 0);
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(&frame);
    }
    assert_eq!(daemon.get("/api/v1/guests"), json!([]));
    let memory = anonymous_mib(&daemon);
    assert!(
        memory <= before + 4 * WEBSOCKETS,
        "{before} MiB, {memory} MiB"
    );
    drop(opened);
    until("their places to be free", || {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(open.as_bytes()).unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        (&head[9..] == b"101").then_some(())
    });
}

#[test]
fn twice_as_many_checkpoints_as_nurseries_stand_by() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let daemon = daemon(&home);
    let mut most = 0;
    for n in 0..2 * NURSERIES {
        let copy = home.named(&format!("copy{n}"));
        for part in ["ckp", "ckp.kern", "ckp.meta", "ckp.brood"] {
            fs::copy(demo.file(part), copy.file(part)).unwrap();
        }
        let restore = json!({ "checkpoint": copy.path, "guests": 1, "prefix": format!("c{n}") });
        let report: Value = daemon.post("/api/v1/guests", &restore, 201);
        assert_eq!(whole(&report["restored"]), 1);
        let _ = daemon.send(Method::DELETE, &format!("/api/v1/guests/c{n}-1"), 200);
        for part in ["ckp", "ckp.kern", "ckp.meta", "ckp.brood"] {
            fs::remove_file(copy.file(part)).unwrap();
        }
        most = most.max(home.nurseries().len());
    }
    println!("{most} nurseries at most");
    // One may not have ended yet whose place another has taken.
    assert!(most <= NURSERIES + 4, "{most}");
    until("no more than stand by", || {
        (home.nurseries().len() <= NURSERIES).then_some(())
    });
    daemon.restore(1, "g");
    home.destroy_all();
}

#[test]
fn a_head_or_a_body_that_comes_in_drops_ends_with_its_time() {
    let home = Home::bare();
    let daemon = daemon(&home);
    let token = TOKEN;
    let mut head = TcpStream::connect(("127.0.0.1", daemon.port())).unwrap();
    let mut body = TcpStream::connect(("127.0.0.1", daemon.port())).unwrap();
    head.write_all(b"GET / HTTP/1.1\r\nx: ").unwrap();
    write!(
        body,
        "POST /api/v1/pools HTTP/1.1\r\nhost: brood\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: 1000000\r\n\r\n{{"
    )
    .unwrap();
    // Each sends a little more every time; what it is answered with, when it is over.
    let ended = |stream: &mut TcpStream| {
        stream.set_nonblocking(true).unwrap();
        let _ = stream.write(b" ");
        let mut answer = vec![0; 4096];
        match stream.read(&mut answer) {
            Ok(length) => Some(String::from_utf8_lossy(&answer[..length]).into_owned()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => None,
            Err(_) => Some(String::new()),
        }
    };
    let mut answers = [None, None];
    until("both to be over", || {
        assert_eq!(get_over_port(&daemon, "/api/v1/guests"), 200);
        for (stream, answer) in [&mut head, &mut body].into_iter().zip(&mut answers) {
            if answer.is_none() {
                *answer = ended(stream);
            }
        }
        answers.iter().all(Option::is_some).then_some(())
    });
    let [_, of_body] = answers.map(Option::unwrap_or_default);
    assert!(of_body.contains("did not come within"), "{of_body:?}");
}
