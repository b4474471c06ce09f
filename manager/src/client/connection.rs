//! Connection to the daemon, kept from request to request, and opened again when the daemon was
//! replaced in between.

use std::{
    io::ErrorKind,
    os::unix::net::UnixStream as StdStream,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::timeout};

use super::Error;
use crate::api::{host::Daemon, problem::Problem};

/// How long a daemon may take to identify itself. A stopped daemon must not hold up commands.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// What errors that a request ran into are called where the daemon does not know the request: it is
/// of another version. Nothing was begun then.
const UNKNOWN: [&str; 3] = ["no-such-path", "method-not-allowed", "bad-request"];
/// The same where it sees other files than this process does, as a hardened service may.
const UNSEEN: [&str; 4] = [
    "no-such-checkpoint",
    "no-such-folder",
    "not-permitted",
    "bad-checkpoint-name",
];

/// Reaches for the socket.
pub(super) fn open(socket: &Path) -> Result<StdStream, Error> {
    let stream = StdStream::connect(socket).and_then(|stream| {
        stream.set_nonblocking(true)?;
        Ok(stream)
    });
    stream.map_err(|e| {
        let socket = socket.display();
        Error::NotBegun(match e.kind() {
            ErrorKind::NotFound => format!("no daemon listens on {socket}"),
            ErrorKind::ConnectionRefused => format!("the daemon that had {socket} is gone"),
            _ => format!("cannot reach the daemon on {socket}: {e}"),
        })
    })
}

/// A request to be made.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    method: Method,
    path: String,
    body: Option<Bytes>,
    /// Its `x-request-id`.
    id: Option<String>,
    /// What it is for, in words: `release a claim`.
    asked: &'static str,
    /// Whether anything is different when it is done.
    changes: bool,
}

impl Call {
    /// A request that changes nothing.
    pub(crate) fn get(path: impl Into<String>, asked: &'static str) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            body: None,
            id: None,
            asked,
            changes: false,
        }
    }

    /// One that changes something.
    pub(crate) fn change(method: Method, path: impl Into<String>, asked: &'static str) -> Self {
        Self {
            method,
            changes: true,
            ..Self::get(path, asked)
        }
    }

    /// The same, with a body.
    pub(crate) fn with(self, body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).expect("requests are plain data");
        Self {
            body: Some(body.into()),
            ..self
        }
    }

    /// The same, with an id.
    pub(super) fn of(self, id: &str) -> Self {
        Self {
            id: Some(id.to_owned()),
            ..self
        }
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::builder()
            .method(&self.method)
            .uri(&self.path)
            .header(header::HOST, "brood");
        if let Some(id) = &self.id {
            request = request.header("x-request-id", id);
        }
        if self.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Full::new(self.body.clone().unwrap_or_default());
        request.body(body).expect("paths are percent-encoded")
    }

    /// The connection broke when all of it may have been sent.
    fn lost(&self, why: &impl ToString) -> Error {
        let why = why.to_string();
        if self.changes {
            let asked = self.asked.to_owned();
            Error::Lost { asked, why }
        } else {
            Error::NotBegun(format!("the daemon went away: {why}"))
        }
    }

    fn odd(&self, why: &impl ToString) -> Error {
        let (asked, why) = (self.asked.to_owned(), why.to_string());
        if self.changes {
            Error::Odd { asked, why }
        } else {
            Error::NotBegun(format!("the daemon's answer is invalid: {why}"))
        }
    }

    /// Reads the answer.
    pub(super) fn read<T: DeserializeOwned>(
        &self,
        status: StatusCode,
        body: &[u8],
    ) -> Result<T, Error> {
        if status.is_success() {
            // An answer without content is null.
            let body = if body.is_empty() { b"null" } else { body };
            return serde_json::from_slice(body).map_err(|e| self.odd(&e));
        }
        let Ok(problem) = serde_json::from_slice::<Problem>(body) else {
            // What listens there does not speak as brood's daemon does: it did not do it.
            return Err(Error::NotBegun(format!("the daemon answered {status}")));
        };
        let kind = problem.kind();
        if UNKNOWN.contains(&kind) {
            let why = format!(
                "the daemon does not know how to {}: {}",
                self.asked, problem.detail
            );
            return Err(Error::NotBegun(why));
        }
        if UNSEEN.contains(&kind) {
            let why = format!("the daemon cannot {}: {}", self.asked, problem.detail);
            return Err(Error::NotBegun(why));
        }
        Err(Error::Problem(Box::new(problem)))
    }
}

