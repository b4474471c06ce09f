//! Memory image: the file in the run folder that all guests of a checkpoint map as their memory,
//! `SHA256.ckp`.
//!
//! QEMU maps one file and opens it for writing even when it maps it privately (`file_ram_open()` of
//! softmmu/physmem.c of QEMU 7.2). A sealed checkpoint must not be open for writing, and a delta is
//! no one file. So the first restore lays the memory out once; on file systems that share extents
//! that copies nothing. The file goes with the last guest and session that need it.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags},
    unistd::{Whence, linkat, lseek},
};

use super::folder::Folder;
use crate::{
    checkpoint::{Checkpoint, copy_range},
    guest_id::random,
    owner_only,
    units::PAGE_SIZE,
};

const SUFFIX: &str = ".ckp";

/// A memory image, which stays as long as this value does.
#[derive(Debug)]
pub(super) struct MemoryImage {
    run_dir: PathBuf,
    name: String,
    /// Locked (flock(2), shared) by everybody who is about to start guests with it.
    file: Option<File>,
}

impl MemoryImage {
    /// The image of a checkpoint, made if it is not there.
    pub(super) fn of(checkpoint: &Checkpoint, run_dir: &Path) -> io::Result<Self> {
        let name = format!("{}{SUFFIX}", checkpoint.manifest().memory_sha256());
        let path = run_dir.join(&name);
        loop {
            match File::open(&path) {
                Ok(file) => {
                    file.lock_shared()?;
                    // It may have been removed before it was locked.
                    if file.metadata()?.nlink() > 0 {
                        return Ok(Self {
                            run_dir: run_dir.to_owned(),
                            name,
                            file: Some(file),
                        });
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => lay_out(checkpoint, &path)?,
                Err(e) => return Err(e),
            }
        }
    }

    /// Its name in the run folder.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The file.
    pub(super) fn path(&self) -> PathBuf {
        self.run_dir.join(&self.name)
    }
}

impl Drop for MemoryImage {
    fn drop(&mut self) {
        self.file = None;
        // The next guest that goes tries it again.
        let _ = remove_if_unused(&self.run_dir, &self.name);
    }
}

/// Removes an image that no guest of the run folder and no session needs.
pub(super) fn remove_if_unused(run_dir: &Path, name: &str) -> io::Result<()> {
    let path = run_dir.join(name);
    let file = match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(()),
        Err(fs::TryLockError::Error(e)) => return Err(e),
    }
    for id in Folder::all(run_dir)? {
        // One whose record cannot be read may need it.
        match Folder::of(run_dir, &id).record() {
            Ok(Some(record)) if record.image != name => {}
            Ok(None) => {}
            _ => return Ok(()),
        }
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes all images of the run folder that no guest and no session needs: which one a guest had is
/// not known when its maker was killed before it could note that.
pub(super) fn remove_unused(run_dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(run_dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        if let Some(name) = name.to_str().filter(|name| name.ends_with(SUFFIX)) {
            remove_if_unused(run_dir, name)?;
        }
    }
    Ok(())
}

/// Lays a checkpoint's memory out in a file, which appears whole. Until then it has no name, where
/// the file system can do that: nothing is left of it when this process is killed.
fn lay_out(checkpoint: &Checkpoint, path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut options = owner_only::options();
    options.read(true).write(true);
    match options.clone().custom_flags(libc::O_TMPFILE).open(folder) {
        Ok(file) => {
            write(checkpoint, &file)?;
            let of_process = format!("/proc/self/fd/{}", file.as_raw_fd());
            let follow = AtFlags::AT_SYMLINK_FOLLOW;
            match linkat(AT_FDCWD, &of_process[..], AT_FDCWD, path, follow) {
                // Another was faster, with the same content.
                Ok(()) | Err(Errno::EEXIST) => Ok(()),
                Err(e) => Err(e.into()),
            }
        }
        // Kernels and file systems that know no such file.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
            let new = path.with_extension(format!("{:016x}.new", u64::from_ne_bytes(random()?)));
            let file = options.create_new(true).open(&new)?;
            let result = write(checkpoint, &file).and_then(|()| fs::rename(&new, path));
            if result.is_err() {
                let _ = fs::remove_file(&new);
            }
            result
        }
        Err(e) => Err(e),
    }
}

fn write(checkpoint: &Checkpoint, to: &File) -> io::Result<()> {
    let size = checkpoint.manifest().memory.size.0;
    to.set_len(size)?;
    let layers = checkpoint.layers();
    let always = || true;
    let base = layers.first().ok_or(io::ErrorKind::NotFound)?;
    copy_data(base.memory_file(), to, size)?;
    for extent in checkpoint.extents() {
        let [from, at, size] =
            [extent.file_page, extent.first, extent.count].map(|pages| pages * PAGE_SIZE);
        let file = layers[extent.layer].memory_file();
        copy_range(file, from, to, at, size, &always)?;
    }
    // A guest must never run on a file that a crash of the host left half written.
    to.sync_all()
}

/// Copies what is no hole.
pub(super) fn copy_data(from: &File, to: &File, size: u64) -> io::Result<()> {
    let seek = |offset: u64, whence| -> io::Result<Option<u64>> {
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        match lseek(from.as_fd(), offset, whence) {
            Ok(found) => u64::try_from(found).map(Some).map_err(io::Error::other),
            // Nothing but a hole follows.
            Err(Errno::ENXIO) => Ok(None),
            Err(e) => Err(e.into()),
        }
    };
    let mut at = 0;
    while let Some(data) = seek(at, Whence::SeekData)?.filter(|data| *data < size) {
        let end = seek(data, Whence::SeekHole)?.unwrap_or(size).min(size);
        copy_range(from, data, to, data, end - data, &|| true)?;
        at = end;
    }
    Ok(())
}
