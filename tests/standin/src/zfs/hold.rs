//! `zfs hold` and `zfs release`: tags that keep a snapshot from being destroyed (cmd/zfs/zfs_main.c,
//! zfs_do_hold_rele_impl(); lib/libzfs/libzfs_dataset.c, zfs_hold_nvl(), zfs_release()).

use super::{
    change::Pool,
    datasets::{Dataset, Kind},
    failed, missing, only, options, usage,
};
use crate::exit::Exit;

impl Pool<'_> {
    /// zfs_do_hold().
    pub(super) fn hold(self, arguments: &[String]) -> Result<(), Exit> {
        self.on_each(arguments, |name, tag, snapshot| {
            let why = match snapshot.map(|snapshot| snapshot.holds.insert(tag.to_owned())) {
                None => "dataset does not exist",
                Some(true) => return Ok(()),
                Some(false) => "tag already exists on this dataset",
            };
            Err(failed(format!("cannot hold snapshot '{name}': {why}")))
        })
    }

    /// zfs_do_release().
    pub(super) fn release(self, arguments: &[String]) -> Result<(), Exit> {
        self.on_each(arguments, |name, tag, snapshot| {
            let why = match snapshot.map(|snapshot| snapshot.holds.remove(tag)) {
                None => "dataset does not exist",
                Some(true) => return Ok(()),
                Some(false) => "no such tag on this dataset",
            };
            Err(failed(format!(
                "cannot release hold from snapshot '{name}': {why}"
            )))
        })
    }

    /// zfs_do_hold_rele_impl(), without `-r`.
    fn on_each(
        self,
        arguments: &[String],
        act: impl Fn(&str, &str, Option<&mut Dataset>) -> Result<(), Exit>,
    ) -> Result<(), Exit> {
        let (flags, names) = options(arguments, "")?;
        only(&flags, "")?;
        let (tag, names) = match names.split_first() {
            Some((tag, names)) if !names.is_empty() => (tag, names),
            _ => return Err(usage()),
        };
        if tag.starts_with('.') {
            return Err(failed("tag may not start with '.'"));
        }
        for name in names {
            let Some((dataset, _)) = name.split_once('@') else {
                return Err(failed(format!("'{name}' is not a snapshot")));
            };
            if self.datasets.get(dataset).is_none() {
                return Err(missing(dataset));
            }
            let snapshot = self.datasets.all.get_mut(name);
            act(name, tag, snapshot.filter(|s| s.kind == Kind::Snapshot))?;
        }
        self.store()
    }
}
