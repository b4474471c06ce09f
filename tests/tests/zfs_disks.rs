//! Disks as ZFS datasets, on a real pool: clones that are apart, snapshots that stay while they are
//! used, and a crash between any two calls of `zfs`.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use brood_core::{
    checkpoint::{BundlePath, manifest::DiskSnapshot, unwatched},
    disk::{
        self, Command, CommandAnswer, Error, FoundItem, Owner, Place, Provider, Runner, SealedDisk,
        Token, Zfs,
    },
    guest_id::GuestId,
};
use brood_tests::ZfsPool;

/// What a process sees of its last call of `zfs`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Death {
    /// It died before the call.
    Before,
    /// It died when the call was done.
    After,
}

/// Runs `zfs` until the process "dies" at a call; from then on nothing is run.
#[derive(Clone, Debug)]
struct Mortal {
    calls: Arc<AtomicUsize>,
    death: Option<(usize, Death)>,
}

impl Mortal {
    fn immortal() -> Self {
        Self::dying(None)
    }

    fn dying(death: Option<(usize, Death)>) -> Self {
        Self {
            calls: Arc::default(),
            death,
        }
    }
}

impl Runner for Mortal {
    fn run(&self, arguments: &[&str]) -> Result<CommandAnswer, Error> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        let dead = || Err(Error::NoZfs(std::io::Error::other("dead")));
        let alive = || Command::holding(None).run(arguments);
        match self.death {
            Some((at, Death::Before)) if call >= at => dead(),
            Some((at, Death::After)) if call > at => dead(),
            Some((at, Death::After)) if call == at => alive().and_then(|_| dead()),
            _ => alive(),
        }
    }
}

/// A pool with a dataset `data`, its snapshot `data@base`, and 16 MiB in it.
struct Scene {
    pool: ZfsPool,
    owner: Owner,
    bundle: BundlePath,
}

const SIZE: u64 = 16 << 20;

impl Scene {
    fn new() -> Option<Self> {
        let pool = ZfsPool::new()?;
        let data = format!("{}/data", pool.name());
        pool.zfs(&["create", &data]).unwrap();
        let bytes: Vec<u8> = (0..SIZE / 8)
            .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .collect();
        fs::write(pool.path().join("data/disk"), bytes).unwrap();
        pool.zfs(&["snapshot", &format!("{data}@base")]).unwrap();
        let owner = Owner::of(&pool.path());
        let bundle = BundlePath::new(&pool.path().join("warm")).unwrap();
        Some(Self {
            pool,
            owner,
            bundle,
        })
    }

    fn disks(&self, zfs: Mortal) -> Zfs {
        let source = format!("{}/data@base", self.pool.name());
        Zfs::new(self.owner, source.parse().unwrap(), Box::new(zfs))
    }

    fn good(&self) -> Zfs {
        self.disks(Mortal::immortal())
    }

    /// The file in a guest's disk.
    fn file(&self, guest: &GuestId) -> PathBuf {
        let at = self.good().location(guest).unwrap();
        at.expect("it has a disk").join("disk")
    }

    fn sealed<'a>(&'a self, disk: &'a DiskSnapshot) -> Option<SealedDisk<'a>> {
        let bundle = &self.bundle;
        Some(SealedDisk { bundle, disk })
    }

    fn found(&self) -> Vec<FoundItem> {
        let place: Place = format!("zfs:{}", self.pool.name()).parse().unwrap();
        disk::find(&place, self.owner, &Command::holding(None)).unwrap()
    }

    fn sweep(&self) {
        for found in self.found() {
            let zfs = Box::new(Command::holding(None));
            found.remove(self.owner, zfs).unwrap();
        }
        assert_eq!(self.found(), []);
    }

    /// Nothing of brood is there, and nothing is held.
    #[track_caller]
    fn is_pristine(&self, what: &str) {
        assert_eq!(self.pool.names(), ["data", "data@base"], "{what}");
        self.holds("data@base", 0, what);
    }

    #[track_caller]
    fn holds(&self, snapshot: &str, holds: u32, what: &str) {
        let name = format!("{}/{snapshot}", self.pool.name());
        let held = self
            .pool
            .zfs(&["get", "-H", "-o", "value", "userrefs", &name]);
        assert_eq!(held.unwrap().trim(), holds.to_string(), "{what}");
    }

    /// The guest's disk is whole, and holds what it is a clone of.
    #[track_caller]
    fn is_whole(&self, guest: &GuestId, what: &str) {
        let clone = format!("brood-{}-{guest}", self.owner);
        assert_eq!(self.pool.names(), [&*clone, "data", "data@base"], "{what}");
        self.holds("data@base", 1, what);
        assert_eq!(
            fs::metadata(self.file(guest)).unwrap().len(),
            SIZE,
            "{what}"
        );
    }
}

