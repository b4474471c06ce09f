//! Datasets: file systems, volumes and snapshots, with their contents as files of this machine.
//!
//! | dataset | its contents |
//! |---|---|
//! | file system `tank/a` | its mount point, `pool/tank/a` unless another one was set |
//! | snapshot `tank/a@x` | `.zfs/snapshot/x` below it, a copy |
//! | volume `tank/v` | `dev/zvol/tank/v`, and `dev/zvol/tank/v@x` for its snapshot |

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::{Whence, lseek},
};
use serde::{Deserialize, Serialize};

use crate::world::World;

/// What a dataset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Filesystem,
    Volume,
    Snapshot,
}

impl Kind {
    /// Its word in messages and lists.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Filesystem => "filesystem",
            Self::Volume => "volume",
            Self::Snapshot => "snapshot",
        }
    }
}

/// A dataset, whatever its kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Dataset {
    pub(crate) kind: Kind,
    /// Order of creation.
    pub(crate) txg: u64,
    /// Of a clone: its snapshot.
    pub(crate) origin: Option<String>,
    /// Of a volume and its snapshots, in bytes.
    pub(crate) volsize: Option<u64>,
    /// Properties that were set here.
    pub(crate) properties: BTreeMap<String, String>,
    /// Of a snapshot: tags of those who hold it.
    #[serde(default)]
    pub(crate) holds: BTreeSet<String>,
}

/// All datasets of a world, by name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Datasets {
    next: u64,
    pub(crate) all: BTreeMap<String, Dataset>,
}

const FILE: &str = "zfs";

impl Datasets {
    pub(crate) fn load(world: &World) -> io::Result<Self> {
        world.load(FILE).map(Option::unwrap_or_default)
    }

    /// Writes them. The world is locked.
    pub(crate) fn store(&self, world: &World) -> io::Result<()> {
        world.store(FILE, self)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Dataset> {
        self.all.get(name)
    }

    /// Adds one, newer than all others.
    pub(crate) fn add(&mut self, name: &str, kind: Kind) -> &mut Dataset {
        self.next += 1;
        let dataset = Dataset {
            kind,
            txg: self.next,
            origin: None,
            volsize: None,
            properties: BTreeMap::new(),
            holds: BTreeSet::new(),
        };
        self.all
            .entry(name.to_owned())
            .insert_entry(dataset)
            .into_mut()
    }

    /// Snapshots of a dataset, oldest first.
    pub(crate) fn snapshots(&self, name: &str) -> Vec<String> {
        let of = format!("{name}@");
        let mut found: Vec<_> = self
            .all
            .iter()
            .filter(|(other, _)| other.starts_with(&of))
            .collect();
        found.sort_by_key(|(_, dataset)| dataset.txg);
        found.into_iter().map(|(name, _)| name.clone()).collect()
    }

    /// Everything below a dataset: children, their children, and all snapshots; not itself.
    pub(crate) fn below(&self, name: &str) -> Vec<String> {
        let is = |other: &&String| {
            let rest = other.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with('/') || rest.starts_with('@'))
        };
        self.all.keys().filter(is).cloned().collect()
    }

