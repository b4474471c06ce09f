//! Folder of a bundle, as a descriptor: every name below it is looked up in the very folder that
//! was opened, whatever happens to the path meanwhile.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        stat::{FileStat, Mode, fstatat},
        statvfs::fstatvfs,
    },
    unistd::{UnlinkatFlags, linkat, unlinkat},
};

use super::error::Error;
use crate::{
    faults::{self, Point},
    units::Bytes,
};

/// Files that are being written are their owner's alone.
const UNSEALED: Mode = Mode::from_bits_truncate(0o600);

/// What came of giving a file another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// It has both names.
    Linked,
    /// It has the new name only.
    Renamed,
    /// Another file has the new name.
    Taken,
}

#[derive(Debug)]
pub(super) struct Folder {
    handle: File,
    path: PathBuf,
}

impl Folder {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let handle = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).bits())
            .open(path)?;
        Ok(Self {
            handle,
            path: path.to_owned(),
        })
    }

    pub(super) fn handle(&self) -> &File {
        &self.handle
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a regular file for reading; `None` when there is no such name. Never follows a
    /// symlink, never waits for a pipe's other end.
    pub(super) fn open_file(&self, name: &str) -> Result<Option<File>, Error> {
        let flags = OFlag::O_RDONLY
            | OFlag::O_NOFOLLOW
            | OFlag::O_CLOEXEC
            | OFlag::O_NONBLOCK
            | OFlag::O_NOCTTY;
        let path = self.file(name);
        let file = match openat(&self.handle, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => return Ok(None),
            // FreeBSD answers EMLINK.
            Err(Errno::ELOOP | Errno::EMLINK) => return Err(Error::Symlink { file: path }),
            // A socket.
            Err(Errno::ENXIO | Errno::EOPNOTSUPP) => return Err(Error::NotRegular { file: path }),
            Err(cause) => return Err(Error::io("open", &path, cause)),
        };
        let facts = file
            .metadata()
            .map_err(|cause| Error::io("examine", &path, cause))?;
        if facts.is_file() {
            Ok(Some(file))
        } else {
            Err(Error::NotRegular { file: path })
        }
    }

    /// Creates a file that did not exist; `None` when the name is taken.
    pub(super) fn create_file(&self, name: &str) -> Result<Option<File>, Error> {
        let flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&self.handle, name, flags, UNSEALED) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::EEXIST) => Ok(None),
            Err(cause) => Err(Error::io("create", &self.file(name), cause)),
        }
    }

    /// What a name refers to, symlinks not followed.
    pub(super) fn look(&self, name: &str) -> Result<Option<FileStat>, Error> {
        match fstatat(&self.handle, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(facts) => Ok(Some(facts)),
            Err(Errno::ENOENT) => Ok(None),
            Err(cause) => Err(Error::io("examine", &self.file(name), cause)),
        }
    }

    pub(super) fn holds(&self, name: &str) -> Result<bool, Error> {
        Ok(self.look(name)?.is_some())
    }

    /// Gives a file another name. Never replaces a file.
    pub(super) fn give_name(&self, from: &str, to: &str) -> Result<Naming, Error> {
        match linkat(&self.handle, from, &self.handle, to, AtFlags::empty()) {
            Ok(()) => Ok(Naming::Linked),
            Err(Errno::EEXIST) => Ok(Naming::Taken),
            // A file system without hard links.
            Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                if self.holds(to)? {
                    return Ok(Naming::Taken);
                }
                nix::fcntl::renameat(&self.handle, from, &self.handle, to)
                    .map_err(|cause| Error::io("rename", &self.file(from), cause))?;
                Ok(Naming::Renamed)
            }
            Err(cause) => Err(Error::io("name", &self.file(to), cause)),
        }
    }

    /// Gives a file another name; what had that name has none any more.
    pub(super) fn replace(&self, from: &str, to: &str) -> Result<(), Error> {
        nix::fcntl::renameat(&self.handle, from, &self.handle, to)
            .map_err(|cause| Error::io("rename", &self.file(from), cause))
    }

    /// Removes a name that may or may not be there.
    pub(super) fn remove(&self, name: &str) -> Result<(), Error> {
        faults::at(Point::BundleRemove)
            .map_err(|cause| Error::io("remove", &self.file(name), cause))?;
        match unlinkat(&self.handle, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(cause) => Err(Error::io("remove", &self.file(name), cause)),
        }
    }

    /// Waits until the names in the folder are on the disk.
    pub(super) fn sync(&self) -> Result<(), Error> {
        faults::at(Point::BundleFolder)
            .and_then(|()| self.handle.sync_all())
            .map_err(|cause| Error::io("write to disk", &self.path, cause))
    }

    /// What a user without privileges may still write.
    pub(super) fn free(&self) -> Result<Bytes, Error> {
        let facts = fstatvfs(&self.handle)
            .map_err(|cause| Error::io("ask for the free space of", &self.path, cause))?;
        Ok(Bytes(
            facts
                .blocks_available()
                .saturating_mul(facts.fragment_size()),
        ))
    }
}
