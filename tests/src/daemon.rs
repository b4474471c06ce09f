//! Daemon of a test: a `brood serve` in the test's home, and HTTP clients of it.

use std::{
    fs::{self, Permissions},
    io::{BufRead, BufReader},
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::PathBuf,
};

use nix::sys::{
    resource::{Resource, setrlimit},
    signal::Signal,
};
use reqwest::{
    Method, StatusCode,
    blocking::{Client, RequestBuilder, Response},
};
use serde_json::{Value, json};

use crate::{Home, PATIENCE, Ran, Running, text, until};

/// The token of daemons that listen on a port.
pub const TOKEN: &str = "a-token-of-a-test-0123456789";

/// A daemon. It is killed when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    running: Running,
    client: Client,
    socket: PathBuf,
    port: Option<u16>,
}

impl Daemon {
    /// Starts a daemon and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(home: &Home) -> Self {
        Self::with(home, &[], &[], None)
    }

    /// Starts one with more in its environment.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn with_environment(home: &Home, environment: &[(&str, &str)]) -> Self {
        Self::with(home, &[], environment, None)
    }

    /// Restores guests of the checkpoint `demo`, which must all succeed; returns the report.
    #[track_caller]
    pub fn restore(&self, guests: u64, prefix: &str) -> Value {
        let body = json!({ "checkpoint": "demo", "guests": guests, "prefix": prefix });
        self.post("/api/v1/guests", &body, 201)
    }

    /// Puts a request to a guest, which must be answered with this status; returns the answer.
    #[track_caller]
    pub fn ask(&self, guest: &str, words: &[&str], status: u16) -> Value {
        // A loaded machine is slow, not wrong.
        let body = json!({ "request": words, "timeout_s": PATIENCE.as_secs() });
        self.post(&format!("/api/v1/guests/{guest}/ask"), &body, status)
    }

    /// What it has written to its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.running.said()
    }

    /// Starts one that listens on a port, too.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn on_a_port(home: &Home) -> Self {
        Self::on_port(home, free_port())
    }

    /// Starts one that listens on this port, as another did before.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn on_port(home: &Home, port: u16) -> Self {
        let (address, token) = (format!("127.0.0.1:{port}"), token_file(home));
        let args = ["--listen", &address, "--token-file", &token];
        Self::with(home, &args, &[], Some(port))
    }

    /// Starts one that may have so many descriptors, and no more.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn with_descriptors(home: &Home, descriptors: u64) -> Self {
        Self::begin(home, &[], &[], None, Some(descriptors))
    }

    /// The same, on a port.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn on_a_port_with_descriptors(home: &Home, descriptors: u64) -> Self {
        let port = free_port();
        let (address, token) = (format!("127.0.0.1:{port}"), token_file(home));
        let args = ["--listen", &address, "--token-file", &token];
        Self::begin(home, &args, &[], Some(port), Some(descriptors))
    }

    fn with(home: &Home, args: &[&str], environment: &[(&str, &str)], port: Option<u16>) -> Self {
        Self::begin(home, args, environment, port, None)
    }

    fn begin(
        home: &Home,
        args: &[&str],
        environment: &[(&str, &str)],
        port: Option<u16>,
        descriptors: Option<u64>,
    ) -> Self {
        let checkpoints = home.checkpoints();
        let folder = checkpoints.to_str().expect("plain letters");
        let serve = ["serve", "--log", "json", "--checkpoints", folder];
        let mut command = home.command(&[&serve, args].concat());
        command.envs(environment.iter().copied());
        if let Some(most) = descriptors {
            let limit = move || {
                setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(std::io::Error::from)
            };
            // SAFETY: setrlimit may be called between fork and exec.
            unsafe { command.pre_exec(limit) };
        }
        let running = Running::start(command);
        let socket = home.state().join("api.sock");
        let client = Client::builder()
            .unix_socket(socket.clone())
            .timeout(PATIENCE)
            .build()
            .expect("a client");
        let daemon = Self {
            running,
            client,
            socket,
            port,
        };
        // Another daemon may have answered until this one took over.
        until("the daemon to answer", || {
            let health = daemon.request(Method::GET, "/health").send().ok()?;
            let pid = health.json::<Value>().ok()?["pid"].as_i64()?;
            (pid == i64::from(daemon.running.pid())).then_some(())
        });
        if port.is_some() {
            until("the port to answer", || {
                daemon.over_port(Method::GET, "/health").send().ok()
            });
        }
        daemon
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &PathBuf {
        &self.socket
    }

    /// The port that it listens on.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.expect("it listens on a port")
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.running.pid()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    /// Waits for its end.
    #[must_use]
    pub fn wait(self) -> Ran {
        self.running.wait()
    }

    /// A request over the socket.
    ///
    /// # Panics
    /// Never: paths of tests are well-formed.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://brood{path}"))
    }

    /// A request over the port, without a token.
    ///
    /// # Panics
    /// When it has no port.
    pub fn over_port(&self, method: Method, path: &str) -> RequestBuilder {
        let port = self.port();
        let client = Client::builder().timeout(PATIENCE).build();
        let client = client.expect("a client");
        client.request(method, format!("http://127.0.0.1:{port}{path}"))
    }

    /// Puts its token on a request.
    pub fn with_token(request: RequestBuilder) -> RequestBuilder {
        request.bearer_auth(TOKEN)
    }

    /// What is at a path of the API.
    #[track_caller]
    #[must_use]
    pub fn get(&self, path: &str) -> Value {
        answered(&self.request(Method::GET, path), StatusCode::OK)
    }

    /// Posts a body; the answer must have this status.
    #[track_caller]
    pub fn post(&self, path: &str, body: &Value, status: u16) -> Value {
        let status = StatusCode::from_u16(status).expect("a status");
        answered(&self.request(Method::POST, path).json(body), status)
    }

    /// Sends a request without a body; the answer must have this status.
    #[track_caller]
    pub fn send(&self, method: Method, path: &str, status: u16) -> Value {
        let status = StatusCode::from_u16(status).expect("a status");
        answered(&self.request(method, path), status)
    }

    /// Puts a body; the answer must have this status.
    #[track_caller]
    pub fn put(&self, path: &str, body: &Value, status: u16) -> Value {
        let status = StatusCode::from_u16(status).expect("a status");
        answered(&self.request(Method::PUT, path).json(body), status)
    }

    /// Listens to the event stream.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn events(&self) -> Events {
        self.events_of("", None)
    }

    /// The same, with a query, and after the event with this id.
    ///
    /// # Panics
    /// When there is no stream.
    #[must_use]
    pub fn events_of(&self, query: &str, last: Option<&str>) -> Events {
        let request = self.request(Method::GET, &format!("/api/v1/events{query}"));
        let request = match last {
            Some(id) => request.header("last-event-id", id),
            None => request,
        };
        let stream = request.send().expect("a stream");
        assert_eq!(stream.status(), StatusCode::OK);
        Events {
            lines: BufReader::new(stream),
            id: String::new(),
            retry: None,
        }
    }
}

