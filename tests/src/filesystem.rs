//! Real file systems for one test: XFS, Btrfs or ext4 on a loop device. Nothing of them is left at
//! the end, not even after a test that was killed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
};

use tempfile::TempDir;

use crate::skip;

/// What the names of folders begin with in which something is mounted; the process id follows.
const PREFIX: &str = "brood-mount-";

/// A kind of file system. All but ext4 share blocks between files.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// ext4.
    Ext4,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Ext4 => "ext4",
        }
    }
}

/// A file system of its own for the running test, mounted.
#[derive(Debug)]
pub struct FileSystem {
    dir: TempDir,
}

impl FileSystem {
    /// Makes and mounts one; `None` where the test must be skipped, which it says.
    ///
    /// # Panics
    /// When a folder cannot be made.
    #[must_use]
    pub fn new(kind: Kind) -> Option<Self> {
        // The least that mkfs.xfs(8) makes is 300 MiB.
        Self::small(kind, 400)
    }

    /// The same with so many MiB.
    ///
    /// # Panics
    /// When a folder cannot be made.
    #[must_use]
    pub fn small(kind: Kind, mib: u64) -> Option<Self> {
        unmount_strays();
        let (dir, name) = (mount_folder(), kind.name());
        let image = dir.path().join("image");
        let (target, make) = (dir.path().join("fs"), format!("mkfs.{name}"));
        fs::create_dir(&target).expect("a folder");
        let file = fs::File::create(&image).expect("a file");
        file.set_len(mib << 20).expect("a sparse file");
        let made = run(Command::new(make).arg("-q").arg(&image))
            .and_then(|()| run(mount().arg("-o").arg("loop").arg(&image).arg(&target)));
        match made {
            Ok(()) => Some(Self { dir }),
            Err(why) => {
                skip(&format!("no {name}: {why}"));
                None
            }
        }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("fs")
    }

    /// Unmounts it and removes its folder, for those who end without dropping it.
    pub fn remove(&self) {
        unmount(&self.path());
        let _ = fs::remove_dir_all(self.dir.path());
    }

    /// Bytes in use, with all that was written on the disk.
    ///
    /// # Panics
    /// When it cannot be asked.
    #[must_use]
    pub fn used(&self) -> u64 {
        let dir = fs::File::open(self.path()).expect("it is mounted");
        nix::unistd::syncfs(&dir).expect("it can be written");
        let facts = nix::sys::statvfs::statvfs(&self.path()).expect("it is mounted");
        (facts.blocks() - facts.blocks_free()) * facts.fragment_size()
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        unmount(&self.path());
    }
}

/// A folder to mount something in, which says whose it is.
pub(crate) fn mount_folder() -> TempDir {
    tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}-", process::id()))
        .tempdir()
        .expect("a temporary folder")
}

fn mount() -> Command {
    Command::new("mount")
}

pub(crate) fn unmount(path: &Path) {
    let busy = run(Command::new("umount").arg(path)).is_err();
    if busy {
        // A test that failed may have left something running there.
        let _ = run(Command::new("umount").arg("-l").arg(path));
    }
}

/// Unmounts what tests left that were killed, and removes their folders.
pub(crate) fn unmount_strays() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mounted = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for path in mounted.map(Path::new) {
        let stray = path.components().any(|part| is_stray(part.as_os_str()));
        if stray {
            unmount(path);
        }
    }
    let entries = fs::read_dir(std::env::temp_dir()).into_iter().flatten();
    for entry in entries.flatten().filter(|e| is_stray(&e.file_name())) {
        let _ = fs::remove_dir_all(entry.path());
    }
}

/// Whether a folder belongs to a test that is gone.
fn is_stray(name: &std::ffi::OsStr) -> bool {
    let pid = name
        .to_str()
        .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
}

/// Runs a command that must succeed; the error is what it said.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .env("LC_ALL", "C")
        .output()
        .map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.split_whitespace().collect::<Vec<_>>().join(" "))
}
