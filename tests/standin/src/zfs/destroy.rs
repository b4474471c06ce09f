//! `zfs destroy`: what it removes, what prevents it, and what it removes along.

use std::collections::BTreeSet;

use super::{
    broken,
    change::Pool,
    datasets::{self, Kind},
    failed, has, missing, only, options, usage,
};
use crate::exit::Exit;

impl Pool<'_> {
    /// zfs_do_destroy().
    pub(super) fn destroy(self, arguments: &[String]) -> Result<(), Exit> {
        let (flags, names) = options(arguments, "")?;
        only(&flags, "rRfdv")?;
        let [name] = names.as_slice() else {
            return Err(usage());
        };
        let clones_too = has(&flags, 'R');
        let recursive = has(&flags, 'r') || clones_too;
        let mut targets = match name.split_once('@') {
            Some((dataset, snapshots)) => {
                if self.datasets.get(dataset).is_none() {
                    return Err(missing(dataset));
                }
                let mut at = vec![dataset.to_owned()];
                if recursive {
                    at.extend(self.datasets.below(dataset));
                }
                let mut found = Vec::new();
                for at in &at {
                    let full = snapshots.split(',').map(|s| format!("{at}@{s}"));
                    found.extend(full.filter(|name| self.datasets.get(name).is_some()));
                }
                if found.is_empty() {
                    return Err(failed(
                        "could not find any snapshots to destroy; check snapshot names.",
                    ));
                }
                found
            }
            None => {
                let kind = self.datasets.get(name).ok_or_else(|| missing(name))?.kind;
                let below = self.datasets.below(name);
                if !below.is_empty() && !recursive {
                    let text = format!(
                        "cannot destroy '{name}': {} has children\n\
                         use '-r' to destroy the following datasets:\n{}",
                        kind.word(),
                        below.join("\n")
                    );
                    return Err(failed(text));
                }
                [vec![name.clone()], below].concat()
            }
        };
        // Clones of what goes, and clones of their snapshots.
        let mut n = 0;
        while n < targets.len() {
            let clones = self.datasets.clones(&targets[n]);
            let outside: Vec<_> = clones
                .into_iter()
                .filter(|c| !targets.contains(c))
                .collect();
            if !outside.is_empty() && !clones_too {
                let (what, target) = if name.contains('@') {
                    ("snapshot", &targets[n])
                } else {
                    (
                        self.datasets
                            .get(name)
                            .map_or("filesystem", |d| d.kind.word()),
                        name,
                    )
                };
                let text = format!(
                    "cannot destroy '{target}': {what} has dependent clones\n\
                     use '-R' to destroy the following datasets:\n{}",
                    outside.join("\n")
                );
                return Err(failed(text));
            }
            for clone in outside {
                let below = self.datasets.below(&clone);
                targets.push(clone);
                targets.extend(below);
            }
            n += 1;
        }
        // zfs_destroy_snaps_nvl() of libzfs_dataset.c.
        let held = |name: &&String| self.datasets.get(name).is_some_and(|d| !d.holds.is_empty());
        if let Some(name) = targets.iter().find(held) {
            return Err(failed(format!(
                "cannot destroy snapshot {name}: dataset is busy"
            )));
        }
        self.destroy_all(&targets, has(&flags, 'f'))
    }

    pub(super) fn destroy_all(self, targets: &[String], force: bool) -> Result<(), Exit> {
        let busy = targets.iter().find(|name| {
            let kind = self.datasets.get(name).map(|dataset| dataset.kind);
            let forced = force && kind == Some(Kind::Filesystem);
            !name.contains('@') && !forced && self.datasets.busy(self.world, name)
        });
        if let Some(name) = busy {
            return Err(failed(match self.datasets.mountpoint(self.world, name) {
                Some(path) => format!(
                    "cannot unmount '{}': pool or dataset is busy",
                    path.display()
                ),
                None => format!("cannot destroy '{name}': dataset is busy"),
            }));
        }
        let targets: BTreeSet<&String> = targets.iter().collect();
        let contents: Vec<_> = targets
            .iter()
            .map(|n| self.datasets.contents(self.world, n))
            .collect();
        self.datasets.all.retain(|name, _| !targets.contains(name));
        self.store()?;
        for path in contents {
            datasets::remove(&path).map_err(|e| broken(&e))?;
        }
        Ok(())
    }
}
