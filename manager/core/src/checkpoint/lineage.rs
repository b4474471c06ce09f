//! Lineage of bundles: which bundle needs which. It reads manifests alone, so that a bundle with
//! damaged or missing memory still counts by its name.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    error::Error,
    folder::Folder,
    manifest::{Manifest, Parent},
    open::{DELTAS_MAX, parent_path, parse_manifest, read_whole},
    path::{BundlePath, Part},
    validate::MANIFEST_MAX,
};

/// The manifest of a bundle; `None` when there is none, or it is no manifest.
///
/// # Errors
/// [`Error::Io`] when it is there, or may be, and cannot be read.
pub(crate) fn manifest_of(path: &BundlePath) -> Result<Option<Manifest>, Error> {
    let folder = match Folder::open(path.dir()) {
        Ok(folder) => folder,
        Err(cause) if is_absence(&cause) => return Ok(None),
        Err(cause) => return Err(Error::io("open the folder", path.dir(), cause)),
    };
    manifest_in(&folder, path)
}

fn manifest_in(folder: &Folder, path: &BundlePath) -> Result<Option<Manifest>, Error> {
    let file = match folder.open_file(&path.file_name(Part::Manifest)) {
        Ok(Some(file)) => file,
        Err(error @ Error::Io { .. }) => return Err(error),
        Ok(None) | Err(_) => return Ok(None),
    };
    let read = read_whole(&file, &path.manifest(), MANIFEST_MAX)
        .and_then(|text| parse_manifest(&path.manifest(), &text));
    match read {
        Ok(manifest) => Ok(Some(manifest)),
        Err(error @ Error::Io { .. }) => Err(error),
        // A damaged bundle cannot be restored, so its parents do not matter.
        Err(_) => Ok(None),
    }
}

/// Whether a bundle was sealed: its manifest, which appears last, is there. Its other files, and
/// its parents, are not looked at.
///
/// # Errors
/// [`Error::Io`] when its folder cannot be looked at.
pub(crate) fn is_sealed(path: &BundlePath) -> Result<bool, Error> {
    match Folder::open(path.dir()) {
        Ok(folder) => folder.holds(&path.file_name(Part::Manifest)),
        Err(cause) if is_absence(&cause) => Ok(false),
        Err(cause) => Err(Error::io("open the folder", path.dir(), cause)),
    }
}

/// The parents of a bundle, as far as manifests tell, the nearest first.
///
/// # Errors
/// [`Error::Io`] when a manifest cannot be read.
pub fn parents_of(path: &BundlePath) -> Result<Vec<BundlePath>, Error> {
    let mut parents = Vec::new();
    let mut path = path.clone();
    while parents.len() <= DELTAS_MAX {
        let Some(parent) = manifest_of(&path)?.and_then(|manifest| manifest.parent) else {
            break;
        };
        path = locate(&path, &parent, &[])?.unwrap_or(parent_path(&path, &parent)?);
        parents.push(path.clone());
    }
    Ok(parents)
}

/// Where the parent of a delta lies: where its manifest says, or, when it was moved, beside the
/// delta or in one of these folders, known by its digest. `None` when it is nowhere.
///
/// # Errors
/// [`Error::Io`] when the place that the manifest names cannot be read.
pub(super) fn locate(
    delta: &BundlePath,
    parent: &Parent,
    folders: &[PathBuf],
) -> Result<Option<BundlePath>, Error> {
    let path = parent_path(delta, parent)?;
    let same = |manifest: &Manifest| manifest.memory_sha256() == parent.sha256;
    if manifest_of(&path)?.as_ref().is_some_and(same) {
        return Ok(Some(path));
    }
    let beside = std::iter::once(delta.dir());
    for folder in beside.chain(folders.iter().map(PathBuf::as_path)) {
        for bundle in bundles_in(folder).unwrap_or_default() {
            // This is a search: skip what cannot be read.
            let found = manifest_of(&bundle).ok().flatten();
            if bundle != *delta && found.as_ref().is_some_and(same) {
                return Ok(Some(bundle));
            }
        }
    }
    Ok(None)
}

/// A bundle that another one may need.
#[derive(Debug)]
pub struct Target {
    path: BundlePath,
    /// Its digest, when it has a manifest.
    sha256: Option<String>,
}

impl Target {
    /// The bundle at this path, whole or not.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read.
    pub fn of(path: &BundlePath) -> Result<Self, Error> {
        let path = path.absolute().unwrap_or_else(|_| path.clone());
        let sha256 = manifest_of(&path)?.map(|manifest| manifest.memory_sha256());
        Ok(Self { path, sha256 })
    }

    fn is(&self, path: &BundlePath) -> bool {
        *path == self.path || path.absolute().is_ok_and(|path| path == self.path)
    }

    /// Whether a bundle is this one, or a delta over it.
    ///
    /// # Errors
    /// [`Error::Io`] when a manifest between the two cannot be read.
    pub fn is_needed_by(&self, path: &BundlePath) -> Result<bool, Error> {
        Ok(self.is(path) || parents_of(path)?.iter().any(|parent| self.is(parent)))
    }

    /// The bundles in a folder whose parent this one is.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder, or a manifest in it, cannot be read.
    pub fn deltas_in(&self, dir: &Path) -> Result<Vec<BundlePath>, Error> {
        let mut deltas = Vec::new();
        for bundle in bundles_in(dir)? {
            if self.is(&bundle) {
                continue;
            }
            let Some(parent) = manifest_of(&bundle)?.and_then(|manifest| manifest.parent) else {
                continue;
            };
            let named = parent_path(&bundle, &parent)?;
            // It may also find this one by its digest, when it was moved away from its parent.
            let by_digest = || -> Result<bool, Error> {
                Ok(self.sha256.as_ref() == Some(&parent.sha256)
                    && manifest_of(&named)?
                        .is_none_or(|other| other.memory_sha256() != parent.sha256))
            };
            if self.is(&named) || by_digest()? {
                deltas.push(bundle);
            }
        }
        Ok(deltas)
    }
}

/// Every bundle in a folder of which something is there, sorted by name; none when there is no such
/// folder.
fn bundles_in(dir: &Path) -> Result<Vec<BundlePath>, Error> {
    match super::catalogue::bundles(dir) {
        Ok(bundles) => Ok(bundles.into_iter().collect()),
        Err(Error::Io { cause, .. }) if is_absence(&cause) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn is_absence(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
