//! Nurseries of one session: as many take orders as there is work for, and each forks a thousand
//! guests, then another takes its place.
//!
//! All forks of a nursery wait for its one address space, so one nursery keeps two cores busy and no
//! more. A session with many orders under way starts another for each two of them, up to half of
//! the cores, and gives each order to the one that has the fewest. They share no lock.
//!
//! A nursery waits for its ended guests, and for each the kernel walks the list of all its living
//! children (`do_wait()` of kernel/exit.c): the last of 8,000 guests of one nursery took twice the
//! processor time to end. One that has forked its share is told that no order comes any more
//! (shutdown(2)): it lets its spares go, and stays as the parent of its guests until the last has
//! ended. The one after it is started ahead, so that no order waits for it.

use std::{
    fs::File,
    num::NonZero,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    thread,
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
/// Orders that a nursery takes at most while the next one starts. One that cannot be started is
/// tried again after as many.
const HANDOVER: u32 = 64;
/// Orders under way for which one nursery is enough.
const ORDERS_EACH: usize = 2;
/// Guests for which one nursery more is worth its 2 MiB of memory: 16 KiB for each.
const GUESTS_EACH: u64 = 128;

/// The nurseries of a session.
#[derive(Debug)]
pub(crate) struct Nurseries {
    parts: NurseryParts,
    /// Those that take orders, and those that stay for the guests they forked.
    all: Vec<Nursery>,
    plan: NurseryPlan,
    /// How many orders there were.
    orders: u64,
    /// No nursery is started before so many orders: one could not be.
    retry_at: u64,
    /// How guests take their identity.
    identity_bytes: fn(&Identity) -> IdentityBytes,
}

/// How many nurseries take orders, and how many each takes.
#[derive(Clone, Copy, Debug)]
struct NurseryPlan {
    /// Guests that a nursery forks.
    share: u32,
    /// Orders beyond it that it takes while the next one starts.
    handover: u32,
    /// Nurseries that take orders at most.
    most: usize,
    /// Guests for which one nursery more is worth its memory.
    guests_each: u64,
}

impl NurseryPlan {
    fn of_this_host() -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let most = wish("BROOD_NURSERIES").map_or((cores / 2).max(1), |most| most as usize);
        let share = wish("BROOD_NURSERY_SHARE").unwrap_or(SHARE);
        Self {
            share,
            handover: share.min(HANDOVER),
            most,
            guests_each: GUESTS_EACH.min(share.into()),
        }
    }

    /// How many nurseries are to take orders, with so many orders under way and so many given.
    fn wanted(&self, under_way: usize, given: u64) -> usize {
        let by_work = under_way / ORDERS_EACH;
        let by_memory = usize::try_from(given / self.guests_each).unwrap_or(usize::MAX);
        (1 + by_work.min(by_memory)).min(self.most)
    }
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
        let mut first = Nursery::start(&parts)?;
        first.wait_until_ready(&parts)?;
        Ok(Self {
            parts,
            all: vec![first],
            plan: NurseryPlan::of_this_host(),
            orders: 0,
            retry_at: 0,
            identity_bytes: kind.identity_bytes,
        })
    }

    /// Whether a nursery may be given orders before its share is used up.
    fn is_fresh(&self, nursery: &Nursery) -> bool {
        nursery.takes_orders && nursery.given < self.plan.share
    }

    /// Starts another nursery when those that have not had their share are too few.
    fn add(&mut self) {
        let open = self.all.iter().filter(|nursery| nursery.takes_orders);
        let under_way = open.map(|nursery| nursery.under_way.len()).sum();
        let fresh = self.all.iter().filter(|n| self.is_fresh(n)).count();
        if fresh >= self.plan.wanted(under_way, self.orders) || self.orders < self.retry_at {
            return;
        }
        // Without it the others go on.
        match Nursery::start(&self.parts) {
            Ok(nursery) => self.all.push(nursery),
            Err(error) => {
                tracing::warn!(%error, "no other nursery");
                self.retry_at = self.orders + u64::from(self.plan.handover);
            }
        }
    }

    /// The nursery for the next order: the one with the fewest under way, of those that have not had
    /// their share and are ready. While there is none, one that has had its share takes a few more.
    fn next(&mut self) -> Option<&mut Nursery> {
        let plan = self.plan;
        let rank = |nursery: &&mut Nursery| {
            let is_late = match nursery.given.checked_sub(plan.share) {
                None if nursery.is_ready => 0,
                Some(beyond) if beyond < plan.handover => 1,
                None => 2,
                Some(_) => 3,
            };
            (is_late, nursery.under_way.len())
        };
        let open = self.all.iter_mut().filter(|nursery| nursery.takes_orders);
        open.min_by_key(rank)
    }

    /// Lets those that have had their share go, as soon as another takes orders.
    fn relieve(&mut self) {
        let plan = self.plan;
        if self.all.iter().any(|n| self.is_fresh(n) && n.given > 0) {
            for nursery in &mut self.all {
                if nursery.takes_orders && nursery.given >= plan.share {
                    nursery.relieve();
                }
            }
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
        let fds = self.all.iter();
        let fds = fds.flat_map(|nursery| [nursery.socket.as_fd(), nursery.handle.as_fd()]);
        let mut fds: Vec<_> = fds.chain(other).map(readable).collect();
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
            .take(self.all.len())
            .map(|of| [0, 1].map(|n| of[n].any() != Some(false)))
            .collect();
        drop(fds);
        // What was said before a nursery's end comes before that end.
        let mut ended = Vec::new();
        for (place, [speaks, is_gone]) in shown.into_iter().enumerate() {
            if speaks {
                match self.all[place].take_report()? {
                    Heard::Outcome(outcome) => return Ok(Some(outcome)),
                    Heard::Nothing => {}
                    Heard::End => ended.push(place),
                }
            } else if is_gone {
                ended.push(place);
            }
        }
        for place in ended.into_iter().rev() {
            let nursery = &self.all[place];
            if nursery.takes_orders || !nursery.under_way.is_empty() {
                return Err(nursery.broken());
            }
            // Its last guest has ended, or it was killed and its guests live on.
            self.all.swap_remove(place);
        }
        Ok(None)
    }
}

