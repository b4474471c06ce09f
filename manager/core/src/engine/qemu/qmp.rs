//! QMP, the monitor of a QEMU: JSON over a unix socket, a line each way (docs/interop/qmp-spec of
//! QEMU). Every call has a time limit, and an answer a length limit.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, IoSlice, Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};

use super::folder::Folder;
use crate::engine;

/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(20);
/// Longest line that is read.
const LINE_MAX: u64 = 1 << 20;

/// Why QEMU did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// It cannot be reached.
    #[error("cannot reach QEMU's monitor: {0}")]
    Io(#[from] io::Error),
    /// No answer came in time.
    #[error("QEMU did not answer to {command} within {} s", LIMIT.as_secs())]
    Timeout {
        /// The command.
        command: &'static str,
    },
    /// It has closed the monitor.
    #[error("QEMU closed its monitor")]
    Closed,
    /// It said something that is no answer.
    #[error("QEMU's monitor said what is no QMP: {0}")]
    Garbled(String),
    /// It said that it cannot.
    #[error("QEMU could not {command}: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// What it said.
        reason: String,
    },
}

impl From<Error> for engine::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Io(source) => Self::Io {
                action: "reach QEMU's monitor",
                source,
            },
            Error::Timeout { .. } => Self::Timeout(LIMIT),
            Error::Closed => Self::Gone,
            other => Self::Refused(other.to_string()),
        }
    }
}

/// A line from QEMU.
#[derive(Deserialize)]
struct Line {
    /// Of a success.
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    desc: String,
}

/// An open monitor.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Opens the monitor of a guest.
    pub(super) fn open(folder: &Folder) -> Result<Self, Error> {
        Self::over(folder.connect("qmp")?)
    }

    pub(super) fn over(stream: UnixStream) -> Result<Self, Error> {
        stream.set_write_timeout(Some(LIMIT))?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
        };
        // The greeting.
        qmp.line("the greeting", Instant::now() + LIMIT)?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Gives a command, and waits for its answer.
    pub(super) fn execute(&mut self, command: &'static str, with: &Value) -> Result<Value, Error> {
        self.execute_with(command, with, None)
    }

    /// Hands over an open file, which QEMU knows as `/dev/fdset/N` from then on; returns that number.
    pub(super) fn hand_over(&mut self, file: &File) -> Result<u64, Error> {
        let command = "add-fd";
        let added = self.execute_with(command, &json!({}), Some(file))?;
        let number = added["fdset-id"].as_u64();
        number.ok_or_else(|| Error::Garbled(added.to_string()))
    }

    /// The same as [`Self::execute`], with a file that comes along.
    fn execute_with(
        &mut self,
        command: &'static str,
        with: &Value,
        file: Option<&File>,
    ) -> Result<Value, Error> {
        let until = Instant::now() + LIMIT;
        let mut text = json!({ "execute": command, "arguments": with }).to_string();
        text.push('\n');
        let descriptors: Vec<RawFd> = file.iter().map(|file| file.as_raw_fd()).collect();
        let along = [ControlMessage::ScmRights(&descriptors)];
        let along = &along[..descriptors.len()];
        let (first, rest) = text.as_bytes().split_at(1);
        // It comes with the first byte, whatever becomes of the others.
        let socket = self.stream.get_ref().as_raw_fd();
        sendmsg::<()>(
            socket,
            &[IoSlice::new(first)],
            along,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map_err(io::Error::from)?;
        self.stream.get_mut().write_all(rest)?;
        loop {
            let text = self.line(command, until)?;
            let line: Line = serde_json::from_slice(&text).map_err(|_| {
                Error::Garbled(String::from_utf8_lossy(&text).chars().take(200).collect())
            })?;
            if let Some(refusal) = line.error {
                return Err(Error::Refused {
                    command,
                    reason: refusal.desc,
                });
            }
            // Lines without an answer are events.
            if let Some(value) = line.value {
                return Ok(value);
            }
        }
    }

    fn line(&mut self, command: &'static str, until: Instant) -> Result<Vec<u8>, Error> {
        let mut line = Vec::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout { command });
            }
            self.stream.get_ref().set_read_timeout(Some(left))?;
            let room = LINE_MAX.saturating_sub(line.len() as u64);
            match (&mut self.stream).take(room).read_until(b'\n', &mut line) {
                Ok(0) if room == 0 => {
                    return Err(Error::Garbled("a line without an end".to_owned()));
                }
                Ok(0) => return Err(Error::Closed),
                Ok(_) if line.ends_with(b"\n") => return Ok(line),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Error::Timeout { command });
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Err(Error::Closed),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// A QEMU that says these lines, one for each that it is told.
    fn said(lines: &'static [&'static str]) -> Result<Qmp, Error> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut heard = BufReader::new(theirs.try_clone().unwrap());
            let mut say = theirs;
            for line in lines {
                say.write_all(line.as_bytes()).unwrap();
                let mut command = String::new();
                heard.read_line(&mut command).unwrap();
            }
        });
        Qmp::over(ours)
    }

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";
    const DONE: &str = "{\"return\": {}}\n";

    #[test]
    fn events_are_passed_over_and_refusals_told() {
        let mut qmp = said(&[
            GREETING,
            DONE,
            "{\"timestamp\": {}, \"event\": \"STOP\"}\n{\"return\": {\"status\": \"paused\"}}\n",
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no room\"}}\n",
        ])
        .unwrap();
        assert_eq!(
            qmp.execute("query-status", &json!({})).unwrap()["status"],
            "paused"
        );
        let refused = qmp.execute("stop", &json!({})).unwrap_err();
        assert_eq!(refused.to_string(), "QEMU could not stop: no room");
        assert!(matches!(
            qmp.execute("cont", &json!({})),
            Err(Error::Closed)
        ));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        assert!(matches!(said(&[]), Err(Error::Closed)));
        let garbled = said(&[GREETING, "hello\n"]).unwrap_err();
        assert!(matches!(garbled, Error::Garbled(_)), "{garbled}");
    }
}
