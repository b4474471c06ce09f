//! The state folder: a SQLite database for what must survive a crash, and a run folder for what
//! lives only as long as guests do.
//!
//! ```text
//! STATE/brood.sqlite        guests, pools, verified checkpoints, measurements
//! STATE/locks/POOL.lock     held while a process reconciles or fills a pool
//! STATE/pools.lock          held, shared, with each pool's lock
//! STATE/suspended/          bundles of suspended claims, and whose each is
//! STATE/pools/              what each pool should be, for a rebuild of the database
//! STATE/trusted/SHA256      one file for each trusted checkpoint
//! STATE/claims/DIGEST.lock  held while a process suspends or resumes a claim
//! STATE/suspended.lock           held, shared, with each claim's lock
//! STATE/verdicts            results of checks of checkpoints whose files were changed
//! STATE/bundles/            which process reads or removes which checkpoint
//! STATE/run/ID.sock         a guest's control socket    (the engine's)
//! STATE/run/ID.exit         how a guest ended           (the engine's)
//! STATE/run/ID.lock         held while a restore runs
//! ```

mod bundle_use;
mod bundles;
mod change;
mod changes;
mod damage;
mod disks;
mod ending;
mod failing;
mod guest_names;
mod guest_row;
mod guests;
mod holder;
mod journal;
pub(crate) mod lock;
mod look;
mod measured;
mod policy;
mod pools;
mod promises;
mod rebuild;
mod recovery_files;
mod salvage;
mod schema;
mod stops;
mod suspended;
mod token;
mod trusted;
mod verified;
mod waiting;

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode};

pub use bundle_use::{BundleAction, BundleUse, BundleUser};
pub use failing::PoolFailure;
pub use guest_names::check_prefix;
pub use guest_row::{GuestRow, RowState};

pub(crate) use guests::AnsweredGuest;
pub use guests::{AdoptedGuest, NewGuest, Reservation};
pub use measured::GuestMeasurement;
pub use policy::{Policy, PoolChange};
pub(crate) use pools::new_token;
pub use pools::{EntryRow, EntryState, Lease, Membership, PoolRow};
pub use promises::Promise;
pub(crate) use rebuild::Rebuild;
pub(crate) use recovery_files::ClaimFile;
pub(crate) use salvage::{Salvage, SavedEntry};
pub use suspended::{SuspendedClaimRow, SuspendedClaimState};
pub use token::TokenDigest;
pub use waiting::QueuePlace;

use journal::Journal;

use crate::{
    engine::{process, restore_lock},
    full_disk,
    host::boot,
    owner_only,
};

/// Environment variable that names the state folder.
pub const STATE_DIR_VARIABLE: &str = "BROOD_STATE_DIR";

/// Name of the database in its folder.
pub const DATABASE: &str = "brood.sqlite";

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// The action that failed.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The database.
    #[error("cannot use the state in {}: {source}", .path.display())]
    Database {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The database is damaged.
    #[error("the state in {} is damaged: {reason}", .path.display())]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The database is not damaged, so there is nothing to rebuild.
    #[error("the state in {} is whole: nothing was changed", .path.display())]
    Whole {
        /// The database file.
        path: PathBuf,
    },
    /// The database was written by a newer brood.
    #[error("the state in {} has version {found}; this brood knows versions up to {known}", .path.display())]
    TooNew {
        /// The database file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest that is known.
        known: i64,
    },
    /// Another process holds a lock for too long.
    #[error("{}", locked(.path, *.waited, *.pid, .command.as_deref(), *.stopped))]
    Locked {
        /// The lock's file.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
        /// Who has it, when that is known.
        pid: Option<i32>,
        /// What that process is.
        command: Option<String>,
        /// Whether it is stopped.
        stopped: bool,
    },
    /// The requester cancelled it.
    #[error("interrupted")]
    Cancelled,
    /// No folder was named and none can be guessed.
    #[error("no state folder: neither {STATE_DIR_VARIABLE} nor HOME is set")]
    Nowhere,
    /// A pool has as many entries as it may have, or is not there any more.
    #[error("pool {0} takes no more entries")]
    PoolFull(String),
    /// A name that a guest cannot have.
    #[error("{name:?} cannot be a guest's name: {reason}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
}

