//! Records of pools and their entries.
//!
//! An entry is a guest that belongs to a pool; its row goes with the guest's. Each transition is
//! one statement that names the state which it leads from, so that of any number of commands that
//! want the same entry one gets it.
//!
//! Guests end with the host's boot, and so do their entries; leases are counted on the clock that
//! begins with it.

use std::{collections::HashMap, io, time::Duration};

use rusqlite::{OptionalExtension, Row, params, types::Type};
use serde::{Deserialize, Serialize};

use super::{
    Error, Policy, PoolChange, QueuePlace, SavedEntry, State, TokenDigest, waiting::before,
};
use crate::{
    checkpoint::Network,
    engine::Publish,
    guest_id::{GuestId, random},
    host::boot,
    units::Bytes,
};

/// A pool, as its owner wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRow {
    /// Its name, which is also the prefix of its guests' names.
    pub name: String,
    /// Bundle that its guests are restored from, `DIR/NAME`.
    pub checkpoint: String,
    /// Digest of that bundle's memory.
    pub sha256: String,
    /// What it should be.
    #[serde(flatten)]
    pub policy: Policy,
    /// Private memory that each of its guests is allowed, in bytes.
    #[serde(alias = "allowance")]
    pub private_limit: Bytes,
    /// Whether the kernel ends a guest that holds more.
    #[serde(default)]
    pub enforce_private_limit: bool,
    /// What its guests reach; none is for the checkpoint to say.
    #[serde(default)]
    pub network: Option<Network>,
    /// What leads into its guests.
    #[serde(default)]
    pub publish: Vec<Publish>,
    /// How often these two were changed.
    #[serde(skip)]
    pub network_version: u64,
    /// When it was made, RFC 3339.
    pub created_at: String,
}

/// How far an entry has come, as recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryState {
    /// Its guest is being restored; it cannot be claimed yet.
    Filling,
    /// Its guest is stopped, and has done nothing but answer its first request.
    Hot,
    /// A claimer has it.
    Claimed,
    /// Its guest is to be destroyed.
    Releasing,
}

/// An entry of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRow {
    /// Its guest.
    pub guest: GuestId,
    /// Name of its guest.
    pub name: String,
    /// How far it has come.
    pub state: EntryState,
    /// What is left of its lease, when it is claimed.
    pub lease: Option<Duration>,
    /// Whether the pool's network was changed since.
    pub outdated: bool,
}

/// Makes a guest an entry of a pool from the moment it is ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The pool.
    pub pool: String,
    /// The claim that it belongs to from the beginning, if there is one.
    pub claim: Option<Lease>,
    /// How many entries the pool may have, when it is fewer than [`Policy::most`].
    pub room: Option<u64>,
    /// The [`PoolRow::network_version`] that its guest is restored with.
    pub network_version: u64,
}

/// A claim to an entry, for a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Digest of the claim's token.
    pub token: TokenDigest,
    /// How long it lasts from now.
    pub lasts: Duration,
}

pub(super) const POOL: &str = "name, checkpoint, sha256, private_limit, created_at, hot, hot_min, most, max_memory, \
                    max_age_s, refill_per_s, lease_s, enforce_private_limit, network, publish, network_version";

