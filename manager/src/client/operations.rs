//! Operations by the daemon: each is one request.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use hyper::Method;

use super::{Call, Client, Segment};
#[cfg(feature = "top")]
use crate::ops::DaemonActivity;
use crate::{
    api::evict::{EvictReport, EvictRequest},
    client,
    ops::{Error, Operations, PoolStep, PutAnswer, PutPool, RestoreObserver},
    types::{
        AskRequest, ChangePool, Checkpoint, Claim, ClaimRequest, CreatePool, DestroyAnswer,
        DestroyTargets, Guest, GuestAnswer, Host, LeaseRenewal, Leftovers, Pool, PoolDetails,
        RemovedCheckpoint, RenewRequest, ResumeClaimRequest, ResumeReport, SuspendAnswer,
        SuspendRequest, SuspendTarget, SweepReport, SweepRequest,
    },
};
use brood_core::{
    checkpoint::{self, BundlePath},
    disk::Place,
    host::plan::Plan,
    pool::{ClaimSpec, NewPool},
    restore::{RestoreReport, RestoreSpec},
    units::Bytes,
};

/// Interval at which a claim that an ending daemon has refused asks the one that takes over.
const TAKEOVER_POLL_INTERVAL: Duration = Duration::from_millis(20);

impl Operations for Client {
    fn guests(&mut self, prefix: &str, usage: bool) -> Result<Vec<Guest>, Error> {
        let mut path = format!("/api/v1/guests?usage={usage}");
        if !prefix.is_empty() {
            path += &format!("&prefix={}", Segment(prefix));
        }
        Ok(self.call(&Call::get(path, "list guests"))?)
    }

    fn guest(&mut self, guest: &str) -> Result<Guest, Error> {
        let path = format!("/api/v1/guests/{}", Segment(guest));
        Ok(self.call(&Call::get(path, "show a guest"))?)
    }

    fn ask(&mut self, guest: &str, asked: &AskRequest) -> Result<GuestAnswer, Error> {
        let path = format!("/api/v1/guests/{}/ask", Segment(guest));
        let call = Call::change(Method::POST, path, "ask a guest");
        Ok(self.call(&call.with(asked))?)
    }

    fn pause(&mut self, guest: &str) -> Result<Guest, Error> {
        let path = format!("/api/v1/guests/{}/pause", Segment(guest));
        Ok(self.call(&Call::change(Method::POST, path, "pause a guest"))?)
    }

    fn resume(&mut self, guest: &str, timeout: Duration) -> Result<ResumeReport, Error> {
        let (guest, timeout_s) = (Segment(guest), timeout.as_secs_f64());
        let path = format!("/api/v1/guests/{guest}/resume?timeout_s={timeout_s}");
        Ok(self.call(&Call::change(Method::POST, path, "resume a guest"))?)
    }

    fn suspend(
        &mut self,
        guest: &str,
        target: &SuspendTarget<'_>,
        _: checkpoint::Watch<'_>,
    ) -> Result<Checkpoint, Error> {
        let path = format!("/api/v1/guests/{}/suspend", Segment(guest));
        let call = Call::change(Method::POST, path, "suspend a guest");
        let suspending = SuspendRequest {
            checkpoint: absolute(target.checkpoint)?,
            delta: target.delta,
        };
        Ok(self.call(&call.with(&suspending))?)
    }

    fn destroy(&mut self, targets: DestroyTargets<'_>) -> Result<DestroyAnswer, Error> {
        let which = match targets {
            DestroyTargets::All { force } => format!("all=true&force={force}"),
            DestroyTargets::Named {
                guests,
                ignore_missing,
            } => {
                let guests = guests.join(",");
                let guests = Segment(&guests);
                format!("guests={guests}&ignore_missing={ignore_missing}")
            }
        };
        let path = format!("/api/v1/guests?{which}");
        Ok(self.call(&Call::change(Method::DELETE, path, "destroy guests"))?)
    }

    #[cfg(feature = "top")]
    fn activity(&mut self) -> Result<Option<DaemonActivity>, Error> {
        Ok(Some(DaemonActivity {
            pid: self.daemon().pid,
            restores: self.call(&Call::get("/api/v1/restores", "list restores"))?,
            metrics: self.text(&Call::get("/metrics", "tell what it has counted"))?,
        }))
    }

