//! Rebuild of a state folder's record after its database was damaged or lost. The sources are what
//! can still be read of the database, the guests that run, and the bundles of suspended claims.
//!
//! The rebuild assumes nothing that could hand out a guest twice or end somebody's guest. A guest
//! that was hot may have been claimed since the last readable page; so it is listed as a guest
//! outside any pool, and its pool restores a new one.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::Duration,
};

use serde::Serialize;

use crate::{
    checkpoint::{self, BundlePath},
    disk::Place,
    engine::{Engine, NEVER, ProcessState},
    guests::{self, GuestState, Guests},
    state::{
        self, ClaimFile, EntryState, GuestRow, PoolRow, Rebuild, Salvage, State, TokenDigest,
        lock::{self, Wait},
        new_token,
    },
};

/// What there is of it now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rebuilt {
    /// Where the damaged database is kept; none when there was none.
    pub damaged: Option<PathBuf>,
    /// Names of the pools.
    pub pools: Vec<String>,
    /// Names of the guests that run.
    pub guests: Vec<String>,
    /// Claims that hold a guest, as they did.
    pub claims: u64,
    /// Suspended claims.
    pub suspended: u64,
    /// Bundles of suspended claims whose tokens are lost, with a new token for each.
    pub orphans: Vec<Orphan>,
    /// Guests that belong to no pool any more: each was hot, or is claimed.
    pub loose: Vec<String>,
    /// What could not be read.
    pub unread: Vec<String>,
}

/// A bundle whose claim is not known, and the new token that it is had by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Orphan {
    /// The bundle, `DIR/NAME`.
    pub bundle: String,
    /// The token.
    pub token: String,
}

/// Why it was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The record.
    #[error(transparent)]
    State(#[from] state::Error),
    /// Guests.
    #[error(transparent)]
    Guests(#[from] guests::Error),
    /// A bundle.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The system's source of randomness.
    #[error("cannot make a token: {0}")]
    Randomness(io::Error),
}

impl Error {
    /// A hint what to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::State(e) => e.hint(),
            Self::Guests(e) => e.hint(),
            Self::Checkpoint(e) => e.hint(),
            Self::Randomness(_) => None,
        }
    }
}

/// Rebuilds the record of the state folder `dir`. Waits for commands that work at pools or claims;
/// an interrupted rebuild starts over.
///
/// # Errors
/// [`state::Error::Whole`] when the database is not damaged; when the folder cannot be written.
pub fn rebuild(dir: &Path, engine: &dyn Engine) -> Result<Rebuilt, Error> {
    let wait = Wait {
        limit: lock::LOCK_TIMEOUT,
        cancelled: &AtomicBool::new(false),
    };
    let _pools = lock::take(dir, lock::POOLS, true, wait)?;
    let _claims = lock::take(dir, lock::SUSPENDED, true, wait)?;
    let mut rebuild = Rebuild::begin(dir)?;
    let salvage = rebuild.salvage();
    let state = &mut rebuild.state;
    let pools = pools(state, &salvage)?;
    let guests = find_guests(state, engine, &salvage.guests)?;
    let claims = entries(state, &salvage, &pools)?;
    for place in &salvage.disk_places {
        if let Ok(place) = place.parse::<Place>() {
            state.note_disk_place(&place)?;
        }
    }
    for kept in state.claims_not_recorded()?.iter().chain(&salvage.claims) {
        // Its parents may only not be there now.
        let sealed = match kept.bundle.parse::<BundlePath>() {
            Ok(path) => checkpoint::is_sealed(&path)?,
            Err(_) => false,
        };
        if sealed
            && !state
                .guests()?
                .iter()
                .any(|row| row.id.to_string() == kept.guest)
        {
            state.recall_suspended_claim(kept)?;
        }
    }
    let suspended = state.suspended_claims()?.len() as u64;
    let orphans = orphans(state, &pools)?;
    let loose = loose(state, &guests, &pools)?;
    Ok(Rebuilt {
        damaged: rebuild.finish()?,
        pools: pools.into_keys().collect(),
        guests: guests.into_iter().map(|row| row.name).collect(),
        claims,
        suspended,
        orphans,
        loose,
        unread: salvage.unread,
    })
}

/// Pools, as they are kept beside the database, else as they were recorded.
fn pools(state: &State, salvage: &Salvage) -> Result<BTreeMap<String, PoolRow>, Error> {
    let recorded = salvage.pools.iter().cloned();
    let all = recorded.chain(state.pools_in_files()?);
    let pools: BTreeMap<String, PoolRow> = all.map(|pool| (pool.name.clone(), pool)).collect();
    for pool in pools.values() {
        state.add_pool(pool)?;
    }
    Ok(pools)
}

