//! Lock of a bundle: one writer or remover at a time. It also decides what becomes of a dead
//! writer's files.

use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    thread,
    time::{Duration, Instant},
};

use crate::{
    checkpoint::{
        error::Error,
        folder::Folder,
        hash::sha256_file,
        manifest::{FileSeal, Manifest},
        open::{parse_manifest, read_whole},
        path::{BundlePath, Part},
        validate::MANIFEST_MAX,
    },
    faults::{self, Point},
    owner_only,
};

/// How long a held lock is waited for. Whoever removes a dead writer's files, or looks whether there
/// is a writer, holds it for a moment.
const PATIENCE: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The temporary manifest, locked. The kernel unlocks it when its holder dies. Dropped, it
/// removes every temporary file of the bundle, itself last.
#[derive(Debug)]
pub(in crate::checkpoint) struct Lock {
    path: BundlePath,
    folder: Folder,
    file: File,
    cleans: bool,
}

impl Lock {
    /// Whether a process holds a bundle's lock. Files that a dead writer left are not locked.
    pub(in crate::checkpoint) fn is_held(
        path: &BundlePath,
        folder: &Folder,
    ) -> Result<bool, Error> {
        let name = path.temporary_name(Part::Manifest);
        let Some(file) = folder.open_file(&name)? else {
            return Ok(false);
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(cause)) => {
                Err(Error::io("look at the lock", &folder.file(&name), cause))
            }
        }
    }

    /// Locks a bundle, and first removes what dead writers of it left. Waits a little for another
    /// process that has it locked.
    pub(in crate::checkpoint) fn acquire(path: &BundlePath, folder: Folder) -> Result<Self, Error> {
        let begin = Instant::now();
        loop {
            match take(path, &folder) {
                Err(Error::Busy { .. }) if begin.elapsed() < PATIENCE => {
                    thread::sleep(POLL_INTERVAL);
                }
                taken => return Ok(Self::new(path, folder, taken?)),
            }
        }
    }

    /// The same, without waiting.
    pub(in crate::checkpoint) fn try_acquire(
        path: &BundlePath,
        folder: Folder,
    ) -> Result<Self, Error> {
        let taken = take(path, &folder)?;
        Ok(Self::new(path, folder, taken))
    }

    fn new(path: &BundlePath, folder: Folder, file: File) -> Self {
        Self {
            path: path.clone(),
            folder,
            file,
            cleans: true,
        }
    }

    /// The bundle's folder.
    pub(in crate::checkpoint) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Writes the manifest's text, makes it read-only and waits until it is on the disk.
    pub(super) fn write(&self, text: &[u8]) -> io::Result<()> {
        faults::writing(Point::BundleManifest, text, |text| {
            self.file.write_all_at(text, 0)
        })?;
        owner_only::seal(&self.file)?;
        self.file.sync_all()
    }

    /// Puts another manifest in the place of the bundle's own, in one step.
    pub(in crate::checkpoint) fn replace_manifest(
        mut self,
        manifest: &Manifest,
    ) -> Result<(), Error> {
        let (from, to) = (
            self.path.temporary_name(Part::Manifest),
            self.path.file_name(Part::Manifest),
        );
        let path = self.folder.file(&from);
        let written = |cause: io::Error| Error::io("write", &path, cause);
        let mut text = serde_json::to_vec_pretty(manifest).map_err(|e| written(e.into()))?;
        text.push(b'\n');
        self.write(&text).map_err(written)?;
        self.folder.replace(&from, &to)?;
        // The lock has the manifest's name now.
        self.leave();
        self.folder.sync()
    }

    /// Leaves what has a temporary name where it is.
    pub(super) fn leave(&mut self) {
        self.cleans = false;
    }
}

/// Makes the temporary manifest and locks it; removes what dead writers left.
fn take(path: &BundlePath, folder: &Folder) -> Result<File, Error> {
    let name = path.temporary_name(Part::Manifest);
    let busy = || Error::Busy {
        bundle: path.clone(),
        file: path.dir().join(&name),
    };
    // Repeats only when another process came or went between two steps.
    for _ in 0..100 {
        let (file, ours) = match folder.create_file(&name)? {
            Some(file) => (file, true),
            None => match folder.open_file(&name)? {
                Some(file) => (file, false),
                None => continue,
            },
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(busy()),
            Err(TryLockError::Error(cause)) => {
                return Err(Error::io("lock", &folder.file(&name), cause));
            }
        }
        if !names(folder, &name, &file)? {
            continue;
        }
        if ours {
            remove_temporaries(path, folder)?;
            return Ok(file);
        }
        recover(path, folder, &file)?;
        folder.remove(&name)?;
    }
    Err(busy())
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.cleans {
            // What cannot be removed now is found again by the next writer.
            let _ = remove_temporaries(&self.path, &self.folder);
            let _ = self
                .folder
                .remove(&self.path.temporary_name(Part::Manifest));
        }
    }
}

/// All but the temporary manifest, which is the lock.
fn remove_temporaries(path: &BundlePath, folder: &Folder) -> Result<(), Error> {
    Part::SEALED
        .iter()
        .try_for_each(|part| folder.remove(&path.temporary_name(*part)))
}

/// Whether a name (still) refers to an open file.
fn names(folder: &Folder, name: &str, file: &File) -> Result<bool, Error> {
    let facts = file
        .metadata()
        .map_err(|cause| Error::io("examine", &folder.file(name), cause))?;
    Ok(folder
        .look(name)?
        .is_some_and(|named| named.st_ino == facts.ino() && named.st_dev == facts.dev()))
}

/// Removes a dead writer's files: those with temporary names, and those that had their final name
/// already when it died. It removes the latter only if their content is that of the dead writer's
/// manifest, and only while there is no final manifest.
fn recover(path: &BundlePath, folder: &Folder, journal: &File) -> Result<(), Error> {
    let file = folder.file(&path.temporary_name(Part::Manifest));
    if !folder.holds(&path.file_name(Part::Manifest))? {
        // Not whole: the writer died before any file had its final name.
        let whole =
            read_whole(journal, &file, MANIFEST_MAX).and_then(|text| parse_manifest(&file, &text));
        if let Ok(Manifest { files, .. }) = whole {
            for (part, seal) in Part::SEALED
                .iter()
                .zip([&files.ckp, &files.kern, &files.meta])
            {
                let name = path.file_name(*part);
                if is_sealed(folder, &name, seal)? {
                    folder.remove(&name)?;
                }
            }
        }
    }
    remove_temporaries(path, folder)?;
    folder.sync()
}

fn is_sealed(folder: &Folder, name: &str, seal: &FileSeal) -> Result<bool, Error> {
    // Only regular files are brood's.
    let Ok(Some(file)) = folder.open_file(name) else {
        return Ok(false);
    };
    let read = |cause| Error::io("read", &folder.file(name), cause);
    Ok(file.metadata().map_err(read)?.len() == seal.size.0
        && sha256_file(&file, &crate::checkpoint::unwatched).map_err(read)? == seal.sha256)
}
