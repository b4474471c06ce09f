//! Disks as files that share blocks: a crash between any two steps leaves what the next run repeats
//! or sweeps. A step is a file that exists or not, complete or not.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use brood_core::{
    checkpoint::{BundlePath, sha256_file, unwatched},
    disk::{self, Command, Error, FoundItem, Owner, Place, Provider, Reflink, SealedDisk, Token},
    guest_id::GuestId,
    host::{HostSource, doctor::doctor},
};
use brood_tests::{FileSystem, Kind, image};

struct Scene {
    files: FileSystem,
    owner: Owner,
    bundle: BundlePath,
}

impl Scene {
    fn new() -> Option<Self> {
        let files = FileSystem::new(Kind::Xfs)?;
        fs::write(files.path().join("base.img"), image()).unwrap();
        let bundle = BundlePath::new(&files.path().join("warm")).unwrap();
        let owner = Owner::of(&files.path());
        Some(Self {
            files,
            owner,
            bundle,
        })
    }

    fn base(&self) -> PathBuf {
        self.files.path().join("base.img")
    }

    fn disks(&self) -> Reflink {
        Reflink::new(self.owner, self.base(), false)
    }

    fn found(&self) -> Vec<FoundItem> {
        let place: Place = format!("reflink:{}", self.files.path().display())
            .parse()
            .unwrap();
        disk::find(&place, self.owner, &Command::holding(None)).unwrap()
    }

    fn sweep(&self) {
        for found in self.found() {
            found
                .remove(self.owner, Box::new(Command::holding(None)))
                .unwrap();
        }
        assert_eq!(self.found(), []);
    }

    #[track_caller]
    fn is_pristine(&self) {
        let mut names: Vec<_> = fs::read_dir(self.files.path())
            .unwrap()
            .chain(fs::read_dir(self.files.path().join("brood-disks")).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["base.img", "brood-disks"]);
    }
}

fn guest() -> GuestId {
    GuestId::random().unwrap()
}

fn digest(file: &File) -> std::io::Result<String> {
    sha256_file(file, &brood_core::checkpoint::unwatched)
}

/// What a file is called until it is whole.
fn unfinished(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap().to_str().unwrap();
    path.with_file_name(format!(".{name}.new"))
}

#[test]
fn a_clone_that_was_cut_off_is_made_again_released_or_swept() {
    let Some(scene) = Scene::new() else { return };
    let disks = scene.disks();
    disks.open(None, &digest).unwrap();
    disks.clone_for(&guest(), &unwatched).unwrap();
    scene.sweep();
    // The temporary file was made; it was filled; it has its name.
    for left in ["", "half", "whole", "named"] {
        let leave = |disk: &Path| match left {
            "named" => disks.clone_for(&of(disk), &unwatched).unwrap(),
            "" => drop(File::create(unfinished(disk)).unwrap()),
            "half" => fs::write(unfinished(disk), &image()[..12345]).unwrap(),
            _ => fs::write(unfinished(disk), image()).unwrap(),
        };
        let again = guest();
        leave(&disks.disk(&again));
        disks.clone_for(&again, &unwatched).unwrap();
        assert!(fs::read(disks.disk(&again)).unwrap() == image(), "{left}");
        assert_eq!(scene.found().len(), 1, "{left}");
        disks.release(&again).unwrap();
        scene.is_pristine();

        let released = guest();
        leave(&disks.disk(&released));
        disks.release(&released).unwrap();
        disks.release(&released).unwrap();
        scene.is_pristine();

        let unknown = guest();
        leave(&disks.disk(&unknown));
        assert_eq!(scene.found()[0].guest(), Some(unknown), "{left}");
        scene.sweep();
        scene.is_pristine();
    }
}

/// The guest whose disk has this path.
fn of(disk: &Path) -> GuestId {
    let stem = disk.file_stem().unwrap().to_str().unwrap();
    stem.split_once('-').unwrap().1.parse().unwrap()
}

