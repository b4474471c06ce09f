//! The daemon's socket: `STATE/api.sock`, for its owner alone, unless the configuration says
//! otherwise.
//!
//! A daemon that starts makes its socket under a name of its own and renames it onto that name: from
//! then on clients reach the new daemon, without a moment in which they reach none. The daemon that
//! was there sees that the name is not its own any more, answers what it was asked, and ends. So one
//! daemon takes over from another, be it alive, killed or of another version.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use super::Error;
use crate::owner_only;

/// Held while the name is taken or given back.
const LOCK: &str = "api.lock";

/// The name, taken by this daemon, as long as nobody else takes it.
#[derive(Debug)]
pub(super) struct Place {
    dir: PathBuf,
    path: PathBuf,
    inode: (u64, u64),
}

impl Place {
    /// Listens, and takes the name.
    pub(super) fn take(dir: &Path, path: &Path, mode: u32) -> Result<(UnixListener, Self), Error> {
        let path = path.to_owned();
        let _lock = lock(dir)?;
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
        Ok((listener, Self { dir, path, inode }))
    }

    /// Where clients find it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether clients who come now still come here.
    pub(super) fn is_ours(&self) -> bool {
        inode(&self.path).is_ok_and(|inode| inode == self.inode)
    }

    /// Removes the name, unless another daemon has taken it.
    pub(super) fn give_back(&self) {
        let Ok(_lock) = lock(&self.dir) else {
            return;
        };
        if self.is_ours() {
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
        assert!(first.is_ours());
        let mode = fs::metadata(first.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (_second_listener, second) =
            Place::take(dir.path(), &dir.path().join("api.sock"), 0o600).unwrap();
        assert!(!first.is_ours() && second.is_ours());
        // The first has nothing left to give back.
        first.give_back();
        assert!(second.is_ours());
        second.give_back();
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, [LOCK]);
    }
}