impl crate::engine::Session for Nurseries {
    fn start(&mut self, order: &GuestOrder) -> Result<(), Error> {
        self.add();
        let order = WireOrder {
            seq: self.orders,
            id: order.id.0,
            memory_limit: order.memory_limit.map_or(0, |limit| limit.0),
            process_name: order.identity.name.as_str().into(),
            identity: (self.identity_bytes)(&order.identity),
        };
        let next = self.next();
        let next = next.ok_or_else(|| Error::Nursery("none takes orders".to_owned()))?;
        next.order(&order)?;
        self.orders += 1;
        self.relieve();
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> Result<Option<Outcome>, Error> {
        self.wait_beside(None, timeout)
    }

    fn rest(&mut self) {
        // One is enough for the first orders that come after this.
        let freshest = self.all.iter().filter(|n| n.takes_orders && n.is_ready);
        let freshest = freshest.map(|nursery| nursery.given).min();
        let mut stays = false;
        for nursery in &mut self.all {
            if !stays && nursery.takes_orders && nursery.is_ready && Some(nursery.given) == freshest
            {
                stays = true;
            } else if nursery.takes_orders && freshest.is_some() {
                nursery.relieve();
            }
        }
    }

    fn abort(&mut self) {
        // Others stay for guests that have answered.
        for nursery in &mut self.all {
            if nursery.takes_orders || !nursery.under_way.is_empty() {
                nursery.kill();
            }
        }
    }
}

/// What tests of debug builds want instead of a figure that is made for thousands of guests.
fn wish(variable: &str) -> Option<u32> {
    let wish = cfg!(debug_assertions).then(|| std::env::var(variable).ok());
    let wish = wish.flatten()?.parse().ok();
    wish.filter(|wish| *wish > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_nurseries_come_with_more_work_and_more_guests() {
        let plan = NurseryPlan {
            share: SHARE,
            handover: HANDOVER,
            most: 8,
            guests_each: GUESTS_EACH,
        };
        let table = [
            // Orders under way, orders given, nurseries.
            (0, 100_000, 1),
            (1, 100_000, 1),
            (3, 100_000, 2),
            (31, 100_000, 8),
            (31, 0, 1),
            (31, 127, 1),
            (31, 128, 2),
            (31, 900, 8),
            (4, 900, 3),
        ];
        for (under_way, given, wanted) in table {
            assert_eq!(plan.wanted(under_way, given), wanted, "{under_way} {given}");
        }
        assert_eq!(NurseryPlan { most: 1, ..plan }.wanted(31, 900), 1);
    }
}
