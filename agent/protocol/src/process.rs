//! Messages about processes in the guest.

use serde::{Deserialize, Serialize};

use crate::{list, os_bytes::OsBytes};

/// A program to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The program, looked up in `PATH` where it has no slash, and its arguments.
    #[serde(with = "list")]
    pub argv: Vec<OsBytes>,
    /// Variables, beside `PATH`, `HOME`, `USER`, `LOGNAME` and `SHELL`, which the agent sets.
    #[serde(with = "list")]
    pub env: Vec<(OsBytes, OsBytes)>,
    /// Where it starts; none is the user's home.
    pub cwd: Option<OsBytes>,
    /// A user by name or by number; none is the agent's own.
    pub user: Option<String>,
    /// Whether it has an input; it reads nothing at all without.
    pub input: bool,
    /// A terminal for input, output and error output together.
    pub terminal: Option<TerminalSize>,
    /// Its process group is killed after so many milliseconds.
    pub limit_ms: Option<u32>,
    /// It goes on when the session ends; else it is killed then.
    pub keep: bool,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// Killed by the agent, as its time was over.
    TimedOut,
}

/// A process that an [`Exec`] started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its process, and its process group.
    pub pid: u32,
    /// The program and its arguments, as far as they fit.
    #[serde(with = "list")]
    pub argv: Vec<OsBytes>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Whether a request of this session has its streams.
    pub attached: bool,
}