/// A connection, or the room for one.
#[derive(Debug)]
pub(super) struct Connection {
    socket: PathBuf,
    state_dir: PathBuf,
    sender: Option<SendRequest<Full<Bytes>>>,
    daemon: Option<Daemon>,
}

impl Connection {
    pub(super) fn new(socket: &Path, state_dir: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            state_dir: state_dir.to_owned(),
            sender: None,
            daemon: None,
        }
    }

    /// The socket, and the state folder that the daemon must keep.
    pub(super) fn place(&self) -> (PathBuf, PathBuf) {
        (self.socket.clone(), self.state_dir.clone())
    }

    /// What the daemon said of itself.
    pub(super) fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("a client has found its daemon")
    }

    /// Asks who is there, which must be the daemon of the state folder.
    pub(super) async fn begin(&mut self, stream: StdStream) -> Result<(), Error> {
        let hello = async {
            let mut sender = handshake(stream).await?;
            let call = Call::get("/api/v1/daemon", "say who it is");
            let response = sender.send_request(call.request()).await;
            let (status, body) = whole(response.map_err(|e| call.lost(&e))?, &call).await?;
            Ok::<_, Error>((sender, call.read::<Daemon>(status, &body)?))
        };
        let (sender, daemon) = timeout(HELLO_TIMEOUT, hello).await.map_err(|_| {
            let socket = self.socket.display();
            Error::NotBegun(format!("the daemon on {socket} does not answer"))
        })??;
        let dir = self.state_dir.canonicalize();
        if !dir.is_ok_and(|dir| dir.as_os_str() == daemon.state_dir.as_str()) {
            return Err(Error::NotBegun(format!(
                "the daemon on {} keeps the state folder {}",
                self.socket.display(),
                daemon.state_dir
            )));
        }
        self.sender = Some(sender);
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Makes a request; returns the answer when it has begun.
    pub(super) async fn send(&mut self, call: &Call) -> Result<Response<Incoming>, Error> {
        // A daemon that was replaced since the last request has closed the connection.
        for _ in 0..2 {
            let mut sender = match self.sender.take() {
                Some(sender) => sender,
                None => {
                    self.begin(open(&self.socket)?).await?;
                    self.sender.take().expect("it has begun")
                }
            };
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(call.request()).await {
                Ok(response) => {
                    self.sender = Some(sender);
                    return Ok(response);
                }
                Err(mut e) => {
                    // Given back, nothing of it was sent.
                    if e.take_message().is_none() {
                        return Err(call.lost(&e.error()));
                    }
                }
            }
        }
        Err(Error::NotBegun("the daemon takes no requests".to_owned()))
    }

    /// Makes a request, and reads the answer.
    pub(super) async fn call<T: DeserializeOwned>(&mut self, call: &Call) -> Result<T, Error> {
        let (status, body) = self.answer(call).await?;
        call.read(status, &body)
    }

    /// The same, where the answer is text.
    pub(super) async fn text(&mut self, call: &Call) -> Result<String, Error> {
        let (status, body) = self.answer(call).await?;
        if status.is_success() {
            String::from_utf8(body.into()).map_err(|e| call.odd(&e))
        } else {
            call.read(status, &body)
        }
    }

    async fn answer(&mut self, call: &Call) -> Result<(StatusCode, Bytes), Error> {
        let response = self.send(call).await?;
        let answer = whole(response, call).await;
        if answer.is_err() {
            self.sender = None;
        }
        answer
    }
}

async fn handshake(stream: StdStream) -> Result<SendRequest<Full<Bytes>>, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::NotBegun(format!("cannot speak to it: {e}"));
    let stream = UnixStream::from_std(stream).map_err(|e| failed(&e))?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(&e))?;
    // It moves whenever a request is waited for.
    tokio::spawn(connection);
    Ok(sender)
}

async fn whole(response: Response<Incoming>, call: &Call) -> Result<(StatusCode, Bytes), Error> {
    let status = response.status();
    let body = response.into_body().collect().await;
    Ok((status, body.map_err(|e| call.lost(&e))?.to_bytes()))
}
