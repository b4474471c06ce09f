//! Calls of the daemon's API.

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use hyper::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    Client, Error, ServerEvent,
    connection::{Call, Connection},
    events::Stream,
    path::Segment,
};
use crate::api::{
    claims::{Claim, ClaimRequest, LeaseRenewal, RenewRequest},
    events::RestoreEvent,
    evict::{EvictReport, EvictRequest},
    guests::{DestroyAnswer, ResumeReport},
    host::Host,
    pools::{ChangePool, CreatePool, FillRequest, FilledPool},
    suspended_claims::{ResumeClaimRequest, SuspendAnswer},
    types::{Guest, Pool, PoolDetails},
};
use brood_core::{
    guest_id::random,
    restore::{RestoreReport, RestoreSpec},
};

/// How often a wait checks whether it was cancelled.
const CANCEL_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Guests that are named in one request.
pub(crate) const NAMES: usize = 500;

/// How a restore is watched.
pub(crate) struct Watch<'a> {
    /// Set when no more guests are to be begun.
    pub(crate) cancelled: &'a AtomicBool,
    /// Is told how it comes along.
    pub(crate) observe: &'a mut dyn FnMut(&RestoreEvent),
}

/// Guests to end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DestroyTargets<'a> {
    /// All; claimed ones only when `force` is set.
    All { force: bool },
    /// These: names or ids, [`NAMES`] at most.
    Named {
        guests: &'a [String],
        ignore_missing: bool,
    },
}

impl Client {
    fn call<T: DeserializeOwned>(&self, call: &Call) -> Result<T, Error> {
        let mut connection = self.connection.borrow_mut();
        self.runtime.block_on(connection.call(call))
    }

    /// All guests; with what each costs, when that is wanted.
    pub(crate) fn guests(&self, usage: bool) -> Result<Vec<Guest>, Error> {
        self.call(&Call::get(
            format!("/api/v1/guests?usage={usage}"),
            "list guests",
        ))
    }

    /// One guest, and what it costs.
    pub(crate) fn guest(&self, guest: &str) -> Result<Guest, Error> {
        let path = format!("/api/v1/guests/{}", Segment(guest));
        self.call(&Call::get(path, "show a guest"))
    }

    /// Puts a request to a guest; returns its answer.
    pub(crate) fn ask(
        &self,
        guest: &str,
        request: &[String],
        timeout_s: f64,
    ) -> Result<Value, Error> {
        let path = format!("/api/v1/guests/{}/ask", Segment(guest));
        let body = json!({ "request": request, "timeout_s": timeout_s });
        self.call(&Call::change(Method::POST, path, "ask a guest").with(&body))
    }

    /// A pool, its entries and the claims of it that rest.
    pub(crate) fn pool(&self, pool: &str) -> Result<PoolDetails, Error> {
        let path = format!("/api/v1/pools/{}", Segment(pool));
        self.call(&Call::get(path, "show a pool"))
    }

    /// All pools.
    pub(crate) fn pools(&self) -> Result<Vec<Pool>, Error> {
        self.call(&Call::get("/api/v1/pools", "list pools"))
    }

    /// Restores under way.
    pub(crate) fn restores(&self) -> Result<Vec<RestoreEvent>, Error> {
        self.call(&Call::get("/api/v1/restores", "list restores"))
    }

    /// What it has counted, as OpenMetrics text.
    pub(crate) fn metrics(&self) -> Result<String, Error> {
        let call = Call::get("/metrics", "tell what it has counted");
        let mut connection = self.connection.borrow_mut();
        self.runtime.block_on(connection.text(&call))
    }

    /// Stops a guest.
    pub(crate) fn pause(&self, guest: &str) -> Result<Guest, Error> {
        let path = format!("/api/v1/guests/{}/pause", Segment(guest));
        self.call(&Call::change(Method::POST, path, "pause a guest"))
    }

    /// Lets a guest run on, which must answer in time.
    pub(crate) fn resume(&self, guest: &str, timeout_s: f64) -> Result<ResumeReport, Error> {
        let path = format!(
            "/api/v1/guests/{}/resume?timeout_s={timeout_s}",
            Segment(guest)
        );
        self.call(&Call::change(Method::POST, path, "resume a guest"))
    }

