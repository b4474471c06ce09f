//! Client of whichever daemon runs now. A daemon that is gone is no error: the client sends the
//! request again to the next one.

use std::{
    thread,
    time::{Duration, Instant},
};

use brood_tests::Home;
use reqwest::{Method, blocking::Client};
use serde_json::Value;

/// How long a request may take, and how long one is put again and again.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long until a request is put again.
const PAUSE: Duration = Duration::from_millis(20);

/// A client.
#[derive(Debug)]
pub(crate) struct Talk {
    client: Client,
}

/// What a daemon answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl Answer {
    /// Its kind, when it is an error.
    pub(crate) fn kind(&self) -> &str {
        let kind = self.body["type"].as_str().unwrap_or_default();
        kind.strip_prefix("urn:brood:error:").unwrap_or(kind)
    }

    pub(crate) fn is_ok(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

impl Talk {
    pub(crate) fn new(home: &Home) -> Self {
        let client = Client::builder()
            .unix_socket(home.state().join("api.sock"))
            .timeout(PATIENCE)
            .build();
        Self {
            client: client.expect("a client"),
        }
    }

    /// Puts a request once; `None` when no answer came.
    pub(crate) fn once(&self, method: &Method, path: &str, body: Option<&Value>) -> Option<Answer> {
        let request = self
            .client
            .request(method.clone(), format!("http://brood/api/v1{path}"));
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        let response = request.send().ok()?;
        let status = response.status().as_u16();
        let body = response.text().ok()?;
        let body = serde_json::from_str(&body).unwrap_or(Value::Null);
        Some(Answer { status, body })
    }

    /// Puts a request that may be put twice, until there is an answer which says what is so.
    pub(crate) fn until_told(&self, method: &Method, path: &str, body: Option<&Value>) -> Answer {
        let begin = Instant::now();
        loop {
            let answer = self.once(method, path, body);
            match answer {
                // The host or another command was at something: it passes.
                Some(answer) if answer.status < 500 => return answer,
                _ if begin.elapsed() > PATIENCE => {
                    panic!("{method} {path} has no answer but {answer:?}")
                }
                _ => thread::sleep(PAUSE),
            }
        }
    }
}
