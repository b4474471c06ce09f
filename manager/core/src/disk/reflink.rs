//! Disks as files that share their blocks (reflinks: XFS, Btrfs, and OpenZFS with block cloning).
//!
//! A clone is made under a temporary name and gets its own by rename(2), so a clone that has its
//! name is complete. A snapshot is made in the same way beside the bundle, read-only, and is on the
//! disk before the bundle is sealed. Clones share blocks with their source, but nothing else:
//! removing a file never harms another.

pub(super) mod blocks;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use blocks::{can_share, copy};
use nix::fcntl::OFlag;

use super::{Digest, Error, Owner, Provider, SealedDisk, Token, qcow2};
use crate::{
    checkpoint::{
        BundlePath, FileStamp, Watch,
        manifest::{DiskProvider, DiskSnapshot},
        sha256_file,
    },
    full_disk,
    guest_id::GuestId,
    owner_only,
    shared_blocks::{own_bytes, share_blocks},
    units::Bytes,
};

/// Folder of the guests' disks, beside their source.
pub(super) const FOLDER: &str = "brood-disks";
/// What the name of a guest's disk ends with.
pub(super) const DISK: &str = ".disk";
/// What the name of an overlay ends with that is a guest's disk.
pub(super) const OVERLAY: &str = ".qcow2";
/// Both.
pub(super) const SUFFIXES: [&str; 2] = [DISK, OVERLAY];
/// What stands between a bundle's name and the token in the name of its snapshot.
pub(super) const SNAPSHOT: &str = ".ckp.disk-";

/// How a clone comes by what its source holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Both share blocks.
    Share,
    /// Both share blocks where the file system can do that; else the clone is a copy.
    Copy,
    /// The clone refers to its source.
    Overlay,
}

/// Disks that are clones of one file.
#[derive(Debug)]
pub struct Reflink {
    owner: Owner,
    source: PathBuf,
    way: Way,
    opened: OnceLock<(File, FileStamp)>,
}

impl Reflink {
    /// The disks of an owner that come from this file. With `copy`, what the file system cannot
    /// share is copied.
    #[must_use]
    pub fn new(owner: Owner, source: PathBuf, copy: bool) -> Self {
        let way = if copy { Way::Copy } else { Way::Share };
        Self {
            owner,
            source,
            way,
            opened: OnceLock::new(),
        }
    }

    /// Disks that refer to this file for all that was not written.
    #[must_use]
    pub fn overlays(owner: Owner, source: PathBuf) -> Self {
        Self {
            way: Way::Overlay,
            ..Self::new(owner, source, true)
        }
    }

    fn folder(&self) -> PathBuf {
        let dir = self.source.parent().unwrap_or(Path::new("/"));
        dir.join(FOLDER)
    }

    /// The file that is a guest's disk.
    #[must_use]
    pub fn disk(&self, guest: &GuestId) -> PathBuf {
        let suffix = match self.way {
            Way::Overlay => OVERLAY,
            Way::Share | Way::Copy => DISK,
        };
        let name = format!("{}{suffix}", self.owner.name_for(guest));
        self.folder().join(name)
    }

