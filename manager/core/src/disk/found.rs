//! Search of a place for brood's disks: guests' disks and bundles' snapshots, found by their names.
//!
//! The search comes first, and the question which guests and bundles exist comes after it. A disk
//! is recorded before it is made, and a bundle is locked before its snapshot is taken; so a disk
//! that belongs to nothing at that point never will.

use std::path::{Path, PathBuf};

use super::{
    Error, Owner, Place, Provider, Runner, Zfs, reflink,
    zfs::{self, BUNDLE, GUEST, PREFIX, RELEASED},
};
use crate::zfs_name::{Dataset, SnapshotName};
use crate::{
    checkpoint::{self, BundlePath},
    directory,
    guest_id::GuestId,
};

/// Something of brood that lies in a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundItem {
    /// A guest's disk of this owner.
    Dataset {
        /// The guest.
        guest: GuestId,
        /// The dataset.
        dataset: Dataset,
        /// What it is a clone of.
        origin: SnapshotName,
    },
    /// A dataset that was a guest's disk, of any owner: it was kept for a bundle's snapshot, and
    /// has none any more.
    Released(Dataset),
    /// A snapshot of a bundle.
    Snapshot {
        /// The bundle.
        bundle: BundlePath,
        /// The snapshot.
        snapshot: SnapshotName,
    },
    /// A guest's disk of this owner, whole or not.
    File {
        /// The guest.
        guest: GuestId,
        /// The file.
        file: PathBuf,
    },
    /// A snapshot of a bundle, whole or not.
    SnapshotFile {
        /// The bundle.
        bundle: BundlePath,
        /// Name of the snapshot, as the bundle would have it.
        name: String,
        /// The file.
        file: PathBuf,
    },
}

impl FoundItem {
    /// The guest whose disk it is.
    #[must_use]
    pub fn guest(&self) -> Option<GuestId> {
        match self {
            Self::Dataset { guest, .. } | Self::File { guest, .. } => Some(*guest),
            _ => None,
        }
    }

    /// The bundle whose snapshot it is, and the snapshot's name.
    #[must_use]
    pub fn bundle(&self) -> Option<(&BundlePath, String)> {
        match self {
            Self::Snapshot { bundle, snapshot } => Some((bundle, snapshot.to_string())),
            Self::SnapshotFile { bundle, name, .. } => Some((bundle, name.clone())),
            _ => None,
        }
    }

    /// What it is called, as people write it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Dataset { dataset, .. } | Self::Released(dataset) => format!("zfs:{dataset}"),
            Self::Snapshot { snapshot, .. } => format!("zfs:{snapshot}"),
            Self::File { file, .. } | Self::SnapshotFile { file, .. } => {
                format!("reflink:{}", file.display())
            }
        }
    }

    /// Removes it. It is no error if it is gone already.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, owner: Owner, zfs: Box<dyn Runner>) -> Result<(), Error> {
        match self {
            Self::Dataset { guest, origin, .. } => {
                Zfs::new(owner, origin.clone(), zfs).release(guest)
            }
            Self::Released(dataset) => {
                // Any snapshot of it would do: it is asked for none.
                Zfs::new(owner, dataset.at("none"), zfs).destroy_released(dataset)
            }
            Self::Snapshot { snapshot, .. } => {
                Zfs::new(owner, snapshot.clone(), zfs).remove_snapshot(snapshot)
            }
            Self::File { file, .. } | Self::SnapshotFile { file, .. } => reflink::remove(file),
        }
    }
}

/// Everything of brood in a place: guests' disks of `owner`, and snapshots of any bundle.
///
/// # Errors
/// When the place cannot be looked at. A place that is gone holds nothing.
pub fn find(place: &Place, owner: Owner, zfs: &dyn Runner) -> Result<Vec<FoundItem>, Error> {
    match place {
        Place::Zfs(dataset) => find_datasets(dataset, owner, zfs),
        Place::Folder(dir) => {
            let mut found = find_files(&dir.join(reflink::FOLDER), |path, name| {
                let disk = reflink::SUFFIXES
                    .into_iter()
                    .find_map(|suffix| name.strip_suffix(suffix))?;
                let (of, guest) = Owner::parse_name(disk)?;
                let file = path.to_owned();
                (of == owner).then_some(FoundItem::File { guest, file })
            })?;
            found.extend(find_files(dir, |path, name| {
                let (bundle, _) = reflink::split_snapshot_name(name)?;
                Some(FoundItem::SnapshotFile {
                    bundle: BundlePath::new(&dir.join(bundle)).ok()?,
                    name: name.to_owned(),
                    file: path.to_owned(),
                })
            })?);
            Ok(found)
        }
    }
}

