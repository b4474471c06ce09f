//! Messages of a stream: what a client says of a program, and what the daemon does.

use std::collections::BTreeMap;

use axum::extract::ws::Message;
use brood_core::agent::{
    ProgramChoice,
    protocol::{self, Ended, TerminalSize},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::{
    guests::limit,
    problem::Problem,
    programs::{ExecWords, code_of},
};
/// The size of a terminal.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct ExecTerminal {
    /// Lines.
    #[schema(example = 24, minimum = 1)]
    rows: u16,
    /// Characters of a line.
    #[schema(example = 80, minimum = 1)]
    columns: u16,
}

/// A program to run in a guest, with streams.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct ExecStart {
    /// The program and its arguments. By default it is the one that the guest's OCI image is for: its
    /// entry point.
    #[serde(default)]
    #[schema(example = json!(["sh", "-c", "make test"]))]
    command: Vec<String>,
    /// Without `command`: arguments of the image's entry point, in place of those that the image has;
    /// of an image without an entry point, the program and its arguments.
    #[serde(default)]
    args: Vec<String>,
    /// Variables of its environment, beside PATH, HOME, USER, LOGNAME, SHELL and the image's.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Folder that it starts in; the image's by default, or its user's home.
    cwd: Option<String>,
    /// A user of the guest by name or number; the image's by default, or root.
    user: Option<String>,
    /// Whether it has an input: binary messages, until `end-of-input`.
    #[serde(default)]
    input: bool,
    /// Gives it a terminal. Its output and error output are one then.
    terminal: Option<ExecTerminal>,
    /// It is killed after so many seconds, with its process group; never by default.
    #[schema(exclusive_minimum = 0.0, maximum = 3600.0)]
    timeout_s: Option<f64>,
}

/// What a client says of a program: a text message. The first is `start`. A binary message is input.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub(in crate::api) enum ExecMessage {
    /// Runs the program. Once.
    Start(ExecStart),
    /// The program's input ends.
    EndOfInput,
    /// Sends a signal to the program's process group.
    Signal {
        /// The signal's number in the guest.
        #[schema(example = 15, minimum = 1, maximum = 64)]
        signal: i32,
    },
    /// The terminal has another size.
    Resize(ExecTerminal),
}

/// What the daemon says of a program: a text message. A binary message is output: its first byte is 1
/// for output and 2 for error output.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(in crate::api) enum ExecEvent {
    /// It runs.
    Started {
        /// Its process in the guest.
        pid: u32,
    },
    /// It has ended, and all of its output was sent. The stream ends.
    Exited {
        /// Its exit code; 128 and the number of the signal that ended it; 124 when its time was over.
        code: u8,
        /// The signal that ended it.
        signal: Option<i32>,
        /// Whether it was killed as its time was over.
        timed_out: bool,
    },
    /// It could not be run, or the daemon cannot go on with it. The stream ends.
    Failed {
        /// What went wrong, why, and what to do next.
        problem: Problem,
    },
}

impl ExecEvent {
    pub(super) fn exited(ended: Ended) -> Self {
        Self::Exited {
            code: code_of(ended),
            signal: match ended {
                Ended::Signal(signal) => Some(signal),
                Ended::Code(_) | Ended::TimedOut => None,
            },
            timed_out: ended == Ended::TimedOut,
        }
    }

    pub(super) fn message(&self) -> Message {
        Message::text(serde_json::to_string(self).expect("plain data"))
    }
}

impl ExecTerminal {
    pub(super) fn size(self) -> Result<TerminalSize, Problem> {
        match self {
            Self { rows: 0, .. } | Self { columns: 0, .. } => Err(Problem::bad_request(
                "a terminal has at least 1 row and 1 column",
            )),
            Self { rows, columns } => Ok(TerminalSize { rows, columns }),
        }
    }
}

impl ExecStart {
    pub(super) fn request(self) -> Result<(ProgramChoice, protocol::Exec), Problem> {
        let limit = limit(self.timeout_s)?;
        let words = ExecWords {
            command: &self.command,
            args: &self.args,
            env: &self.env,
            cwd: self.cwd.as_ref(),
            user: self.user.as_ref(),
        };
        let (choice, exec) = words.request()?;
        let exec = protocol::Exec {
            input: self.input,
            terminal: self.terminal.map(ExecTerminal::size).transpose()?,
            limit_ms: limit.and_then(|limit| u32::try_from(limit.as_millis()).ok()),
            ..exec
        };
        Ok((choice, exec))
    }
}
