//! Permits for library calls, each of which holds a thread. A request waits for its permit without a
//! thread, and loses its place when the client disconnects.
//!
//! Three kinds of calls have threads of their own. *Long* ones may wait for a silent guest: their
//! number is limited for one pool or guest, for one kind of object, and in all. *Changes* wait for
//! the record, a lock or the end of a process: to end guests is possible while all long calls wait
//! for them. *Looks* only read. In each of them the port's clients have a share of their own, and
//! leave the socket's owner theirs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use axum::http::StatusCode;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    connections::{Budget, Entrance},
    problem::Problem,
};

/// For one pool, at least.
const OF_A_POOL: usize = 8;
/// For one guest, which answers one request at a time.
const OF_A_GUEST: usize = 4;
/// Programs in one guest.
const OF_PROGRAMS: usize = 16;
/// From one checkpoint.
const OF_A_CHECKPOINT: usize = 16;
/// Restores that are not for pools, from whatever checkpoints.
const OF_RESTORES: usize = 32;
/// Suspends of the guests of one pool or checkpoint: each writes a guest's memory to the disk.
const OF_SUSPENDS: usize = 8;
/// Looks for disks, each of which runs commands of the host.
const OF_DISKS: usize = 2;
/// Changes of one guest that need not ask it.
const OF_AN_END: usize = 2;
/// How long a look or a change waits for its turn.
const TURN: Duration = Duration::from_secs(30);

/// What a long call works at: one kind of object never has all threads for long calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Object {
    Guest,
    Pool,
    Checkpoint,
}

/// The object that a long call works at, and the limit of such calls.
#[derive(Debug)]
pub(super) struct PermitKind {
    key: String,
    /// Its name in errors, which never has a claim's token.
    what: String,
    at_most: usize,
    object: Object,
}

impl PermitKind {
    fn new(object: Object, what: String, at_most: usize) -> Self {
        Self {
            key: what.clone(),
            what,
            at_most,
            object,
        }
    }

    /// For one pool: a few for each core, so that guests which spin do not take the host from all
    /// others.
    pub(super) fn pool(name: &str) -> Self {
        let at_most = OF_A_POOL.max(2 * super::types::at_once() as usize);
        Self::new(Object::Pool, format!("pool {name}"), at_most)
    }

    pub(super) fn guest(name: &str) -> Self {
        Self::new(Object::Guest, format!("guest {name}"), OF_A_GUEST)
    }

    /// For programs in one guest, each of which lasts as long as it likes.
    pub(super) fn programs(guest: &str) -> Self {
        Self::new(
            Object::Guest,
            format!("programs in guest {guest}"),
            OF_PROGRAMS,
        )
    }

    pub(super) fn claim(token: &str) -> Self {
        Self {
            key: token.to_owned(),
            what: "the claim".to_owned(),
            at_most: OF_A_GUEST,
            object: Object::Pool,
        }
    }

    /// For the end of a claim.
    pub(super) fn end_of_claim(token: &str) -> Self {
        Self {
            key: format!("the end of {token}"),
            what: "the end of the claim".to_owned(),
            at_most: OF_AN_END,
            object: Object::Pool,
        }
    }

    pub(super) fn checkpoint(bundle: &str) -> Self {
        Self::new(
            Object::Checkpoint,
            format!("checkpoint {bundle}"),
            OF_A_CHECKPOINT,
        )
    }

    /// For restores from any checkpoint: each may start a nursery.
    pub(super) fn restores() -> Self {
        let what = "restoring from checkpoints".to_owned();
        Self::new(Object::Checkpoint, what, OF_RESTORES)
    }

    /// For suspends of guests of this pool or checkpoint.
    pub(super) fn suspends(of: &str) -> Self {
        Self {
            key: format!("suspends of {of}"),
            what: of.to_owned(),
            at_most: OF_SUSPENDS,
            object: Object::Guest,
        }
    }

    /// For changes of one guest that it is not asked about: its end, and its being stopped.
    pub(super) fn end_of(guest: &str) -> Self {
        Self::new(Object::Guest, format!("the end of {guest}"), OF_AN_END)
    }

    pub(super) fn disks() -> Self {
        let what = "looking for disks".to_owned();
        Self::new(Object::Checkpoint, what, OF_DISKS)
    }
}

/// Permits of one sort of calls: as many as there are, or one client's share of them.
#[derive(Debug)]
struct Shares {
    of_all: Arc<Semaphore>,
    of_port: Arc<Semaphore>,
}

impl Shares {
    /// The port's clients have so many of these at most.
    fn new(of_all: usize, of_port: usize) -> Self {
        let permits = |n: usize| Arc::new(Semaphore::new(n));
        let of_port = of_port.max(1);
        Self {
            // More than the port's clients can have: so the socket's have one.
            of_all: permits(of_all.max(of_port + 1)),
            of_port: permits(of_port),
        }
    }

