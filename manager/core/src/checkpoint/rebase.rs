//! Rebase: records the new place of a delta's parent that was moved.

use super::{
    error::Error,
    folder::Folder,
    lineage::manifest_of,
    open::{Checkpoint, parse_manifest, read_whole},
    path::{BundlePath, Part},
    validate::MANIFEST_MAX,
    writer::Lock,
};

/// Writes into the manifest of `delta` that its parent lies at `parent`, which must have the memory
/// that the delta was made of. The manifest is replaced in one step, and nothing else is written.
///
/// # Errors
/// [`Error::NotADelta`], [`Error::OtherParent`], or when a file cannot be read or written.
pub fn rebase(delta: &BundlePath, parent: &BundlePath) -> Result<(), Error> {
    let folder = Folder::open(delta.dir())
        .map_err(|cause| Error::io("open the folder", delta.dir(), cause))?;
    let lock = Lock::acquire(delta, folder)?;
    let name = delta.file_name(Part::Manifest);
    let missing = || Error::NotFound {
        bundle: delta.clone(),
        file: delta.manifest(),
    };
    let file = lock.folder().open_file(&name)?.ok_or_else(missing)?;
    let text = read_whole(&file, &delta.manifest(), MANIFEST_MAX)?;
    let mut manifest = parse_manifest(&delta.manifest(), &text)?;
    let Some(of) = &mut manifest.parent else {
        return Err(Error::NotADelta {
            bundle: delta.clone(),
        });
    };
    // With all of its own parents: a delta of something broken is as broken.
    let found = Checkpoint::open(parent)?.manifest().memory_sha256();
    if found != of.sha256 {
        return Err(Error::OtherParent {
            bundle: delta.clone(),
            parent: parent.clone(),
            expected: of.sha256.clone(),
            found,
        });
    }
    of.path = parent.named_from(delta)?;
    lock.replace_manifest(&manifest)
}

/// Where the parent of a delta lies now, by its digest: where its manifest says, beside the delta,
/// or in one of these folders.
///
/// # Errors
/// [`Error::NotADelta`]; [`Error::Parent`] when it is nowhere.
pub fn find_parent(
    delta: &BundlePath,
    folders: &[std::path::PathBuf],
) -> Result<BundlePath, Error> {
    let manifest = manifest_of(delta)?.ok_or_else(|| Error::NotFound {
        bundle: delta.clone(),
        file: delta.manifest(),
    })?;
    let Some(parent) = &manifest.parent else {
        return Err(Error::NotADelta {
            bundle: delta.clone(),
        });
    };
    let path = super::open::parent_path(delta, parent)?;
    super::lineage::locate(delta, parent, folders)?.ok_or_else(|| Error::Parent {
        bundle: delta.clone(),
        parent: path.clone(),
        cause: Box::new(Error::NotFound {
            file: path.manifest(),
            bundle: path,
        }),
    })
}