    /// Ends guests; those of these names or ids, or all. Returns the names of those that it has
    /// ended.
    pub(crate) fn destroy(&self, which: DestroyTargets<'_>) -> Result<DestroyAnswer, Error> {
        let which = match which {
            DestroyTargets::All { force } => format!("all=true&force={force}"),
            DestroyTargets::Named {
                guests,
                ignore_missing,
            } => {
                let guests = guests.join(",");
                format!(
                    "guests={}&ignore_missing={ignore_missing}",
                    Segment(&guests)
                )
            }
        };
        let path = format!("/api/v1/guests?{which}");
        let call = Call::change(Method::DELETE, path, "destroy guests");
        self.call(&call)
    }

    /// Restores guests. The report of a restore that came to nothing is an answer too.
    pub(crate) fn restore(
        &self,
        spec: &RestoreSpec,
        watch: Watch<'_>,
    ) -> Result<RestoreReport, Error> {
        let call = Call::change(Method::POST, "/api/v1/guests", "restore guests").with(spec);
        match self.watched(call, watch) {
            Err(Error::Problem(mut problem)) => {
                let report = problem.report.take();
                match report.map(serde_json::from_value).transpose() {
                    Ok(Some(report)) => Ok(report),
                    _ => Err(Error::Problem(problem)),
                }
            }
            other => other,
        }
    }

    /// Makes a pool.
    pub(crate) fn create_pool(&self, making: &CreatePool) -> Result<Pool, Error> {
        self.call(&Call::change(Method::POST, "/api/v1/pools", "make a pool").with(making))
    }

    /// Makes a pool and fills it.
    pub(crate) fn create_and_fill_pool(
        &self,
        making: &CreatePool,
        watch: Watch<'_>,
    ) -> Result<FilledPool, Error> {
        let call = Call::change(Method::POST, "/api/v1/pools", "make and fill a pool");
        self.watched(call.with(making), watch)
    }

    /// Changes a pool and fills it.
    pub(crate) fn change_and_fill_pool(
        &self,
        pool: &str,
        changing: &ChangePool,
        watch: Watch<'_>,
    ) -> Result<FilledPool, Error> {
        let path = format!("/api/v1/pools/{}", Segment(pool));
        let call = Call::change(Method::PATCH, path, "change and fill a pool");
        self.watched(call.with(changing), watch)
    }

    /// Fills a pool.
    pub(crate) fn fill_pool(
        &self,
        pool: &str,
        filling: FillRequest,
        watch: Watch<'_>,
    ) -> Result<FilledPool, Error> {
        let mut path = format!("/api/v1/pools/{}/fill", Segment(pool));
        if let Some(k) = filling.concurrency {
            path += &format!("?concurrency={k}");
        }
        self.watched(Call::change(Method::POST, path, "fill a pool"), watch)
    }

    /// Destroys hot guests of a pool of a pool.
    pub(crate) fn evict(&self, pool: &str, entries: u32) -> Result<u64, Error> {
        let path = format!("/api/v1/pools/{}/evict", Segment(pool));
        let call = Call::change(Method::POST, path, "evict guests of a pool");
        let evicted: EvictReport = self.call(&call.with(&EvictRequest { entries }))?;
        Ok(evicted.evicted)
    }

    /// Removes a pool.
    pub(crate) fn remove_pool(&self, pool: &str, force: bool) -> Result<(), Error> {
        let path = format!("/api/v1/pools/{}?force={force}", Segment(pool));
        self.call(&Call::change(Method::DELETE, path, "remove a pool"))
    }

    /// Claims a guest.
    pub(crate) fn claim(&self, pool: &str, claiming: &ClaimRequest) -> Result<Claim, Error> {
        let path = format!("/api/v1/pools/{}/claims", Segment(pool));
        self.call(&Call::change(Method::POST, path, "claim a guest").with(claiming))
    }

    /// Lets a claim last longer.
    pub(crate) fn renew(&self, token: &str, lease_s: u32) -> Result<(), Error> {
        let path = format!("/api/v1/claims/{}", Segment(token));
        let call = Call::change(Method::PUT, path, "renew a claim");
        let _: LeaseRenewal = self.call(&call.with(&RenewRequest { lease_s }))?;
        Ok(())
    }