/// Guests that run: as they were recorded, else as their processes tell.
fn find_guests(
    state: &mut State,
    engine: &dyn Engine,
    recorded: &[GuestRow],
) -> Result<Vec<GuestRow>, Error> {
    let run_dir = state.run_dir();
    for row in recorded {
        if state.of_other_namespace(row) {
            let guest = row.name.clone();
            return Err(guests::Error::OtherNamespace { guest }.into());
        }
        let found = engine.find(row.in_folder(&run_dir));
        let found = found.map_err(|e| guests::Error::engine("look at", &row.name, e))?;
        // A guest whose socket was removed is known by its process alone.
        let Some(process) = found.or(row.process) else {
            continue;
        };
        // Where the engine finds it, it lives, whatever id of its boot was recorded.
        let same = row.process == Some(process) && (found.is_some() || state.of_this_boot(row));
        let look = |source| guests::Error::look(&row.name, source);
        if same && process.state().map_err(look)? != ProcessState::Gone {
            state.recall_guest(row)?;
        }
    }
    let mut living = Guests {
        state,
        engine,
        cancelled: &NEVER,
    }
    .list()?;
    living.retain(|guest| guest.state != GuestState::Dead);
    Ok(living.into_iter().map(|guest| guest.row).collect())
}

/// Entries that are claimed, or that belong to no pool any more. Returns how many are claimed.
fn entries(
    state: &State,
    salvage: &Salvage,
    pools: &BTreeMap<String, PoolRow>,
) -> Result<u64, Error> {
    let there: HashSet<_> = state.guests()?.iter().map(|row| row.id).collect();
    let mut claims = 0;
    for entry in &salvage.entries {
        let pool = pools
            .get(&entry.pool)
            .filter(|_| there.contains(&entry.guest));
        let Some(pool) = pool else { continue };
        let counts = match entry.state {
            EntryState::Claimed => 1,
            EntryState::Releasing => 0,
            EntryState::Filling | EntryState::Hot => continue,
        };
        // How long its lease lasted may lie in what could not be read.
        let lasts = Duration::from_secs(pool.policy.lease_s);
        if state.recall_entry(entry, lasts)? {
            claims += counts;
        }
    }
    Ok(claims)
}

/// Bundles of claims whose token was lost: each gets a new one, that it may be had by.
fn orphans(state: &mut State, pools: &BTreeMap<String, PoolRow>) -> Result<Vec<Orphan>, Error> {
    let dir = state.suspended_dir();
    let mut found = Vec::new();
    if !dir.exists() {
        return Ok(found);
    }
    let mut needed: HashSet<String> = HashSet::new();
    let recorded = state
        .suspended_claims()?
        .into_iter()
        .map(|suspended| suspended.bundle);
    let recorded = recorded.chain(state.guests()?.into_iter().map(|row| row.checkpoint));
    let recorded: Vec<String> = recorded.collect();
    // Manifests decide; a bundle whose other files are damaged or missing still belongs to a
    // claimer.
    let mut whole = Vec::new();
    for listed in checkpoint::list(&dir)? {
        if let Some(manifest) = checkpoint::manifest_of(&listed.path)? {
            let parents = checkpoint::parents_of(&listed.path)?;
            // What another one is a delta of belongs to that one.
            needed.extend(parents.iter().map(name_of));
            whole.push((listed.path, manifest, parents));
        }
    }
    for bundle in recorded {
        if let Ok(path) = bundle.parse::<BundlePath>() {
            needed.insert(name_of(&path));
            needed.extend(checkpoint::parents_of(&path)?.iter().map(name_of));
        }
    }
    for (bundle, manifest, parents) in whole {
        let path = name_of(&bundle);
        let base = match parents.last() {
            Some(base) => checkpoint::manifest_of(base)?.map(|base| base.memory_sha256()),
            None => Some(manifest.memory_sha256()),
        };
        let pool = pools
            .values()
            .find(|pool| Some(&pool.sha256) == base.as_ref());
        let Some(pool) = pool
            .or(pools.values().next())
            .filter(|_| !needed.contains(&path))
        else {
            continue;
        };
        let token = new_token().map_err(Error::Randomness)?;
        state.recall_suspended_claim(&ClaimFile {
            token: TokenDigest::of(&token),
            pool: pool.name.clone(),
            guest: bundle.name().to_owned(),
            bundle: path.clone(),
            created_at: manifest.created_at,
        })?;
        found.push(Orphan {
            bundle: path,
            token,
        });
    }
    Ok(found)
}

/// A bundle's absolute path, where its folder is there.
fn name_of(bundle: &BundlePath) -> String {
    bundle
        .absolute()
        .unwrap_or_else(|_| bundle.clone())
        .to_string()
}

/// Guests with a pool's name that are no entries of it.
fn loose(
    state: &State,
    guests: &[GuestRow],
    pools: &BTreeMap<String, PoolRow>,
) -> Result<Vec<String>, Error> {
    let mut loose = Vec::new();
    for row in guests {
        let pool = row.name.rsplit_once('-').map(|(pool, _)| pool);
        if pool.is_some_and(|pool| pools.contains_key(pool))
            && state.entry_state(&row.id)?.is_none()
        {
            loose.push(row.name.clone());
        }
    }
    Ok(loose)
}
