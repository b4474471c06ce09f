//! Facts of a folder: its file system, the room on it, and whether it can be written.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::{
    sys::statvfs::statvfs,
    unistd::{AccessFlags, access},
};
use serde::Serialize;

use super::proc::Mount;
#[cfg(target_os = "linux")]
use crate::shared_blocks::files_share_blocks;
use crate::{other_writer::OtherWriter, owner_only, units::Bytes};

/// The filesystem behind a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Folder {
    /// The folder that was asked about.
    pub path: PathBuf,
    /// Whether it exists; if not, the rest is about its nearest ancestor that does.
    pub exists: bool,
    /// Filesystem type as mountinfo or statfs(2) names it, such as `ext4`, `nfs4`, `fuse.sshfs`,
    /// `ufs` or `zfs`.
    pub filesystem: String,
    /// Mount options, such as `ro`, `noatime`.
    pub options: Vec<String>,
    /// Where that filesystem is mounted; none where that is not known.
    pub mount_point: Option<PathBuf>,
    /// Room for an unprivileged user.
    pub free: Bytes,
    /// Whether others than its owner may enter or read it.
    pub open_to_others: bool,
    /// Others than this user and root who may change what lies there.
    pub changed_by: Option<OtherWriter>,
    /// Whether this process may make files there.
    pub writable: bool,
    /// How disks there can be cloned.
    pub clones: DiskClones,
}

/// How disks of guests in a folder are clones that cost next to nothing until the guests write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskClones {
    /// Files share blocks.
    Reflink,
    /// Datasets are clones of snapshots.
    Zfs,
    /// By overlays alone, which refer to the file that they are clones of.
    Overlay,
}

impl DiskClones {
    /// Those in a folder that exists, on this file system.
    fn of(dir: &Path, filesystem: &str) -> Self {
        if filesystem == "zfs" {
            return Self::Zfs;
        }
        #[cfg(target_os = "linux")]
        if files_share_blocks(dir).unwrap_or(false) {
            return Self::Reflink;
        }
        #[cfg(not(target_os = "linux"))]
        let _ = dir;
        Self::Overlay
    }
}

/// The mount that a folder is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedOn {
    /// Filesystem type.
    pub filesystem: String,
    /// Mount options.
    pub options: Vec<String>,
    /// Where it is mounted.
    pub point: PathBuf,
}

impl Folder {
    /// Whether the filesystem is reached over a network or through a user process, so that a page
    /// fault of a guest waits for another machine or another process.
    #[must_use]
    pub(crate) fn is_remote(&self) -> bool {
        let remote = [
            "nfs",
            "nfs4",
            "cifs",
            "smb3",
            "9p",
            "ceph",
            "afs",
            "glusterfs",
            "virtiofs",
            "smbfs",
            "p9fs",
        ];
        remote.contains(&self.filesystem.as_str()) || self.filesystem.starts_with("fuse")
    }

    /// Whether files there lie in memory and are gone after a restart.
    #[must_use]
    pub(crate) fn is_memory(&self) -> bool {
        ["tmpfs", "ramfs"].contains(&self.filesystem.as_str())
    }

    /// Reads the facts. A folder that does not exist yet is judged by its nearest ancestor.
    /// `mounted` tells the mount that a folder is on which exists.
    pub(crate) fn read(path: &Path, mounted: impl Fn(&Path) -> Option<MountedOn>) -> Self {
        let wanted = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let there = wanted
            .ancestors()
            .find(|folder| folder.is_dir())
            .unwrap_or(Path::new("/"));
        // Mount points are given without symbolic links.
        let real = there.canonicalize().unwrap_or_else(|_| there.to_owned());
        let on = mounted(&real);
        let free = statvfs(&real).map_or(0, |fs| {
            u128::from(fs.blocks_available()) * u128::from(fs.fragment_size())
        });
        let filesystem = on.as_ref().map_or("unknown", |on| &on.filesystem);
        Self {
            path: wanted.clone(),
            exists: there == wanted,
            clones: DiskClones::of(&real, filesystem),
            filesystem: filesystem.to_owned(),
            mount_point: on.as_ref().map(|on| on.point.clone()),
            options: on.map(|on| on.options).unwrap_or_default(),
            free: Bytes(u64::try_from(free).unwrap_or(u64::MAX)),
            open_to_others: there == wanted && owner_only::is_open(&real),
            changed_by: fs::metadata(&real)
                .ok()
                .filter(|_| there == wanted)
                .and_then(|facts| OtherWriter::of(&facts)),
            writable: access(&real, AccessFlags::W_OK | AccessFlags::X_OK).is_ok(),
        }
    }

    /// The mount that a folder without symbolic links is on.
    pub(crate) fn mount<'a>(real: &Path, mounts: &'a [Mount]) -> Option<&'a Mount> {
        // Of several mounts at one point the last hides the others.
        mounts
            .iter()
            .filter(|mount| real.starts_with(&mount.point))
            .max_by_key(|mount| mount.point.components().count())
    }

    /// Facts of the mount that a folder without symbolic links is on.
    pub(crate) fn mounted(real: &Path, mounts: &[Mount]) -> Option<MountedOn> {
        let mount = Self::mount(real, mounts)?;
        Some(MountedOn {
            filesystem: mount.kind.clone(),
            options: mount.options.split(',').map(str::to_owned).collect(),
            point: mount.point.clone(),
        })
    }
}