impl From<restore_lock::Error> for Error {
    fn from(error: restore_lock::Error) -> Self {
        let restore_lock::Error {
            action,
            path,
            source,
        } = error;
        Self::Io {
            action,
            path,
            source,
        }
    }
}

impl Error {
    /// What SQLite said of the database at `path`.
    pub(crate) fn database(path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged {
                path,
                reason: source.to_string(),
            },
            Some(ErrorCode::DatabaseBusy) => match holder::of(&path) {
                Some(process) => Self::Locked {
                    waited: holder::waited(),
                    pid: Some(process.pid),
                    command: None,
                    stopped: holder::is_stopped(&process),
                    path,
                },
                None => Self::Database { path, source },
            },
            _ => Self::Database { path, source },
        }
    }

    /// Whether the action ended because its requester cancelled it.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Cancelled)
    }

    /// A hint what to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { path, source, .. } if full_disk::is_full(source) => Some(no_room(path)),
            Self::Io { .. } | Self::Nowhere => Some(format!(
                "name a folder you may write: {STATE_DIR_VARIABLE}=DIR"
            )),
            Self::Database { path, source } => match source.sqlite_error_code() {
                Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure) => Some(no_room(path)),
                Some(ErrorCode::DatabaseBusy) => {
                    Some("another command holds it for too long: try again".to_owned())
                }
                _ => Some(format!(
                    "it must be a file that you may read and write, in a folder that you may write: {}",
                    path.display()
                )),
            },
            Self::Damaged { .. } => Some(
                "guests go on; `brood state rebuild` keeps the file aside and makes a new one from \
                 what can still be read, from what runs, and from the bundles"
                    .to_owned(),
            ),
            Self::Whole { .. } | Self::Cancelled => None,
            Self::Locked { pid, stopped, .. } => Some(match (pid, stopped) {
                (Some(pid), true) => {
                    format!("let it go on (kill -CONT {pid}), or end it: kill -KILL {pid}")
                }
                (Some(pid), false) => format!("wait until it is done, or end it: kill {pid}"),
                (None, _) => "wait until it is done, and try again".to_owned(),
            }),
            Self::TooNew { .. } => Some("use the newer brood, or another state folder".to_owned()),
            Self::PoolFull(pool) => Some(format!(
                "wait until one is released (--wait), or allow more: brood pool set {pool} --max N --max-memory SIZE"
            )),
            Self::Name { .. } => None,
        }
    }
}

/// Who has a lock, in words.
fn locked(
    path: &Path,
    waited: Duration,
    pid: Option<i32>,
    command: Option<&str>,
    stopped: bool,
) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let is_claim = path
        .parent()
        .is_some_and(|folder| folder.ends_with(lock::CLAIMS));
    let what = match file.as_ref() {
        _ if is_claim => "the claim".to_owned(),
        lock::POOLS => "pools".to_owned(),
        lock::SUSPENDED => "suspended claims".to_owned(),
        DATABASE => "the state".to_owned(),
        name => format!("pool {}", name.trim_end_matches(".lock")),
    };
    let who = match (pid, command) {
        (Some(pid), Some(command)) => format!("process {pid} ({command})"),
        (Some(pid), None) => format!("process {pid}"),
        (None, _) => "another command".to_owned(),
    };
    let how = if stopped { ", and is stopped" } else { "" };
    format!(
        "{who} works at {what}{how}; waited {} s for it",
        waited.as_secs()
    )
}

fn no_room(path: &Path) -> String {
    format!(
        "{}: it is full where {} lies; guests go on meanwhile",
        full_disk::HINT,
        path.display()
    )
}

/// Makes the state folder and the run folder in it.
fn make_folders(dir: &Path, run: &Path) -> io::Result<()> {
    if !dir.is_dir() {
        owner_only::create_folder(dir)?;
    }
    owner_only::create_folder(run)
}