/// A port that is free now; nothing else in this test takes it.
fn free_port() -> u16 {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    free.local_addr().expect("it has an address").port()
}

fn token_file(home: &Home) -> String {
    let token = home.path().join("token");
    fs::write(&token, TOKEN).expect("the home can be written");
    fs::set_permissions(&token, Permissions::from_mode(0o600)).expect("it is ours");
    token.to_str().expect("plain letters").to_owned()
}

/// Sends a request, whose answer must have this status; returns its body, null when it has none.
#[track_caller]
fn answered(request: &RequestBuilder, status: StatusCode) -> Value {
    let request = request.try_clone().expect("a body that can be sent twice");
    let response = request.send().expect("an answer");
    let (found, kind) = (response.status(), content_type(&response));
    let body = response.text().expect("a body");
    assert_eq!(found, status, "{body}");
    if body.is_empty() {
        return Value::Null;
    }
    let json: Value = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}"));
    // Every error is a problem, whose status is the answer's.
    if found.is_client_error() || found.is_server_error() {
        assert_eq!(kind, "application/problem+json", "{body}");
        assert_eq!(json["status"], found.as_u16(), "{body}");
        assert!(
            text(&json["type"]).starts_with("urn:brood:error:"),
            "{body}"
        );
        assert!(!text(&json["detail"]).is_empty(), "{body}");
    }
    json
}

/// The media type of an answer.
#[must_use]
pub fn content_type(response: &Response) -> String {
    let kind = response.headers().get("content-type");
    kind.map_or("", |kind| kind.to_str().expect("plain letters"))
        .to_owned()
}

/// An event stream.
#[derive(Debug)]
pub struct Events {
    lines: BufReader<Response>,
    /// Id of the last event.
    pub id: String,
    /// The daemon's reconnect time for listeners in milliseconds, once it was sent.
    pub retry: Option<u64>,
}

impl Events {
    /// The next event of this kind.
    ///
    /// # Panics
    /// When the stream ends before, or none comes in time.
    #[track_caller]
    pub fn next(&mut self, kind: &str) -> Value {
        self.find(kind, |_| true)
    }

    /// The next event of this kind that `wanted` accepts.
    ///
    /// # Panics
    /// When the stream ends before, or none comes in time.
    #[track_caller]
    pub fn find(&mut self, kind: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let Some((found, data)) = self.read() else {
                panic!("the stream ended before an event {kind}");
            };
            if found == kind && wanted(&data) {
                return data;
            }
        }
    }

    /// Listens until the stream ends.
    pub fn until_end(mut self) {
        while self.read().is_some() {}
    }

    /// The next event of any kind.
    ///
    /// # Panics
    /// When the stream fails.
    pub fn read(&mut self) -> Option<(String, Value)> {
        let (mut kind, mut data) = (String::new(), Value::Null);
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).expect("a stream") == 0 {
                return None;
            }
            let line = line.trim_end();
            if let Some(word) = line.strip_prefix("event: ") {
                word.clone_into(&mut kind);
            } else if let Some(id) = line.strip_prefix("id: ") {
                id.clone_into(&mut self.id);
            } else if let Some(retry) = line.strip_prefix("retry: ") {
                self.retry = retry.parse().ok();
            } else if let Some(json) = line.strip_prefix("data: ") {
                data = serde_json::from_str(json).expect("events are JSON");
            } else if line.is_empty() && !kind.is_empty() {
                return Some((kind, data));
            }
        }
    }
}

/// Tries something with no daemon, and with one that does what gains by it: it must be the same.
pub fn with_a_daemon_and_without(what: impl Fn(&Home)) {
    let Some(home) = Home::with_kvm() else { return };
    what(&home);
    drop(home);
    let home = Home::bare();
    let _daemon = Daemon::start(&home);
    what(&home);
}
