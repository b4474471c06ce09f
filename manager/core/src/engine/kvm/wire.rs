//! Messages between manager, nursery and guests: plain structures over SOCK_SEQPACKET sockets, so
//! that a guest process reads and writes them without an allocation.

use std::{ffi::CStr, io, os::fd::RawFd, time::Duration};

use nix::sys::socket::{MsgFlags, recv, send};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::{checkpoint::manifest::PageRange, engine::kvm::vm::layers::Plan, units::Bytes};

/// First message to a nursery, as JSON in a memory file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) guest: StartGuest,
    pub(crate) layers: Plan,
    pub(crate) working_set: Vec<PageRange>,
    /// An idle guest gives its virtual machine back after this time; never, when there is none.
    pub(crate) park_after: Option<Duration>,
    /// Whether the guests' private limits are enforced.
    pub(crate) enforces_limits: bool,
    /// Processes to hold ready for orders to come.
    pub(crate) spares: usize,
}

/// Which kind of guest a nursery is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StartGuest {
    /// The demo guest.
    Demo,
    /// An ordinary Linux, in a machine with such devices.
    Linux(LinuxDevices),
}

/// The devices of a Linux guest's machine that not all have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LinuxDevices {
    /// Whether it reads its root file system from a disk. The nursery is sent its file.
    pub(crate) root: bool,
    /// Size of the disk that each guest has to itself.
    pub(crate) disk: Option<Bytes>,
    /// Whether it has a network card.
    pub(crate) card: bool,
}

impl Start {
    /// Size of the largest file that a guest writes to: its memory, or its disk.
    pub(crate) fn largest_file(&self) -> Bytes {
        let disk = match self.guest {
            StartGuest::Demo => None,
            StartGuest::Linux(devices) => devices.disk,
        };
        self.layers.memory.max(disk.unwrap_or_default())
    }
}

impl StartGuest {
    /// How many files the manager sends beside those of the checkpoint, for all guests to read.
    pub(crate) fn files(self) -> usize {
        match self {
            Self::Demo => 0,
            Self::Linux(devices) => devices.root.into(),
        }
    }
}

/// What makes one clone this clone, as only its guest's port reads it.
pub(crate) type IdentityBytes = [u8; 96];
/// A request, as only the guest's port reads it.
pub(crate) type RequestBytes = [u8; 296];
/// An answer, as only the guest's port reads it.
pub(crate) type AnswerBytes = [u8; 320];

/// "Restore one guest", manager to nursery.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Order {
    pub(crate) seq: u64,
    pub(crate) id: [u8; 8],
    /// Limit of the guest's own control group, in bytes; it gets none when this is 0.
    pub(crate) memory_limit: u64,
    pub(crate) process_name: ProcessName,
    pub(crate) identity: IdentityBytes,
}

/// Name of a guest's process, NUL-padded: the guest's name, or as much of it as the kernel keeps of
/// a process's name (`TASK_COMM_LEN`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ProcessName([u8; 16]);

impl ProcessName {
    /// The name, if it is one.
    pub(crate) fn as_c_str(&self) -> Option<&CStr> {
        CStr::from_bytes_until_nul(&self.0).ok()
    }
}

impl From<&str> for ProcessName {
    fn from(name: &str) -> Self {
        let mut bytes = [0; 16];
        let length = name.len().min(bytes.len() - 1);
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        Self(bytes)
    }
}

/// "I have taken this order", spare to nursery, through a pipe.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct OrderReceipt {
    pub(crate) seq: u64,
    pub(crate) id: [u8; 8],
    pub(crate) pid: i32,
    pub(crate) padding: [u8; 4],
}

/// The nursery is ready for orders, or will never be.
pub(crate) const REPORT_READY: u32 = 1;
/// A guest has answered its first request.
pub(crate) const REPORT_RESTORED: u32 = 2;
/// A guest could not be restored, or the nursery could not start.
pub(crate) const REPORT_FAILED: u32 = 3;
/// The nursery could not start, because of what stands in the checkpoint's `.ckp.kern`.
pub(crate) const REPORT_UNUSABLE_KERN: u32 = 4;

