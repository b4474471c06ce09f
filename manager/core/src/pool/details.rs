//! Views of pools: one pool with its entries and suspended claims, and one claim as its claimer
//! sees it.

use std::time::Duration;

use super::{Error, Pool, Pools};
use crate::{
    checkpoint::{BundlePath, Checkpoint},
    state::{EntryState, SuspendedClaimRow, SuspendedClaimState, TokenDigest},
    units::Bytes,
};

/// A pool and its entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    /// The pool.
    pub pool: Pool,
    /// Claimed entries.
    pub claims: Vec<ClaimedEntry>,
    /// Names of the hot guests, the oldest first.
    pub hot_guests: Vec<String>,
    /// Suspended claims, those being suspended or resumed included; the oldest first.
    pub suspended: Vec<SuspendedClaim>,
}

/// An entry that is claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedEntry {
    /// Name of its guest.
    pub guest: String,
    /// Remaining lease, in seconds.
    pub lease_left_s: Option<u64>,
}

/// A claim whose guest is suspended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuspendedClaim {
    /// Name that its guest had.
    pub guest: String,
    /// How far it is.
    pub state: SuspendedClaimState,
    /// Time of its suspension, RFC 3339.
    pub since: String,
    /// Guest memory that was written for it; null while it is being written.
    pub written_bytes: Option<Bytes>,
}

/// How far a claim has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimState {
    /// Its guest is there.
    Claimed,
    /// Its guest is being suspended.
    Suspending,
    /// Its guest is suspended.
    Suspended,
    /// Its guest is being restored.
    Resuming,
}

/// A claim, as its claimer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimView {
    /// The pool.
    pub pool: String,
    /// How far it has come.
    pub state: ClaimState,
    /// Name of its guest; for a suspended claim, the name that the guest had.
    pub guest: String,
    /// Id of its guest; null for a suspended claim.
    pub id: Option<String>,
    /// Remaining lease, in seconds; null for a suspended claim, which lasts until it is released.
    pub lease_left_s: Option<u64>,
    /// Time of its suspension, RFC 3339.
    pub since: Option<String>,
    /// Guest memory that was written for it, if it is suspended.
    pub written_bytes: Option<Bytes>,
}

impl Pools<'_> {
    /// The pool of this name, its entries, and its suspended claims.
    ///
    /// # Errors
    /// [`Error::NoSuchPool`], or when the state cannot be read.
    pub fn details(&self, name: &str) -> Result<Details, Error> {
        let pool = self.show(name)?;
        let of_pool = |suspended: &SuspendedClaimRow| suspended.pool == name;
        let suspended: Vec<_> = self
            .state
            .suspended_claims()?
            .into_iter()
            .filter(of_pool)
            .collect();
        let (mut claims, mut hot_guests) = (Vec::new(), Vec::new());
        for entry in self.state.entries(name)? {
            match entry.state {
                EntryState::Claimed => claims.push(ClaimedEntry {
                    guest: entry.name,
                    // One that is about to be suspended has none any more.
                    lease_left_s: match suspended
                        .iter()
                        .find(|suspended| suspended.guest == entry.guest)
                    {
                        Some(_) => None,
                        None => entry.lease.map(|lease| lease.as_secs()),
                    },
                }),
                EntryState::Hot => hot_guests.push(entry.name),
                EntryState::Filling | EntryState::Releasing => {}
            }
        }
        Ok(Details {
            pool,
            claims,
            hot_guests,
            suspended: suspended
                .iter()
                .map(|suspended| self.resting(suspended))
                .collect(),
        })
    }

    /// The claim with this token.
    ///
    /// # Errors
    /// [`Error::NoSuchClaim`] when it is over, or when the state cannot be read.
    pub fn find_claim(&self, token: &str) -> Result<ClaimView, Error> {
        let token = &TokenDigest::of(token);
        let suspended = self.state.suspended_claim(token)?;
        // While it is suspended or resumed it has a guest, and its lease does not count.
        let entry = match self.state.claimed_by(token)? {
            Some(id) => match self.state.entry_pool(&id)? {
                Some(pool) => {
                    let mut entries = self.state.entries(&pool)?.into_iter();
                    let entry = entries.find(|entry| entry.guest == id);
                    entry.map(|entry| (pool, entry))
                }
                None => None,
            },
            None => None,
        };
        match (suspended, entry) {
            (Some(suspended), entry) => {
                let resting = self.resting(&suspended);
                Ok(ClaimView {
                    pool: suspended.pool,
                    state: match suspended.state {
                        SuspendedClaimState::Suspending => ClaimState::Suspending,
                        SuspendedClaimState::Suspended => ClaimState::Suspended,
                        SuspendedClaimState::Resuming => ClaimState::Resuming,
                    },
                    guest: resting.guest,
                    id: entry.map(|(_, entry)| entry.guest.to_string()),
                    lease_left_s: None,
                    since: Some(resting.since),
                    written_bytes: resting.written_bytes,
                })
            }
            (None, Some((pool, entry))) => Ok(ClaimView {
                pool,
                state: ClaimState::Claimed,
                guest: entry.name,
                id: Some(entry.guest.to_string()),
                lease_left_s: entry.lease.as_ref().map(Duration::as_secs),
                since: None,
                written_bytes: None,
            }),
            (None, None) => Err(Error::NoSuchClaim),
        }
    }

    fn resting(&self, suspended: &SuspendedClaimRow) -> SuspendedClaim {
        let bundle: Option<BundlePath> = suspended.bundle.parse().ok();
        // What cannot be read must not keep the rest from being shown.
        let sealed = bundle.and_then(|path| Checkpoint::open(&path).ok());
        let guest = match &sealed {
            Some(checkpoint) => Some(checkpoint.manifest().guest.clone()),
            None => {
                let row = self.state.guest(&suspended.guest.to_string());
                row.ok().flatten().map(|row| row.name)
            }
        };
        SuspendedClaim {
            guest: guest.unwrap_or_else(|| suspended.guest.to_string()),
            state: suspended.state,
            since: suspended.created_at.clone(),
            written_bytes: sealed.map(|checkpoint| checkpoint.manifest().files.ckp.size),
        }
    }
}