/// Creates the database's file, if it does not exist, for its owner alone: SQLite gives its journal
/// the same mode. A file that others may read, as earlier versions made it, becomes the owner's
/// alone.
fn make_database(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(facts) if facts.mode() & owner_only::OTHERS == 0 => Ok(()),
        Ok(_) => {
            let journals = ["-wal", "-shm"].map(|end| Journal::beside(path, end));
            owner_only::restrict(path)?;
            journals
                .iter()
                .try_for_each(|path| owner_only::restrict(path))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => owner_only::options()
            .create(true)
            .append(true)
            .open(path)
            .map(drop),
        Err(e) => Err(e),
    }
}

/// The state folder, open.
#[derive(Debug)]
pub struct State {
    dir: PathBuf,
    database: Connection,
    journal: Journal,
    boot_id: String,
    /// Why changes are not kept, when the database is a copy.
    unwritable: Option<String>,
    /// Where the copy is. It goes after the connection to it.
    scratch: Option<look::Scratch>,
    /// The folder of keys of which one must have signed each checkpoint.
    signers: Option<PathBuf>,
}

impl State {
    /// The folder that is used when the configuration names none: `/var/db/brood` for root, else
    /// the XDG state folder.
    ///
    /// # Errors
    /// [`Error::Nowhere`].
    pub fn usual_dir() -> Result<PathBuf, Error> {
        let set = |name: &str| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        if nix::unistd::geteuid().is_root() {
            return Ok(PathBuf::from("/var/db/brood"));
        }
        set("XDG_STATE_HOME")
            .filter(|dir| dir.is_absolute())
            .or_else(|| set("HOME").map(|home| home.join(".local/state")))
            .map(|dir| dir.join("brood"))
            .ok_or(Error::Nowhere)
    }

    /// Opens the state in `dir`, making it when it is not there. Only its owner may enter it.
    ///
    /// # Errors
    /// When it cannot be made, read or understood.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let run = dir.join("run");
        make_folders(dir, &run).map_err(|source| Error::Io {
            action: "make the folder",
            path: run.clone(),
            source,
        })?;
        damage::check_files(dir)?;
        let path = dir.join(DATABASE);
        make_database(&path).map_err(|source| Error::Io {
            action: "make",
            path: path.clone(),
            source,
        })?;
        let opened = schema::open(&path, || damage::check_new(dir))?;
        let state = Self::with(dir, &path, opened.database)?;
        if (1..schema::TOKEN_DIGESTS).contains(&opened.version) {
            state.rewrite_claim_files()?;
        }
        Ok(state)
    }

    /// The state in `dir`, whose database is the file `path`.
    fn with(dir: &Path, path: &Path, database: Connection) -> Result<Self, Error> {
        let journal = Journal::of(path).map_err(|source| Error::Io {
            action: "open",
            path: Journal::path(path),
            source,
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            database,
            journal,
            boot_id: whence().map_err(|source| Error::Io {
                action: "find out which guests run: cannot read the id of the boot, or of the PID namespace, for",
                path: dir.to_owned(),
                source,
            })?,
            unwritable: None,
            scratch: None,
            signers: None,
        })
    }

    /// Checks all of the database, its indexes too.
    ///
    /// # Errors
    /// [`Error::Damaged`] when something is wrong with it.
    pub fn check(&self) -> Result<(), Error> {
        match damage::check_all(&self.database).map_err(|e| self.database_error(e))? {
            None => Ok(()),
            Some(reason) => Err(Error::Damaged {
                path: self.path(),
                reason,
            }),
        }
    }

    /// The folder of sockets, records and locks.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The folder of suspended claims' bundles.
    #[must_use]
    pub(crate) fn suspended_dir(&self) -> PathBuf {
        suspended_dir(&self.dir)
    }

    /// The folder itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self) -> PathBuf {
        self.dir.join(DATABASE)
    }

    fn database_error(&self, source: rusqlite::Error) -> Error {
        Error::database(&self.path(), source)
    }
}

/// The boot and the PID namespace that process ids of newly restored guests belong to.
fn whence() -> io::Result<String> {
    Ok(format!("{}/{}", boot::id()?, process::namespace()?))
}

/// The folder of suspended claims' bundles. An earlier version called it `cold`: the record and the
/// disks have those bundles by their paths, so there it stays.
fn suspended_dir(dir: &Path) -> PathBuf {
    let earlier = dir.join("cold");
    match std::fs::symlink_metadata(&earlier) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => dir.join("suspended"),
        _ => earlier,
    }
}