    /// Gives a guest back.
    pub(crate) fn release(&self, token: &str) -> Result<(), Error> {
        let path = format!("/api/v1/claims/{}", Segment(token));
        self.call(&Call::change(Method::DELETE, path, "release a claim"))
    }

    /// Lets a claim rest.
    pub(crate) fn suspend_claim(&self, token: &str) -> Result<SuspendAnswer, Error> {
        let path = format!("/api/v1/claims/{}/suspend", Segment(token));
        self.call(&Call::change(Method::POST, path, "suspend a claim"))
    }

    /// Restores the guest of a suspended claim.
    pub(crate) fn resume_claim(
        &self,
        token: &str,
        resuming: &ResumeClaimRequest,
    ) -> Result<Claim, Error> {
        let path = format!("/api/v1/claims/{}/resume", Segment(token));
        let call = Call::change(Method::POST, path, "restore the guest of a claim");
        self.call(&call.with(resuming))
    }

    /// What the daemon, with its limits, can do on this host.
    pub(crate) fn host(&self, guests: u64, checkpoint_dir: Option<&str>) -> Result<Host, Error> {
        let mut path = format!("/api/v1/host?guests={guests}");
        if let Some(dir) = checkpoint_dir {
            path += &format!("&checkpoint_dir={}", Segment(dir));
        }
        self.call(&Call::get(path, "look at the host"))
    }

    /// Makes a request that restores guests; tells how that comes along, and cancels it when it is
    /// to be interrupted. It is answered all the same.
    fn watched<T: DeserializeOwned>(&self, call: Call, watch: Watch<'_>) -> Result<T, Error> {
        let Watch { cancelled, observe } = watch;
        let random: [u8; 8] = random().unwrap_or_default();
        let id = format!("brood-{:016x}", u64::from_be_bytes(random));
        let call = call.of(&id);
        let mut connection = self.connection.borrow_mut();
        self.runtime.block_on(async {
            let (socket, dir) = connection.place();
            let (mut canceller, path) = (
                Connection::new(&socket, &dir),
                format!("/api/v1/events?request={id}"),
            );
            // Without it there is no progress to show; that is no reason not to restore.
            let mut stream = Stream::open(&socket, &dir, &path).await.ok();
            let answer = connection.call(&call);
            tokio::pin!(answer);
            let mut ticks = interval(CANCEL_POLL_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut told = false;
            loop {
                tokio::select! {
                    told = next(&mut stream) => match told {
                        Some(told) => {
                            if let Ok(event) = serde_json::from_str(&told.data) {
                                observe(&event);
                            }
                        }
                        None => stream = None,
                    },
                    answer = &mut answer => return answer,
                    _ = ticks.tick(), if !told => {
                        if cancelled.load(Ordering::Relaxed) {
                            let path = format!("/api/v1/restores/{id}");
                            let cancel = Call::change(Method::DELETE, path, "cancel a restore");
                            // It may not have begun yet: then it is tried again.
                            told = canceller.call::<()>(&cancel).await.is_ok();
                        }
                    }
                }
            }
        })
    }

    /// Listens to all events until `hear` breaks; it is also called, without one, several times a
    /// second. Returns when the daemon ends the stream, too.
    pub(crate) fn listen(
        &self,
        hear: &mut dyn FnMut(Option<ServerEvent>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let (socket, dir) = self.connection.borrow().place();
        self.runtime.block_on(async {
            let mut stream = Some(Stream::open(&socket, &dir, "/api/v1/events").await?);
            let mut ticks = interval(CANCEL_POLL_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let told = tokio::select! {
                    told = next(&mut stream) => match told {
                        Some(told) => Some(told),
                        None => return Ok(()),
                    },
                    _ = ticks.tick() => None,
                };
                if hear(told).is_break() {
                    return Ok(());
                }
            }
        })
    }
}

/// The next event; never, where there is no stream.
async fn next(stream: &mut Option<Stream>) -> Option<ServerEvent> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}
