//! Permits for library calls that may take long, because a guest may be silent. Each holds a
//! thread, so their number is limited for one pool or guest, and in all. A request waits for a
//! permit without a thread, and loses its place when the client disconnects. Calls that only read
//! need no permit: threads are reserved for them.

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

use super::problem::Problem;

/// For one pool, at least.
const OF_A_POOL: usize = 8;
/// For one guest, which answers one request at a time.
const OF_A_GUEST: usize = 4;
/// Programs in one guest.
const OF_PROGRAMS: usize = 16;
/// From one checkpoint.
const OF_A_CHECKPOINT: usize = 16;
/// Suspends of the guests of one pool or checkpoint: each writes a guest's memory to the disk.
const OF_SUSPENDS: usize = 8;
/// Looks for disks, each of which runs commands of the host.
const OF_DISKS: usize = 2;

/// The object that a long call works at, and the limit of such calls.
#[derive(Debug)]
pub(super) struct PermitKind {
    key: String,
    /// Its name in errors, which never has a claim's token.
    what: String,
    at_most: usize,
}

impl PermitKind {
    fn new(what: String, at_most: usize) -> Self {
        Self {
            key: what.clone(),
            what,
            at_most,
        }
    }

    /// For one pool: a few for each core, so that guests which spin do not take the host from all
    /// others.
    pub(super) fn pool(name: &str) -> Self {
        let at_most = OF_A_POOL.max(2 * super::types::at_once() as usize);
        Self::new(format!("pool {name}"), at_most)
    }

    pub(super) fn guest(name: &str) -> Self {
        Self::new(format!("guest {name}"), OF_A_GUEST)
    }

    /// For programs in one guest, each of which lasts as long as it likes.
    pub(super) fn programs(guest: &str) -> Self {
        Self::new(format!("programs in guest {guest}"), OF_PROGRAMS)
    }

    pub(super) fn claim(token: &str) -> Self {
        Self {
            key: token.to_owned(),
            what: "the claim".to_owned(),
            at_most: OF_A_GUEST,
        }
    }

    pub(super) fn checkpoint(bundle: &str) -> Self {
        Self::new(format!("checkpoint {bundle}"), OF_A_CHECKPOINT)
    }

    /// For suspends of guests of this pool or checkpoint.
    pub(super) fn suspends(of: &str) -> Self {
        Self {
            key: format!("suspends of {of}"),
            what: of.to_owned(),
            at_most: OF_SUSPENDS,
        }
    }

    pub(super) fn disks() -> Self {
        Self::new("looking for disks".to_owned(), OF_DISKS)
    }
}

/// All permits.
#[derive(Debug)]
pub(super) struct Permits {
    in_all: Arc<Semaphore>,
    /// Streams of programs at once, which may last for days.
    streams: usize,
    /// By their purpose, as long as a permit is held or awaited.
    of: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// One permit, until it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    _own: Vec<OwnedSemaphorePermit>,
    _in_all: OwnedSemaphorePermit,
}

impl Permits {
    /// Permits for calls that are made on so many threads: a quarter of them is left for others.
    pub(super) fn new(threads: usize) -> Self {
        Self {
            in_all: Arc::new(Semaphore::new((threads - threads / 4).max(1))),
            streams: (threads / 4).max(1),
            of: Mutex::default(),
        }
    }

    /// For streams of programs: all of them together leave room for other calls.
    pub(super) fn streams(&self) -> PermitKind {
        PermitKind::new("programs with streams".to_owned(), self.streams)
    }

    /// Waits for a permit of each of these bounds, in this order.
    ///
    /// # Errors
    /// When there is none within `limit`.
    pub(super) async fn take(
        &self,
        bounds: &[PermitKind],
        limit: Duration,
    ) -> Result<Permit, Problem> {
        let mut waits_for = bounds.first();
        let all = async {
            let mut own = Vec::with_capacity(bounds.len());
            // The specific one first, so that no call holds a general one while it waits.
            for bound in bounds {
                waits_for = Some(bound);
                let permits = self.own(&bound.key, bound.at_most);
                own.push(permits.acquire_owned().await.ok()?);
            }
            let in_all = Arc::clone(&self.in_all).acquire_owned().await.ok()?;
            Some(Permit {
                _own: own,
                _in_all: in_all,
            })
        };
        let taken = timeout(limit, all).await.ok().flatten();
        taken.ok_or_else(|| {
            let (what, at_most) = waits_for.map_or(("it", 0), |b| (&b.what[..], b.at_most));
            let detail = format!(
                "{what} is busy: {at_most} requests to it are under way, and none of them came to its \
                 end within {} s",
                limit.as_secs_f64()
            );
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

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    fn one(what: &str) -> PermitKind {
        PermitKind::new(what.to_owned(), 1)
    }

    #[tokio::test]
    async fn one_that_is_busy_holds_up_nobody_else() {
        let permits = Permits::new(256);
        let first = permits.take(&[one("pool a")], SOON).await.unwrap();
        let busy = permits.take(&[one("pool a")], SOON).await.unwrap_err();
        assert_eq!(busy.status(), StatusCode::SERVICE_UNAVAILABLE);
        let _other = permits.take(&[one("pool b")], SOON).await.unwrap();
        drop(first);
        let _again = permits.take(&[one("pool a")], SOON).await.unwrap();
    }

    #[tokio::test]
    async fn those_who_wait_hold_none_of_all() {
        let permits = Permits::new(256);
        let mut held = Vec::new();
        for n in 0..192 - 1 {
            let what = format!("pool {n}");
            held.push(permits.take(&[one(&what)], SOON).await.unwrap());
        }
        // These wait for their own, and give up.
        for _ in 0..3 {
            permits.take(&[one("pool 0")], SOON).await.unwrap_err();
        }
        let last = permits.take(&[one("last")], SOON).await.unwrap();
        permits.take(&[one("too many")], SOON).await.unwrap_err();
        drop(last);
        permits.take(&[one("not too many")], SOON).await.unwrap();
    }

    #[tokio::test]
    async fn suspends_of_one_pool_are_bounded_and_hold_up_no_other_pool() {
        let permits = Permits::new(256);
        let mut held = Vec::new();
        for n in 0..OF_SUSPENDS {
            let bounds = [
                PermitKind::claim(&n.to_string()),
                PermitKind::suspends("pool a"),
            ];
            held.push(permits.take(&bounds, SOON).await.unwrap());
        }
        let bounds = [PermitKind::claim("more"), PermitKind::suspends("pool a")];
        permits.take(&bounds, SOON).await.unwrap_err();
        let bounds = [PermitKind::claim("other"), PermitKind::suspends("pool b")];
        permits.take(&bounds, SOON).await.unwrap();
        // Nobody who has given up holds a place.
        for _ in 0..OF_A_GUEST {
            let bounds = [PermitKind::claim("more"), PermitKind::suspends("pool a")];
            permits.take(&bounds, SOON).await.unwrap_err();
        }
        permits
            .take(&[PermitKind::claim("more")], SOON)
            .await
            .unwrap();
    }
}