#[test]
fn a_snapshot_that_was_cut_off_is_told_from_the_next_one_and_swept() {
    let Some(scene) = Scene::new() else { return };
    let (disks, guest) = (scene.disks(), guest());
    disks.clone_for(&guest, &unwatched).unwrap();
    for left in ["", "half", "whole", "named"] {
        let token = Token::random().unwrap();
        let first = scene.files.path().join(format!("warm.ckp.disk-{token}"));
        match left {
            "named" => drop(
                disks
                    .snapshot(&guest, &scene.bundle, &token, &unwatched)
                    .unwrap(),
            ),
            "" => drop(File::create(unfinished(&first)).unwrap()),
            "half" => fs::write(unfinished(&first), &image()[..12345]).unwrap(),
            _ => fs::write(unfinished(&first), image()).unwrap(),
        }
        let token = Token::random().unwrap();
        let sealed = disks
            .snapshot(&guest, &scene.bundle, &token, &unwatched)
            .unwrap();
        let file = scene.files.path().join(&sealed.snapshot);
        assert!(fs::read(&file).unwrap() == image(), "{left}");
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o400
        );
        let found = scene.found();
        let bundles: Vec<_> = found.iter().filter_map(FoundItem::bundle).collect();
        assert_eq!(bundles.len(), 2, "{left}: {bundles:?}");
        assert!(bundles.iter().all(|(bundle, _)| **bundle == scene.bundle));
        for found in found.iter().filter(|found| found.bundle().is_some()) {
            let whole = found.bundle().unwrap().1 == sealed.snapshot;
            if !whole {
                found
                    .remove(scene.owner, Box::new(Command::holding(None)))
                    .unwrap();
            }
        }
        let from = Reflink::new(scene.owner, file, false);
        let (bundle, disk) = (&scene.bundle, &sealed);
        from.open(Some(SealedDisk { bundle, disk }), &digest)
            .unwrap();
        disks.discard(&scene.bundle, &sealed).unwrap();
        disks.discard(&scene.bundle, &sealed).unwrap();
        assert_eq!(scene.found().len(), 1, "the guest's disk");
    }
    disks.release(&guest).unwrap();
    scene.is_pristine();
}

#[test]
fn a_source_that_is_written_to_while_clones_are_made_is_refused() {
    let Some(scene) = Scene::new() else { return };
    let disks = scene.disks();
    disks.open(None, &digest).unwrap();
    disks.clone_for(&guest(), &unwatched).unwrap();
    fs::write(scene.base(), b"something else").unwrap();
    let error = disks.clone_for(&guest(), &unwatched).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    assert_eq!(scene.found().len(), 1, "only the one that was made before");
    scene.sweep();
    scene.is_pristine();
}

#[test]
fn a_manifest_cannot_name_a_file_outside_of_its_folder() {
    let Some(scene) = Scene::new() else { return };
    let (disks, guest, token) = (scene.disks(), guest(), Token::random().unwrap());
    disks.clone_for(&guest, &unwatched).unwrap();
    let mut sealed = disks
        .snapshot(&guest, &scene.bundle, &token, &unwatched)
        .unwrap();
    let whole = sealed.snapshot.clone();
    for bad in [
        "base.img",
        "../warm.ckp.disk-0123456789abcdef",
        "/etc/passwd",
        "",
    ] {
        bad.clone_into(&mut sealed.snapshot);
        let error = disks.discard(&scene.bundle, &sealed).unwrap_err();
        assert!(matches!(error, Error::Name { .. }), "{bad}: {error}");
        assert!(disk::verify(&scene.bundle, std::slice::from_ref(&sealed), &unwatched).is_err());
    }
    sealed.snapshot = whole;
    disk::verify(&scene.bundle, std::slice::from_ref(&sealed), &unwatched).unwrap();
    scene.sweep();
    scene.is_pristine();
}

#[test]
fn doctor_says_how_disks_are_cloned_in_a_folder() {
    let told = |folder: &Path| {
        let folder = folder.to_owned();
        let facts = HostSource::default().facts(folder.clone(), Some(folder));
        let checks = doctor(&facts.unwrap(), 10);
        ["state disk clones", "checkpoint disk clones"].map(|name| {
            let check = checks.iter().find(|check| check.name == name).unwrap();
            check.found.clone()
        })
    };
    for (kind, found) in [
        (Kind::Xfs, "files that share blocks (reflink)"),
        (Kind::Ext4, "qcow2 overlays only"),
    ] {
        let Some(files) = FileSystem::new(kind) else {
            continue;
        };
        let before = fs::read_dir(files.path()).unwrap().count();
        assert_eq!(told(&files.path()), [found; 2], "{kind:?}");
        assert_eq!(fs::read_dir(files.path()).unwrap().count(), before);
        // One that will be made is judged by what it will be in.
        assert_eq!(told(&files.path().join("new/state"))[0], found);
    }
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    assert_eq!(told(memory.path()), ["qcow2 overlays only"; 2]);
}