    /// The source, opened once: what was checked is what is cloned.
    fn source(&self) -> Result<&(File, FileStamp), Error> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        let (file, path) = (open(&self.source)?, &self.source);
        let stamp = FileStamp::of(&file).map_err(|e| Error::io("examine", path, e))?;
        Ok(self.opened.get_or_init(|| (file, stamp)))
    }

    fn unchanged(&self) -> Result<(), Error> {
        let (file, before) = self.source()?;
        let now = FileStamp::of(file).map_err(|e| Error::io("examine", &self.source, e))?;
        if (now.size, now.mtime_ns) == (before.size, before.mtime_ns) {
            Ok(())
        } else {
            Err(Error::Changed {
                file: self.source.clone(),
            })
        }
    }

    fn take(
        &self,
        from: &Path,
        to: &Path,
        temporary: &Path,
        watch: Watch<'_>,
    ) -> Result<String, Error> {
        let disk = open(from)?;
        let file = create(temporary)?;
        match self.way {
            Way::Overlay => {
                let (base, _) = self.source()?;
                qcow2::flatten(&disk, base, &file, watch)
                    .map_err(|e| Error::io("read", from, e))?;
            }
            Way::Share | Way::Copy => self.share(&disk, from, &file, to, watch)?,
        }
        owner_only::seal(&file).map_err(|e| Error::io("make read-only", temporary, e))?;
        file.sync_all()
            .map_err(|e| Error::io("write to disk", temporary, e))?;
        rename(temporary, to)?;
        sync_folder(to)?;
        sha256_file(&file, watch).map_err(|e| Error::io("read", to, e))
    }

    /// Fills a new clone.
    fn fill(&self, source: &File, file: &File, disk: &Path, watch: Watch<'_>) -> Result<(), Error> {
        if self.way != Way::Overlay {
            return self.share(source, &self.source, file, disk, watch);
        }
        let size = source.metadata().map(|facts| facts.len());
        size.and_then(|size| qcow2::write_overlay(file, size, &self.source))
            .map_err(|e| Error::io("make an overlay of", &self.source, e))
    }

    fn share(
        &self,
        from: &File,
        from_path: &Path,
        to: &File,
        to_path: &Path,
        watch: Watch<'_>,
    ) -> Result<(), Error> {
        match share_blocks(from, to) {
            Err(_) if self.way == Way::Copy => {
                copy(from, to, watch).map_err(|e| Error::io("copy to", to_path, e))
            }
            result => result.map_err(|e| not_shared(from_path, to_path, e)),
        }
    }
}

/// Why two files do not share blocks: a full disk says nothing of what its file system can.
fn not_shared(from: &Path, to: &Path, cause: io::Error) -> Error {
    if full_disk::is_full(&cause) {
        return Error::io("make a clone of", from, cause);
    }
    Error::CannotShare {
        from: from.to_owned(),
        to: to.to_owned(),
        cause,
    }
}

impl Provider for Reflink {
    fn open(&self, sealed: Option<SealedDisk<'_>>, digest: Digest<'_>) -> Result<(), Error> {
        let (file, _) = self.source()?;
        if self.way == Way::Share {
            // Told once, and not for each guest.
            let folder = self.folder();
            can_share(file, folder.parent().unwrap_or(Path::new("/")))
                .map_err(|cause| not_shared(&self.source, &folder, cause))?;
        }
        let Some(sealed) = sealed else {
            return Ok(());
        };
        let found = digest(file).map_err(|e| Error::io("read", &self.source, e))?;
        if found == sealed.disk.identity {
            return Ok(());
        }
        Err(Error::Other {
            disk: self.source.display().to_string(),
            what: "SHA-256",
            found,
            sealed: sealed.disk.identity.clone(),
        })
    }

    fn clone_for(&self, guest: &GuestId, watch: Watch<'_>) -> Result<(), Error> {
        let disk = self.disk(guest);
        if exists(&disk)? {
            return Ok(());
        }
        let folder = self.folder();
        owner_only::create_folder(&folder).map_err(|e| Error::io("make the folder", &folder, e))?;
        let temporary = temporary(&disk);
        remove(&temporary)?;
        let (source, _) = self.source()?;
        let file = create(&temporary)?;
        let made = self
            .fill(source, &file, &disk, watch)
            .and_then(|()| self.unchanged())
            .and_then(|()| rename(&temporary, &disk));
        if made.is_err() {
            let _ = remove(&temporary);
        }
        made
    }

    fn location(&self, guest: &GuestId) -> Result<Option<PathBuf>, Error> {
        let disk = self.disk(guest);
        Ok(exists(&disk)?.then_some(disk))
    }

    fn own_bytes(&self, guest: &GuestId) -> Result<Option<Bytes>, Error> {
        let disk = self.disk(guest);
        let file = match open(&disk) {
            Err(Error::Missing { .. }) => return Ok(None),
            file => file?,
        };
        let own = own_bytes(&file).map_err(|e| Error::io("examine", &disk, e))?;
        Ok(Some(Bytes(own)))
    }

    fn release(&self, guest: &GuestId) -> Result<(), Error> {
        let disk = self.disk(guest);
        remove(&temporary(&disk))?;
        remove(&disk)
    }

