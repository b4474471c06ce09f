//! Readiness signs of a guest without an agent: an open port, or a command that succeeds. Unlike
//! words on a console they can be checked again, so they also show that a guest runs on after a
//! stop.

use std::{
    fmt,
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use super::host::Host;
use crate::checkpoint::Readiness;

/// Longest wait for one connection before the next try.
const CONNECT: Duration = Duration::from_secs(1);

/// What to look for, with the guest's name in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// A connection to this address is accepted.
    Tcp(String),
    /// This command exits with 0.
    Command(Vec<String>),
}

impl Sign {
    /// The sign of a guest of this name; `None` when its agent or its console tells.
    pub(super) fn of(readiness: &Readiness, name: &str) -> Option<Self> {
        let named = |text: &String| text.replace("%(name)", name);
        match readiness {
            Readiness::Agent | Readiness::Console { .. } => None,
            Readiness::Tcp { address } => Some(Self::Tcp(named(address))),
            Readiness::Command { argv } => Some(Self::Command(argv.iter().map(named).collect())),
        }
    }

    /// Looks once, with a time limit.
    pub(super) fn is_seen(&self, host: &Host, within: Duration) -> bool {
        match self {
            Self::Tcp(address) => {
                let mut found = address.to_socket_addrs().into_iter().flatten();
                let limit = within.clamp(Duration::from_millis(1), CONNECT);
                found.any(|at| TcpStream::connect_timeout(&at, limit).is_ok())
            }
            Self::Command(argv) => {
                let words: Vec<&str> = argv.iter().map(String::as_str).collect();
                let Some((program, rest)) = words.split_first() else {
                    return false;
                };
                host.run_within(program, rest, within).is_ok()
            }
        }
    }
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "a connection to {address}"),
            Self::Command(argv) => write!(f, "{}", argv.join(" ")),
        }
    }
}
