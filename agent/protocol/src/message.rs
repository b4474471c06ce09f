//! Messages. In the encoding of postcard, an enum's value begins with the number of its variant in
//! the order of this file: new variants go to the end, and no variant ever changes.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    files::{Change, Entry, Metadata, ReadFile, Transfer, WriteFile},
    frame::Direction,
    limits::MAX_TEXT,
    list,
    os_bytes::OsBytes,
    process::{Ended, Exec, ProcessInfo, TerminalSize},
    steps::{Step, StepResults},
    system::{ClockState, Facts, HookResult, Hooks, Identity, Power, Ready},
};

/// A message of one direction.
pub trait Message: Serialize + DeserializeOwned {
    /// Which way it goes.
    const DIRECTION: Direction;

    /// The bytes of a stream that it carries, if it does.
    fn data(&self) -> Option<&[u8]>;
}

/// A stream of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// What the host sends: a process's input, a file to write.
    Input,
    /// What the guest sends: a process's output, the content of a file.
    Output,
    /// A process's error output.
    Error,
}

/// What the host says to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest {
    /// Begins a session; requests of the session before are dropped.
    Hello(HostHello),
    /// Begins a request, under a number that the session has not used yet.
    Request(Request),
    /// Bytes of the request's [`Stream::Input`]; none at all end it.
    Data(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Lets the guest send so many more bytes of a stream.
    Credit(Stream, u32),
    /// Ends the request: its process is killed, its file is left as it was. It is still answered.
    Cancel,
}

impl Message for ToGuest {
    const DIRECTION: Direction = Direction::ToGuest;

    fn data(&self) -> Option<&[u8]> {
        match self {
            ToGuest::Data(bytes) => Some(bytes),
            _ => None,
        }
    }
}

/// What the guest says to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost {
    /// Answers [`ToGuest::Hello`].
    Hello(AgentHello),
    /// The agent speaks none of the versions that the host offered.
    WrongVersion {
        /// The oldest that it speaks.
        oldest: u16,
        /// The newest that it speaks.
        newest: u16,
    },
    /// The agent's process has begun, in no session: requests that it had been sent are lost.
    Started {
        /// See [`AgentHello::instance`].
        instance: [u8; 16],
    },
    /// Something about a request that goes on.
    Event(Event),
    /// Bytes of a stream of a request; none at all end it.
    Data(Stream, #[serde(with = "serde_bytes")] Vec<u8>),
    /// Lets the host send so many more bytes of the request's [`Stream::Input`].
    Credit(u32),
    /// Ends the request.
    Done(Result<Reply, Failure>),
}

impl Message for ToHost {
    const DIRECTION: Direction = Direction::ToHost;

    fn data(&self) -> Option<&[u8]> {
        match self {
            ToHost::Data(_, bytes) => Some(bytes),
            _ => None,
        }
    }
}

/// What a host says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostHello {
    /// The oldest version of the protocol that it speaks.
    pub oldest: u16,
    /// The newest.
    pub newest: u16,
}

/// What an agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentHello {
    /// The version of the protocol that this session speaks.
    pub version: u16,
    /// Drawn at random when the agent's process began. All clones of a checkpoint have the same; it
    /// changes when the agent was started again.
    pub instance: [u8; 16],
    /// The agent's own version.
    pub agent: String,
    /// The guest's system: `linux`, `freebsd`.
    pub system: String,
}