    fn snapshot(
        &self,
        guest: &GuestId,
        bundle: &BundlePath,
        token: &Token,
        watch: Watch<'_>,
    ) -> Result<DiskSnapshot, Error> {
        let name = format!("{}{SNAPSHOT}{token}", bundle.name());
        let (from, to) = (self.disk(guest), bundle.dir().join(&name));
        let Some(source) = from.to_str() else {
            return Err(Error::Name {
                given: from.to_string_lossy().into_owned(),
                reason: "its path is not UTF-8",
            });
        };
        match self.take(&from, &to, &temporary(&to), watch) {
            Ok(sha256) => Ok(DiskSnapshot {
                device: None,
                provider: DiskProvider::Reflink,
                source: source.to_owned(),
                snapshot: name,
                identity: sha256,
            }),
            Err(e) => {
                // What cannot be removed now is found again: it is in no bundle.
                let _ = remove(&temporary(&to)).and_then(|()| remove(&to));
                Err(e)
            }
        }
    }

    fn discard(&self, bundle: &BundlePath, snapshot: &DiskSnapshot) -> Result<(), Error> {
        discard(&snapshot_file(bundle, snapshot)?)
    }
}

/// Removes a bundle's snapshot.
pub(super) fn discard(file: &Path) -> Result<(), Error> {
    remove(&temporary(file))?;
    remove(file)?;
    sync_folder(file)
}

/// The file of a bundle's snapshot.
pub(super) fn snapshot_file(
    bundle: &BundlePath,
    snapshot: &DiskSnapshot,
) -> Result<PathBuf, Error> {
    // It comes from a file that anybody may have written, and names one to open and to remove.
    if split_snapshot_name(&snapshot.snapshot).is_none() {
        return Err(Error::Name {
            given: snapshot.snapshot.clone(),
            reason: "a bundle's disk is called NAME.ckp.disk-TOKEN",
        });
    }
    Ok(bundle.dir().join(&snapshot.snapshot))
}

/// The bundle's name and the token of a snapshot's file name.
pub(super) fn split_snapshot_name(name: &str) -> Option<(&str, Token)> {
    let (bundle, token) = name.rsplit_once(SNAPSHOT)?;
    let plain = !bundle.is_empty() && !bundle.starts_with('.') && !bundle.contains('/');
    let token = token.parse().ok()?;
    plain.then_some((bundle, token))
}

/// Name of a file until it is complete.
pub(super) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

pub(super) fn open(path: &Path) -> Result<File, Error> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path);
    let file = opened.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::Missing {
            disk: path.display().to_string(),
        },
        _ => Error::io("open", path, e),
    })?;
    let facts = file.metadata().map_err(|e| Error::io("examine", path, e))?;
    if facts.is_file() {
        Ok(file)
    } else {
        Err(Error::NotRegular {
            file: path.to_owned(),
        })
    }
}

pub(super) fn create(path: &Path) -> Result<File, Error> {
    owner_only::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(|e| Error::io("create", path, e))
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(|e| Error::io("rename", from, e))
}

fn exists(path: &Path) -> Result<bool, Error> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io("examine", path, e)),
    }
}

/// Removes a file that may or may not be there.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

pub(super) fn sync_folder(of: &Path) -> Result<(), Error> {
    let dir = of.parent().unwrap_or(Path::new("/"));
    match File::open(dir).and_then(|dir| dir.sync_all()) {
        // Nothing is left of it, then.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|e| Error::io("write to disk", dir, e)),
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn a_full_disk_is_not_one_that_cannot_share() {
        let told = |errno: Errno| not_shared(Path::new("/a"), Path::new("/b"), errno.into());
        for full in [Errno::ENOSPC, Errno::EDQUOT] {
            let error = told(full);
            assert!(matches!(error, Error::Io { .. }), "{error}");
            assert_eq!(error.hint().as_deref(), Some(full_disk::HINT));
        }
        for cannot in [Errno::EOPNOTSUPP, Errno::EXDEV] {
            assert!(
                matches!(told(cannot), Error::CannotShare { .. }),
                "{cannot}"
            );
        }
    }
}