impl State {
    /// Records a new pool; `false` when there is one of this name.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn add_pool(&self, pool: &PoolRow) -> Result<bool, Error> {
        let added = self.at_once(|state| -> Result<_, Error> {
            let added = state.changed(
                "INSERT OR IGNORE INTO pool (name, checkpoint, sha256, hot, lease_s, private_limit,
                                             created_at, enforce_private_limit, network, publish)
                 VALUES (?1, ?2, ?3, 0, 1, ?4, ?5, ?6, ?7, ?8)",
                params![
                    pool.name,
                    pool.checkpoint,
                    pool.sha256,
                    signed(pool.private_limit.0),
                    pool.created_at,
                    pool.enforce_private_limit,
                    pool.network.map(Network::name),
                    publish_text(&pool.publish)
                ],
            )?;
            Ok(added && state.set_policy(&pool.name, &pool.policy)?)
        })?;
        self.write_pool_file(&pool.name)?;
        Ok(added)
    }

    /// Changes a pool's policy and network; `false` when there is no such pool.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) fn change_pool(&self, name: &str, change: &PoolChange) -> Result<bool, Error> {
        let changed = self.at_once(|state| match state.pool(name)? {
            Some(pool) => {
                let (network, publish) = change.network_of(&pool);
                if (network, &publish) != (pool.network, &pool.publish) {
                    state.set_network(name, network, &publish)?;
                }
                state.set_policy(name, &change.apply(&pool.policy))
            }
            None => Ok(false),
        })?;
        self.write_pool_file(name)?;
        Ok(changed)
    }

    /// From now on guests of an earlier network are outdated.
    fn set_network(
        &self,
        name: &str,
        network: Option<Network>,
        publish: &[Publish],
    ) -> Result<bool, Error> {
        self.changed(
            "UPDATE pool SET network = ?2, publish = ?3, network_version = network_version + 1
             WHERE name = ?1",
            params![name, network.map(Network::name), publish_text(publish)],
        )
    }

    fn set_policy(&self, name: &str, policy: &Policy) -> Result<bool, Error> {
        self.changed(
            "UPDATE pool SET hot = ?2, hot_min = ?3, most = ?4, max_memory = ?5, max_age_s = ?6,
                             refill_per_s = ?7, lease_s = ?8
             WHERE name = ?1",
            params![
                name,
                signed(policy.hot),
                policy.hot_min.map(signed),
                policy.most.map(signed),
                policy.max_memory.map(|memory| signed(memory.0)),
                policy.max_age_s.map(signed),
                policy.refill_per_s.map(signed),
                signed(policy.lease_s)
            ],
        )
    }

    /// All pools, by name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn pools(&self) -> Result<Vec<PoolRow>, Error> {
        let read = || {
            let mut statement = self
                .database
                .prepare_cached(&format!("SELECT {POOL} FROM pool ORDER BY name"))?;
            let rows = statement.query_map([], pool_from_row)?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|e| self.database_error(e))
    }

    /// The pool of this name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn pool(&self, name: &str) -> Result<Option<PoolRow>, Error> {
        self.database
            .prepare_cached(&format!("SELECT {POOL} FROM pool WHERE name = ?1"))
            .and_then(|mut statement| statement.query_row([name], pool_from_row))
            .optional()
            .map_err(|e| self.database_error(e))
    }

    /// Removes a pool that has no entries; `false` when it has, or is not there.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn remove_pool(&self, name: &str) -> Result<bool, Error> {
        let removed = self.changed(
            "DELETE FROM pool WHERE name = ?1
             AND NOT EXISTS (SELECT 1 FROM entry WHERE pool = ?1)
             AND NOT EXISTS (SELECT 1 FROM suspended_claim WHERE pool = ?1)",
            [name],
        )?;
        if removed {
            self.note_not_failing(name)?;
            self.remove_pool_file(name)?;
        }
        Ok(removed)
    }

    /// The entries of a pool, the oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn entries(&self, pool: &str) -> Result<Vec<EntryRow>, Error> {
        let now = since_boot();
        let read = || {
            let mut statement = self.database.prepare_cached(
                "SELECT guest, guest.name, entry.state, expires,
                        entry.network_version <> pool.network_version
                 FROM entry JOIN guest ON id = guest JOIN pool ON pool.name = pool
                 WHERE pool = ?1 ORDER BY entry.rowid",
            )?;
            let rows = statement.query_map([pool], |row| {
                let expires = row.get::<_, Option<i64>>(3)?;
                Ok(EntryRow {
                    guest: guest_id(row, 0)?,
                    name: row.get(1)?,
                    state: entry_state(row, 2)?,
                    lease: expires.map(|at| milliseconds(at.saturating_sub(now))),
                    outdated: row.get(4)?,
                })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|e| self.database_error(e))
    }

    /// The pool and the state of each entry, by its guest.
    pub(super) fn entries_by_guest(&self) -> Result<HashMap<GuestId, (String, EntryState)>, Error> {
        let read = || {
            let mut statement = self
                .database
                .prepare_cached("SELECT guest, pool, state FROM entry")?;
            let rows = statement.query_map([], |row| {
                Ok((guest_id(row, 0)?, (row.get(1)?, entry_state(row, 2)?)))
            })?;
            rows.collect::<rusqlite::Result<HashMap<_, _>>>()
        };
        read().map_err(|e| self.database_error(e))
    }

    /// How far this guest's entry has come; `None` when it is in no pool.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(crate) fn entry_state(&self, guest: &GuestId) -> Result<Option<EntryState>, Error> {
        self.database
            .query_row(
                "SELECT state FROM entry WHERE guest = ?1",
                [guest.to_string()],
                |row| entry_state(row, 0),
            )
            .optional()
            .map_err(|e| self.database_error(e))
    }

    /// The pool that this guest is an entry of.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn entry_pool(&self, guest: &GuestId) -> Result<Option<String>, Error> {
        self.database
            .query_row(
                "SELECT pool FROM entry WHERE guest = ?1",
                [guest.to_string()],
                |row| row.get(0),
            )
            .optional()
            .map_err(|e| self.database_error(e))
    }

    /// Filling → hot.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn mark_hot(&mut self, guests: &[GuestId]) -> Result<(), Error> {
        self.change_each(
            "UPDATE entry SET state = 'hot' WHERE guest = ?1 AND state = 'filling'",
            guests.iter().map(|id| (id.to_string(),)),
        )
    }

    /// Hot → claimed: the oldest hot entry of a pool that has the pool's present network is the
    /// claimer's; `None` when there is none, or others have a better place in the line.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn claim_hot(
        &self,
        pool: &str,
        lease: &Lease,
        place: Option<QueuePlace>,
    ) -> Result<Option<GuestId>, Error> {
        self.changed_guest(
            "UPDATE entry SET state = 'claimed', token = ?2, expires = ?3 WHERE guest =
             (SELECT guest FROM entry WHERE pool = ?1 AND state = 'hot' AND network_version =
              (SELECT network_version FROM pool WHERE name = ?1) ORDER BY rowid LIMIT 1)
             AND NOT EXISTS (SELECT 1 FROM waiting WHERE pool = ?1 AND ticket < ?4)
             RETURNING guest",
            params![pool, lease.token, lease.expires(), before(place)],
        )
    }

    /// Claimed → releasing, by the holder of the token. Can be repeated.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn release_claim(&self, token: &TokenDigest) -> Result<Option<GuestId>, Error> {
        self.changed_guest(
            "UPDATE entry SET state = 'releasing' WHERE token = ?1 AND state IN ('claimed', 'releasing')
             RETURNING guest",
            [token],
        )
    }

    /// Claimed → releasing, of one entry of a pool whose lease is over; `None` when there is none.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn expire_claim(&self, pool: &str) -> Result<Option<GuestId>, Error> {
        self.changed_guest(
            "UPDATE entry SET state = 'releasing' WHERE guest =
             (SELECT guest FROM entry WHERE pool = ?1 AND state = 'claimed' AND expires <= ?2
              LIMIT 1)
             RETURNING guest",
            params![pool, since_boot()],
        )
    }

    /// From `state` → releasing; says whether it was in that state.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn give_up(&self, guest: &GuestId, state: EntryState) -> Result<bool, Error> {
        self.changed(
            "UPDATE entry SET state = 'releasing' WHERE guest = ?1 AND state = ?2",
            [&guest.to_string(), state.name()],
        )
    }

    /// Hot → releasing, of the oldest hot entry of a pool; `None` when there is none.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn evict_hot(&self, pool: &str) -> Result<Option<GuestId>, Error> {
        self.changed_guest(
            "UPDATE entry SET state = 'releasing' WHERE guest =
             (SELECT guest FROM entry WHERE pool = ?1 AND state = 'hot' ORDER BY rowid LIMIT 1)
             RETURNING guest",
            [pool],
        )
    }

    /// Hot → releasing, of a hot entry of a pool that is older than `age`; `None` when there is
    /// none.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) fn evict_aged(&self, pool: &str, age: Duration) -> Result<Option<GuestId>, Error> {
        let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        self.changed_guest(
            "UPDATE entry SET state = 'releasing' WHERE guest =
             (SELECT guest FROM entry WHERE pool = ?1 AND state = 'hot' AND since <= ?2
              ORDER BY rowid LIMIT 1)
             RETURNING guest",
            params![pool, since_boot().saturating_sub(age)],
        )
    }

    /// The guest of a claim that is not over.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn claimed_by(&self, token: &TokenDigest) -> Result<Option<GuestId>, Error> {
        self.database
            .prepare_cached(
                "SELECT guest FROM entry WHERE token = ?1 AND state = 'claimed' AND expires > ?2",
            )
            .and_then(|mut statement| {
                statement.query_row(params![token, since_boot()], |row| guest_id(row, 0))
            })
            .optional()
            .map_err(|e| self.database_error(e))
    }

    /// Renews a lease, counted from now; `false` when it is over, or there is no such claim.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn renew_claim(&self, lease: &Lease) -> Result<bool, Error> {
        self.changed(
            "UPDATE entry SET expires = ?2
             WHERE token = ?1 AND state = 'claimed' AND expires > ?3",
            params![lease.token, lease.expires(), since_boot()],
        )
    }

    /// Records an entry that was found again, whose guest is recorded. A claim's lease is counted
    /// from now.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) fn recall_entry(&self, entry: &SavedEntry, lasts: Duration) -> Result<bool, Error> {
        let lease = entry.token.clone().map(|token| Lease { token, lasts });
        self.changed(
            "INSERT OR IGNORE INTO entry (guest, pool, state, token, expires, since)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                entry.guest.to_string(),
                entry.pool,
                entry.state.name(),
                entry.token,
                lease.map(|lease| lease.expires()),
                since_boot()
            ],
        )
    }
}

