//! Claims: an entry is handed out once, its guest awake, for a time.

use std::{
    sync::atomic::AtomicBool,
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use utoipa::ToSchema;

use super::{Error, Pools};
use crate::{
    disk::Choice,
    engine::{GuestId, Process, random},
    restore::{
        cost,
        mass::{self, Names, Report, Request},
    },
    state::{EntryState, Lease, Membership, PoolRow},
};

/// Hot guests that may fail to wake up before a claim gives up: a host that is overloaded must not
/// cost the whole pool.
const TRIES: u32 = 3;
/// How often a claim that waits for room looks again.
const GLANCE: Duration = Duration::from_millis(20);

/// What a claimer wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// How long the claim lasts when it is not renewed; the pool's own lease, when not given.
    pub lease: Option<Duration>,
    /// How long a guest may take to answer.
    pub timeout: Duration,
    /// How long to wait for room when there is none.
    pub wait: Duration,
}

/// Which tier an entry came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ToSchema)]
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

/// An entry that is the claimer's. Its guest has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Name of the guest.
    pub guest: String,
    /// Its id.
    pub id: GuestId,
    /// Its process.
    pub process: Process,
    /// What to show to renew or release the claim.
    pub token: String,
    /// How long it lasts from now.
    pub lease: Duration,
    /// Where it came from.
    pub tier: Tier,
    /// From the claim to the guest's answer.
    pub latency: Duration,
}

impl Pools<'_> {
    /// Claims an entry of a pool: the oldest hot one, which is continued, or one that is restored
    /// now. When this returns, the guest itself has answered.
    ///
    /// # Errors
    /// When there is no such pool, or there is no room for one more guest and none is made within
    /// the time to wait.
    pub fn claim(&mut self, name: &str, wanted: &Wanted) -> Result<Claimed, Error> {
        let begin = Instant::now();
        let pool = self.row(name)?;
        let lasts = wanted
            .lease
            .unwrap_or_else(|| Duration::from_secs(pool.lease_s));
        loop {
            if let Some(claimed) = self.claim_hot(&pool, lasts, wanted.timeout, begin)? {
                return Ok(claimed);
            }
            match self.claim_cold(&pool, lasts, begin) {
                Err(e) if e.may_pass() => {
                    if begin.elapsed() >= wanted.wait {
                        return Err(e);
                    }
                    // Leases that are over make room, and nobody else may be there to see it.
                    while let Some(guest) = self.state.expire_claim(name)? {
                        self.destroy(&[guest])?;
                    }
                    thread::sleep(GLANCE);
                }
                result => return result,
            }
        }
    }

    fn claim_hot(
        &mut self,
        pool: &PoolRow,
        lasts: Duration,
        timeout: Duration,
        begin: Instant,
    ) -> Result<Option<Claimed>, Error> {
        let mut tries = 0;
        loop {
            let lease = lease(lasts)?;
            let Some(id) = self.state.claim_hot(&pool.name, &lease)? else {
                return Ok(None);
            };
            let error = match self.guests().wake(&id, timeout) {
                Ok((guest, process)) => {
                    return Ok(Some(Claimed {
                        guest: guest.name,
                        id,
                        process,
                        token: lease.token,
                        lease: lasts,
                        tier: Tier::Hot,
                        latency: begin.elapsed(),
                    }));
                }
                Err(e) => e,
            };
            self.state.give_up(&id, EntryState::Claimed)?;
            self.destroy(&[id])?;
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
        begin: Instant,
    ) -> Result<Claimed, Error> {
        let checkpoint = self.checkpoint(pool)?;
        let facts = (self.facts)(checkpoint.path().dir())?;
        let lease = lease(lasts)?;
        let request = Request {
            guests: 1,
            concurrency: 1,
            names: Names::Numbered(pool.name.clone()),
            allowance: pool.allowance,
            overhead: cost::measured(self.state, &checkpoint)?.overhead,
            overcommit: false,
            park_after: None,
            membership: Some(Membership {
                pool: pool.name.clone(),
                claim: Some(lease.clone()),
            }),
            disk: Choice::Sealed,
        };
        let report = mass::restore_by(
            self.standing.named(&pool.name),
            self.state,
            self.engine,
            &facts,
            &checkpoint,
            &request,
            &AtomicBool::new(false),
            &mut |_| {},
        )?;
        Self::only(pool, report, lease.token, lasts, begin)
    }

    /// The one guest of a restore, as a claim.
    pub(super) fn only(
        pool: &PoolRow,
        report: Report,
        token: String,
        lease: Duration,
        begin: Instant,
    ) -> Result<Claimed, Error> {
        let Some(guest) = report.guests.into_iter().next() else {
            let failure = report.failures.into_iter().next();
            return Err(Error::NotRestored {
                pool: pool.name.clone(),
                error: failure.map_or_else(|| "it was not begun".to_owned(), |f| f.error),
            });
        };
        Ok(Claimed {
            guest: guest.name,
            id: guest.id,
            process: guest.process,
            token,
            lease,
            tier: Tier::Cold,
            latency: begin.elapsed(),
        })
    }

    /// Lets a claim last so long from now.
    ///
    /// # Errors
    /// [`Error::NoSuchClaim`] when it is over, [`Error::Rests`] when it has no lease.
    pub fn renew(&mut self, token: &str, lasts: Duration) -> Result<(), Error> {
        let lease = Lease {
            token: token.to_owned(),
            lasts,
        };
        if self.state.cold(token)?.is_some() {
            Err(Error::Rests)
        } else if self.state.renew_claim(&lease)? {
            Ok(())
        } else {
            Err(Error::NoSuchClaim)
        }
    }

    /// Gives an entry back: its guest is gone when this returns, or its bundle when it rested.
    ///
    /// # Errors
    /// [`Error::NoSuchClaim`] when it is over, or when the guest cannot be ended.
    pub fn release(&mut self, token: &str) -> Result<(), Error> {
        self.settle_claim(token)?;
        let rested = self.state.forget_cold(token, true)?;
        match self.state.release_claim(token)? {
            Some(guest) => self.destroy(&[guest])?,
            None if rested => {}
            None => return Err(Error::NoSuchClaim),
        }
        if rested {
            self.settle_cold()?;
        }
        Ok(())
    }
}

/// A lease with a token that nobody can guess.
fn lease(lasts: Duration) -> Result<Lease, Error> {
    let bytes: [u8; 16] = random().map_err(Error::Randomness)?;
    Ok(Lease {
        token: format!("{:032x}", u128::from_be_bytes(bytes)),
        lasts,
    })
}
