//! Place of a new bundle: its folder, and the room in it.

use std::{
    fs::{self, File},
    path::Path,
};

use crate::{
    checkpoint::{
        error::Error,
        folder::Folder,
        path::{BundlePath, Part},
    },
    units::Bytes,
};

/// Opens the bundle's folder; creates it, unless the bundle could not fit there.
pub(super) fn open_or_create(path: &BundlePath, memory: Bytes) -> Result<Folder, Error> {
    let dir = path.dir();
    let open =
        |dir: &Path| Folder::open(dir).map_err(|cause| Error::io("open the folder", dir, cause));
    if !dir
        .try_exists()
        .map_err(|cause| Error::io("examine", dir, cause))?
    {
        let there = dir
            .ancestors()
            .find(|dir| dir.exists())
            .unwrap_or(Path::new("."));
        check_space(path, &open(there)?, memory)?;
        fs::create_dir_all(dir).map_err(|cause| Error::io("create the folder", dir, cause))?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            open(parent)?.sync()?;
        }
    }
    open(dir)
}

/// Refuses a bundle that the file system could not hold with every page of it written.
pub(super) fn check_space(path: &BundlePath, folder: &Folder, memory: Bytes) -> Result<(), Error> {
    // Device state and the two descriptions are far below a MiB for any guest seen so far.
    let needed = memory + Bytes::mib(1);
    let free = folder.free()?;
    if free >= needed {
        return Ok(());
    }
    Err(Error::NoSpace {
        bundle: path.clone(),
        dir: folder.path().to_owned(),
        needed,
        free,
    })
}

/// Creates a file of the bundle under its temporary name. The caller holds the lock.
pub(super) fn create_temporary(
    path: &BundlePath,
    folder: &Folder,
    part: Part,
) -> Result<File, Error> {
    let name = path.temporary_name(part);
    folder.create_file(&name)?.ok_or_else(|| Error::Exists {
        bundle: path.clone(),
        file: folder.file(&name),
    })
}
