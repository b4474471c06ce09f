//! Blocks that two files share until one of them is written to.

use std::{fs::File, io};
#[cfg(target_os = "linux")]
use std::{
    fs::OpenOptions,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

#[cfg(target_os = "linux")]
use nix::fcntl::OFlag;

#[cfg(target_os = "linux")]
use crate::full_disk;

/// Makes one file hold the blocks of another (ioctl_ficlone(2)).
#[cfg(target_os = "linux")]
pub(crate) fn share_blocks(from: &File, to: &File) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(to, from)?)
}

/// Elsewhere nothing promises to share: copy_file_range(2) does where it can, and does not say so.
#[cfg(not(target_os = "linux"))]
pub(crate) fn share_blocks(_from: &File, _to: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether files in a folder can share blocks, by two files without names. No file can be made where
/// this process may not write.
#[cfg(target_os = "linux")]
pub(crate) fn files_share_blocks(dir: &Path) -> io::Result<bool> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_TMPFILE.bits());
    let (from, to) = (options.open(dir)?, options.open(dir)?);
    // Some file systems refuse only files that hold something.
    from.write_all_at(&[1; 4096], 0)?;
    match share_blocks(&from, &to) {
        Ok(()) => Ok(true),
        Err(e) if full_disk::is_full(&e) => Err(e),
        Err(_) => Ok(false),
    }
}
