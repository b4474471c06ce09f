//! Event stream of the daemon (server-sent events), read by the client.

use std::path::Path;

use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::{
    Error,
    connection::{Call, Connection},
};

/// Something that the daemon tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerEvent {
    /// What kind of event it is: `guest`, `claim`, ...
    pub(crate) kind: String,
    /// What there is to it, in JSON.
    pub(crate) data: String,
}

/// The stream.
#[derive(Debug)]
pub(super) struct Stream {
    body: Incoming,
    parser: Parser,
    /// Keeps the connection.
    _connection: Connection,
}

impl Stream {
    /// Listens, on a connection of its own.
    pub(super) async fn open(socket: &Path, state_dir: &Path, path: &str) -> Result<Self, Error> {
        let mut connection = Connection::new(socket, state_dir);
        let response = connection
            .send(&Call::get(path, "tell what happens"))
            .await?;
        if !response.status().is_success() {
            let status = response.status();
            return Err(Error::NotBegun(format!("no events: {status}")));
        }
        Ok(Self {
            body: response.into_body(),
            parser: Parser::default(),
            _connection: connection,
        })
    }

    /// The next event; `None` when the stream has ended. Dropping this early loses no data.
    pub(super) async fn next(&mut self) -> Option<ServerEvent> {
        loop {
            if let Some(told) = self.parser.next() {
                return Some(told);
            }
            let frame = self.body.frame().await?.ok()?;
            if let Some(data) = frame.data_ref() {
                self.parser.feed(data);
            }
        }
    }
}

/// Takes complete events out of the received text. Knows only the part of the format that the
/// daemon uses: one line of data for each event.
#[derive(Debug, Default)]
struct Parser {
    come: Vec<u8>,
    kind: String,
    data: String,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) {
        self.come.extend_from_slice(bytes);
    }

    fn next(&mut self) -> Option<ServerEvent> {
        while let Some(end) = self.come.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.come.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\r', '\n']);
            if let Some(kind) = line.strip_prefix("event: ") {
                kind.clone_into(&mut self.kind);
            } else if let Some(data) = line.strip_prefix("data: ") {
                data.clone_into(&mut self.data);
            } else if line.is_empty() && !self.kind.is_empty() {
                return Some(ServerEvent {
                    kind: std::mem::take(&mut self.kind),
                    data: std::mem::take(&mut self.data),
                });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_they_are_cut() {
        let text = ":\n\nevent: claim\ndata: {\"pool\":\"p\u{e4}\"}\n\n: keep alive\n\nevent: a\ndata: 1\n\n";
        let told = |kind: &str, data: &str| ServerEvent {
            kind: kind.into(),
            data: data.into(),
        };
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let mut found = Vec::new();
            for chunk in text.as_bytes().chunks(size) {
                parser.feed(chunk);
                found.extend(std::iter::from_fn(|| parser.next()));
            }
            assert_eq!(
                found,
                [told("claim", "{\"pool\":\"p\u{e4}\"}"), told("a", "1")],
                "in pieces of {size}"
            );
        }
    }
}