    /// The report of a restore that came to nothing is an answer too.
    fn restore(
        &mut self,
        path: &BundlePath,
        spec: &RestoreSpec,
        observer: &dyn RestoreObserver,
    ) -> Result<RestoreReport, Error> {
        let seen = RestoreSpec {
            checkpoint: absolute(path)?,
            ..spec.clone()
        };
        let call = Call::change(Method::POST, "/api/v1/guests", "restore guests").with(&seen);
        let report = match self.watched(call, observer) {
            Err(client::Error::Problem(mut problem)) => {
                let report = problem.report.take();
                match report.map(serde_json::from_value).transpose() {
                    Ok(Some(report)) => report,
                    _ => return Err(client::Error::Problem(problem).into()),
                }
            }
            report => report?,
        };
        Ok(RestoreReport {
            // As it was named here.
            checkpoint: spec.checkpoint.clone(),
            ..report
        })
    }

    fn host(&mut self, guests: u64, checkpoint_dir: Option<&Path>) -> Result<Host, Error> {
        let mut path = format!("/api/v1/host?guests={guests}");
        let dir = checkpoint_dir.map(std::path::absolute);
        if let Some(dir) = dir.and_then(Result::ok).as_deref().and_then(Path::to_str) {
            path += &format!("&checkpoint_dir={}", Segment(dir));
        }
        Ok(self.call(&Call::get(path, "look at the host"))?)
    }

    fn plan(&mut self, checkpoint: &BundlePath, host_memory: Option<Bytes>) -> Result<Plan, Error> {
        let memory = host_memory.map(|memory| format!("?host_memory_bytes={}", memory.0));
        let path = format!("{}/plan{}", bundle(checkpoint)?, memory.unwrap_or_default());
        Ok(self.call(&Call::get(path, "plan for a checkpoint"))?)
    }

    fn trust(&mut self, checkpoint: &BundlePath) -> Result<Checkpoint, Error> {
        let path = format!("{}/trust", bundle(checkpoint)?);
        Ok(self.call(&Call::change(Method::POST, path, "trust a checkpoint"))?)
    }

    fn remove_checkpoint(
        &mut self,
        checkpoint: &BundlePath,
        force: bool,
    ) -> Result<RemovedCheckpoint, Error> {
        let path = format!("{}?force={force}", bundle(checkpoint)?);
        let call = Call::change(Method::DELETE, path, "remove a checkpoint");
        Ok(self.call(&call)?)
    }

    fn leftovers(&mut self, places: &[Place]) -> Result<Leftovers, Error> {
        let call = |query| Call::get(format!("/api/v1/disks/leftovers{query}"), "list leftovers");
        if places.is_empty() {
            return Ok(self.call(&call(String::new()))?);
        }
        let mut all = Leftovers::default();
        for place in places {
            let query = format!("?place={}", Segment(&place.to_string()));
            let found: Leftovers = self.call(&call(query))?;
            all.leftovers.extend(found.leftovers);
        }
        Ok(all)
    }

    fn sweep(&mut self, places: &[Place]) -> Result<SweepReport, Error> {
        let call = Call::change(Method::POST, "/api/v1/disks/sweep", "sweep leftovers");
        let places = places.iter().map(ToString::to_string).collect();
        Ok(self.call(&call.with(&SweepRequest { places }))?)
    }

    fn pools(&mut self) -> Result<Vec<Pool>, Error> {
        Ok(self.call(&Call::get("/api/v1/pools", "list pools"))?)
    }

    fn pool(&mut self, pool: &str) -> Result<PoolDetails, Error> {
        let path = format!("/api/v1/pools/{}", Segment(pool));
        Ok(self.call(&Call::get(path, "show a pool"))?)
    }

