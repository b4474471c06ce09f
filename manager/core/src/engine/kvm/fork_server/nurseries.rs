//! Nurseries of one session: each forks a thousand guests, then another takes its place.
//!
//! A nursery waits for its ended guests, and for each the kernel walks the list of all its living
//! children (`do_wait()` of kernel/exit.c): the last of 8,000 guests of one nursery took twice the
//! processor time to end. One that has forked its share is told that no order comes any more
//! (shutdown(2)): it lets its spares go, and stays as the parent of its guests until the last has
//! ended. The one after it is started ahead, so that no order waits for it.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::client::{Heard, Kind, Nursery, NurseryParts};
use crate::{
    checkpoint::Checkpoint,
    engine::{
        Error, GuestOrder, Identity, Outcome, SessionTerms,
        kvm::wire::{IdentityBytes, Order as WireOrder},
    },
};

/// Guests that a nursery forks before the next one is started.
const SHARE: u32 = 1000;
/// Orders that a nursery takes at most while the next one starts, and those under way with which it
/// may be left: an order that waits behind so many has its answer long before its time is up.
const HANDOVER: u32 = 64;

/// The nurseries of a session.
#[derive(Debug)]
pub(crate) struct Nurseries {
    parts: NurseryParts,
    /// The one that takes orders.
    current: Nursery,
    /// The one that comes after it, if it was started already.
    next: Option<Nursery>,
    /// Those that take no orders any more, and whose guests live.
    former: Vec<Nursery>,
    share: u32,
    /// How many orders there were.
    orders: u64,
    /// How guests take their identity.
    identity_bytes: fn(&Identity) -> IdentityBytes,
}

impl Nurseries {
    /// Starts the first nursery for `checkpoint` and waits until it is ready.
    pub(crate) fn start(
        binary: &Path,
        checkpoint: &Checkpoint,
        run_dir: &Path,
        lock: &File,
        terms: &SessionTerms,
        kind: Kind<'_>,
    ) -> Result<Self, Error> {
        let parts = NurseryParts::new(binary, checkpoint, run_dir, lock, terms, &kind)?;
        let mut current = Nursery::start(&parts)?;
        current.wait_until_ready(&parts)?;
        Ok(Self {
            parts,
            current,
            next: None,
            former: Vec::new(),
            share: share(),
            orders: 0,
            identity_bytes: kind.identity_bytes,
        })
    }

    /// Starts the next nursery when this one has had its share, and lets it take over when it had
    /// time to get ready.
    fn renew(&mut self) {
        let Some(beyond) = self.current.given.checked_sub(self.share) else {
            return;
        };
        let handover = self.share.min(HANDOVER);
        if self.next.is_none() && beyond.is_multiple_of(handover) {
            // One that cannot be started is tried again, and this one goes on.
            self.next = Nursery::start(&self.parts)
                .inspect_err(|error| tracing::warn!(%error, "no other nursery"))
                .ok();
        }
        if beyond >= handover
            && self.current.under_way.len() <= HANDOVER as usize
            && let Some(next) = self.next.take()
        {
            let former = std::mem::replace(&mut self.current, next);
            if former.under_way.is_empty() {
                former.dismiss();
            }
            self.former.push(former);
        }
    }

    /// Waits as [`Session::wait`](crate::engine::Session::wait) does, and also ends the wait when
    /// `other` can be read.
    pub(crate) fn wait_beside(
        &mut self,
        other: Option<BorrowedFd<'_>>,
        timeout: Duration,
    ) -> Result<Option<Outcome>, Error> {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds: Vec<_> = std::iter::once(&self.current)
            .chain(&self.former)
            .flat_map(|nursery| [nursery.socket.as_fd(), nursery.handle.as_fd()])
            .chain(other)
            .map(readable)
            .collect();
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) | Err(nix::Error::EINTR) => return Ok(None),
            Ok(_) => {}
            Err(e) => {
                return Err(Error::Io {
                    action: "wait for the nursery",
                    source: e.into(),
                });
            }
        }
        let shown: Vec<[bool; 2]> = fds
            .chunks_exact(2)
            .take(1 + self.former.len())
            .map(|of| [0, 1].map(|n| of[n].any() != Some(false)))
            .collect();
        drop(fds);
        // What was said before a nursery's end comes before that end.
        let mut ended = Vec::new();
        for (place, [speaks, is_gone]) in shown.into_iter().enumerate() {
            let nursery = match place.checked_sub(1) {
                None => &mut self.current,
                Some(former) => &mut self.former[former],
            };
            if speaks {
                match nursery.take_report()? {
                    Heard::Outcome(outcome) => {
                        if place > 0 && nursery.under_way.is_empty() {
                            nursery.dismiss();
                        }
                        return Ok(Some(outcome));
                    }
                    Heard::Nothing => {}
                    Heard::End => ended.push(place),
                }
            } else if is_gone {
                ended.push(place);
            }
        }
        for place in ended.into_iter().rev() {
            match place.checked_sub(1) {
                None => return Err(self.current.broken()),
                // Its last guest has ended, or it was killed and its guests live on.
                Some(former) if self.former[former].under_way.is_empty() => {
                    self.former.swap_remove(former);
                }
                Some(former) => return Err(self.former[former].broken()),
            }
        }
        Ok(None)
    }
}

impl crate::engine::Session for Nurseries {
    fn start(&mut self, order: &GuestOrder) -> Result<(), Error> {
        self.renew();
        self.current.order(&WireOrder {
            seq: self.orders,
            id: order.id.0,
            memory_limit: order.memory_limit.map_or(0, |limit| limit.0),
            process_name: order.identity.name.as_str().into(),
            identity: (self.identity_bytes)(&order.identity),
        })?;
        self.orders += 1;
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> Result<Option<Outcome>, Error> {
        self.wait_beside(None, timeout)
    }

    fn abort(&mut self) {
        self.current.kill();
        if let Some(next) = &mut self.next {
            next.kill();
        }
        // The others stay for guests that have answered.
        for former in &mut self.former {
            if !former.under_way.is_empty() {
                former.kill();
            }
        }
    }
}

/// How many guests a nursery forks: [`SHARE`], or what tests of debug builds want.
fn share() -> u32 {
    #[cfg(debug_assertions)]
    if let Some(share) = std::env::var("BROOD_NURSERY_SHARE")
        .ok()
        .and_then(|share| share.parse().ok())
        .filter(|share| *share > 0)
    {
        return share;
    }
    SHARE
}
