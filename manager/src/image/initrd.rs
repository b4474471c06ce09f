//! The files that a guest's kernel begins with, for QEMU: the image's initramfs, and behind it the root
//! file system, which the guest keeps in its memory. All clones share that as they share all of their
//! checkpoint's memory, and no checkpoint needs a disk.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use super::{Error, Files, Images, cpio};
use brood_core::owner_only;

/// Where the guest finds its root file system. initramfs.sh knows this name.
const ROOT: &str = "root.squashfs";

/// The file that QEMU loads. It goes with this value.
#[derive(Debug)]
pub(crate) struct Initrd {
    pub(crate) path: PathBuf,
    /// Open as long as the path is used; it has no name any more.
    _joined: Option<File>,
}

impl Images {
    /// The file for an image.
    pub(crate) fn initrd(&self, files: &Files) -> Result<Initrd, Error> {
        let Some(root) = &files.root else {
            return Ok(Initrd {
                path: files.initramfs.clone(),
                _joined: None,
            });
        };
        let this = std::process::id();
        let path = self.folder.join(format!(".initrd.{this}"));
        let options = &mut owner_only::options();
        let joined = options.read(true).write(true).create(true).truncate(true);
        let mut joined = joined.open(&path).map_err(Error::io("create", &path))?;
        // Whatever happens now, nothing is left.
        fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        join(&mut joined, &files.initramfs, root).map_err(Error::io("write", &path))?;
        Ok(Initrd {
            path: PathBuf::from(format!("/proc/{this}/fd/{}", joined.as_raw_fd())),
            _joined: Some(joined),
        })
    }
}

fn join(to: &mut File, initramfs: &Path, root: &Path) -> io::Result<()> {
    io::copy(&mut File::open(initramfs)?, to)?;
    let mut root = File::open(root)?;
    let length = u32::try_from(root.metadata()?.len())
        .map_err(|_| io::Error::other("a root file system of 4 GiB fits no guest's memory"))?;
    cpio::append_file(to, ROOT, &mut root, length)?;
    to.flush()
}