/// Has `action` die at each of its calls of `zfs`, before and after it; `prepare` comes before it,
/// `mend` after it.
fn at_every_death<T>(
    scene: &Scene,
    mut prepare: impl FnMut() -> T,
    action: impl Fn(&Zfs, &T) -> Result<(), Error>,
    mut mend: impl FnMut(&T, &str),
) -> usize {
    let counted = Mortal::immortal();
    let prepared = prepare();
    action(&scene.disks(counted.clone()), &prepared).unwrap();
    mend(&prepared, "undisturbed");
    let calls = counted.calls.load(Ordering::SeqCst);
    for call in 0..calls {
        for death in [Death::Before, Death::After] {
            let prepared = prepare();
            let result = action(&scene.disks(Mortal::dying(Some((call, death)))), &prepared);
            // Some last calls only clean up, and their failure is not reported.
            let what = format!("died {death:?} call {call} of {calls}: {result:?}");
            mend(&prepared, &what);
        }
    }
    calls
}

fn guest() -> GuestId {
    GuestId::random().unwrap()
}

fn no_digest(_: &fs::File) -> std::io::Result<String> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[test]
fn clones_are_apart_from_each_other_and_from_their_source_and_share_their_space() {
    let Some(scene) = Scene::new() else { return };
    let (disks, a, b) = (scene.good(), guest(), guest());
    disks.open(None, &no_digest).unwrap();
    let before = scene.pool.used();
    disks.clone_for(&a, &unwatched).unwrap();
    disks.clone_for(&b, &unwatched).unwrap();
    let grown = scene.pool.used().saturating_sub(before);
    assert!(grown < SIZE / 8, "two clones of {SIZE} bytes take {grown}");

    let pristine = fs::read(scene.pool.path().join("data/disk")).unwrap();
    let mut mine = pristine.clone();
    mine[..5].copy_from_slice(b"guest");
    fs::write(scene.file(&a), &mine).unwrap();
    fs::write(scene.pool.path().join("data/disk"), b"the source goes on").unwrap();
    assert!(fs::read(scene.file(&a)).unwrap() == mine);
    assert!(fs::read(scene.file(&b)).unwrap() == pristine);
    // With all that was written on the disk.
    let _ = scene.pool.used();
    let own = |guest: &GuestId| disks.own_bytes(guest).unwrap().map(|own| own.0);
    let (of_a, of_b) = (own(&a).unwrap(), own(&b).unwrap());
    assert!(of_a >= SIZE && of_b < SIZE / 8, "{of_a} and {of_b}");
    let c = guest();
    disks.clone_for(&c, &unwatched).unwrap();
    assert!(
        fs::read(scene.file(&c)).unwrap() == pristine,
        "the snapshot is as it was"
    );

    for guest in [a, b, c] {
        disks.release(&guest).unwrap();
        disks.release(&guest).unwrap();
        assert_eq!(disks.location(&guest).unwrap(), None);
        assert_eq!(own(&guest), None);
    }
    scene.is_pristine("all released");
}

#[test]
fn a_snapshot_in_use_cannot_go() {
    let Some(scene) = Scene::new() else { return };
    let (disks, guest, token) = (scene.good(), guest(), Token::random().unwrap());
    disks.clone_for(&guest, &unwatched).unwrap();
    let base = format!("{}/data@base", scene.pool.name());
    let sealed = disks
        .snapshot(&guest, &scene.bundle, &token, &unwatched)
        .unwrap();
    for snapshot in [&base, &sealed.snapshot] {
        for how in ["-r", "-R", "-f", "-d"] {
            // zfs-fuse has no -f for snapshots; a deferred one is only marked.
            let _ = scene.pool.zfs(&["destroy", how, snapshot]);
            scene.pool.zfs(&["list", snapshot]).unwrap();
        }
        let said = scene.pool.zfs(&["destroy", snapshot]).unwrap_err();
        assert!(said.contains("busy") || said.contains("clones"), "{said}");
    }

    // The snapshot outlives the guest, and a guest that comes from it keeps it too.
    let warm = |zfs| Zfs::new(scene.owner, sealed.snapshot.parse().unwrap(), zfs);
    disks.release(&guest).unwrap();
    let second = warm(Box::new(Command::holding(None)));
    second.open(scene.sealed(&sealed), &no_digest).unwrap();
    let heir = self::guest();
    second.clone_for(&heir, &unwatched).unwrap();
    let error = disks.discard(&scene.bundle, &sealed).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert!(error.hint().is_some());
    let (_, name) = sealed.snapshot.split_once('/').unwrap();
    scene.holds(name, 2, "the bundle's and the guest's");
    second.release(&heir).unwrap();
    disks.discard(&scene.bundle, &sealed).unwrap();
    // Marked by -d above, and gone with the last that used it.
    let names = scene.pool.names();
    assert!(
        names == ["data", "data@base"] || names == ["data"],
        "{names:?}"
    );
}

