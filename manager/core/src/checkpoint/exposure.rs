//! Exposure of a bundle: which of its files, or its folder, users other than this one and root may
//! change.

use std::{
    fmt,
    fs::{self, File},
    path::{Path, PathBuf},
};

use super::{
    BundlePath, Checkpoint,
    error::Error,
    folder::Folder,
    manifest::{DiskProvider, Manifest},
    path::Part,
};
use crate::other_writer::OtherWriter;

/// A file of a bundle, or its folder, that another user may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// Which.
    pub file: PathBuf,
    /// Who may.
    pub by: OtherWriter,
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} may change {}, and with it all guests",
            self.by,
            self.file.display()
        )
    }
}

/// The exposed files and folders of an open bundle.
pub(super) fn find(
    folder: &Folder,
    bundle: &BundlePath,
    files: [(Part, &File); 4],
    manifest: &Manifest,
) -> Result<Vec<Exposure>, Error> {
    let mut found = Vec::new();
    let mut add = |file: &Path, by: Option<OtherWriter>| {
        found.extend(by.map(|by| Exposure {
            file: file.to_owned(),
            by,
        }));
    };
    let look = |path: &Path, file: &File| match file.metadata() {
        Ok(facts) => Ok(OtherWriter::of(&facts)),
        Err(cause) => Err(Error::io("examine", path, cause)),
    };
    for (part, file) in files {
        let path = bundle.file(part);
        add(&path, look(&path, file)?);
    }
    add(folder.path(), look(folder.path(), folder.handle())?);
    for disk in &manifest.disks {
        if disk.provider != DiskProvider::Zfs
            // If it does not exist, the clone reports that.
            && let Ok(facts) = fs::symlink_metadata(folder.file(&disk.snapshot))
        {
            add(&folder.file(&disk.snapshot), OtherWriter::of(&facts));
        }
    }
    Ok(found)
}

impl Checkpoint {
    /// Files of it and of its parents, and their folders, that others than this user and root may
    /// change.
    #[must_use]
    pub fn exposures(&self) -> Vec<&Exposure> {
        let layers = self.layers();
        let mut found: Vec<&Exposure> = Vec::new();
        for exposure in layers.iter().flat_map(|layer| layer.own_exposures()) {
            // Layers may share a folder.
            if !found.contains(&exposure) {
                found.push(exposure);
            }
        }
        found
    }

    /// Refuses what everybody on this host may change: guests of it would be anybody's.
    ///
    /// # Errors
    /// [`Error::Exposed`].
    pub(crate) fn refuse_exposed(&self) -> Result<(), Error> {
        let all = self.layers().into_iter().flat_map(Self::own_exposures);
        match all.into_iter().find(|e| e.by == OtherWriter::Everybody) {
            Some(exposure) => Err(Error::Exposed {
                bundle: self.path().clone(),
                file: exposure.file.clone(),
            }),
            None => Ok(()),
        }
    }
}