    async fn take(&self, by: Entrance, taken: &mut Vec<OwnedSemaphorePermit>) -> Option<()> {
        if by == Entrance::Port {
            taken.push(Arc::clone(&self.of_port).acquire_owned().await.ok()?);
        }
        taken.push(Arc::clone(&self.of_all).acquire_owned().await.ok()?);
        Some(())
    }
}

/// Long calls at one kind of object.
#[derive(Debug)]
struct LongCalls {
    calls: Shares,
    /// Requests for them that are under way or wait, of the socket's clients and the port's: each
    /// holds a connection.
    requests: [Arc<Semaphore>; 2],
}

/// All permits.
#[derive(Debug)]
pub(super) struct Permits {
    long: Shares,
    at_guests: LongCalls,
    at_pools: LongCalls,
    at_checkpoints: LongCalls,
    changes: Shares,
    looks: Shares,
    /// Streams of programs at once, which may last for days.
    streams: usize,
    /// By their purpose, as long as a permit is held or awaited.
    of: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// One permit, until it and its clones are dropped.
#[derive(Clone, Debug)]
pub(super) struct Permit {
    _held: Arc<Vec<OwnedSemaphorePermit>>,
}

impl Permits {
    /// Permits for calls that are made on so many threads. Half of them are for long calls, and
    /// a quarter for changes and for looks each. The port's clients have half of each at most. An eighth of the connections may have
    /// requests for long calls at one kind of object.
    pub(super) fn new(budget: &Budget) -> Self {
        let threads = budget.calls;
        let long = |part: usize| Shares::new(threads / (2 * part), threads / (4 * part));
        let short = || Shares::new(threads / 4, threads / 8);
        let at_object = || LongCalls {
            calls: long(2),
            requests: [budget.socket, budget.port].map(|n| Arc::new(Semaphore::new(n.div_ceil(8)))),
        };
        Self {
            long: long(1),
            at_guests: at_object(),
            at_pools: at_object(),
            at_checkpoints: at_object(),
            changes: short(),
            looks: short(),
            streams: (threads / 8).max(1),
            of: Mutex::default(),
        }
    }

    /// For streams of programs: all of them together leave room for other calls.
    pub(super) fn streams(&self) -> PermitKind {
        let what = "programs with streams".to_owned();
        PermitKind::new(Object::Guest, what, self.streams)
    }

    fn at(&self, bounds: &[PermitKind]) -> &LongCalls {
        match bounds[0].object {
            Object::Guest => &self.at_guests,
            Object::Pool => &self.at_pools,
            Object::Checkpoint => &self.at_checkpoints,
        }
    }

    /// Begins a request that may last at pools, whose calls are then made with
    /// [`Self::take_begun`].
    ///
    /// # Errors
    /// When as many are under way as may be.
    pub(super) fn begin_at_pool(&self, by: Entrance) -> Result<Permit, Problem> {
        Ok(Permit {
            _held: Arc::new(vec![one_of(&self.at_pools.requests, by)?]),
        })
    }

    /// Waits for a permit of each of these bounds, in this order, for a long call.
    ///
    /// # Errors
    /// When there is none within `limit`, or as many wait as may.
    pub(super) async fn take(
        &self,
        by: Entrance,
        bounds: &[PermitKind],
        limit: Duration,
    ) -> Result<Permit, Problem> {
        let object = self.at(bounds);
        let request = one_of(&object.requests, by)?;
        self.take_with(
            by,
            bounds,
            limit,
            vec![&object.calls, &self.long],
            vec![request],
        )
        .await
    }

    /// The same for a request that has begun.
    ///
    /// # Errors
    /// When there is none within `limit`.
    pub(super) async fn take_begun(
        &self,
        by: Entrance,
        bounds: &[PermitKind],
        limit: Duration,
    ) -> Result<Permit, Problem> {
        let calls = vec![&self.at(bounds).calls, &self.long];
        self.take_with(by, bounds, limit, calls, Vec::new()).await
    }

    /// The same for a change.
    ///
    /// # Errors
    /// When there is none for a long time.
    pub(super) async fn take_change(
        &self,
        by: Entrance,
        bounds: &[PermitKind],
    ) -> Result<Permit, Problem> {
        self.take_with(by, bounds, TURN, vec![&self.changes], Vec::new())
            .await
    }

    /// The same for a call that only reads.
    ///
    /// # Errors
    /// When there is none for a long time.
    pub(super) async fn take_look(&self, by: Entrance) -> Result<Permit, Problem> {
        self.take_with(by, &[], TURN, vec![&self.looks], Vec::new())
            .await
    }

