//! Lock of a template: the file `ID.template` of the run folder, which `brood checkpoint make` holds
//! locked (flock(2)) for as long as it works at the guest that it boots.
//!
//! A template has no record in the state. So the lock's file says what there may be of it outside the
//! run folder: its disk, and the bundle that it is written to. The file is there before anything else
//! of the template, and goes last. Whoever gets the lock knows that the command has ended, and removes
//! all that it left; nobody touches a template whose lock is held. The template's QEMU holds the lock
//! until it is QEMU, and so do the commands that make its disk.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Error;
use crate::{
    checkpoint::{self, BundlePath},
    disk::{self, Owner, Place, Source},
    guest_id::GuestId,
    owner_only,
};

/// What follows the name of a lock's file until it is locked.
const UNLOCKED: &str = ".new";

/// An engine's templates.
#[derive(Debug)]
pub(super) struct Templates {
    /// What the names of their locks end with, after the id.
    pub(super) suffix: &'static str,
    /// Removes what one has in the run folder.
    pub(super) remove: fn(&Path, &GuestId) -> io::Result<()>,
}

/// What there may be of a template outside the run folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct TemplateParts {
    /// Whose its disk is.
    owner: String,
    /// What its disk is a clone of; none when it has no disk, or one in its folder.
    disk: Option<String>,
    /// The bundle, `DIR/NAME`.
    bundle: String,
}

impl TemplateParts {
    /// The parts of a template that becomes this bundle.
    pub(super) fn new(
        owner: Owner,
        disk: Option<&Source>,
        bundle: &BundlePath,
    ) -> Result<Self, Error> {
        // The folder may not be there yet.
        let folder =
            std::path::absolute(bundle.dir()).map_err(io("find the checkpoint's folder"))?;
        let disk = disk.map(|source| source.clone().absolute()).transpose()?;
        Ok(Self {
            owner: owner.to_string(),
            disk: disk.map(|source| source.to_string()),
            bundle: BundlePath::new(&folder.join(bundle.name()))?.to_string(),
        })
    }

    /// Removes them: those of a bundle that was sealed stay.
    fn remove(&self, id: &GuestId) -> Result<(), Error> {
        let owner = self.owner.parse().map_err(|()| no_parts())?;
        let mut places = Vec::new();
        if let Some(source) = &self.disk {
            let source: Source = source.parse()?;
            disk::provider(&source, owner, None).release(id)?;
            places.push(source.place());
        }
        let bundle: BundlePath = self.bundle.parse()?;
        if !bundle.dir().is_dir() {
            return Ok(());
        }
        checkpoint::remove_draft(&bundle)?;
        places.push(Place::Folder(bundle.dir().to_owned()));
        for place in places {
            let zfs = || disk::Command::holding(None);
            for found in disk::find(&place, owner, &zfs())? {
                let Some((of, name)) = found.bundle() else {
                    continue;
                };
                if of.name() == bundle.name() && !disk::may_have(of, &name)? {
                    found.remove(owner, Box::new(zfs()))?;
                }
            }
        }
        Ok(())
    }
}

fn io(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action, source }
}

fn no_parts() -> Error {
    let source = io::ErrorKind::InvalidData.into();
    io("read what a template is made of")(source)
}

/// The lock of a template, held.
#[derive(Debug)]
pub(super) struct TemplateLock {
    path: PathBuf,
    file: File,
}

impl TemplateLock {
    /// Takes the lock of a new template.
    pub(super) fn take(
        templates: &Templates,
        run_dir: &Path,
        id: &GuestId,
        parts: &TemplateParts,
    ) -> Result<Self, Error> {
        let name = format!("{id}{}", templates.suffix);
        let (path, new) = (
            run_dir.join(&name),
            run_dir.join(format!("{name}{UNLOCKED}")),
        );
        let failed = io("lock the guest that is booted");
        let text = serde_json::to_vec(parts).map_err(|e| failed(e.into()))?;
        loop {
            let options = &mut owner_only::options();
            let created = options.read(true).write(true).create(true).open(&new);
            let mut file = created.map_err(&failed)?;
            match file.try_lock() {
                Ok(()) => {}
                // Another process finds out whether its owner has died, and removes it.
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
            file.write_all(&text).map_err(&failed)?;
            match fs::rename(&new, &path) {
                Ok(()) => return Ok(Self { path, file }),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed(e)),
            }
        }
    }

