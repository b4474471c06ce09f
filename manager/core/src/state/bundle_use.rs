//! Bundles in use: which process reads, writes or removes which bundle, noted where the database cannot yet
//! say so. A restore reads a bundle to its end before it records its guests, and nobody may remove
//! the bundle meanwhile.
//!
//! Each such process has a file in `STATE/bundles`. The process holds it locked (flock(2)), and the
//! file names the bundle and the action. A restore first writes its file, or records its guests,
//! and then looks for removers; a remover first writes its file, and then looks for readers and
//! guests. So at least one of the two sees the other, and neither waits.
//!
//! A process that is killed while it writes a bundle leaves its file, unlocked, and so the next look
//! knows where a draft may lie that nobody would find otherwise, and removes it.

use std::{
    env,
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Error, State, lock};
use crate::{
    checkpoint::{self, BundlePath},
    directory,
    engine::Process,
    guest_id::random,
    owner_only,
};

/// The folder of the files. Nobody removes it: another process may be about to make a file there.
const FOLDER: &str = "bundles";

/// Action on a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BundleAction {
    /// It is read, with its parents.
    Read,
    /// It is removed, or its manifest is replaced.
    Remove,
    /// It is new, and being written.
    Write,
}

/// A process that uses a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleUser {
    /// The process.
    pub process: Process,
    /// Its command line, in a few words.
    pub command: String,
    /// Absolute `DIR/NAME`.
    pub bundle: String,
    /// What it does to the bundle.
    pub action: BundleAction,
}

impl std::fmt::Display for BundleUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.action {
            BundleAction::Read => "reads it",
            BundleAction::Remove => "removes or changes it",
            BundleAction::Write => "writes it",
        };
        write!(f, "process {} ({}) {what}", self.process.pid, self.command)
    }
}

/// Notice of what this process does to a bundle, until it is dropped.
#[derive(Debug)]
#[must_use = "the bundle is in use until this is dropped"]
pub struct BundleUse {
    path: PathBuf,
    // Closed, and so unlocked, after its name is gone.
    _file: File,
}

impl Drop for BundleUse {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl State {
    /// Notes that this process uses a bundle.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn use_bundle(
        &self,
        bundle: &BundlePath,
        action: BundleAction,
    ) -> Result<BundleUse, Error> {
        let folder = self.dir().join(FOLDER);
        self.try_use(&folder, bundle, action)
            .map_err(|source| Error::Io {
                action: "say which checkpoint is in use, in",
                path: folder,
                source,
            })
    }

    fn try_use(
        &self,
        folder: &Path,
        bundle: &BundlePath,
        action: BundleAction,
    ) -> io::Result<BundleUse> {
        let this = Process::with_pid(std::process::id().cast_signed())?;
        let user = BundleUser {
            process: this.ok_or(io::ErrorKind::NotFound)?,
            command: lock::command(env::args_os().map(|word| word.to_string_lossy().into_owned())),
            bundle: absolute(bundle).to_string(),
            action,
        };
        let random: [u8; 8] = random()?;
        let path = folder.join(format!("{:016x}", u64::from_ne_bytes(random)));
        // It has its name only once it is whole and held.
        let unnamed = path.with_extension("new");
        owner_only::create_folder(folder)?;
        let mut file = owner_only::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&unnamed)?;
        file.try_lock().map_err(io::Error::from)?;
        file.write_all(&serde_json::to_vec(&user)?)
            .and_then(|()| fs::rename(&unnamed, &path))
            .inspect_err(|_| drop(fs::remove_file(&unnamed)))?;
        Ok(BundleUse { path, _file: file })
    }

    /// Removes drafts of bundles whose writers were killed. The next look finds what cannot be
    /// looked at or removed now.
    pub(crate) fn sweep_drafts(&self) {
        if let Err(error) = self.bundle_users() {
            tracing::warn!(%error, "cannot look for what killed commands have left");
        }
    }

    /// Processes that use a bundle, this one included. Removes the files of processes that have
    /// ended, and the drafts that they have left.
    ///
    /// # Errors
    /// When they cannot be looked at.
    pub(crate) fn bundle_users(&self) -> Result<Vec<BundleUser>, Error> {
        let folder = self.dir().join(FOLDER);
        let failed = |source| Error::Io {
            action: "look which checkpoints are in use, in",
            path: folder.clone(),
            source,
        };
        let mut users = Vec::new();
        for entry in directory::entries(&folder).map_err(failed)? {
            users.extend(user_in(&entry.path()).map_err(failed)?);
        }
        Ok(users)
    }
}

/// The process that holds this file. `None` when that process has ended; then the file is removed.
fn user_in(path: &Path) -> io::Result<Option<BundleUser>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let is_whole = path.extension().is_none();
    match file.try_lock() {
        // A file without its final name may be about to be locked.
        Ok(()) if is_whole => {
            // What cannot be removed now is tried again by the next look.
            match remove_draft(&file) {
                Ok(()) => drop(fs::remove_file(path)),
                Err(error) => {
                    tracing::warn!(%error, "cannot remove what a killed command has left");
                }
            }
            Ok(None)
        }
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) if is_whole => {
            // By its descriptor: the name goes when its process is done with the bundle.
            let mut text = Vec::new();
            (&file).read_to_end(&mut text)?;
            Ok(Some(serde_json::from_slice(&text)?))
        }
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Removes the draft of which the file of a process that has ended tells.
fn remove_draft(file: &File) -> Result<(), checkpoint::Error> {
    let mut text = Vec::new();
    let mut reader = file;
    let user = match reader.read_to_end(&mut text) {
        Ok(_) => serde_json::from_slice::<BundleUser>(&text).ok(),
        Err(_) => None,
    };
    match user {
        Some(user) if user.action == BundleAction::Write => {
            checkpoint::remove_draft(&user.bundle.parse()?)
        }
        _ => Ok(()),
    }
}

/// The path of a bundle from the root, whose folder may not be there yet.
fn absolute(bundle: &BundlePath) -> BundlePath {
    let of_new = || {
        let path = std::path::absolute(bundle.dir().join(bundle.name())).ok()?;
        BundlePath::new(&path).ok()
    };
    let known = bundle.absolute().ok();
    known.or_else(of_new).unwrap_or_else(|| bundle.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(state: &State) -> usize {
        fs::read_dir(state.dir().join(FOLDER)).unwrap().count()
    }

    #[test]
    fn a_use_is_seen_as_long_as_it_lasts_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("state")).unwrap();
        let bundle: BundlePath = dir.path().join("demo").to_str().unwrap().parse().unwrap();
        assert_eq!(state.bundle_users().unwrap(), []);
        let reads = state.use_bundle(&bundle, BundleAction::Read).unwrap();
        let removes = state.use_bundle(&bundle, BundleAction::Remove).unwrap();
        assert_eq!(state.bundle_users().unwrap().len(), 2);
        drop(reads);
        let left = state.bundle_users().unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].process.pid, std::process::id().cast_signed());
        assert_eq!(left[0].action, BundleAction::Remove);
        drop(removes);
        assert_eq!(files(&state), 0);
        // A process that has ended leaves its file, unlocked.
        let left = state.dir().join(FOLDER).join("0123456789abcdef");
        fs::write(&left, "{}").unwrap();
        assert_eq!(state.bundle_users().unwrap(), []);
        assert!(!left.exists());
    }
}