fn find_datasets(place: &Dataset, owner: Owner, zfs: &dyn Runner) -> Result<Vec<FoundItem>, Error> {
    let columns = format!("name,origin,{GUEST},{BUNDLE},{RELEASED}");
    let arguments = [
        "list",
        "-H",
        "-r",
        "-d",
        "2",
        "-t",
        "filesystem,volume,snapshot",
        "-o",
        &columns,
        place.as_str(),
    ];
    let answer = zfs.run(&arguments)?;
    if answer.is_missing() {
        return Ok(Vec::new());
    }
    let answer = zfs::expect(answer, "list", place.as_str())?;
    let rows: Vec<Vec<&str>> = answer
        .stdout
        .lines()
        .map(|line| line.split('\t').collect())
        .collect();
    let has_bundles = |name: &str| {
        let mut names = rows.iter().filter_map(|row| row.first()?.split_once('@'));
        names.any(|(dataset, snapshot)| dataset == name && zfs::is_bundles(snapshot))
    };
    Ok(rows
        .iter()
        .filter_map(|row| {
            let [name, origin, guest, bundle, released] = row[..] else {
                return None;
            };
            if name.contains('@') {
                let snapshot: SnapshotName = name.parse().ok()?;
                let bundle = BundlePath::new(Path::new(bundle)).ok()?;
                return zfs::is_bundles(snapshot.name())
                    .then_some(FoundItem::Snapshot { bundle, snapshot });
            }
            let dataset: Dataset = name.parse().ok()?;
            let (of, id) = Owner::parse_name(dataset.last().strip_prefix(PREFIX)?)?;
            let is_guests = guest == id.to_string() && dataset.parent() == *place;
            match released {
                _ if !is_guests => None,
                // Its snapshots are looked at by themselves.
                "yes" if has_bundles(name) => None,
                "yes" => Some(FoundItem::Released(dataset)),
                _ if of != owner => None,
                _ => Some(FoundItem::Dataset {
                    guest: id,
                    dataset,
                    origin: origin.parse().ok()?,
                }),
            }
        })
        .collect())
}

/// Files in a folder whose names (or what their names will be when they are whole) mean something.
fn find_files(
    dir: &Path,
    mut meaning: impl FnMut(&Path, &str) -> Option<FoundItem>,
) -> Result<Vec<FoundItem>, Error> {
    let read = |e| Error::io("list", dir, e);
    let mut found = Vec::new();
    for entry in directory::entries(dir).map_err(read)? {
        let path = entry.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let unfinished = name
            .strip_prefix('.')
            .and_then(|name| name.strip_suffix(".new"));
        found.extend(meaning(&path, unfinished.unwrap_or(name)));
    }
    Ok(found)
}

/// Whether a bundle has the snapshot of this name, or may still get it. `true` in case of doubt.
pub(crate) fn may_have(bundle: &BundlePath, snapshot: &str) -> Result<bool, checkpoint::Error> {
    // Its folder may only not be mounted now.
    if !bundle.dir().is_dir() {
        return Ok(true);
    }
    // First whether it is being written: a writer that has ended has sealed it, or never will.
    if checkpoint::is_being_written(bundle)? {
        return Ok(true);
    }
    // A bundle can be renamed with all of its files.
    let bundles = checkpoint::list(bundle.dir())?;
    Ok(bundles.iter().any(|listed| match &listed.state {
        checkpoint::BundleState::Whole(manifest) => {
            manifest.disks.iter().any(|disk| disk.snapshot == snapshot)
        }
        checkpoint::BundleState::Broken(_) => true,
        checkpoint::BundleState::Incomplete => false,
    }))
}

/// A bundle's path as a snapshot's property may hold it.
pub(super) fn recordable(bundle: &BundlePath) -> Result<String, Error> {
    let path = bundle.to_string();
    let refuse = |reason| {
        Err(Error::Name {
            given: path.clone(),
            reason,
        })
    };
    if !bundle.dir().is_absolute() {
        return refuse("a bundle with a disk is named by its whole path");
    }
    if path.chars().any(char::is_control) || path.contains('\u{fffd}') {
        return refuse("its path cannot be recorded with its disk");
    }
    // ZAP_MAXVALUELEN of the oldest ZFS in use, less the NUL.
    if path.len() > 1023 {
        return refuse("its path is too long to be recorded with its disk");
    }
    Ok(path)
}