    /// The open file, for processes that work at the template.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Removes the lock's file: nothing is left of the template.
    pub(super) fn forget(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes the templates in a run folder whose command has ended; returns the others. What cannot be
/// removed is tried again by the next look.
pub(super) fn sweep(templates: &Templates, run_dir: &Path) -> io::Result<Vec<GuestId>> {
    let entries = match fs::read_dir(run_dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut held = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|name| templates.id_in(name)) else {
            continue;
        };
        let path = entry.path();
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                held.push(id);
                continue;
            }
            Err(TryLockError::Error(e)) => return Err(e),
        }
        match templates.remove_all(run_dir, &id, &path, &file) {
            Ok(()) => tracing::info!(guest = %id, "removed what a killed `checkpoint make` left"),
            Err(error) => {
                tracing::warn!(guest = %id, %error, "cannot remove what a killed `checkpoint make` left");
            }
        }
    }
    Ok(held)
}

impl Templates {
    /// Removes all of a template, whose lock this process has now.
    fn remove_all(
        &self,
        run_dir: &Path,
        id: &GuestId,
        path: &Path,
        file: &File,
    ) -> Result<(), Error> {
        // One without its name had nothing else yet.
        if path.to_string_lossy().ends_with(self.suffix) {
            let parts: TemplateParts = serde_json::from_reader(file).map_err(|_| no_parts())?;
            (self.remove)(run_dir, id).map_err(io("remove the guest's files"))?;
            parts.remove(id)?;
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io("remove the lock")(e)),
            _ => Ok(()),
        }
    }

    /// The id of the template whose lock has this name.
    fn id_in(&self, name: &str) -> Option<GuestId> {
        let name = name.strip_suffix(UNLOCKED).unwrap_or(name);
        name.strip_suffix(self.suffix)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Bytes;

    const TEMPLATES: Templates = Templates {
        suffix: ".template",
        remove: |run_dir, id| fs::remove_dir(run_dir.join(id.to_string())),
    };

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    #[test]
    fn a_template_stays_while_its_lock_is_held_and_then_goes_with_all_it_has() {
        let (run, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let owner = Owner::of(run.path());
        let base = place.path().join("base");
        fs::write(&base, [7; 4096]).unwrap();
        let source: Source = format!("qcow2:{}", base.display()).parse().unwrap();
        let bundle = BundlePath::new(&place.path().join("web")).unwrap();
        let id = GuestId([7; 8]);
        let parts = TemplateParts::new(owner, Some(&source), &bundle).unwrap();
        let lock = TemplateLock::take(&TEMPLATES, run.path(), &id, &parts).unwrap();
        fs::create_dir(run.path().join(id.to_string())).unwrap();
        disk::provider(&source, owner, None)
            .clone_for(&id, &checkpoint::unwatched)
            .unwrap();
        let draft = checkpoint::Writer::create(&bundle, Bytes::mib(1)).unwrap();
        assert_eq!(sweep(&TEMPLATES, run.path()).unwrap(), [id]);
        assert_eq!(names(run.path()).len(), 2, "{:?}", names(run.path()));
        assert_eq!(names(&place.path().join("brood-disks")).len(), 1);

        // As when the process is killed: the files stay, and their locks are free.
        let copies = ["ckp.new", "ckp.brood.new"].map(|name| {
            let file = place.path().join(format!(".web.{name}"));
            let copy = file.with_extension("copy");
            fs::copy(&file, &copy).unwrap();
            (file, copy)
        });
        drop(draft);
        for (file, copy) in copies {
            fs::rename(copy, file).unwrap();
        }
        drop(lock);
        assert_eq!(sweep(&TEMPLATES, run.path()).unwrap(), []);
        assert_eq!(names(run.path()), [] as [String; 0]);
        assert_eq!(names(&place.path().join("brood-disks")), [] as [String; 0]);
        let mut left = names(place.path());
        left.sort();
        assert_eq!(left, ["base", "brood-disks"]);
    }

    #[test]
    fn half_a_lock_is_removed_and_one_that_says_nothing_stays_in_sight() {
        let run = tempfile::tempdir().unwrap();
        let id = GuestId([7; 8]);
        for suffix in ["", UNLOCKED] {
            fs::write(run.path().join(format!("{id}.template{suffix}")), "").unwrap();
        }
        assert_eq!(sweep(&TEMPLATES, run.path()).unwrap(), []);
        assert_eq!(names(run.path()), [format!("{id}.template")]);
        assert_eq!(sweep(&TEMPLATES, &run.path().join("gone")).unwrap(), []);
    }
}
