//! Socket of the daemon: `STATE/api.sock`, for its owner alone, unless the configuration says
//! otherwise.
//!
//! A daemon that starts makes its socket under another name and renames it: from then on clients
//! reach the new daemon, and at no moment do they reach none. The old daemon sees that the name is
//! not its own any more, answers its open requests, and ends. So one daemon takes over from
//! another, be it alive, killed or of another version.

use std::{
    fs::{self, File, Permissions},
    io::{self, ErrorKind},
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use super::Error;
use brood_core::owner_only;

/// Held while the name is taken or given back.
const LOCK: &str = "api.lock";

/// The socket's name, held by this daemon until another one takes it.
#[derive(Debug)]
pub(super) struct Place {
    dir: PathBuf,
    path: PathBuf,
    mode: u32,
    inode: (u64, u64),
}

/// Whose the name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// This daemon's, or so it must be taken to be: it cannot be looked at.
    Ours,
    /// The name was removed.
    Gone,
    /// Another socket's: another daemon has taken over.
    Taken,
    /// Another file's.
    Replaced,
}

impl Place {
    /// Listens, and takes the name.
    pub(super) fn take(dir: &Path, path: &Path, mode: u32) -> Result<(UnixListener, Self), Error> {
        let _lock = lock(dir)?;
        Self::bind(dir, path, mode)
    }

    /// Listens again under the name that was removed; `None` when it has a file again.
    pub(super) fn take_again(&self) -> Result<Option<(UnixListener, Self)>, Error> {
        let _lock = lock(&self.dir)?;
        match self.name() {
            Name::Gone => Self::bind(&self.dir, &self.path, self.mode).map(Some),
            Name::Ours | Name::Taken | Name::Replaced => Ok(None),
        }
    }

    /// The lock is held.
    fn bind(dir: &Path, path: &Path, mode: u32) -> Result<(UnixListener, Self), Error> {
        let path = path.to_owned();
        sweep(&path);
        let mut unnamed = path.clone().into_os_string();
        unnamed.push(format!(".{}", std::process::id()));
        let unnamed = PathBuf::from(unnamed);
        let failed = |source| Error::Listen {
            on: path.display().to_string(),
            source,
        };
        let listener = UnixListener::bind(&unnamed).map_err(failed)?;
        let take = || {
            fs::set_permissions(&unnamed, Permissions::from_mode(mode))?;
            listener.set_nonblocking(true)?;
            let inode = inode(&unnamed)?;
            fs::rename(&unnamed, &path)?;
            Ok(inode)
        };
        let inode = take().map_err(failed)?;
        let dir = dir.to_owned();
        let place = Self {
            dir,
            path,
            mode,
            inode,
        };
        Ok((listener, place))
    }

    /// Where clients find it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether new clients still reach this daemon. No other socket gets the inode of this one as
    /// long as a process listens on it.
    pub(super) fn name(&self) -> Name {
        match fs::symlink_metadata(&self.path) {
            Ok(file) if (file.dev(), file.ino()) == self.inode => Name::Ours,
            Ok(file) if file.file_type().is_socket() => Name::Taken,
            Ok(_) => Name::Replaced,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Name::Gone
            }
            // That it cannot be looked at does not make it another's.
            Err(_) => Name::Ours,
        }
    }

    /// Removes the name, unless another daemon has taken it.
    pub(super) fn give_back(&self) {
        let Ok(_lock) = lock(&self.dir) else {
            return;
        };
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

fn lock(dir: &Path) -> Result<Flock<File>, Error> {
    let path = dir.join(LOCK);
    let failed = |source| Error::Lock {
        path: path.clone(),
        source,
    };
    let file = owner_only::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| failed(e.into()))
}

/// Removes sockets that were never given their name: their daemon was killed. The lock is held.
fn sweep(path: &Path) {
    let (Some(dir), Some(socket)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
    else {
        return;
    };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let unnamed = name
            .to_str()
            .and_then(|name| name.strip_prefix(socket)?.strip_prefix('.'));
        if unnamed.is_some_and(|pid| pid.bytes().all(|b| b.is_ascii_digit())) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_daemon_has_the_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("api.sock.4194305"), "").unwrap();
        let (_first_listener, first) =
            Place::take(dir.path(), &dir.path().join("api.sock"), 0o600).unwrap();
        assert_eq!(first.name(), Name::Ours);
        let mode = fs::metadata(first.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (_second_listener, second) =
            Place::take(dir.path(), &dir.path().join("api.sock"), 0o600).unwrap();
        assert_eq!((first.name(), second.name()), (Name::Taken, Name::Ours));
        assert!(first.take_again().unwrap().is_none());
        // The first has nothing left to give back.
        first.give_back();
        assert_eq!(second.name(), Name::Ours);
        second.give_back();
        assert_eq!(second.name(), Name::Gone);
        let (_third_listener, third) = second.take_again().unwrap().unwrap();
        assert_eq!((second.name(), third.name()), (Name::Taken, Name::Ours));
        let mode = fs::metadata(third.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        third.give_back();
        fs::write(third.path(), "").unwrap();
        assert_eq!(third.name(), Name::Replaced);
        fs::remove_file(third.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, [LOCK]);
    }
}
