//! The protocol between brood and the agent in its guests: what both ends share, without I/O.
//!
//! Bytes go into a [`Decoder`] and messages come out; a message goes into [`encode`] and bytes come
//! out. What carries the bytes (a virtio-serial port, a serial line, a unix socket) is left to the
//! program, and so are threads and time.
//!
//! Each end is hostile to the other. A frame has no length field, so none can lie; what a peer sends
//! is bounded by [`limits`], and is decoded from bytes that are already there.
//!
//! `docs/agent.md` is the protocol's description for those who write another agent.

mod cobs;
mod credit;
mod files;
mod frame;
mod image;
pub mod limits;
mod list;
mod message;
mod os_bytes;
mod process;
mod steps;
mod system;

pub use credit::{CreditError, ReceiveWindow, SendWindow};
pub use files::{Change, ChangeKind, Entry, FileKind, Metadata, ReadFile, Transfer, WriteFile};
pub use frame::{
    Decoder, Direction, Dropped, EncodeError, Received, RequestId, SessionId, Undecodable, encode,
};
pub use image::ImageProcess;
pub use message::{
    AgentHello, Event, Failure, FailureKind, HostHello, Message, Reply, Request, Stream, ToGuest,
    ToHost,
};
pub use os_bytes::OsBytes;
pub use process::{Ended, Exec, ProcessInfo, TerminalSize};
pub use steps::{Step, StepReply, StepResult, StepResults};
pub use system::{
    ClockState, Facts, HookEnd, HookResult, Hooks, Identity, Interface, Power, Ready,
};