/// What a host asks of the guest. What each is answered with stands in parentheses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Is the guest there, and is it the one that was restored? ([`Reply::Ready`])
    Ready,
    /// Runs a program. ([`Event::Started`], streams, [`Reply::Ended`])
    Exec(Exec),
    /// Sends a signal to the process group of an [`Request::Exec`] of this session that has not
    /// ended. ([`Reply::Nothing`])
    Signal {
        /// The request that started it.
        exec: u32,
        /// The signal's number in the guest's system.
        signal: i32,
    },
    /// Changes the size of the terminal of an [`Request::Exec`]. ([`Reply::Nothing`])
    Resize {
        /// The request that started it.
        exec: u32,
        /// The new size.
        size: TerminalSize,
    },
    /// Reads a file. ([`Stream::Output`], [`Reply::Transferred`])
    ReadFile(ReadFile),
    /// Writes a file: it has the whole of [`Stream::Input`], or stays as it was.
    /// ([`Reply::Transferred`])
    WriteFile(WriteFile),
    /// Describes what is at a path. ([`Reply::Metadata`])
    Stat {
        /// The path; relative ones begin at the root.
        path: OsBytes,
        /// Whether a symbolic link at its end is followed.
        follow: bool,
    },
    /// Lists a folder by name, a part at a time. ([`Reply::Entries`])
    List {
        /// The folder.
        path: OsBytes,
        /// The name after which the list begins; all names, when this is none.
        after: Option<OsBytes>,
    },
    /// Makes a folder. ([`Reply::Nothing`])
    MakeDir {
        /// Where.
        path: OsBytes,
        /// Permission bits.
        mode: u32,
        /// Also makes those above it, and is content where it exists.
        parents: bool,
    },
    /// Renames a file or a folder. ([`Reply::Nothing`])
    Move {
        /// What.
        from: OsBytes,
        /// Where to.
        to: OsBytes,
    },
    /// Removes a file or a folder. ([`Reply::Nothing`])
    Remove {
        /// What.
        path: OsBytes,
        /// Also what is in the folder.
        recursive: bool,
    },
    /// Reports changes below a path until it is cancelled. ([`Event::Watching`],
    /// [`Event::Changes`], [`Reply::Nothing`])
    Watch {
        /// A file or a folder.
        path: OsBytes,
        /// Also the folders in the folder.
        recursive: bool,
    },
    /// Gives the guest another identity. ([`Reply::Nothing`])
    Identity(Identity),
    /// Adds entropy to the kernel's generator and has it reseed at once. ([`Reply::Nothing`])
    Reseed {
        /// At most [`MAX_ENTROPY`](crate::limits::MAX_ENTROPY) bytes.
        #[serde(with = "serde_bytes")]
        entropy: Vec<u8>,
    },
    /// Sets the clock. ([`Reply::Clock`])
    Clock {
        /// Nanoseconds since 1970 in UTC; none only asks.
        set: Option<u64>,
    },
    /// Freezes file systems: writes wait until [`Request::Thaw`], or until the time is over.
    /// ([`Reply::Nothing`])
    Freeze {
        /// Mount points; all that have a disk behind them, when there are none.
        #[serde(with = "list")]
        paths: Vec<OsBytes>,
        /// After so many milliseconds the agent thaws by itself.
        limit_ms: u32,
    },
    /// Undoes [`Request::Freeze`]. ([`Reply::Nothing`], also when nothing is frozen)
    Thaw,
    /// Writes back what the kernel holds of files. ([`Reply::Nothing`])
    Sync,
    /// Reports memory, load and time of running. ([`Reply::Facts`])
    Facts,
    /// Runs the image's programs for an occasion. ([`Reply::Hooks`])
    Hooks(Hooks),
    /// Ends the guest. ([`Reply::Nothing`], before it does)
    Shutdown(Power),
    /// Lists what [`Request::Exec`] started and has not ended, of all sessions. ([`Reply::Processes`])
    Processes,
    /// Takes over the streams and the end of a process that an earlier session started, from now on.
    /// (as [`Request::Exec`])
    Attach {
        /// Its number of [`Event::Started`].
        pid: u32,
    },
    /// Carries out steps one after the other, until one fails; each kind of step once at most.
    /// ([`Event::StepBegan`], [`Reply::Steps`])
    Steps(#[serde(with = "list")] Vec<Step>),
    /// Runs the program that the guest's image is for: the arguments stand behind its entry point,
    /// and none are its own. (as [`Request::Exec`])
    RunImage(Exec),
}

/// What happens while a request runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The program runs.
    Started {
        /// Its process, and its process group.
        pid: u32,
    },
    /// Changes are reported from now on.
    Watching,
    /// Changes, in the order in which they happened.
    Changes {
        /// The changes.
        #[serde(with = "list")]
        changes: Vec<Change>,
        /// Others before these were lost, as there were too many.
        lost: bool,
    },
    /// A step of [`Request::Steps`] begins that may take its time: it runs hooks, or freezes.
    StepBegan {
        /// Which, from 0 on.
        step: u32,
    },
}

/// A request was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// There is nothing to say.
    Nothing,
    /// See [`Request::Ready`].
    Ready(Ready),
    /// See [`Request::Exec`].
    Ended(Ended),
    /// See [`Request::ReadFile`] and [`Request::WriteFile`].
    Transferred(Transfer),
    /// See [`Request::Stat`].
    Metadata(Metadata),
    /// See [`Request::List`].
    Entries {
        /// The entries, ordered by the bytes of their names.
        #[serde(with = "list")]
        entries: Vec<Entry>,
        /// There are more after the last.
        more: bool,
    },
    /// See [`Request::Clock`].
    Clock(ClockState),
    /// See [`Request::Facts`].
    Facts(Facts),
    /// See [`Request::Hooks`]: each program that was run, in this order.
    Hooks(#[serde(with = "list")] Vec<HookResult>),
    /// See [`Request::Processes`].
    Processes(#[serde(with = "list")] Vec<ProcessInfo>),
    /// See [`Request::Steps`].
    Steps(StepResults),
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// What kind of reason.
    pub kind: FailureKind,
    /// What the guest's kernel called it, if it was the kernel.
    pub errno: Option<i32>,
    /// What was tried, on what, and why it failed.
    pub text: String,
}

impl Failure {
    /// A failure without an error number. A text longer than [`MAX_TEXT`] is cut.
    #[must_use]
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Failure {
        let mut text = text.into();
        if text.len() > MAX_TEXT {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
        }
        Failure {
            kind,
            errno: None,
            text,
        }
    }
}

/// Kinds of [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// Any other.
    Other,
    /// What the request names does not exist.
    NotFound,
    /// What the request makes exists.
    Exists,
    /// The agent may not.
    Denied,
    /// The request makes no sense, or is beyond a limit.
    Invalid,
    /// This agent, or the guest's system, cannot.
    Unsupported,
    /// As many requests run as may.
    Busy,
    /// A time limit passed.
    TimedOut,
    /// The host cancelled it.
    Cancelled,
    /// A disk or a table is full.
    Full,
}
