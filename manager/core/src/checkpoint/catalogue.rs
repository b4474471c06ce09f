//! Catalogue of bundles: lists those in a folder, and removes one.

use std::{collections::BTreeSet, path::Path};

use super::{
    error::Error,
    folder::Folder,
    manifest::Manifest,
    open::Checkpoint,
    path::{BundlePath, Part},
    signature,
    writer::Lock,
};
use crate::units::Bytes;

/// A bundle in a folder.
#[derive(Debug)]
pub struct CatalogueEntry {
    /// Where it lies.
    pub path: BundlePath,
    /// Length of all its files, holes counted.
    pub size: Bytes,
    /// Whether it can be restored from.
    pub state: BundleState,
}

/// Whether a bundle can be restored from, as far as can be told without reading its memory.
#[derive(Debug)]
pub enum BundleState {
    /// It can.
    Whole(Box<Manifest>),
    /// It has no manifest: it is being written, or its writer or remover died.
    Incomplete,
    /// It has a manifest, and this is wrong with it.
    Broken(Error),
}

/// Every bundle in a folder, whole or not, sorted by name.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be read.
pub fn list(dir: &Path) -> Result<Vec<CatalogueEntry>, Error> {
    let read = |cause| Error::io("list", dir, cause);
    let paths = bundles(dir)?;
    let folder = Folder::open(dir).map_err(read)?;
    let mut listed = Vec::with_capacity(paths.len());
    for path in paths {
        let size = size(&folder, &path)?;
        let state = if folder.holds(&path.file_name(Part::Manifest))? {
            match Checkpoint::open(&path) {
                Ok(checkpoint) => BundleState::Whole(Box::new(checkpoint.manifest().clone())),
                Err(error) => BundleState::Broken(error),
            }
        } else {
            BundleState::Incomplete
        };
        listed.push(CatalogueEntry { path, size, state });
    }
    Ok(listed)
}

/// Every bundle of which something lies in a folder, sorted by name.
pub(super) fn bundles(dir: &Path) -> Result<BTreeSet<BundlePath>, Error> {
    let read = |cause| Error::io("list", dir, cause);
    let mut paths = BTreeSet::new();
    for entry in dir.read_dir().map_err(read)? {
        let name = entry.map_err(read)?.file_name();
        paths.extend(
            name.to_str()
                .and_then(|name| BundlePath::of_entry(dir, name)),
        );
    }
    Ok(paths)
}

/// Whether a process is writing or removing a bundle now.
///
/// # Errors
/// [`Error::Io`] when its folder cannot be looked at.
pub(crate) fn is_being_written(path: &BundlePath) -> Result<bool, Error> {
    let folder = Folder::open(path.dir())
        .map_err(|cause| Error::io("open the folder", path.dir(), cause))?;
    Lock::is_held(path, &folder)
}

/// Removes a bundle, whole or not, and says how many bytes its files had (holes not counted).
/// Whether anybody uses it is for the caller to ask.
///
/// # Errors
/// [`Error::Busy`] while a process writes the bundle, [`Error::NotFound`] when there is nothing to
/// remove.
pub fn remove(path: &BundlePath) -> Result<Bytes, Error> {
    let folder = Folder::open(path.dir())
        .map_err(|cause| Error::io("open the folder", path.dir(), cause))?;
    let mut exists = false;
    for part in Part::ALL {
        exists |= folder.holds(&path.file_name(part))?;
        exists |= folder.holds(&path.temporary_name(part))?;
    }
    if !exists {
        return Err(Error::NotFound {
            bundle: path.clone(),
            file: path.manifest(),
        });
    }
    let allocated = allocated(&folder, path)?;
    let lock = Lock::acquire(path, folder)?;
    for part in Part::ALL {
        lock.folder().remove(&path.file_name(part))?;
    }
    signature::remove(lock.folder(), path)?;
    lock.folder().sync()?;
    Ok(allocated)
}

/// Removes what a writer left of a bundle when it died. Leaves a sealed bundle, and one that a
/// process writes or removes, as it is.
pub(crate) fn remove_draft(path: &BundlePath) -> Result<(), Error> {
    let folder = match Folder::open(path.dir()) {
        // Nothing was written yet, or all of it is gone.
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(|cause| Error::io("open the folder", path.dir(), cause))?,
    };
    if !folder.holds(&path.temporary_name(Part::Manifest))? {
        return Ok(());
    }
    match Lock::try_acquire(path, folder) {
        Ok(_) | Err(Error::Busy { .. }) => Ok(()),
        Err(e) => Err(e),
    }
}

fn each_file(folder: &Folder, path: &BundlePath) -> Result<Vec<nix::sys::stat::FileStat>, Error> {
    let mut files = Vec::new();
    for part in Part::ALL {
        for name in [path.file_name(part), path.temporary_name(part)] {
            files.extend(folder.look(&name)?);
        }
    }
    Ok(files)
}

fn size(folder: &Folder, path: &BundlePath) -> Result<Bytes, Error> {
    let length = |file: &nix::sys::stat::FileStat| Bytes(u64::try_from(file.st_size).unwrap_or(0));
    Ok(each_file(folder, path)?.iter().map(length).sum())
}

/// Blocks of 512 bytes, by stat(2).
fn allocated(folder: &Folder, path: &BundlePath) -> Result<Bytes, Error> {
    let blocks = |file: &nix::sys::stat::FileStat| {
        Bytes(u64::try_from(file.st_blocks).unwrap_or(0)).saturating_mul(512)
    };
    Ok(each_file(folder, path)?.iter().map(blocks).sum())
}