    async fn take_with(
        &self,
        by: Entrance,
        bounds: &[PermitKind],
        limit: Duration,
        general: Vec<&Shares>,
        mut taken: Vec<OwnedSemaphorePermit>,
    ) -> Result<Permit, Problem> {
        let mut waits_for = None;
        let all = async {
            // The specific one first, so that no call holds a general one while it waits.
            for bound in bounds {
                waits_for = Some(bound);
                let permits = self.own(&bound.key, bound.at_most);
                taken.push(permits.acquire_owned().await.ok()?);
            }
            waits_for = None;
            for shares in general {
                shares.take(by, &mut taken).await?;
            }
            Some(Permit {
                _held: Arc::new(taken),
            })
        };
        let taken = timeout(limit, all).await.ok().flatten();
        taken.ok_or_else(|| {
            let limit = limit.as_secs_f64();
            let detail = match waits_for {
                Some(PermitKind { what, at_most, .. }) => format!(
                    "{what} is busy: {at_most} requests to it are under way, and none of them came \
                     to its end within {limit} s"
                ),
                None => format!(
                    "the daemon is busy: as many requests of this kind as there may be are under \
                     way, and none of them came to its end within {limit} s"
                ),
            };
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail)
                .with_hint("its guests may not answer; try again later")
        })
    }

    fn own(&self, what: &str, at_most: usize) -> Arc<Semaphore> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = of.get(what).and_then(Weak::upgrade) {
            return found;
        }
        of.retain(|_, one| one.strong_count() > 0);
        let new = Arc::new(Semaphore::new(at_most));
        of.insert(what.to_owned(), Arc::downgrade(&new));
        new
    }
}

/// One of those that clients who come so have, if there is one.
fn one_of(of: &[Arc<Semaphore>; 2], by: Entrance) -> Result<OwnedSemaphorePermit, Problem> {
    let own = Arc::clone(&of[usize::from(by == Entrance::Port)]);
    own.try_acquire_owned().map_err(|_| {
        let detail = format!(
            "as many requests that may last are under way over the {} as may be",
            by.name()
        );
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail)
            .with_hint("its guests may not answer; try again later")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    fn permits() -> Permits {
        Permits::new(&Budget {
            socket: 2048,
            port: 1024,
            calls: 256,
            guest_sockets: 2,
        })
    }

    fn one(what: &str) -> PermitKind {
        PermitKind::new(Object::Pool, what.to_owned(), 1)
    }

    /// A long call over the socket.
    async fn long(permits: &Permits, bounds: &[PermitKind]) -> Result<Permit, Problem> {
        permits.take(Entrance::Socket, bounds, SOON).await
    }

    #[tokio::test]
    async fn one_that_is_busy_holds_up_nobody_else() {
        let permits = permits();
        let first = long(&permits, &[one("pool a")]).await.unwrap();
        let busy = long(&permits, &[one("pool a")]).await.unwrap_err();
        assert_eq!(busy.status(), StatusCode::SERVICE_UNAVAILABLE);
        let _other = long(&permits, &[one("pool b")]).await.unwrap();
        drop(first);
        let _again = long(&permits, &[one("pool a")]).await.unwrap();
    }

    #[tokio::test]
    async fn those_who_wait_hold_none_of_all() {
        let permits = permits();
        let mut held = Vec::new();
        for n in 0..64 - 1 {
            let what = format!("pool {n}");
            held.push(long(&permits, &[one(&what)]).await.unwrap());
        }
        // These wait for their own, and give up.
        for _ in 0..3 {
            long(&permits, &[one("pool 0")]).await.unwrap_err();
        }
        let last = long(&permits, &[one("last")]).await.unwrap();
        long(&permits, &[one("too many")]).await.unwrap_err();
        drop(last);
        long(&permits, &[one("not too many")]).await.unwrap();
    }

    #[tokio::test]
    async fn suspends_of_one_pool_are_bounded_and_hold_up_no_other_pool() {
        let permits = permits();
        let mut held = Vec::new();
        for n in 0..OF_SUSPENDS {
            let bounds = [
                PermitKind::claim(&n.to_string()),
                PermitKind::suspends("pool a"),
            ];
            held.push(long(&permits, &bounds).await.unwrap());
        }
        let bounds = [PermitKind::claim("more"), PermitKind::suspends("pool a")];
        long(&permits, &bounds).await.unwrap_err();
        let bounds = [PermitKind::claim("other"), PermitKind::suspends("pool b")];
        long(&permits, &bounds).await.unwrap();
        // Nobody who has given up holds a place.
        for _ in 0..OF_A_GUEST {
            let bounds = [PermitKind::claim("more"), PermitKind::suspends("pool a")];
            long(&permits, &bounds).await.unwrap_err();
        }
        long(&permits, &[PermitKind::claim("more")]).await.unwrap();
    }
}
