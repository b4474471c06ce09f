//! Recovery files: what each pool should be (`pools/NAME.json`) and whose each suspended guest is
//! (`suspended/ID.claim`, beside its bundle). They lie beside the database, so that a rebuild finds them
//! when the database is damaged.
//!
//! A claim's file is written after the claim is recorded, and removed before the record is. So a
//! claim that has a file and no record was lost from the record.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Error, PoolRow, State, SuspendedClaimRow, TokenDigest, suspended_dir};
use crate::{
    directory,
    faults::{self, Point},
    guest_id::GuestId,
    owner_only,
};

const POOLS: &str = "pools";
/// Suffix of a file that is not complete yet.
const UNFINISHED: &str = ".new";

/// A claim whose guest is suspended, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClaimFile {
    /// Digest of the claim's token.
    pub(crate) token: TokenDigest,
    /// The pool.
    pub(crate) pool: String,
    /// The guest that was suspended, 16 hexadecimal digits.
    pub(crate) guest: String,
    /// The bundle, `DIR/NAME`.
    pub(crate) bundle: String,
    /// When it was suspended, RFC 3339.
    pub(crate) created_at: String,
}

/// Whether anything is kept in the state folder `dir`.
pub(super) fn are_in(dir: &Path) -> Result<bool, Error> {
    Ok(!files(&dir.join(POOLS), ".json")?.is_empty()
        || !files(&suspended_dir(dir), ".claim")?.is_empty())
}

impl State {
    pub(super) fn write_claim_file(&self, suspended: &SuspendedClaimRow) -> Result<(), Error> {
        let kept = ClaimFile {
            token: suspended.token.clone(),
            pool: suspended.pool.clone(),
            guest: suspended.guest.to_string(),
            bundle: suspended.bundle.clone(),
            created_at: suspended.created_at.clone(),
        };
        write(&self.claim_file(&suspended.guest), &kept)
    }

    /// Writes all claims that are kept once more: an earlier version wrote their tokens.
    pub(super) fn rewrite_claim_files(&self) -> Result<(), Error> {
        let suspended = self.suspended_claims()?.into_iter();
        suspended
            .filter(|suspended| self.has_claim_file(&suspended.guest))
            .try_for_each(|suspended| self.write_claim_file(&suspended))?;
        // The journal has the tokens as they were, until it begins anew.
        self.database
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .map_err(|e| self.database_error(e))
    }

    pub(super) fn has_claim_file(&self, guest: &GuestId) -> bool {
        self.claim_file(guest).exists()
    }

    pub(super) fn remove_claim_file(&self, guest: &GuestId) -> Result<(), Error> {
        remove(&self.claim_file(guest))
    }

    /// Claims that have a recovery file and no record. Leaves out files that make no sense.
    ///
    /// # Errors
    /// When the database or a recovery file cannot be read.
    pub(crate) fn claims_not_recorded(&self) -> Result<Vec<ClaimFile>, Error> {
        // First the recovery files: a record is removed after its file.
        let mut kept = files(&self.suspended_dir(), ".claim")?;
        let recorded = self.suspended_claims()?;
        let recorded: HashSet<PathBuf> = recorded
            .iter()
            .map(|suspended| self.claim_file(&suspended.guest))
            .collect();
        kept.retain(|file| !recorded.contains(file));
        read_all(kept)
    }

    /// Names of the bundles that a claim is kept for, whatever its file says.
    pub(crate) fn bundles_of_claim_files(&self) -> Result<Vec<PathBuf>, Error> {
        let kept = files(&self.suspended_dir(), ".claim")?;
        Ok(kept.iter().map(|file| file.with_extension("")).collect())
    }

    /// Removes the recovery file of a claim that has neither a record nor a bundle.
    pub(crate) fn drop_claim_file(&self, kept: &ClaimFile) -> Result<(), Error> {
        remove(&self.suspended_dir().join(format!("{}.claim", kept.guest)))
    }

    /// Removes unfinished files of killed commands. No process may be writing meanwhile.
    pub(crate) fn sweep_claim_files(&self) {
        let left = files(&self.suspended_dir(), &format!(".claim{UNFINISHED}"));
        for file in left.unwrap_or_default() {
            let _ = fs::remove_file(file);
        }
    }

    fn claim_file(&self, guest: &GuestId) -> PathBuf {
        self.suspended_dir().join(format!("{guest}.claim"))
    }

    pub(super) fn write_pool_file(&self, name: &str) -> Result<(), Error> {
        match self.pool(name)? {
            Some(pool) => write(&self.pool_file(name), &pool),
            None => Ok(()),
        }
    }

    pub(super) fn remove_pool_file(&self, name: &str) -> Result<(), Error> {
        remove(&self.pool_file(name))
    }

    /// All pools that are kept. What makes no sense is left out.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(crate) fn pools_in_files(&self) -> Result<Vec<PoolRow>, Error> {
        read_all(files(&self.dir.join(POOLS), ".json")?)
    }

    fn pool_file(&self, name: &str) -> PathBuf {
        self.dir.join(POOLS).join(format!("{name}.json"))
    }
}

/// Writes a file whole or not at all, on the disk when this returns. Only its owner may read it.
fn write(path: &Path, what: &impl Serialize) -> Result<(), Error> {
    let unfinished = path.with_added_extension(&UNFINISHED[1..]);
    let dir = path.parent().unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        owner_only::create_folder(dir)?;
        let mut file = owner_only::options()
            .create(true)
            .truncate(true)
            .write(true)
            .open(&unfinished)?;
        let text = serde_json::to_vec(what)?;
        faults::writing(Point::RecoveryWrite, &text, |text| file.write_all(text))?;
        file.sync_all()?;
        faults::at(Point::RecoveryName)?;
        fs::rename(&unfinished, path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&unfinished);
        Error::Io {
            action: "write",
            path: path.to_owned(),
            source,
        }
    })
}

fn remove(path: &Path) -> Result<(), Error> {
    let gone = match faults::at(Point::RecoveryRemove).and_then(|()| fs::remove_file(path)) {
        Ok(()) => File::open(path.parent().unwrap_or(Path::new("."))).and_then(|d| d.sync_all()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    };
    gone.map_err(|source| Error::Io {
        action: "remove",
        path: path.to_owned(),
        source,
    })
}

fn read_all<T: DeserializeOwned>(files: Vec<PathBuf>) -> Result<Vec<T>, Error> {
    let mut all = Vec::with_capacity(files.len());
    for file in files {
        match fs::read(&file) {
            Ok(text) => all.extend(serde_json::from_slice(&text).ok()),
            // Another process has removed it meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(unread(&file, e)),
        }
    }
    Ok(all)
}

/// Files of a folder whose names end like this, by name; none when there is no such folder.
fn files(dir: &Path, end: &str) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in directory::entries(dir).map_err(|e| unread(dir, e))? {
        if entry.file_name().to_string_lossy().ends_with(end) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn unread(path: &Path, source: io::Error) -> Error {
    Error::Io {
        action: "read",
        path: path.to_owned(),
        source,
    }
}
