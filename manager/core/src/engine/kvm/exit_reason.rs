//! Exit reason: why a guest cannot go on, or its process has ended.

use std::{fmt, io};

use serde::{Deserialize, Serialize};

use crate::units::Bytes;

/// Why a guest cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum ExitReason {
    /// The processor shut down: a triple fault, as after an exception that nothing handles.
    Shutdown {
        /// Instruction pointer at that moment.
        rip: u64,
    },
    /// The guest halted with interrupts off: nothing can ever wake it.
    Halted,
    /// The guest used an address that is neither memory nor a device.
    BadAddress {
        /// The guest-physical address.
        address: u64,
    },
    /// The guest used an I/O port that no device has.
    BadPort {
        /// The port.
        port: u16,
    },
    /// The guest's kernel died.
    Panic {
        /// What it said of it.
        line: String,
    },
    /// The guest has turned itself off.
    PowerOff,
    /// The guest has asked to be started again, which would not be the guest that was restored.
    Restart,
    /// KVM gave up on the guest.
    InternalError {
        /// What KVM said of it.
        detail: String,
    },
    /// KVM_RUN failed.
    RunFailed {
        /// The error number.
        errno: i32,
    },
    /// The checkpoint file was changed while the guest used it, so that its memory is no longer
    /// what was sealed.
    CheckpointChanged {
        /// What changed.
        detail: String,
    },
    /// The guest's process was killed.
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// The kernel killed the guest's process for want of memory.
    OutOfMemory {
        /// The control group whose counter says so; none when only the host's does.
        group: Option<String>,
    },
    /// The kernel killed the guest's process because it reached the limit of its own control group.
    MemoryLimit {
        /// The limit, in bytes.
        limit: Bytes,
    },
    /// Its nursery ended it: it had not answered when its manager was gone.
    NotAnswered,
    /// The guest's process ended by itself.
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// The process is gone and nothing could see why: its keeper was gone too.
    Unknown,
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown { rip } => write!(
                f,
                "the guest's processor shut down (triple fault) at {rip:#x}"
            ),
            Self::Halted => f.write_str("the guest halted for good"),
            Self::BadAddress { address } => {
                write!(
                    f,
                    "the guest used address {address:#x}, which is neither memory nor a device"
                )
            }
            Self::BadPort { port } => {
                write!(f, "the guest used I/O port {port:#x}, which no device has")
            }
            Self::Panic { line } => write!(f, "the guest's kernel died: {line}"),
            Self::PowerOff => f.write_str("the guest has turned itself off"),
            Self::Restart => f.write_str("the guest restarted, which ends it"),
            Self::InternalError { detail } => write!(f, "KVM gave up on the guest: {detail}"),
            Self::RunFailed { errno } => {
                write!(
                    f,
                    "KVM could not run the guest: {}",
                    io::Error::from_raw_os_error(*errno)
                )
            }
            Self::CheckpointChanged { detail } => {
                write!(f, "its checkpoint was changed while in use: {detail}")
            }
            Self::Killed { signal } => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(name) => write!(f, "its process was killed by {name}"),
                Err(_) => write!(f, "its process was killed by signal {signal}"),
            },
            Self::OutOfMemory { group: Some(group) } => write!(
                f,
                "the kernel killed its process for want of memory (control group {group})"
            ),
            Self::OutOfMemory { group: None } => f.write_str(
                "its process was killed by SIGKILL, probably for want of memory: the kernel counted such a kill",
            ),
            Self::MemoryLimit { limit } => write!(
                f,
                "it reached the {limit} that its control group allows: its private limit, and what a \
                 guest costs besides"
            ),
            Self::NotAnswered => {
                f.write_str("it had not answered when the command that restored it was gone")
            }
            Self::Exited { code } => write!(f, "its process ended with code {code}"),
            Self::Unknown => f.write_str("its process is gone; nothing was left to see why"),
        }
    }
}
