//! Errors of pools: what was tried, on which pool, and why it failed.

use std::io;

use crate::{checkpoint, engine, guests, host, restore, state};

/// Why something could not be done with a pool.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is known by this name.
    #[error("there is no pool {0:?}")]
    NoSuchPool(String),
    /// The name is taken.
    #[error("there is a pool {0:?} already")]
    Exists(String),
    /// A name that a pool cannot have.
    #[error("{name:?} cannot be a pool's name: {reason}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// Its policy contradicts itself.
    #[error("pool {pool} can never be as asked for: {reason}")]
    Contradiction {
        /// The pool.
        pool: String,
        /// Why not.
        reason: String,
    },
    /// Something was asked for that a pool keeps for good.
    #[error("cannot change the {what} of pool {pool}, which is kept as long as the pool is")]
    Fixed {
        /// The pool.
        pool: String,
        /// What.
        what: &'static str,
    },
    /// There is no such claim.
    #[error(
        "there is no claim with this token: it was released, its lease was over, or its guest was destroyed"
    )]
    NoSuchClaim,
    /// The claim's guest is suspended.
    #[error("the claim is suspended: it has no lease, and lasts until it is released")]
    Suspended,
    /// Entries of the pool are claimed.
    #[error("cannot remove pool {pool}: {claimed} of its entries are claimed")]
    InUse {
        /// The pool.
        pool: String,
        /// How many.
        claimed: u64,
    },
    /// Others wait for an entry and came first.
    #[error("cannot claim from pool {pool}: {waiters} others wait for an entry of it")]
    Line {
        /// The pool.
        pool: String,
        /// How many.
        waiters: u64,
    },
    /// The bundle has another content now.
    #[error("{checkpoint} is not the checkpoint that pool {pool} was made from any more")]
    OtherCheckpoint {
        /// The pool.
        pool: String,
        /// The bundle.
        checkpoint: String,
    },
    /// Guests of the pool do not wake up.
    #[error(
        "cannot claim from pool {pool}: {tries} of its guests did not wake up, the last one: {last}"
    )]
    Broken {
        /// The pool.
        pool: String,
        /// How many.
        tries: u32,
        /// The last guest's error.
        last: String,
    },
    /// A guest was not restored.
    #[error("cannot restore a guest for pool {pool}: {error}")]
    NotRestored {
        /// The pool.
        pool: String,
        /// Why.
        error: String,
    },
    /// Guests of the pool cannot be ended.
    #[error(
        "{guests} guests of pool {pool} cannot be ended, the first one: {first}; all others are gone"
    )]
    Left {
        /// The pool.
        pool: String,
        /// How many.
        guests: usize,
        /// The first guest's error.
        first: String,
    },
    /// There is no randomness for a token.
    #[error("cannot make a token: {0}")]
    Randomness(io::Error),
    /// A restore.
    #[error(transparent)]
    Restore(#[from] restore::Error),
    /// A bundle.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// Guests.
    #[error(transparent)]
    Guests(#[from] guests::Error),
    /// The host's facts.
    #[error(transparent)]
    Host(#[from] host::proc::Error),
    /// The record.
    #[error(transparent)]
    State(#[from] state::Error),
}

impl Error {
    /// Whether the action ended because its requester cancelled it.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        match self {
            Self::State(e) => e.is_interrupted(),
            Self::Restore(e) => e.is_interrupted(),
            Self::Checkpoint(e) => e.is_interrupted(),
            Self::Guests(e) => e.is_interrupted(),
            _ => false,
        }
    }

    /// A hint what to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoSuchPool(_) => {
                Some("`brood pool list` shows all pools; `brood pool create` makes one".to_owned())
            }
            Self::Exists(pool) => Some(format!(
                "change it with `brood pool set {pool}`, or remove it first: brood pool remove {pool}"
            )),
            Self::Name { name, .. } if name.contains('/') => {
                Some("the name comes first: brood pool create NAME CHECKPOINT --hot N".to_owned())
            }
            Self::Name { .. } => None,
            Self::Contradiction { .. } => {
                Some("change --hot, --hot-min, --max, --max-memory or --private-limit".to_owned())
            }
            Self::Fixed { pool, .. } => Some(format!(
                "remove the pool and create it again (brood pool remove {pool}), or take another name"
            )),
            Self::NoSuchClaim => Some("claim another guest: brood pool claim POOL".to_owned()),
            Self::Suspended => Some("restore its guest: brood pool resume TOKEN".to_owned()),
            Self::InUse { .. } => {
                Some("wait until they are released, or end them too: --force".to_owned())
            }
            Self::Line { pool, .. } => Some(format!(
                "wait too (--wait SECONDS), or allow the pool more: brood pool set {pool} --max N --max-memory SIZE"
            )),
            Self::OtherCheckpoint { pool, .. } => Some(format!(
                "put the bundle back where it was, or remove the pool and create it again: brood pool remove {pool}"
            )),
            Self::Broken { .. } => Some(
                "the host may be overloaded: allow more time with --timeout, or see `brood doctor`"
                    .to_owned(),
            ),
            Self::Left { .. } => Some(
                "end them as the user that they run as, or see what their processes hang in; then try again"
                    .to_owned(),
            ),
            Self::NotRestored { .. } | Self::Randomness(_) => None,
            Self::Restore(e) => e.hint(),
            Self::Checkpoint(e) => e.hint(),
            Self::Guests(e) => e.hint(),
            Self::Host(e) => Some(e.hint().to_owned()),
            Self::State(e) => e.hint(),
        }
    }

    /// How many others wait who came first, where waiting may help: the host or the pool has no room
    /// for one more guest now, and other guests may free some. `None` where it does not help.
    #[must_use]
    pub fn waiters(&self) -> Option<u64> {
        match self {
            Self::Line { waiters, .. } => Some(*waiters),
            Self::Restore(
                restore::Error::Admission(_) | restore::Error::State(state::Error::PoolFull(_)),
            ) => Some(0),
            _ => None,
        }
    }
}

impl From<engine::Error> for Error {
    fn from(error: engine::Error) -> Self {
        Self::Guests(error.into())
    }
}