#[test]
fn what_is_not_the_sealed_snapshot_is_refused() {
    let Some(scene) = Scene::new() else { return };
    let (disks, guest, token) = (scene.good(), guest(), Token::random().unwrap());
    disks.clone_for(&guest, &unwatched).unwrap();
    let sealed = disks
        .snapshot(&guest, &scene.bundle, &token, &unwatched)
        .unwrap();
    let from = || {
        Zfs::new(
            scene.owner,
            sealed.snapshot.parse().unwrap(),
            Box::new(Mortal::immortal()),
        )
    };
    from().open(scene.sealed(&sealed), &no_digest).unwrap();
    // A bundle that was copied does not share it: it would go with the first of the two.
    let (bundle, disk) = (
        BundlePath::new(&scene.pool.path().join("copy")).unwrap(),
        &sealed,
    );
    let bundle = &bundle;
    let error = from()
        .open(Some(SealedDisk { bundle, disk }), &no_digest)
        .unwrap_err();
    assert!(error.to_string().contains("brood:bundle"), "{error}");
    let tag = sealed.snapshot.split_once('@').unwrap().1;
    scene.pool.zfs(&["release", tag, &sealed.snapshot]).unwrap();
    scene.pool.zfs(&["destroy", &sealed.snapshot]).unwrap();
    let error = from().open(scene.sealed(&sealed), &no_digest).unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error}");
    assert!(error.to_string().contains(&sealed.snapshot), "{error}");
    let error = from().clone_for(&self::guest(), &unwatched).unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error}");
    // Another one of the same name.
    scene.pool.zfs(&["snapshot", &sealed.snapshot]).unwrap();
    let error = from().open(scene.sealed(&sealed), &no_digest).unwrap_err();
    assert!(
        matches!(error, Error::Other { what: "guid", .. }),
        "{error}"
    );
    scene.pool.zfs(&["destroy", &sealed.snapshot]).unwrap();

    // A disk that is none of ours is not taken for one.
    let stranger = self::guest();
    scene
        .pool
        .zfs(&["create", disks.disk(&stranger).as_str()])
        .unwrap();
    let error = disks.clone_for(&stranger, &unwatched).unwrap_err();
    assert!(matches!(error, Error::Taken { .. }), "{error}");
}

fn clone_for(disks: &Zfs, guest: &GuestId) -> Result<(), Error> {
    disks.clone_for(guest, &unwatched)
}

#[test]
fn making_a_disk_can_be_repeated_or_undone_after_a_crash_at_any_call() {
    let Some(scene) = Scene::new() else { return };
    let calls = at_every_death(&scene, guest, clone_for, |guest, what| {
        scene.good().clone_for(guest, &unwatched).unwrap();
        scene.is_whole(guest, what);
        scene.good().release(guest).unwrap();
        scene.is_pristine(what);
    });
    assert!(calls >= 2, "clone and hold: {calls}");
    at_every_death(&scene, guest, clone_for, |guest, what| {
        scene.good().release(guest).unwrap();
        scene.is_pristine(what);
    });
    // And when nothing is known of the guest any more.
    at_every_death(&scene, guest, clone_for, |_, what| {
        scene.sweep();
        scene.is_pristine(what);
    });
}

#[test]
fn releasing_a_disk_can_be_repeated_after_a_crash_at_any_call() {
    let Some(scene) = Scene::new() else { return };
    let with_disk = || {
        let guest = guest();
        scene.good().clone_for(&guest, &unwatched).unwrap();
        guest
    };
    let calls = at_every_death(&scene, with_disk, Provider::release, |guest, what| {
        scene.good().release(guest).unwrap();
        scene.is_pristine(what);
    });
    assert!(calls >= 2, "release and destroy: {calls}");
    at_every_death(&scene, with_disk, Provider::release, |_, what| {
        scene.sweep();
        scene.is_pristine(what);
    });
}

