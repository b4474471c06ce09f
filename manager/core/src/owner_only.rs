//! Modes of files and folders for their owner alone: guests' memory, disks, the record and its
//! locks. They hold under any umask, and in any folder.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Of a file that brood changes.
pub(crate) const FILE: u32 = 0o600;
/// Mode of a sealed file: a checkpoint's, or a snapshot of a disk.
pub(crate) const SEALED: u32 = 0o400;
/// Of a folder.
const FOLDER: u32 = 0o700;
/// Permissions of users other than the owner.
pub(crate) const OTHERS: u32 = 0o077;

/// Options that create a file for its owner alone.
pub fn options() -> OpenOptions {
    let mut options = File::options();
    options.mode(FILE);
    options
}

/// Makes a complete file readable by its owner alone, and writable by nobody.
pub(crate) fn seal(file: &File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(SEALED))
}

/// Makes a folder for its owner alone, unless it exists; folders above it that do not exist get the
/// mode that the umask gives.
pub fn create_folder(path: &Path) -> io::Result<()> {
    let create = || DirBuilder::new().mode(FOLDER).create(path);
    let created = create().or_else(|e| match (e.kind(), path.parent()) {
        (io::ErrorKind::NotFound, Some(parent)) => {
            fs::create_dir_all(parent)?;
            create()
        }
        _ => Err(e),
    });
    match created {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        created => created,
    }
}

/// Whether others than its owner may enter or read a folder.
pub fn is_open(folder: &Path) -> bool {
    fs::metadata(folder).is_ok_and(|facts| facts.mode() & OTHERS != 0)
}

/// Takes a file from all others than its owner; nothing when there is no such file.
pub(crate) fn restrict(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_file() && facts.mode() & OTHERS != 0 => {
            fs::set_permissions(path, Permissions::from_mode(facts.mode() & 0o700))
        }
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn only_the_folder_itself_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        fs::create_dir(&plain).unwrap();
        let folder = dir.path().join("above/above/folder");
        create_folder(&folder).unwrap();
        assert_eq!(mode(&folder), FOLDER);
        assert_eq!(mode(folder.parent().unwrap()), mode(&plain));
        create_folder(&folder).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(create_folder(&dir.path().join("file")).is_err());
    }

    #[test]
    fn a_file_is_taken_from_all_others_and_one_that_is_not_there_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        restrict(&file).unwrap();
        options().create(true).append(true).open(&file).unwrap();
        assert_eq!(mode(&file), FILE);
        fs::set_permissions(&file, Permissions::from_mode(0o664)).unwrap();
        restrict(&file).unwrap();
        assert_eq!(mode(&file), FILE);
    }
}