    fn put_pool(
        &mut self,
        put: &PutPool,
        observer: &dyn RestoreObserver,
    ) -> Result<PutAnswer, Error> {
        let pool = |name| format!("/api/v1/pools/{}", Segment(name));
        let body = |new: &NewPool| {
            let checkpoint = absolute(&new.checkpoint)?;
            Ok::<_, Error>(CreatePool::of(new, checkpoint, put.fill))
        };
        let call = match &put.first {
            PoolStep::Create(new) => {
                Call::change(Method::POST, "/api/v1/pools", "make a pool").with(&body(new)?)
            }
            PoolStep::Apply(new) => {
                Call::change(Method::PUT, pool(&new.name), "apply a pool").with(&body(new)?)
            }
            PoolStep::Change(name, change) => {
                let changing = ChangePool::of(change, put.fill);
                Call::change(Method::PATCH, pool(name), "change a pool").with(&changing)
            }
            PoolStep::Fill(name) => {
                let concurrency = put.fill.and_then(|fill| fill.concurrency);
                let how = concurrency.map_or_else(String::new, |k| format!("?concurrency={k}"));
                let path = format!("{}/fill{how}", pool(name));
                Call::change(Method::POST, path, "fill a pool")
            }
        };
        Ok(PutAnswer {
            pool: self.watched(call, observer)?,
            applied: None,
        })
    }

    fn evict(&mut self, pool: &str, entries: u32) -> Result<u64, Error> {
        let path = format!("/api/v1/pools/{}/evict", Segment(pool));
        let call = Call::change(Method::POST, path, "evict guests of a pool");
        let evicted: EvictReport = self.call(&call.with(&EvictRequest { entries }))?;
        Ok(evicted.evicted)
    }

    fn remove_pool(&mut self, pool: &str, force: bool) -> Result<(), Error> {
        let path = format!("/api/v1/pools/{}?force={force}", Segment(pool));
        Ok(self.call(&Call::change(Method::DELETE, path, "remove a pool"))?)
    }

    fn claim(&mut self, pool: &str, wanted: &ClaimSpec) -> Result<Claim, Error> {
        let path = format!("/api/v1/pools/{}/claims", Segment(pool));
        let call = Call::change(Method::POST, path, "claim a guest");
        let end = Instant::now() + wanted.wait;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let claiming = ClaimRequest {
                lease_s: wanted.lease.map(whole_seconds),
                wait_s: left.as_secs_f64(),
                timeout_s: wanted.timeout.map(|timeout| timeout.as_secs_f64()),
            };
            match self.call(&call.clone().with(&claiming)) {
                // A daemon that ends refuses to let claims wait; the one that takes over does not.
                Err(client::Error::Problem(problem))
                    if problem.is_for_want_of_room() && Instant::now() < end =>
                {
                    thread::sleep(TAKEOVER_POLL_INTERVAL);
                }
                claim => return Ok(claim?),
            }
        }
    }

    fn renew(&mut self, token: &str, lease_s: u32) -> Result<(), Error> {
        let path = format!("/api/v1/claims/{}", Segment(token));
        let call = Call::change(Method::PUT, path, "renew a claim");
        let _: LeaseRenewal = self.call(&call.with(&RenewRequest { lease_s }))?;
        Ok(())
    }

    fn release(&mut self, token: &str) -> Result<(), Error> {
        let path = format!("/api/v1/claims/{}", Segment(token));
        Ok(self.call(&Call::change(Method::DELETE, path, "release a claim"))?)
    }

    fn suspend_claim(
        &mut self,
        token: &str,
        _: checkpoint::Watch<'_>,
    ) -> Result<SuspendAnswer, Error> {
        let path = format!("/api/v1/claims/{}/suspend", Segment(token));
        Ok(self.call(&Call::change(Method::POST, path, "suspend a claim"))?)
    }

    fn resume_claim(&mut self, token: &str, resuming: &ResumeClaimRequest) -> Result<Claim, Error> {
        let path = format!("/api/v1/claims/{}/resume", Segment(token));
        let call = Call::change(Method::POST, path, "restore the guest of a claim");
        Ok(self.call(&call.with(resuming))?)
    }
}

fn whole_seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

/// Path of a bundle in the API.
fn bundle(bundle: &BundlePath) -> Result<String, Error> {
    let path = absolute(bundle)?;
    Ok(format!("/api/v1/checkpoints/{}", Segment(&path)))
}

/// A bundle's absolute path for the daemon, whose working folder may be another one.
fn absolute(bundle: &BundlePath) -> Result<String, Error> {
    let path = bundle.absolute()?;
    let Some(dir) = path.dir().to_str() else {
        let why = format!("{path} is not UTF-8, as the daemon's requests are");
        return Err(Error::NotBegun(why));
    };
    Ok(format!("{}/{}", dir.trim_end_matches('/'), path.name()))
}