/// A guest with a disk, and the snapshot of a bundle that was taken of it.
fn suspended(scene: &Scene) -> (GuestId, DiskSnapshot) {
    let (guest, token) = (guest(), Token::random().unwrap());
    scene.good().clone_for(&guest, &unwatched).unwrap();
    let sealed = scene
        .good()
        .snapshot(&guest, &scene.bundle, &token, &unwatched)
        .unwrap();
    (guest, sealed)
}

#[test]
fn a_snapshot_can_be_taken_again_or_swept_after_a_crash_at_any_call() {
    let Some(scene) = Scene::new() else { return };
    let with_disk = || {
        let guest = guest();
        scene.good().clone_for(&guest, &unwatched).unwrap();
        guest
    };
    let take = |disks: &Zfs, guest: &GuestId| {
        let token = Token::random().unwrap();
        disks
            .snapshot(guest, &scene.bundle, &token, &unwatched)
            .map(drop)
    };
    let calls = at_every_death(&scene, with_disk, take, |guest, what| {
        // Leftovers of the first try can be told from those of the second.
        take(&scene.good(), guest).unwrap();
        let snapshots = scene.found();
        let snapshots = snapshots.iter().filter_map(FoundItem::bundle);
        let bundles: Vec<_> = snapshots.map(|(bundle, _)| bundle.clone()).collect();
        assert!((1..=2).contains(&bundles.len()), "{what}: {bundles:?}");
        assert!(
            bundles.iter().all(|b| *b == scene.bundle),
            "{what}: {bundles:?}"
        );
        assert!(
            scene.found().iter().any(|f| f.guest() == Some(*guest)),
            "{what}"
        );
        for found in scene.found().iter().filter(|f| f.bundle().is_some()) {
            found
                .remove(scene.owner, Box::new(Command::holding(None)))
                .unwrap();
        }
        scene.is_whole(guest, what);
        scene.good().release(guest).unwrap();
        scene.is_pristine(what);
    });
    assert!(calls >= 3, "snapshot, hold and guid: {calls}");
}

#[test]
fn a_disk_with_a_snapshot_outlives_its_guest_and_goes_with_the_bundle() {
    let Some(scene) = Scene::new() else { return };
    // The guest goes, then the bundle.
    at_every_death(
        &scene,
        || suspended(&scene),
        |disks, (guest, sealed)| {
            disks.release(guest)?;
            disks.discard(&scene.bundle, sealed)
        },
        |(guest, sealed), what| {
            let gone = !scene
                .pool
                .names()
                .iter()
                .any(|name| name.contains('@') && name != "data@base");
            scene.good().release(guest).unwrap();
            if !gone {
                let from = Zfs::new(
                    scene.owner,
                    sealed.snapshot.parse().unwrap(),
                    Box::new(Mortal::immortal()),
                );
                from.open(scene.sealed(sealed), &no_digest)
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
            }
            scene.good().discard(&scene.bundle, sealed).unwrap();
            scene.is_pristine(what);
        },
    );
    // The bundle goes, then the guest, which keeps its disk until then.
    at_every_death(
        &scene,
        || suspended(&scene),
        |disks, (_, sealed)| disks.discard(&scene.bundle, sealed),
        |(guest, sealed), what| {
            scene.good().discard(&scene.bundle, sealed).unwrap();
            scene.is_whole(guest, what);
            scene.good().release(guest).unwrap();
            scene.is_pristine(what);
        },
    );
    // Neither is known any more.
    at_every_death(
        &scene,
        || suspended(&scene),
        |disks, (guest, _)| disks.release(guest),
        |_, what| {
            scene.sweep_until_clean();
            scene.is_pristine(what);
        },
    );
}

impl Scene {
    /// What a first sweep frees for a second one is swept too.
    fn sweep_until_clean(&self) {
        for _ in 0..2 {
            for found in self.found() {
                let _ = found.remove(self.owner, Box::new(Command::holding(None)));
            }
        }
        assert_eq!(self.found(), []);
    }
}

#[test]
fn the_disks_of_another_state_folder_are_not_seen() {
    let Some(scene) = Scene::new() else { return };
    let (mine, theirs) = (guest(), guest());
    scene.good().clone_for(&mine, &unwatched).unwrap();
    let source = format!("{}/data@base", scene.pool.name()).parse().unwrap();
    let other = Owner::of(&scene.pool.path().join("data"));
    let others = Zfs::new(other, source, Box::new(Mortal::immortal()));
    others.clone_for(&theirs, &unwatched).unwrap();
    let guests: Vec<_> = scene.found().iter().filter_map(FoundItem::guest).collect();
    assert_eq!(guests, [mine]);
    scene.good().release(&mine).unwrap();
    others.release(&theirs).unwrap();
    scene.is_pristine("both released");
}
