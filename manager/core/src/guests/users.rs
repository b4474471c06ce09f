//! Users of a bundle: the one place that answers who uses a bundle, for everything that removes
//! one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{Error, GuestState, Guests};
use crate::{
    checkpoint::{self, BundlePath, Target},
    state::{BundleAction, BundleUser},
};

/// A user of a bundle: it shares the bundle's memory, or cannot be restored without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A guest that was restored, or is being restored, from it or from a delta over it.
    Guest(String),
    /// A pool whose entries are restored from it.
    Pool(String),
    /// A suspended claim: its guest's memory is a delta over it.
    Claim {
        /// The claim's pool.
        pool: String,
        /// The claim's own bundle.
        bundle: String,
    },
    /// A bundle that is a delta of it.
    Delta(BundlePath),
    /// A process that reads it, and has recorded nothing yet.
    Reader(BundleUser),
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guest(name) => write!(f, "guest {name} shares its memory"),
            Self::Pool(name) => write!(f, "pool {name} restores from it"),
            Self::Claim { pool, bundle } => {
                write!(f, "a suspended claim of pool {pool} needs it ({bundle})")
            }
            Self::Delta(delta) => write!(f, "it is the parent of {delta}"),
            Self::Reader(reader) => reader.fmt(f),
        }
    }
}

impl Guests<'_> {
    /// Users of a bundle: guests, those being restored included, pools, suspended claims, deltas in
    /// every folder that brood knows of, and processes that read it to restore from it.
    ///
    /// # Errors
    /// When the state, or a bundle that may be over it, cannot be read: then its users are unknown.
    pub(crate) fn users_of(&mut self, bundle: &BundlePath) -> Result<Vec<User>, Error> {
        let target = Target::of(bundle)?;
        let mut asked = BTreeMap::new();
        let mut needs = |of: &str| -> Result<bool, Error> {
            if let Some(known) = asked.get(of) {
                return Ok(*known);
            }
            // What was recorded was a bundle's path.
            let needs = match of.parse::<BundlePath>() {
                Ok(path) => target.is_needed_by(&path)?,
                Err(_) => false,
            };
            asked.insert(of.to_owned(), needs);
            Ok(needs)
        };
        let mut users = Vec::new();
        for user in self.state.bundle_users()? {
            if user.action == BundleAction::Read && needs(&user.bundle)? {
                users.push(User::Reader(user));
            }
        }
        for guest in self.list()? {
            // A dead guest's disk may still be a clone of the checkpoint's.
            let counts = guest.state != GuestState::Dead || guest.row.disk.is_some();
            if counts && needs(&guest.row.checkpoint)? {
                users.push(User::Guest(guest.row.name));
            }
        }
        for pool in self.state.pools()? {
            if needs(&pool.checkpoint)? {
                users.push(User::Pool(pool.name));
            }
        }
        let mut claims: BTreeSet<(String, String)> = BTreeSet::new();
        for cold in self.state.suspended_claims()? {
            claims.insert((cold.pool, cold.bundle));
        }
        for kept in self.state.claims_not_recorded()? {
            claims.insert((kept.pool, kept.bundle));
        }
        for (pool, bundle) in &claims {
            if needs(bundle)? {
                users.push(User::Claim {
                    pool: pool.clone(),
                    bundle: bundle.clone(),
                });
            }
        }
        // The deltas that are suspended claims have been named.
        let claimed: BTreeSet<&String> = claims.iter().map(|(_, bundle)| bundle).collect();
        for folder in self.state.folders_of_bundles(&[bundle.dir().to_owned()])? {
            for delta in target.deltas_in(&folder)? {
                if !claimed.contains(&delta.to_string()) {
                    users.push(User::Delta(delta));
                }
            }
        }
        Ok(users)
    }

    /// Refuses the removal of a bundle that has users. With `force` only guests count: all other
    /// users lose what they need.
    ///
    /// # Errors
    /// [`checkpoint::Error::InUse`], [`checkpoint::Error::Needed`], or when the users are unknown.
    pub fn spare(&mut self, bundle: &BundlePath, force: bool) -> Result<(), Error> {
        let bundle = &bundle.absolute().unwrap_or_else(|_| bundle.clone());
        let users = match self.users_of(bundle) {
            Ok(users) => users,
            // With `force`, deltas that cannot be read do not matter.
            Err(Error::Checkpoint(_)) if force => return self.spare_guests_alone(bundle),
            Err(e) => return Err(e),
        };
        let mut guests = Vec::new();
        let mut others = Vec::new();
        for user in users {
            match user {
                User::Reader(reader) => return Err(being_read(bundle, &reader)),
                User::Guest(name) => guests.push(name),
                User::Delta(delta) if delta.dir() == bundle.dir() => {
                    others.push(format!("it is the parent of {}", delta.name()));
                }
                other => others.push(other.to_string()),
            }
        }
        if others.is_empty() || force {
            return refuse_guests(bundle, guests);
        }
        others.extend(guests.into_iter().map(|name| User::Guest(name).to_string()));
        Err(checkpoint::Error::Needed {
            bundle: bundle.clone(),
            users: others,
        }
        .into())
    }

    /// Refuses the change of a bundle that a process reads now, itself or through a delta.
    ///
    /// # Errors
    /// [`checkpoint::Error::BeingRead`].
    pub fn refuse_readers(&self, bundle: &BundlePath) -> Result<(), Error> {
        let target = Target::of(bundle)?;
        for user in self.state.bundle_users()? {
            let path = user.bundle.parse::<BundlePath>();
            // A delta that cannot be read may be over it.
            let needs = path.is_ok_and(|path| target.is_needed_by(&path).unwrap_or(true));
            if user.action == BundleAction::Read && needs {
                return Err(being_read(bundle, &user));
            }
        }
        Ok(())
    }

    fn spare_guests_alone(&mut self, bundle: &BundlePath) -> Result<(), Error> {
        self.refuse_readers(bundle)?;
        let target = Target::of(bundle)?;
        let mut names = Vec::new();
        for guest in self.list()? {
            let counts = guest.state != GuestState::Dead || guest.row.disk.is_some();
            let path = guest.row.checkpoint.parse::<BundlePath>();
            // A guest whose checkpoint cannot be read may share the memory.
            if counts && path.is_ok_and(|path| target.is_needed_by(&path).unwrap_or(true)) {
                names.push(guest.row.name);
            }
        }
        refuse_guests(bundle, names)
    }
}

fn being_read(bundle: &BundlePath, reader: &BundleUser) -> Error {
    let (bundle, by) = (bundle.clone(), reader.to_string());
    checkpoint::Error::BeingRead { bundle, by }.into()
}

fn refuse_guests(bundle: &BundlePath, users: Vec<String>) -> Result<(), Error> {
    if users.is_empty() {
        return Ok(());
    }
    Err(checkpoint::Error::InUse {
        bundle: bundle.clone(),
        users,
    }
    .into())
}
