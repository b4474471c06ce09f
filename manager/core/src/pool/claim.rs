//! Claims: `Pools::claim` hands out each entry once, with its guest running, for the time of a
//! lease.

use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{Error, NextStep, Pools, RoomWait};
use crate::{
    engine::{self, Forward, Process},
    guest_id::GuestId,
    restore::{RestoreContext, RestoreReport, RestoreSpec, restore},
    state::{self, EntryState, Lease, PoolRow, QueuePlace, TokenDigest, new_token},
};

/// Hot guests that may fail to wake up before a claim gives up. Without a limit, one claim on an
/// overloaded host would use up the whole pool.
const TRIES: u32 = 3;
/// Default time that a hot guest has to answer.
pub const WAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a claim that waits for room looks again.
const ROOM_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Request for a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimSpec {
    /// How long the claim lasts when it is not renewed; the pool's own lease, when not given.
    pub lease: Option<Duration>,
    /// How long a guest may take to answer; when not given, [`WAKE_TIMEOUT`] for one that is hot,
    /// and [`crate::restore::TIMEOUT`] for one that is restored.
    pub timeout: Option<Duration>,
    /// How long to wait for room when there is none.
    pub wait: Duration,
    /// The claimer's place in the queue, if its caller waits for it.
    pub place: Option<QueuePlace>,
}

/// Which tier an entry came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// It was there, and was continued.
    Hot,
    /// It was restored for this claim.
    Cold,
}

impl Tier {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::Cold => "cold",
        }
    }
}

/// A claim. Its guest has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimGrant {
    /// Name of the guest.
    pub guest: String,
    /// Its id.
    pub id: GuestId,
    /// Id of its process.
    pub pid: i32,
    /// Token to renew or release the claim with.
    pub token: String,
    /// How long it lasts from now.
    pub lease: Duration,
    /// Where it came from.
    pub tier: Tier,
    /// What leads into it.
    pub forwards: Vec<Forward>,
    /// From the claim to the guest's answer.
    pub latency: Duration,
}