impl EntryState {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Filling => "filling",
            Self::Hot => "hot",
            Self::Claimed => "claimed",
            Self::Releasing => "releasing",
        }
    }
}

impl Lease {
    /// When it ends, in milliseconds since the host booted.
    pub(super) fn expires(&self) -> i64 {
        since_boot().saturating_add(i64::try_from(self.lasts.as_millis()).unwrap_or(i64::MAX))
    }
}

/// A token that nobody can guess.
pub(crate) fn new_token() -> io::Result<String> {
    let bytes: [u8; 16] = random()?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

impl Membership {
    /// The state in which such an entry begins.
    pub(super) fn first_state(&self) -> &'static str {
        let state = if self.claim.is_some() {
            EntryState::Claimed
        } else {
            EntryState::Filling
        };
        state.name()
    }
}

/// Milliseconds since the host booted, sleep included, by a clock that cannot be set.
pub(super) fn since_boot() -> i64 {
    boot::elapsed()
        .as_millis()
        .try_into()
        .expect("hosts run for less than 292 million years")
}

fn milliseconds(n: i64) -> Duration {
    Duration::from_millis(u64::try_from(n).unwrap_or(0))
}

pub(super) fn bad(column: usize, what: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, what.into())
}

pub(super) fn guest_id(row: &Row<'_>, column: usize) -> rusqlite::Result<GuestId> {
    let text = row.get_ref(column)?.as_str()?;
    text.parse().map_err(|_| bad(column, "not a guest's id"))
}

