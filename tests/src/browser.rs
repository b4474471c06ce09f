//! Headless Chromium, driven over WebDriver (<https://www.w3.org/TR/webdriver2/>) by chromedriver.

use std::{collections::BTreeSet, net::TcpListener, process::Command, thread, time::Duration};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use reqwest::{
    Method,
    blocking::{Client, Response},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{PATIENCE, Running, array, skip, text, until};

/// The key under which WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// How long something has stood in its place that is no longer being moved.
const SETTLED: Duration = Duration::from_millis(50);

/// Keys as WebDriver writes them.
pub const TAB: &str = "\u{e004}";
/// Enter.
pub const ENTER: &str = "\u{e007}";
/// Control, held until the end of what is typed.
pub const CONTROL: &str = "\u{e009}";

/// A browser with a profile of its own. It is ended when this is dropped.
#[derive(Debug)]
pub struct Browser {
    driver: Running,
    client: Client,
    session: String,
    // Last: its files go when nothing uses them any more.
    _profile: TempDir,
}

impl Browser {
    /// A browser for the running test; `None` where it must be skipped for want of one.
    ///
    /// # Panics
    /// When there is one and it does not start.
    #[must_use]
    pub fn start() -> Option<Self> {
        let missing = ["chromium", "chromedriver"].into_iter().find(|program| {
            let found = Command::new(program).arg("--version").output();
            !found.is_ok_and(|ran| ran.status.success())
        });
        if let Some(program) = missing {
            skip(&format!("no {program}"));
            return None;
        }
        let profile = tempfile::Builder::new()
            .prefix("brood-browser-")
            .tempdir()
            .expect("a temporary folder");
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("it has an address").port();
        drop(free);
        let mut command = Command::new("chromedriver");
        command
            .arg(format!("--port={port}"))
            // Else it puts files of its own beside other tests'.
            .env("TMPDIR", profile.path())
            .env("HOME", profile.path());
        let driver = Running::start(command);
        let client = Client::builder().timeout(PATIENCE).no_proxy().build();
        let client = client.expect("a client");
        let at = format!("http://127.0.0.1:{port}");
        until("the driver to answer", || {
            client.get(format!("{at}/status")).send().ok()
        });
        let args: Vec<String> = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1360,1000",
        ]
        .map(str::to_owned)
        .into_iter()
        .chain([format!(
            "--user-data-dir={}",
            profile.path().join("profile").display()
        )])
        .collect();
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": args },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        } } });
        let request = client.post(format!("{at}/session")).json(&wanted);
        let answer = request.send().and_then(Response::json);
        let made: Value = answer.expect("the driver answers");
        let Some(id) = made["value"]["sessionId"].as_str() else {
            panic!("the browser does not start: {made}");
        };
        Some(Self {
            session: format!("{at}/session/{id}"),
            driver,
            client,
            _profile: profile,
        })
    }

    #[track_caller]
    fn command(&self, method: Method, path: &str, body: &Value) -> Value {
        let value = self.answer(method, path, body);
        assert!(value["error"].is_null(), "{path}: {value}");
        value
    }

    /// What a command is answered with, an error too.
    fn answer(&self, method: Method, path: &str, body: &Value) -> Value {
        let has_body = method == Method::POST;
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.session));
        if has_body {
            request = request.json(body);
        }
        let answer = request.send().and_then(Response::json);
        let answer: Value = answer.expect("the driver answers");
        answer["value"].clone()
    }

    /// Goes to an address.
    #[track_caller]
    pub fn open(&self, address: &str) {
        let _ = self.command(Method::POST, "/url", &json!({ "url": address }));
    }

    /// Loads the page again.
    #[track_caller]
    pub fn reload(&self) {
        let _ = self.command(Method::POST, "/refresh", &json!({}));
    }

    /// What a script returns that is run in the page.
    #[track_caller]
    #[must_use]
    pub fn run(&self, script: &str) -> Value {
        let body = json!({ "script": script, "args": [] });
        self.command(Method::POST, "/execute/sync", &body)
    }

    /// Waits until an expression in the page is true.
    ///
    /// # Panics
    /// When that does not come to be.
    #[track_caller]
    pub fn until(&self, expression: &str) {
        until(&format!("{expression} in the page"), || {
            let found = self.run(&format!("return Boolean({expression})"));
            (found == true).then_some(())
        });
    }

    /// Waits for what a CSS selector finds.
    #[track_caller]
    fn element(&self, selector: &str) -> String {
        let body = json!({ "using": "css selector", "value": selector });
        until(&format!("{selector} in the page"), || {
            let found = self.answer(Method::POST, "/element", &body);
            Some(format!("/element/{}", found[ELEMENT].as_str()?))
        })
    }

    /// Clicks what a CSS selector finds, as a person does: it must be in sight, and nothing over
    /// it.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        let place = format!(
            "const at = document.querySelector({})?.getBoundingClientRect(); return [at?.x, at?.y];",
            json!(selector)
        );
        until(&format!("{selector} to be clicked"), || {
            // What is still being moved is not hit, and nobody says so.
            let _ = self.element(selector);
            let before = self.run(&place);
            thread::sleep(SETTLED);
            if self.run(&place) != before {
                return None;
            }
            let path = format!("{}/click", self.element(selector));
            let answer = self.answer(Method::POST, &path, &json!({}));
            // What is above it may just have grown, and moved it.
            let moved = ["element click intercepted", "stale element reference"];
            let error = answer["error"].as_str();
            assert!(
                error.is_none_or(|e| moved.contains(&e)),
                "{selector}: {answer}"
            );
            error.is_none().then_some(())
        });
    }

    /// Types into what a CSS selector finds.
    #[track_caller]
    pub fn enter(&self, selector: &str, keys: &str) {
        let path = format!("{}/value", self.element(selector));
        let _ = self.command(Method::POST, &path, &json!({ "text": keys }));
    }

    /// Types wherever the keyboard's focus is.
    #[track_caller]
    pub fn press(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key })))
            .collect();
        let body = json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] });
        let _ = self.command(Method::POST, "/actions", &body);
    }

    /// The text of what a CSS selector finds, as it is shown.
    #[track_caller]
    #[must_use]
    pub fn text(&self, selector: &str) -> String {
        let path = format!("{}/text", self.element(selector));
        text(&self.command(Method::GET, &path, &Value::Null)).to_owned()
    }

    /// Has pages believe that people want dark colours, or light ones.
    #[track_caller]
    pub fn prefer(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools(
            "Emulation.setEmulatedMedia",
            &json!({ "features": features }),
        );
    }

    /// Sends a command of the DevTools protocol.
    #[track_caller]
    pub fn devtools(&self, command: &str, parameters: &Value) {
        let body = json!({ "cmd": command, "params": parameters });
        let _ = self.command(Method::POST, "/goog/cdp/execute", &body);
    }

    #[track_caller]
    fn log(&self, kind: &str) -> Vec<Value> {
        let log = self.command(Method::POST, "/se/log", &json!({ "type": kind }));
        array(&log).to_vec()
    }

    /// What was said on the console since this was last asked.
    #[track_caller]
    #[must_use]
    pub fn console(&self) -> Vec<String> {
        let log = self.log("browser");
        log.iter()
            .map(|line| text(&line["message"]).to_owned())
            .collect()
    }

    /// The addresses that pages have asked for since this was last asked.
    #[track_caller]
    #[must_use]
    pub fn requests(&self) -> BTreeSet<String> {
        let events = self.log("performance").into_iter().filter_map(|line| {
            let event: Value = serde_json::from_str(text(&line["message"])).ok()?;
            let event = &event["message"];
            let sent = event["method"] == "Network.requestWillBeSent";
            // The browser begins with a page of its own.
            let page = event["params"]["documentURL"].as_str().unwrap_or("");
            let own = page.starts_with("chrome:") || page.starts_with("about:");
            (sent && !own).then(|| text(&event["params"]["request"]["url"]).to_owned())
        });
        events.collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.client.delete(&self.session).send();
        // Whatever of it is left; the driver is the head of its process group.
        let _ = killpg(Pid::from_raw(self.driver.pid()), Signal::SIGKILL);
    }
}