/// What became of an order, guest process or nursery to manager.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Report {
    pub(crate) seq: u64,
    pub(crate) kind: u32,
    pub(crate) pid: i32,
    pub(crate) nonce: u64,
    pub(crate) counter: u64,
    /// Version of Landlock whose rules the guest's process has taken; 0 when it has none.
    pub(crate) landlock: u32,
    pub(crate) padding: [u8; 4],
    pub(crate) text: Text,
}

impl Report {
    /// The report that the order `seq` failed.
    pub(crate) fn failed(seq: u64, text: &str) -> Self {
        Self {
            seq,
            kind: REPORT_FAILED,
            text: Text::from(text),
            ..Self::new_zeroed()
        }
    }
}

/// A short text for a person, NUL-padded.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Text(pub(super) [u8; 248]);

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        let mut bytes = [0; 248];
        let length = text.floor_char_boundary(text.len().min(bytes.len()));
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        Self(bytes)
    }
}

impl From<&Text> for String {
    fn from(text: &Text) -> Self {
        Self::from_utf8_lossy(&text.0)
            .trim_end_matches('\0')
            .to_owned()
    }
}

/// Put a request to the guest.
pub(crate) const CALL_ASK: u64 = 1;
/// Write the guest's memory and its other state to the second and third descriptor that come along;
/// the first one is of the guest's pagemap (proc_pid_pagemap(5)).
pub(crate) const CALL_SUSPEND: u64 = 2;
/// As [`CALL_SUSPEND`], with only the pages that the guest's checkpoint does not have, and a list of
/// them to a fourth descriptor.
pub(crate) const CALL_SUSPEND_DELTA: u64 = 4;
/// As [`CALL_SUSPEND`], of a guest that stays: it stops itself when the conversation is over, however
/// that came.
pub(crate) const CALL_SNAPSHOT: u64 = 5;
/// The guest is safe to hand out: it may outlive its nursery and its manager.
pub(crate) const CALL_HAND_OUT: u64 = 6;
/// Carry what goes between the guest's agent and the stream that comes along.
pub(crate) const CALL_AGENT: u64 = 7;
/// Run the guest. Along come the empty file that what it says on its console is written to, the disk
/// that it has to itself, if it has one, and what its network card is connected to, if it is to reach
/// any: a stream, or a tap, of which the request says more (`linux/network.rs`).
pub(crate) const CALL_BEGIN: u64 = 8;
/// Write what the guest says on its console to the stream that comes along; what comes from it is
/// typed.
pub(crate) const CALL_CONSOLE: u64 = 9;
/// The suspended guest's bundle is sealed: end.
pub(crate) const CALL_COMMIT: u64 = 3;

/// A call to a guest process, over its control socket.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Call {
    pub(crate) kind: u64,
    pub(crate) request: RequestBytes,
}

/// The call was carried out.
pub(crate) const REPLY_DONE: u64 = 0;
/// The guest is busy with an earlier request.
pub(crate) const REPLY_BUSY: u64 = 1;
/// The call failed; the guest goes on. The text says why.
pub(crate) const REPLY_FAILED: u64 = 2;
/// The guest has died of it. The text says why.
pub(crate) const REPLY_DEAD: u64 = 3;
/// There was no room on the disk for what should be written; the guest goes on.
pub(crate) const REPLY_NO_ROOM: u64 = 4;

/// A guest process's reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Reply {
    pub(crate) kind: u64,
    pub(crate) answer: AnswerBytes,
    pub(crate) text: Text,
}

impl Reply {
    pub(crate) fn new(kind: u64, text: &str) -> Self {
        Self {
            kind,
            text: text.into(),
            ..Self::new_zeroed()
        }
    }
}

/// Sends one message whole.
pub(crate) fn send_message<T: IntoBytes + Immutable>(socket: RawFd, message: &T) -> io::Result<()> {
    loop {
        match send(socket, message.as_bytes(), MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Receives one message into `message`; `false` at the end of the conversation, or for a message of
/// another kind.
pub(crate) fn receive_message<T: FromBytes + IntoBytes>(
    socket: RawFd,
    message: &mut T,
    flags: MsgFlags,
) -> io::Result<bool> {
    let bytes = message.as_mut_bytes();
    loop {
        match recv(socket, bytes, flags) {
            Ok(length) => return Ok(length == size_of::<T>()),
            // A socket with a time limit is interrupted also by a stop and a continuation.
            Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}