pub(super) fn entry_state(row: &Row<'_>, column: usize) -> rusqlite::Result<EntryState> {
    use EntryState::{Claimed, Filling, Hot, Releasing};
    let text = row.get_ref(column)?.as_str()?;
    [Filling, Hot, Claimed, Releasing]
        .into_iter()
        .find(|state| state.name() == text)
        .ok_or_else(|| bad(column, "not an entry's state"))
}

fn publish_text(publish: &[Publish]) -> String {
    serde_json::to_string(publish).unwrap_or_default()
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(super) fn pool_from_row(row: &Row<'_>) -> rusqlite::Result<PoolRow> {
    let limit = |column| -> rusqlite::Result<Option<u64>> {
        let n: Option<i64> = row.get(column)?;
        Ok(n.map(|n| u64::try_from(n).unwrap_or(0)))
    };
    let unsigned = |column| limit(column).map(Option::unwrap_or_default);
    Ok(PoolRow {
        name: row.get(0)?,
        checkpoint: row.get(1)?,
        sha256: row.get(2)?,
        private_limit: Bytes(unsigned(3)?),
        created_at: row.get(4)?,
        policy: Policy {
            hot: unsigned(5)?,
            hot_min: limit(6)?,
            most: limit(7)?,
            max_memory: limit(8)?.map(Bytes),
            max_age_s: limit(9)?,
            refill_per_s: limit(10)?,
            lease_s: unsigned(11)?,
        },
        enforce_private_limit: row.get(12)?,
        network: row
            .get_ref(13)?
            .as_str_or_null()?
            .map(|name| name.parse().map_err(|_| bad(13, "no network")))
            .transpose()?,
        publish: serde_json::from_str(row.get_ref(14)?.as_str()?)
            .map_err(|_| bad(14, "no list of ports"))?,
        network_version: unsigned(15)?,
    })
}
