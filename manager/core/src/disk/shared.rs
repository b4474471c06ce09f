//! Files beside a bundle that hold a disk, and that more than one bundle has: the same inode where
//! that can be, so that this host stores it once and has it in memory once.

use std::{
    fs::{self, File},
    path::Path,
};

use super::{
    Error, Token,
    reflink::{self, blocks, create, open, rename, sync_folder, temporary},
    shared_file,
};
#[cfg(target_os = "linux")]
use crate::checkpoint::manifest::DiskProvider;
use crate::{
    checkpoint::{BundlePath, Watch, manifest::DiskSnapshot},
    owner_only,
    shared_blocks::share_blocks,
};

/// Puts a file with this SHA-256 beside a bundle that is being written, as the disk of this device
/// that all of its guests read.
#[cfg(target_os = "linux")]
pub(crate) fn link_shared(
    from: &Path,
    sha256: &str,
    device: &str,
    bundle: &BundlePath,
    watch: Watch<'_>,
) -> Result<DiskSnapshot, Error> {
    let source = from.to_str().ok_or_else(|| Error::Name {
        given: from.to_string_lossy().into_owned(),
        reason: "its path is not UTF-8",
    })?;
    Ok(DiskSnapshot {
        device: Some(device.to_owned()),
        provider: DiskProvider::Shared,
        source: source.to_owned(),
        snapshot: put_beside(from, bundle, watch)?,
        identity: sha256.to_owned(),
    })
}

/// Puts a disk of one bundle, a file, beside another one that is being written.
pub(super) fn link(
    from: &BundlePath,
    disk: &DiskSnapshot,
    bundle: &BundlePath,
    watch: Watch<'_>,
) -> Result<DiskSnapshot, Error> {
    Ok(DiskSnapshot {
        snapshot: put_beside(&shared_file(from, disk)?, bundle, watch)?,
        ..disk.clone()
    })
}

/// Removes such a file of a bundle that was not sealed.
pub(crate) fn unlink(bundle: &BundlePath, disk: &DiskSnapshot) -> Result<(), Error> {
    reflink::discard(&shared_file(bundle, disk)?)
}

/// Puts a file beside a bundle; returns its name there.
fn put_beside(from: &Path, bundle: &BundlePath, watch: Watch<'_>) -> Result<String, Error> {
    let token = Token::random().map_err(|e| Error::io("name the disk of", from, e))?;
    let name = format!("{}{}{token}", bundle.name(), reflink::SNAPSHOT);
    let to = bundle.dir().join(&name);
    let file = open(from)?;
    // Another file system, or a file of another user's: then a copy.
    if fs::hard_link(from, &to).is_err() {
        let new = temporary(&to);
        copy(from, &file, &new, &to, watch).inspect_err(|_| {
            // What cannot be removed now is found again: it is in no bundle.
            let _ = reflink::remove(&new);
        })?;
    }
    sync_folder(&to)?;
    Ok(name)
}

fn copy(from: &Path, file: &File, new: &Path, to: &Path, watch: Watch<'_>) -> Result<(), Error> {
    let copy = create(new)?;
    if share_blocks(file, &copy).is_err() {
        blocks::copy(file, &copy, watch).map_err(|e| Error::io("copy", from, e))?;
    }
    owner_only::seal(&copy).map_err(|e| Error::io("make read-only", new, e))?;
    copy.sync_all()
        .map_err(|e| Error::io("write to disk", new, e))?;
    rename(new, to)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::checkpoint::unwatched;

    #[test]
    fn it_is_the_same_file_and_stays_when_the_image_goes() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("root");
        fs::write(&image, "files").unwrap();
        let bundle = BundlePath::new(&folder.path().join("web")).unwrap();
        let disk = link_shared(&image, &"0".repeat(64), "root", &bundle, &unwatched).unwrap();
        assert!(disk.is_shared());
        let file = shared_file(&bundle, &disk).unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        assert_eq!(inode(&file), inode(&image));
        fs::remove_file(&image).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "files");
        std::os::unix::fs::symlink(&file, &image).unwrap();
        let refused = link_shared(&image, &"0".repeat(64), "root", &bundle, &unwatched);
        assert!(refused.is_err(), "a symbolic link may lead anywhere");
    }
}