    /// Clones of a snapshot.
    pub(crate) fn clones(&self, snapshot: &str) -> Vec<String> {
        let is = |(_, dataset): &(&String, &Dataset)| dataset.origin.as_deref() == Some(snapshot);
        self.all
            .iter()
            .filter(is)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// A property that was set here or above, and where.
    pub(crate) fn inherited(&self, name: &str, property: &str) -> Option<(String, String)> {
        // A snapshot's own value, then that of what it is a snapshot of, then those above.
        let mut at = name;
        loop {
            if let Some(value) = self.get(at).and_then(|d| d.properties.get(property)) {
                return Some((value.clone(), at.to_owned()));
            }
            at = at.rsplit_once('@').or_else(|| at.rsplit_once('/'))?.0;
        }
    }

    /// Where a file system is mounted; `None` for other kinds and when it is not.
    pub(crate) fn mountpoint(&self, world: &World, name: &str) -> Option<PathBuf> {
        if self.get(name)?.kind != Kind::Filesystem {
            return None;
        }
        match self.inherited(name, "mountpoint") {
            Some((value, _)) if !value.starts_with('/') => None,
            Some((value, at)) => {
                let below = name[at.len()..].trim_start_matches('/');
                Some(if below.is_empty() {
                    value.into()
                } else {
                    Path::new(&value).join(below)
                })
            }
            None => Some(world.path("pool").join(name)),
        }
    }

    /// Where the contents are, mounted or not.
    pub(crate) fn contents(&self, world: &World, name: &str) -> PathBuf {
        let (dataset, snapshot) = match name.split_once('@') {
            Some((dataset, snapshot)) => (dataset, Some(snapshot)),
            None => (name, None),
        };
        let volume = self.get(dataset).is_some_and(|d| d.kind == Kind::Volume);
        if volume {
            return world.path("dev/zvol").join(name);
        }
        let folder = self.mountpoint(world, dataset);
        let folder = folder.unwrap_or_else(|| world.path("pool").join(dataset));
        match snapshot {
            Some(snapshot) => folder.join(".zfs/snapshot").join(snapshot),
            None => folder,
        }
    }

    /// Folders of other file systems, which are not contents of the one above them.
    fn borders(&self, world: &World) -> Vec<PathBuf> {
        self.all
            .keys()
            .filter_map(|name| self.mountpoint(world, name))
            .collect()
    }

    /// Copies contents: what a snapshot or a clone begins with. What is in the way was left by a
    /// command that was killed, as for ZFS itself it either happened or not.
    pub(crate) fn copy(&self, world: &World, from: &Path, to: &Path) -> io::Result<()> {
        remove(to)?;
        if from.is_file() {
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent)?;
            }
            return copy_file(from, to);
        }
        copy_folder(from, to, &self.borders(world))
    }

    /// Bytes of the contents.
    pub(crate) fn referenced(&self, world: &World, name: &str) -> u64 {
        let mut borders = self.borders(world);
        let contents = self.contents(world, name);
        borders.retain(|border| *border != contents);
        size(&contents, &borders).unwrap_or_default()
    }

    /// Whether a process has a file of it open: a disk of a VM.
    pub(crate) fn busy(&self, world: &World, name: &str) -> bool {
        let mut borders = self.borders(world);
        let contents = self.contents(world, name);
        borders.retain(|border| *border != contents);
        any_open(&contents, &borders)
    }
}

/// Removes a file or a folder, if there is one.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn entries(folder: &Path, borders: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name != ".zfs") && !borders.contains(&path) {
            entries.push(path);
        }
    }
    Ok(entries)
}

/// Copies what a file has and not its holes: a volume of many gigabytes has hardly anything.
fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (File::open(from)?, File::create(to)?);
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let offset = |at: u64| i64::try_from(at).map_err(io::Error::other);
    let place = |at: i64| u64::try_from(at).map_err(io::Error::other);
    let mut at = 0;
    let mut buffer = vec![0; 1 << 16];
    while at < length {
        at = match lseek(&from, offset(at)?, Whence::SeekData) {
            Ok(data) => place(data)?,
            Err(Errno::ENXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = place(lseek(&from, offset(at)?, Whence::SeekHole)?)?;
        while at < end {
            let most = usize::try_from(end - at).map_or(buffer.len(), |n| n.min(buffer.len()));
            from.read_exact_at(&mut buffer[..most], at)?;
            to.write_all_at(&buffer[..most], at)?;
            at += most as u64;
        }
    }
    Ok(())
}

fn copy_folder(from: &Path, to: &Path, borders: &[PathBuf]) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for path in entries(from, borders)? {
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_folder(&path, &target, borders)?;
        } else {
            copy_file(&path, &target)?;
        }
    }
    Ok(())
}

fn size(path: &Path, borders: &[PathBuf]) -> io::Result<u64> {
    if !path.is_dir() {
        return Ok(path.metadata()?.len());
    }
    entries(path, borders)?
        .iter()
        .map(|path| size(path, borders))
        .sum()
}

fn any_open(path: &Path, borders: &[PathBuf]) -> bool {
    if path.is_dir() {
        let below = entries(path, borders).unwrap_or_default();
        return below.iter().any(|path| any_open(path, borders));
    }
    let free = File::open(path).map(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock));
    matches!(free, Ok(Err(_)))
}
