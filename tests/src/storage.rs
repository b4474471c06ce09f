//! Storage for guests' disks in a test: a real file system or a real pool with one image in it, and
//! one way to look at all of them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{FileSystem, Kind, ZfsPool};

/// Bytes of the image that disks are clones of.
pub const IMAGE: usize = 8 << 20;
/// What the names of all that brood makes hold: of datasets, and of files.
const BROODS: [&str; 2] = ["brood-", ".disk"];

/// A place with an image in it that disks can be clones of.
#[derive(Debug)]
pub enum Storage {
    /// A file `base.img`.
    Files(FileSystem),
    /// A dataset `data` with a snapshot `data@base` and the file `disk` in it.
    Zfs(ZfsPool),
}

impl Storage {
    /// Files that share blocks; `None` where the test must be skipped, which it says.
    ///
    /// # Panics
    /// When the image cannot be written.
    #[must_use]
    pub fn files(kind: Kind) -> Option<Self> {
        let files = FileSystem::new(kind)?;
        fs::write(files.path().join("base.img"), image()).expect("there is room");
        Some(Self::Files(files))
    }

    /// A pool; `None` where the test must be skipped, which it says.
    ///
    /// # Panics
    /// When the image cannot be written.
    #[must_use]
    pub fn zfs() -> Option<Self> {
        let pool = ZfsPool::new()?;
        let data = format!("{}/data", pool.name());
        pool.zfs(&["create", &data]).expect("a dataset");
        fs::write(pool.path().join("data/disk"), image()).expect("there is room");
        pool.zfs(&["snapshot", &format!("{data}@base")])
            .expect("a snapshot");
        Some(Self::Zfs(pool))
    }

    /// The image, as `--disk` names it.
    #[must_use]
    pub fn disk(&self) -> String {
        match self {
            Self::Files(files) => format!("reflink:{}/base.img", files.path().display()),
            Self::Zfs(pool) => format!("zfs:{}/data@base", pool.name()),
        }
    }

    /// The same place, as `brood disk` names it.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Files(files) => format!("reflink:{}", files.path().display()),
            Self::Zfs(pool) => format!("zfs:{}", pool.name()),
        }
    }

    /// A folder in it, for checkpoints.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        match self {
            Self::Files(files) => files.path(),
            Self::Zfs(pool) => pool.path(),
        }
    }

    /// The file that has a guest's bytes, given what `brood show` says of its disk.
    #[must_use]
    pub fn file(&self, disk: &str) -> PathBuf {
        match self {
            Self::Files(_) => disk.into(),
            Self::Zfs(_) => Path::new(disk).join("disk"),
        }
    }

    /// Everything that brood has made in it: guests' disks and bundles' snapshots, whole or not.
    ///
    /// # Panics
    /// When it cannot be looked at.
    #[must_use]
    pub fn brood_made(&self) -> Vec<String> {
        match self {
            Self::Files(files) => {
                let mut made = names_in(&files.path().join("brood-disks"));
                made.extend(names_in(&files.path()));
                made.retain(|name| name.contains(BROODS[1]));
                made
            }
            Self::Zfs(pool) => {
                let mut made = pool.names();
                made.retain(|name| name.contains(BROODS[0]));
                made
            }
        }
    }

    /// How many of these are guests' disks.
    #[must_use]
    pub fn disks(&self) -> usize {
        let made = self.brood_made();
        let is_disk = |name: &&String| match self {
            Self::Files(_) => name.ends_with(BROODS[1]),
            Self::Zfs(_) => !name.contains('@'),
        };
        made.iter().filter(is_disk).count()
    }

    /// Bytes that all of it takes.
    #[must_use]
    pub fn used(&self) -> u64 {
        match self {
            Self::Files(files) => files.used(),
            Self::Zfs(pool) => pool.used(),
        }
    }
}

/// What no file system can make smaller.
#[must_use]
pub fn image() -> Vec<u8> {
    let word = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..IMAGE as u64 / 8).flat_map(word).collect()
}

fn names_in(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect()
}