impl Pools<'_> {
    /// Claims an entry of a pool: continues the oldest hot guest, or restores a new one when none
    /// is hot. When this returns, the guest itself has answered. Claimers who wait for room are
    /// served in the order in which they came, before all later ones.
    ///
    /// # Errors
    /// When the pool does not exist, or the host has no room for one more guest and gets none
    /// within the time to wait.
    pub fn claim(&mut self, name: &str, wanted: &ClaimSpec) -> Result<ClaimGrant, Error> {
        let begin = Instant::now();
        let mut wait = RoomWait::new(wanted.wait, ROOM_POLL_INTERVAL);
        let claimed = loop {
            let place = wanted.place.or(wait.place());
            let refused = match self.try_claim(name, &ClaimSpec { place, ..*wanted }, begin) {
                Err(refused) => refused,
                claimed => break claimed,
            };
            match wait.after(refused.waiters()) {
                None => break Err(refused),
                Some(NextStep::TakePlace) => wait.stand_at(self.wait_in_line(name, wait.left())?),
                Some(NextStep::Pause(pause)) => {
                    if self.cancelled.load(Ordering::Relaxed) {
                        break Err(state::Error::Cancelled.into());
                    }
                    // Leases that are over make room, and no other process may be there to end
                    // them.
                    let expired = self.expire(name)?;
                    self.end_expired(&expired)?;
                    thread::sleep(pause);
                }
            }
        };
        if let Some(place) = wait.place() {
            self.state.leave_line(place)?;
        }
        claimed
    }

    /// Takes the last place in a pool's queue for this process. A process that ends loses its
    /// place.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn wait_in_line(&self, name: &str, wait: Duration) -> Result<QueuePlace, Error> {
        let pid = std::process::id().cast_signed();
        let this = Process::with_pid(pid).map_err(|source| engine::Error::Io {
            action: "look at this process",
            source,
        })?;
        let this = this.ok_or(engine::Error::Gone)?;
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        Ok(self.state.wait_in_line(name, this, wait_ms)?)
    }

    fn try_claim(
        &mut self,
        name: &str,
        wanted: &ClaimSpec,
        begin: Instant,
    ) -> Result<ClaimGrant, Error> {
        let pool = self.row(name)?;
        let lasts = wanted
            .lease
            .unwrap_or_else(|| Duration::from_secs(pool.policy.lease_s));
        if let Some(claimed) = self.claim_hot(&pool, lasts, wanted, begin)? {
            return Ok(claimed);
        }
        let waiters = self.state.waiters_before(name, wanted.place)?;
        if waiters > 0 {
            return Err(Error::Line {
                pool: pool.name,
                waiters,
            });
        }
        self.claim_cold(&pool, lasts, wanted, begin)
    }

    fn claim_hot(
        &mut self,
        pool: &PoolRow,
        lasts: Duration,
        wanted: &ClaimSpec,
        begin: Instant,
    ) -> Result<Option<ClaimGrant>, Error> {
        let timeout = wanted.timeout.unwrap_or(WAKE_TIMEOUT);
        let mut tries = 0;
        loop {
            let (token, lease) = lease(lasts)?;
            let Some(id) = self.state.claim_hot(&pool.name, &lease, wanted.place)? else {
                return Ok(None);
            };
            let error = match self.guests().wake(&id, timeout) {
                Ok((guest, process)) => {
                    return Ok(Some(ClaimGrant {
                        guest: guest.name,
                        id,
                        pid: process.pid,
                        token,
                        lease: lasts,
                        tier: Tier::Hot,
                        forwards: guest.forwards,
                        latency: begin.elapsed(),
                    }));
                }
                Err(e) => e,
            };
            self.state.give_up(&id, EntryState::Claimed)?;
            self.destroy(&[id])?;
            // A cancelled restore says nothing about the next guest.
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(state::Error::Cancelled.into());
            }
            tries += 1;
            if tries == TRIES {
                return Err(Error::Broken {
                    pool: pool.name.clone(),
                    tries,
                    last: error.to_string(),
                });
            }
        }
    }

    fn claim_cold(
        &mut self,
        pool: &PoolRow,
        lasts: Duration,
        wanted: &ClaimSpec,
        begin: Instant,
    ) -> Result<ClaimGrant, Error> {
        let checkpoint = self.checkpoint(pool)?;
        let facts = (self.facts)(checkpoint.path().dir())?;
        let (token, lease) = lease(lasts)?;
        let spec = RestoreSpec {
            timeout: wanted.timeout,
            ..self.restore_spec(pool, &checkpoint, Some(lease))?
        };
        let context = RestoreContext {
            state: self.state,
            engine: self.engine,
            facts: &facts,
            slot: Some(self.sessions.named(&pool.name)),
            cancelled: self.cancelled,
        };
        let report = restore(context, &checkpoint, &spec, &mut |_| {})?;
        self.only(pool, report, token, lasts, begin)
    }

    /// The one guest of a restore, as a claim.
    pub(super) fn only(
        &self,
        pool: &PoolRow,
        report: RestoreReport,
        token: String,
        lease: Duration,
        begin: Instant,
    ) -> Result<ClaimGrant, Error> {
        let Some(guest) = report.guests.into_iter().next() else {
            let failure = report.failures.into_iter().next();
            return Err(Error::NotRestored {
                pool: pool.name.clone(),
                error: failure.map_or_else(|| "it was not begun".to_owned(), |f| f.error),
            });
        };
        // They are what the record of the guest says.
        let row = match pool.publish.is_empty() {
            true => None,
            false => self.state.guest(&guest.id.to_string())?,
        };
        Ok(ClaimGrant {
            forwards: row.map(|row| row.forwards).unwrap_or_default(),
            guest: guest.name,
            id: guest.id,
            pid: guest.pid,
            token,
            lease,
            tier: Tier::Cold,
            latency: begin.elapsed(),
        })
    }

    /// Renews a claim: its lease ends `lasts` from now.
    ///
    /// # Errors
    /// [`Error::NoSuchClaim`] when the claim is over, [`Error::Suspended`] when its guest is suspended
    /// and it has no lease.
    pub fn renew(&mut self, token: &str, lasts: Duration) -> Result<(), Error> {
        let token = TokenDigest::of(token);
        if self.state.suspended_claim(&token)?.is_some() {
            Err(Error::Suspended)
        } else if self.state.renew_claim(&Lease { token, lasts })? {
            Ok(())
        } else {
            Err(Error::NoSuchClaim)
        }
    }

    /// Gives an entry back. When this returns, its guest is gone, or its bundle if the claim was
    /// suspended.
    ///
    /// # Errors
    /// [`Error::NoSuchClaim`] when it is over, or when the guest cannot be ended.
    pub fn release(&mut self, token: &str) -> Result<(), Error> {
        let token = &TokenDigest::of(token);
        self.reconcile_claim(token)?;
        let bundle = self.state.suspended_claim(token)?.map(|cold| cold.bundle);
        let rested = self.state.forget_suspended_claim(token, true)?;
        match self.state.release_claim(token)? {
            Some(guest) => {
                let left = self.destroy(&[guest])?;
                if let Some(left) = left.into_iter().next() {
                    return Err(left.error.into());
                }
            }
            None if rested => {}
            None => return Err(Error::NoSuchClaim),
        }
        if rested {
            if let Some(bundle) = bundle {
                self.sweep_released(&bundle.parse()?)?;
            }
            self.reconcile_suspended_claims();
        }
        Ok(())
    }
}

/// A new claimer's token and lease.
fn lease(lasts: Duration) -> Result<(String, Lease), Error> {
    let token = new_token().map_err(Error::Randomness)?;
    let lease = Lease {
        token: TokenDigest::of(&token),
        lasts,
    };
    Ok((token, lease))
}
