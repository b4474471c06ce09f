//! Budget of the daemon's descriptors: how many of them are for connections, and how many for work.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are asked for, at most: more are of no use, and some programs that are started
/// from here look at each of them.
const DESCRIPTORS_MAX: u64 = 65_536;
/// Connections of one budget, at most.
const CONNECTIONS_MAX: usize = 2048;
/// Sockets of guests, at most.
const GUEST_SOCKETS_MAX: usize = 2048;

/// Budget of the daemon's descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::api) struct Budget {
    /// Connections over the socket.
    pub(in crate::api) socket: usize,
    /// Connections over the port.
    pub(in crate::api) port: usize,
    /// Library calls at once: each may have a database and a process open.
    pub(in crate::api) calls: usize,
    /// Sockets of guests, each with a descriptor; their connections are among those of the socket.
    pub(in crate::api) guest_sockets: usize,
}

impl Budget {
    /// Of a process that may have so many descriptors: half of them are for connections, of which
    /// the port has a quarter.
    fn of(descriptors: u64) -> Self {
        let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let connections = (descriptors / 2).clamp(4, CONNECTIONS_MAX * 2);
        Self {
            socket: (connections - connections / 4).min(CONNECTIONS_MAX),
            port: (connections / 4).min(CONNECTIONS_MAX / 2),
            calls: (descriptors / 10).clamp(8, 512),
            guest_sockets: (descriptors / 16).clamp(2, GUEST_SOCKETS_MAX),
        }
    }

    /// Of this process, whose soft limit of descriptors is raised as far as it may be.
    pub(in crate::api) fn of_process() -> Self {
        // No limit is more than is ever wanted.
        let limit = getrlimit(Resource::Nofile);
        let soft = limit.current.unwrap_or(DESCRIPTORS_MAX);
        let wanted = limit
            .maximum
            .map_or(DESCRIPTORS_MAX, |hard| hard.min(DESCRIPTORS_MAX));
        let higher = Rlimit {
            current: Some(wanted),
            maximum: limit.maximum,
        };
        let raised = soft < wanted && setrlimit(Resource::Nofile, higher).is_ok();
        Self::of(if raised { wanted } else { soft })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_have_a_budget_of_their_own() {
        for (descriptors, socket, port, calls) in [
            (80, 30, 10, 8),
            (1024, 384, 128, 102),
            (20_000, 2048, 1024, 512),
            (8, 3, 1, 8),
        ] {
            let budget = Budget::of(descriptors);
            assert_eq!(
                (budget.socket, budget.port, budget.calls),
                (socket, port, calls)
            );
        }
    }
}
