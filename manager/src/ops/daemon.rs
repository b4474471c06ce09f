//! Operations by the daemon: each is one request.

use std::time::Duration;

use hyper::Method;

#[cfg(feature = "top")]
use super::DaemonActivity;
use super::{Error, Operations};
use crate::{
    api::{
        claims::{Claim, ClaimRequest, LeaseRenewal, RenewRequest},
        evict::{EvictReport, EvictRequest},
        guests::{AskRequest, DestroyAnswer, DestroyTargets, GuestAnswer, ResumeReport},
        host::Host,
        pools::{ChangePool, CreatePool, FillRequest, FilledPool},
        suspended_claims::{ResumeClaimRequest, SuspendAnswer},
        types::{Guest, Pool, PoolDetails},
    },
    client::{self, Call, Client, Segment, Watch},
};
use brood_core::restore::{RestoreReport, RestoreSpec};

impl Operations for Client {
    fn guests(&mut self, usage: bool) -> Result<Vec<Guest>, Error> {
        let path = format!("/api/v1/guests?usage={usage}");
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

    fn pause(&mut self, guest: &str) -> Result<(), Error> {
        let path = format!("/api/v1/guests/{}/pause", Segment(guest));
        let _: Guest = self.call(&Call::change(Method::POST, path, "pause a guest"))?;
        Ok(())
    }

    fn resume(&mut self, guest: &str, timeout: Duration) -> Result<ResumeReport, Error> {
        let (guest, timeout_s) = (Segment(guest), timeout.as_secs_f64());
        let path = format!("/api/v1/guests/{guest}/resume?timeout_s={timeout_s}");
        Ok(self.call(&Call::change(Method::POST, path, "resume a guest"))?)
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

    fn pools(&mut self) -> Result<Vec<Pool>, Error> {
        Ok(self.call(&Call::get("/api/v1/pools", "list pools"))?)
    }

    fn pool(&mut self, pool: &str) -> Result<PoolDetails, Error> {
        let path = format!("/api/v1/pools/{}", Segment(pool));
        Ok(self.call(&Call::get(path, "show a pool"))?)
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

    fn resume_claim(&mut self, token: &str, resuming: &ResumeClaimRequest) -> Result<Claim, Error> {
        let path = format!("/api/v1/claims/{}/resume", Segment(token));
        let call = Call::change(Method::POST, path, "restore the guest of a claim");
        Ok(self.call(&call.with(resuming))?)
    }
}

impl Client {
    /// Restores guests. The report of a restore that came to nothing is an answer too.
    pub(crate) fn restore(
        &self,
        spec: &RestoreSpec,
        watch: Watch<'_>,
    ) -> Result<RestoreReport, client::Error> {
        let call = Call::change(Method::POST, "/api/v1/guests", "restore guests").with(spec);
        match self.watched(call, watch) {
            Err(client::Error::Problem(mut problem)) => {
                let report = problem.report.take();
                match report.map(serde_json::from_value).transpose() {
                    Ok(Some(report)) => Ok(report),
                    _ => Err(client::Error::Problem(problem)),
                }
            }
            other => other,
        }
    }

    /// Makes a pool.
    pub(crate) fn create_pool(&self, making: &CreatePool) -> Result<Pool, client::Error> {
        self.call(&Call::change(Method::POST, "/api/v1/pools", "make a pool").with(making))
    }

    /// Makes a pool and fills it.
    pub(crate) fn create_and_fill_pool(
        &self,
        making: &CreatePool,
        watch: Watch<'_>,
    ) -> Result<FilledPool, client::Error> {
        let call = Call::change(Method::POST, "/api/v1/pools", "make and fill a pool");
        self.watched(call.with(making), watch)
    }

    /// Changes a pool and fills it.
    pub(crate) fn change_and_fill_pool(
        &self,
        pool: &str,
        changing: &ChangePool,
        watch: Watch<'_>,
    ) -> Result<FilledPool, client::Error> {
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
    ) -> Result<FilledPool, client::Error> {
        let mut path = format!("/api/v1/pools/{}/fill", Segment(pool));
        if let Some(k) = filling.concurrency {
            path += &format!("?concurrency={k}");
        }
        self.watched(Call::change(Method::POST, path, "fill a pool"), watch)
    }

    /// Claims a guest.
    pub(crate) fn claim(
        &self,
        pool: &str,
        claiming: &ClaimRequest,
    ) -> Result<Claim, client::Error> {
        let path = format!("/api/v1/pools/{}/claims", Segment(pool));
        self.call(&Call::change(Method::POST, path, "claim a guest").with(claiming))
    }

    /// Lets a claim rest.
    pub(crate) fn suspend_claim(&self, token: &str) -> Result<SuspendAnswer, client::Error> {
        let path = format!("/api/v1/claims/{}/suspend", Segment(token));
        self.call(&Call::change(Method::POST, path, "suspend a claim"))
    }

    /// What the daemon, with its limits, can do on this host.
    pub(crate) fn host(
        &self,
        guests: u64,
        checkpoint_dir: Option<&str>,
    ) -> Result<Host, client::Error> {
        let mut path = format!("/api/v1/host?guests={guests}");
        if let Some(dir) = checkpoint_dir {
            path += &format!("&checkpoint_dir={}", Segment(dir));
        }
        self.call(&Call::get(path, "look at the host"))
    }
}
