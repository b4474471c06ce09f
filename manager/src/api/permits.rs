//! Permits for library calls that may take long, because a guest may be silent. Each holds a thread;
//! so there are only so many at once for one pool or guest, and in all. Whoever has none waits
//! without a thread, and loses its place when it hangs up. Calls that only look need no permit: there
//! are always threads left for them.

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
pub(super) const OF_A_GUEST: usize = 4;
/// From one checkpoint.
pub(super) const OF_A_CHECKPOINT: usize = 16;

/// For one pool: a few for each core, so that guests which spin do not take the host from all others.
pub(super) fn of_a_pool() -> usize {
    OF_A_POOL.max(2 * super::pools::at_once())
}

/// All permits.
#[derive(Debug)]
pub(super) struct Permits {
    in_all: Arc<Semaphore>,
    /// By what they are for, as long as somebody has one or waits.
    of: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// One permit, until it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    _own: OwnedSemaphorePermit,
    _in_all: OwnedSemaphorePermit,
}

impl Permits {
    /// Permits for calls that are made on so many threads: a quarter of them is left for others.
    pub(super) fn new(threads: usize) -> Self {
        Self {
            in_all: Arc::new(Semaphore::new((threads - threads / 4).max(1))),
            of: Mutex::default(),
        }
    }

    /// Waits for one of `at_most` permits for `what`.
    ///
    /// # Errors
    /// When there is none within `limit`.
    pub(super) async fn take(
        &self,
        what: &str,
        at_most: usize,
        limit: Duration,
    ) -> Result<Permit, Problem> {
        self.take_for(what, what, at_most, limit).await
    }

    /// The same for a claim, whose token is not told.
    pub(super) async fn take_for_claim(
        &self,
        token: &str,
        limit: Duration,
    ) -> Result<Permit, Problem> {
        self.take_for(token, "the claim", OF_A_GUEST, limit).await
    }

    async fn take_for(
        &self,
        key: &str,
        what: &str,
        at_most: usize,
        limit: Duration,
    ) -> Result<Permit, Problem> {
        let (own, in_all) = (self.own(key, at_most), Arc::clone(&self.in_all));
        let both = async {
            // Its own first: nobody holds one of all while it waits.
            let own = own.acquire_owned().await.ok()?;
            let in_all = in_all.acquire_owned().await.ok()?;
            Some(Permit {
                _own: own,
                _in_all: in_all,
            })
        };
        timeout(limit, both).await.ok().flatten().ok_or_else(|| {
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

    #[tokio::test]
    async fn one_that_is_busy_holds_up_nobody_else() {
        let permits = Permits::new(256);
        let first = permits.take("pool a", 1, SOON).await.unwrap();
        let busy = permits.take("pool a", 1, SOON).await.unwrap_err();
        assert_eq!(busy.status(), StatusCode::SERVICE_UNAVAILABLE);
        let _other = permits.take("pool b", 1, SOON).await.unwrap();
        drop(first);
        let _again = permits.take("pool a", 1, SOON).await.unwrap();
    }

    #[tokio::test]
    async fn those_who_wait_hold_none_of_all() {
        let permits = Permits::new(256);
        let mut held = Vec::new();
        for n in 0..192 - 1 {
            let what = format!("pool {n}");
            held.push(permits.take(&what, 1, SOON).await.unwrap());
        }
        // These wait for their own, and give up.
        for _ in 0..3 {
            permits.take("pool 0", 1, SOON).await.unwrap_err();
        }
        let last = permits.take("last", 1, SOON).await.unwrap();
        permits.take("too many", 1, SOON).await.unwrap_err();
        drop(last);
        permits.take("not too many", 1, SOON).await.unwrap();
    }
}
