//! Changes of datasets: create, snapshot, clone, rollback, set, inherit.

use std::{
    fs::{self, File},
    path::Path,
};

use super::{
    broken,
    datasets::{self, Datasets, Kind},
    failed, has, list, missing, only, options, properties, usage,
};
use crate::{exit::Exit, world::World};

/// Longest name of a dataset (`ZFS_MAX_DATASET_NAME_LEN`, less the zero).
const NAME_MAX: usize = 255;

/// The datasets, to be changed under the world's lock.
pub(super) struct Pool<'a> {
    pub(super) world: &'a World,
    pub(super) datasets: &'a mut Datasets,
}

impl Pool<'_> {
    pub(super) fn store(&self) -> Result<(), Exit> {
        self.datasets.store(self.world).map_err(|e| broken(&e))
    }

    /// zfs_validate_name() and the parent of a new dataset (libzfs_dataset.c, check_parents()).
    fn new_name(&mut self, name: &str, parents: bool) -> Result<(), Exit> {
        let refused = |why: &str| failed(format!("cannot create '{name}': {why}"));
        if name.len() > NAME_MAX {
            return Err(refused("name is too long"));
        }
        if name.starts_with('/') {
            return Err(refused("leading slash in name"));
        }
        if name.ends_with('/') {
            return Err(refused("trailing slash in name"));
        }
        if name.split('/').any(str::is_empty) {
            return Err(refused(
                "empty component or misplaced '@' or '#' delimiter in name",
            ));
        }
        let bad = |c: char| !(c.is_ascii_alphanumeric() || "-_.: /".contains(c));
        if let Some(c) = name.chars().find(|c| bad(*c)) {
            return Err(refused(&format!("invalid character '{c}' in name")));
        }
        let Some((parent, _)) = name.rsplit_once('/') else {
            let text = "missing dataset name\nuse 'zpool create' to create a storage pool";
            return Err(failed(format!("cannot create '{name}': {text}")));
        };
        if self.datasets.get(name).is_some() {
            return Err(refused("dataset already exists"));
        }
        match self.datasets.get(parent) {
            Some(dataset) if dataset.kind == Kind::Filesystem => Ok(()),
            Some(_) => Err(refused("parent is not a filesystem")),
            None if parents => {
                self.new_name(parent, true)?;
                self.add_filesystem(parent, &[])
            }
            None => Err(refused("parent does not exist")),
        }
    }

    fn add_filesystem(&mut self, name: &str, properties: &[(String, String)]) -> Result<(), Exit> {
        let dataset = self.datasets.add(name, Kind::Filesystem);
        dataset.properties.extend(properties.iter().cloned());
        let contents = self.datasets.contents(self.world, name);
        fs::create_dir_all(contents).map_err(|e| broken(&e))
    }

    /// zfs_do_create().
    pub(super) fn create(mut self, arguments: &[String]) -> Result<(), Exit> {
        let (flags, names) = options(arguments, "oVb")?;
        only(&flags, "opVsub")?;
        let [name] = names.as_slice() else {
            return Err(usage());
        };
        let parents = has(&flags, 'p');
        if parents && self.datasets.get(name).is_some() {
            return Ok(());
        }
        self.new_name(name, parents)?;
        let properties = properties(&flags)?;
        list::check_new(name, &properties)?;
        let size = flags
            .iter()
            .find(|(letter, _)| *letter == 'V')
            .and_then(|(_, size)| size.clone());
        match size {
            None => self.add_filesystem(name, &properties)?,
            Some(text) => {
                let bytes = list::bytes(&text).ok_or_else(|| {
                    failed(format!(
                        "bad volume size '{text}': bad numeric value '{text}'"
                    ))
                })?;
                let volume = self.datasets.add(name, Kind::Volume);
                volume.volsize = Some(bytes);
                volume.properties.extend(properties);
                let path = self.datasets.contents(self.world, name);
                let make = || {
                    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
                    File::create(&path)?.set_len(bytes)
                };
                make().map_err(|e| broken(&e))?;
            }
        }
        self.store()
    }

    /// zfs_do_snapshot().
    pub(super) fn snapshot(self, arguments: &[String]) -> Result<(), Exit> {
        let (flags, names) = options(arguments, "o")?;
        only(&flags, "or")?;
        if names.is_empty() {
            return Err(usage());
        }
        // All or none of them.
        let mut wanted = Vec::new();
        for full in &names {
            let (name, snapshot) = full.split_once('@').ok_or_else(usage)?;
            let Some(dataset) = self.datasets.get(name).filter(|d| d.kind != Kind::Snapshot) else {
                return Err(Exit::saying(2, missing(name).message + &usage().message));
            };
            wanted.push((full.clone(), dataset.volsize));
            if has(&flags, 'r') {
                for below in self.datasets.below(name) {
                    if let Some(dataset) = self.datasets.get(&below)
                        && dataset.kind != Kind::Snapshot
                    {
                        wanted.push((format!("{below}@{snapshot}"), dataset.volsize));
                    }
                }
            }
        }
        let there = wanted
            .iter()
            .find(|(name, _)| self.datasets.get(name).is_some());
        if let Some((name, _)) = there {
            return Err(failed(format!(
                "cannot create snapshot '{name}': dataset already exists"
            )));
        }
        let properties = properties(&flags)?;
        for (name, volsize) in &wanted {
            let from = self
                .datasets
                .contents(self.world, name.split('@').next().unwrap_or(name));
            let to = self.datasets.contents(self.world, name);
            self.datasets
                .copy(self.world, &from, &to)
                .map_err(|e| broken(&e))?;
            let snapshot = self.datasets.add(name, Kind::Snapshot);
            snapshot.volsize = *volsize;
            snapshot.properties.extend(properties.iter().cloned());
        }
        self.store()
    }

    /// zfs_do_clone().
    pub(super) fn clone_snapshot(mut self, arguments: &[String]) -> Result<(), Exit> {
        let (flags, names) = options(arguments, "o")?;
        only(&flags, "opu")?;
        let [origin, name] = names.as_slice() else {
            return Err(usage());
        };
        let Some(snapshot) = self.datasets.get(origin).cloned() else {
            return Err(missing(origin));
        };
        if snapshot.kind != Kind::Snapshot {
            let text = "operation not applicable to datasets of this type";
            return Err(failed(format!("cannot open '{origin}': {text}")));
        }
        let parents = has(&flags, 'p');
        if parents && self.datasets.get(name).is_some() {
            return Ok(());
        }
        let pool = |name: &str| name.split(['/', '@']).next().map(str::to_owned);
        if pool(origin) != pool(name)
            && self.datasets.get(&pool(name).unwrap_or_default()).is_some()
        {
            let text = "source and target pools differ";
            return Err(failed(format!("cannot create '{name}': {text}")));
        }
        self.new_name(name, parents)?;
        let properties = properties(&flags)?;
        list::check_new(name, &properties)?;
        let from = self.datasets.contents(self.world, origin);
        let kind = if snapshot.volsize.is_some() {
            Kind::Volume
        } else {
            Kind::Filesystem
        };
        let clone = self.datasets.add(name, kind);
        clone.origin = Some(origin.clone());
        clone.volsize = snapshot.volsize;
        clone.properties.extend(properties);
        let to = self.datasets.contents(self.world, name);
        self.datasets
            .copy(self.world, &from, &to)
            .map_err(|e| broken(&e))?;
        self.store()
    }

    /// zfs_do_rollback().
    pub(super) fn rollback(self, arguments: &[String]) -> Result<(), Exit> {
        let (flags, names) = options(arguments, "")?;
        only(&flags, "rRf")?;
        let [name] = names.as_slice() else {
            return Err(usage());
        };
        let (dataset, _) = name.split_once('@').ok_or_else(usage)?;
        let snapshots = self.datasets.snapshots(dataset);
        let Some(at) = snapshots.iter().position(|other| other == name) else {
            return Err(missing(name));
        };
        let newer = &snapshots[at + 1..];
        if !newer.is_empty() && !has(&flags, 'r') && !has(&flags, 'R') {
            let text = format!(
                "cannot rollback to '{name}': more recent snapshots or bookmarks exist\n\
                 use '-r' to force deletion of the following snapshots and bookmarks:\n{}",
                newer.join("\n")
            );
            return Err(failed(text));
        }
        let from = self.datasets.contents(self.world, name);
        let to = self.datasets.contents(self.world, dataset);
        let kept = self.world.path("rollback");
        let roll = || {
            self.datasets.copy(self.world, &from, &kept)?;
            if to.is_file() {
                return fs::rename(&kept, &to);
            }
            // The snapshots below stay where they are.
            for entry in fs::read_dir(&to)? {
                let path = entry?.path();
                if path.file_name().is_some_and(|name| name != ".zfs") {
                    datasets::remove(&path)?;
                }
            }
            for entry in fs::read_dir(&kept)? {
                let path = entry?.path();
                fs::rename(&path, to.join(path.file_name().unwrap_or_default()))?;
            }
            datasets::remove(&kept)
        };
        roll().map_err(|e| broken(&e))?;
        if newer.is_empty() {
            Ok(())
        } else {
            self.destroy_all(newer, false)
        }
    }

    /// zfs_do_set().
    pub(super) fn set(self, arguments: &[String]) -> Result<(), Exit> {
        let split = arguments
            .iter()
            .position(|argument| !argument.contains('='));
        let split = split.unwrap_or(arguments.len());
        let (pairs, names) = arguments.split_at(split);
        if pairs.is_empty() || names.is_empty() {
            return Err(usage());
        }
        for name in names {
            for (property, value) in pairs.iter().filter_map(|pair| pair.split_once('=')) {
                list::check_settable(name, property)?;
                let dataset = self
                    .datasets
                    .all
                    .get_mut(name)
                    .ok_or_else(|| missing(name))?;
                if property == "volsize" {
                    dataset.volsize = list::bytes(value).or(dataset.volsize);
                } else {
                    dataset
                        .properties
                        .insert(property.to_owned(), value.to_owned());
                }
            }
        }
        self.store()
    }

    /// zfs_do_inherit().
    pub(super) fn inherit(self, arguments: &[String]) -> Result<(), Exit> {
        let (flags, names) = options(arguments, "")?;
        only(&flags, "rS")?;
        let (property, names) = names
            .split_first()
            .filter(|(_, n)| !n.is_empty())
            .ok_or_else(usage)?;
        for name in names {
            let dataset = self
                .datasets
                .all
                .get_mut(name)
                .ok_or_else(|| missing(name))?;
            dataset.properties.remove(property);
        }
        self.store()
    }
}
