//! Guests with disks, from restore to suspend to the end, on XFS, Btrfs and ZFS.

use std::{fs, os::unix::fs::FileExt, path::PathBuf};

use brood_tests::{
    Demo, Home, IMAGE, Kind, Random, Running, Storage, array, image, processes_in, signal, text,
    until, whole,
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A home, a checkpoint without a disk, and a place with an image. The home goes first: its guests'
/// disks are in the place.
struct Scene {
    home: Home,
    demo: Demo,
    storage: Storage,
}

/// Runs a test on each kind of storage that this machine has.
fn on_every_storage(test: impl Fn(&Scene)) {
    let all: [fn() -> Option<Storage>; 3] = [
        || Storage::files(Kind::Xfs),
        || Storage::files(Kind::Btrfs),
        Storage::zfs,
    ];
    for storage in all {
        let Some(scene) = Scene::new(storage) else {
            continue;
        };
        test(&scene);
        scene.is_clean();
    }
}

impl Scene {
    fn new(storage: fn() -> Option<Storage>) -> Option<Self> {
        let home = Home::with_kvm()?;
        let storage = storage()?;
        let demo = home.demo("demo", "4M");
        Some(Self {
            home,
            demo,
            storage,
        })
    }

    /// A bundle beside the disks.
    fn named(&self, name: &str) -> Demo {
        let path = self.storage.folder().join(name);
        Demo {
            path: path.to_str().unwrap().to_owned(),
        }
    }

    fn restore(&self, from: &Demo, guests: u32, prefix: &str, more: &[&str]) {
        let count = guests.to_string();
        let mut args = vec!["restore", &from.path, "-n", &count, "--prefix", prefix];
        args.extend(more);
        let report = self.home.json(&args);
        assert_eq!(report["restored"], guests, "{report}");
    }

    fn with_disks(&self, guests: u32) {
        self.restore(&self.demo, guests, "g", &["--disk", &self.storage.disk()]);
    }

    /// The file that is a guest's disk.
    fn disk(&self, guest: &str) -> PathBuf {
        let shown = self.home.json(&["show", guest]);
        self.storage.file(text(&shown["disk_path"]))
    }

    fn write(&self, guest: &str, bytes: &[u8]) {
        let disk = fs::File::options()
            .write(true)
            .open(self.disk(guest))
            .unwrap();
        disk.write_all_at(bytes, 4096).unwrap();
        disk.sync_all().unwrap();
    }

    fn leftovers(&self) -> Vec<Value> {
        array(&self.home.json(&["disk", "leftovers"])["leftovers"]).to_vec()
    }

    fn sweep(&self) {
        let swept = self.home.json(&["disk", "sweep"]);
        assert_eq!(array(&swept["errors"]).len(), 0, "{swept}");
        assert_eq!(self.leftovers(), [] as [Value; 0]);
    }

    /// Everything that brood made goes with its guests and bundles.
    #[track_caller]
    fn is_clean(&self) {
        self.home.destroy_all();
        assert_eq!(self.storage.brood_made(), [] as [String; 0]);
    }

    /// Guests and disks are as many, soon; returns how many.
    #[track_caller]
    fn converges(&self) -> usize {
        let standing = self.home.converges().len();
        until("as many disks as guests", || {
            let _ = self.home.list();
            (self.storage.disks() == standing).then_some(())
        });
        standing
    }

    fn start(&self, args: &[&str]) -> Running {
        self.home.start(args)
    }
}

/// The image, with `bytes` where guests write in these tests.
fn image_with(bytes: &[u8]) -> Vec<u8> {
    let mut image = image();
    image[4096..4096 + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn a_disk_goes_with_its_guest_into_a_checkpoint_and_out_again() {
    on_every_storage(|scene| {
        let before = scene.storage.used();
        scene.with_disks(4);
        assert_eq!(scene.storage.disks(), 4);
        scene.write("g-1", b"written by one");
        scene.write("g-2", b"written by two");
        assert!(fs::read(scene.disk("g-1")).unwrap() == image_with(b"written by one"));
        assert!(fs::read(scene.disk("g-2")).unwrap() == image_with(b"written by two"));
        assert!(fs::read(scene.disk("g-3")).unwrap() == image());

        // Memory and disk of one moment.
        let _ = scene.home.ask("g-1", "poke 0x200000 4711");
        let warm = scene.named("warm");
        let _ = scene.home.brood(&["suspend", "g-1", &warm.path]).ok();
        scene.write("g-2", b"two goes on...");
        scene.restore(&warm, 3, "w", &[]);
        for guest in ["w-1", "w-2", "w-3"] {
            assert_eq!(scene.home.peek(guest, 0x20_0000), 4711);
            assert!(fs::read(scene.disk(guest)).unwrap() == image_with(b"written by one"));
        }
        scene.write("w-1", b"an heir's     ");
        assert!(fs::read(scene.disk("w-2")).unwrap() == image_with(b"written by one"));

        // Six disks and a snapshot of one image, and all of it costs less than half of one, when
        // the memory of the checkpoint is not counted.
        let memory = fs::metadata(warm.ckp()).unwrap().len();
        let grown = scene.storage.used().saturating_sub(before + memory);
        assert!(grown < IMAGE as u64 / 2, "{grown} bytes more");

        let _ = scene.home.brood(&["checkpoint", "verify", &warm.path]).ok();
        let inspected = scene.home.json(&["checkpoint", "inspect", &warm.path]);
        let disk = &array(&inspected["disks"])[0];
        assert_eq!(
            disk["device"],
            Value::Null,
            "the demo guest has no block device"
        );

        let remove = ["checkpoint", "remove", &warm.path];
        let _ = scene
            .home
            .brood(&remove)
            .exits(1)
            .says(&["w-1", "w-2", "w-3"]);
        // A dead guest's disk is still a clone of the checkpoint's.
        signal(scene.home.pid("w-1"), Signal::SIGKILL);
        until("its end", || {
            (scene.home.names("dead") == ["w-1"]).then_some(())
        });
        let _ = scene.home.brood(&["destroy", "w-2", "w-3"]).ok();
        let _ = scene.home.brood(&remove).exits(1).says(&["w-1"]);
        scene.home.destroy_all();
        let _ = scene.home.brood(&remove).ok();
    });
}

#[test]
fn a_delta_has_its_disk_too() {
    on_every_storage(|scene| {
        scene.with_disks(1);
        scene.write("g-1", b"of one moment");
        let delta = scene.named("delta");
        let suspend = ["suspend", "--delta", "g-1", &delta.path];
        let _ = scene.home.brood(&suspend).ok();
        scene.restore(&delta, 1, "d", &[]);
        assert!(fs::read(scene.disk("d-1")).unwrap() == image_with(b"of one moment"));
        let flat = scene.named("flat");
        let flatten = ["checkpoint", "flatten", &delta.path, &flat.path];
        let joins = match &scene.storage {
            // A snapshot of a dataset cannot be another one's as well.
            Storage::Zfs(_) => {
                let _ = scene.home.brood(&flatten).exits(1).says(&["its disk"]);
                false
            }
            Storage::Files(_) => {
                let before = scene.storage.used();
                let _ = scene.home.brood(&flatten).ok();
                let memory = fs::metadata(flat.ckp()).unwrap().len();
                let grown = scene.storage.used().saturating_sub(before + memory);
                assert!(grown < IMAGE as u64 / 2, "{grown} bytes more");
                true
            }
        };
        scene.home.destroy_all();
        let remove = |bundle: &Demo| scene.home.brood(&["checkpoint", "remove", &bundle.path]);
        let _ = remove(&delta).ok();
        if joins {
            // It needs the delta no more, and has the disk of the same moment.
            let _ = scene.home.brood(&["checkpoint", "verify", &flat.path]).ok();
            scene.restore(&flat, 1, "f", &[]);
            assert!(fs::read(scene.disk("f-1")).unwrap() == image_with(b"of one moment"));
            scene.home.destroy_all();
            let _ = remove(&flat).ok();
        }
    });
}

#[test]
fn a_checkpoint_whose_disk_is_not_what_was_sealed_is_refused() {
    on_every_storage(|scene| {
        scene.with_disks(1);
        let warm = scene.named("warm");
        let _ = scene.home.brood(&["suspend", "g-1", &warm.path]).ok();
        let inspected = scene.home.json(&["checkpoint", "inspect", &warm.path]);
        let snapshot = text(&array(&inspected["disks"])[0]["snapshot"]).to_owned();
        let restore = ["restore", &warm.path, "-n", "2"];
        let verify = ["checkpoint", "verify", &warm.path];
        let other = scene.storage.disk();
        let with_other = ["restore", &warm.path, "-n", "2", "--disk", &other];
        let _ =
            scene
                .home
                .brood(&with_other)
                .exits(1)
                .says(&[&snapshot, &other, "leave --disk out"]);

        // Another one in its place.
        match &scene.storage {
            Storage::Files(_) => {
                let file = scene.storage.folder().join(&snapshot);
                fs::remove_file(&file).unwrap();
                fs::write(&file, image_with(b"somebody else's")).unwrap();
            }
            Storage::Zfs(pool) => {
                let tag = snapshot.split_once('@').unwrap().1;
                pool.zfs(&["release", tag, &snapshot]).unwrap();
                pool.zfs(&["destroy", &snapshot]).unwrap();
                // What was released goes with its last snapshot only by brood's own hand.
                pool.zfs(&["snapshot", &snapshot]).unwrap();
            }
        }
        for command in [&restore[..], &verify[..]] {
            let _ = scene
                .home
                .brood(command)
                .exits(1)
                .says(&[&snapshot, "sealed"]);
        }
        // None at all.
        match &scene.storage {
            Storage::Files(_) => fs::remove_file(scene.storage.folder().join(&snapshot)).unwrap(),
            Storage::Zfs(pool) => drop(pool.zfs(&["destroy", &snapshot]).unwrap()),
        }
        for command in [&restore[..], &verify[..]] {
            let _ = scene
                .home
                .brood(command)
                .exits(1)
                .says(&[&snapshot, "does not exist"]);
        }
        assert!(scene.home.list().is_empty());
        // Its memory can still be had, when it is asked for without its disk.
        scene.restore(&warm, 1, "m", &["--disk", "none"]);
        assert_eq!(scene.home.json(&["show", "m-1"])["disk_path"], Value::Null);
        scene.home.destroy_all();
        let _ = scene.home.brood(&["checkpoint", "remove", &warm.path]).ok();
        scene.sweep();
    });
}

#[test]
fn disks_that_cannot_be_made_fail_their_guests_only() {
    on_every_storage(|scene| {
        let missing = scene.storage.disk().replace("base", "bose");
        let restore = ["restore", &scene.demo.path, "-n", "3", "--disk", &missing];
        let _ = scene
            .home
            .brood(&restore)
            .exits(1)
            .says(&["does not exist"]);
        for nonsense in ["zfs:pool", "reflink:", "zfs:-r@x", "tape:0"] {
            let restore = ["restore", &scene.demo.path, "-n", "3", "--disk", nonsense];
            let _ = scene.home.brood(&restore).exits(2);
        }
        assert!(scene.home.list().is_empty());
    });
}

#[test]
fn a_suspend_that_fails_leaves_the_guest_its_disk_and_no_snapshot() {
    on_every_storage(|scene| {
        scene.with_disks(1);
        scene.write("g-1", b"still here");
        let made = scene.storage.brood_made();
        // The snapshot cannot be taken: of a file, on another file system; of a dataset, for a
        // bundle whose path no property can hold.
        let bundle = match &scene.storage {
            Storage::Files(_) => scene.home.named("warm").path,
            Storage::Zfs(_) => {
                let dir = scene.home.path().join("two\nlines");
                dir.join("warm").to_str().unwrap().to_owned()
            }
        };
        let _ = scene.home.brood(&["suspend", "g-1", &bundle]).exits(1);
        let listed = Demo { path: bundle };
        assert!(!listed.ckp().exists() && !listed.file("ckp.brood").exists());
        assert_eq!(scene.storage.brood_made(), made);
        let _ = scene.home.ask("g-1", "ping");
        assert!(fs::read(scene.disk("g-1")).unwrap() == image_with(b"still here"));
    });
}

#[test]
fn a_guest_is_killed_while_it_is_suspended() {
    on_every_storage(|scene| {
        for round in 0..4 {
            scene.with_disks(1);
            scene.write("g-1", b"of one moment");
            let pid = scene.home.pid("g-1");
            let warm = scene.named(&format!("warm{round}"));
            let mut suspending = scene.start(&["suspend", "g-1", &warm.path]);
            until("the snapshot to be there", || {
                let taken = scene.storage.brood_made().len() > scene.storage.disks();
                (taken || suspending.ended()).then_some(())
            });
            signal(pid, Signal::SIGKILL);
            let ran = suspending.wait();
            // Sealed before or not at all; told as a failure or not: a bundle has its disk.
            assert!(matches!(ran.code(), Some(0 | 1)), "{ran:?}");
            scene.converges_to_whole_or_nothing(&warm, false);
        }
    });
}

#[test]
fn what_the_lost_database_knew_is_found_and_swept() {
    on_every_storage(|scene| {
        scene.with_disks(3);
        let warm = scene.named("warm");
        let _ = scene.home.brood(&["suspend", "g-1", &warm.path]).ok();
        scene.restore(&warm, 2, "w", &[]);
        for file in ["brood.sqlite", "brood.sqlite-wal", "brood.sqlite-shm"] {
            let _ = fs::remove_file(scene.home.state().join(file));
        }
        let place = scene.storage.place();
        let left = |place: &[&str]| {
            let found = scene.home.json(&[&["disk", "leftovers"], place].concat());
            array(&found["leftovers"]).len()
        };
        assert_eq!(left(&[&place]), 0, "the guests that live are known again");
        scene.home.destroy_all();
        // Which disk a guest had is known of those only whose checkpoint has one.
        assert_eq!(left(&[]), 0, "no place is known");
        assert_eq!(left(&[&place]), 2);
        let swept = scene.home.json(&["disk", "sweep", &place]);
        assert_eq!(array(&swept["removed"]).len(), 2, "{swept}");
        // The checkpoint was not lost, and has its disk.
        scene.restore(&warm, 1, "again", &[]);
        assert!(fs::read(scene.disk("again-1")).unwrap() == image());
        scene.home.destroy_all();
        // Its files are gone, and it with them: its snapshot belongs to nothing.
        for file in ["ckp.brood", "ckp", "ckp.kern", "ckp.meta"] {
            fs::remove_file(warm.file(file)).unwrap();
        }
        scene.sweep();
    });
}

#[test]
fn the_manager_is_killed_while_it_restores_guests_with_disks() {
    on_every_storage(|scene| {
        let mut random = Random::seeded();
        for _ in 0..4 {
            let disk = scene.storage.disk();
            let restore = ["restore", &scene.demo.path, "-n", "16", "--disk", &disk];
            let mut manager = scene.start(&restore);
            let some = usize::try_from(random.below(16)).unwrap();
            until("some disks to be there", || {
                (scene.storage.disks() >= some || manager.ended()).then_some(())
            });
            manager.signal(Signal::SIGKILL);
            let _ = manager.wait();
            let standing = scene.converges();
            assert!(standing <= 16);
            assert_eq!(scene.leftovers(), [] as [Value; 0]);
            scene.is_clean();
        }
    });
}

#[test]
fn a_nursery_is_killed_and_the_next_guests_get_fresh_disks() {
    on_every_storage(|scene| {
        let disk = scene.storage.disk();
        let restore = [
            "restore",
            &scene.demo.path,
            "-n",
            "16",
            "--disk",
            &disk,
            "--json",
        ];
        let mut manager = scene.start(&restore);
        until("some guests to exist", || {
            (scene.home.guests().len() >= 4 || manager.ended()).then_some(())
        });
        for nursery in scene.home.nurseries() {
            signal(nursery.pid, Signal::SIGKILL);
        }
        let report = manager.wait().ok().json();
        assert_eq!(whole(&report["restored"]), 16, "{report}");
        assert_eq!(scene.converges(), 16);
        scene.is_clean();
    });
}

#[test]
fn the_manager_is_killed_while_it_suspends_a_guest_with_a_disk() {
    on_every_storage(|scene| {
        let mut random = Random::seeded();
        for round in 0..6 {
            scene.with_disks(1);
            scene.write("g-1", b"of one moment");
            let warm = scene.named(&format!("warm{round}"));
            let snapshots = || scene.storage.brood_made().len() - scene.storage.disks();
            let mut manager = scene.start(&["suspend", "g-1", &warm.path]);
            // Before, while or after the snapshot is taken.
            if round % 3 > 0 {
                until("the snapshot to be there", || {
                    (snapshots() > 0 || manager.ended()).then_some(())
                });
            }
            if round % 3 != 1 {
                std::thread::sleep(std::time::Duration::from_micros(random.below(20_000)));
            }
            manager.signal(Signal::SIGKILL);
            let _ = manager.wait();
            scene.converges_to_whole_or_nothing(&warm, true);
        }
    });
}

impl Scene {
    /// Either the bundle is whole, with its disk, or there is none and the guest goes on if it was
    /// not killed; in both cases nothing else is left.
    fn converges_to_whole_or_nothing(&self, warm: &Demo, guest_lives: bool) {
        let standing = self.home.converges();
        // A command of ZFS that the manager had started may outlive it.
        until("what is left to be swept", || {
            let _ = self.home.brood(&["disk", "sweep"]).ok();
            let snapshots = self.storage.brood_made().len() - self.storage.disks();
            let sealed = usize::from(warm.file("ckp.brood").exists());
            (snapshots == sealed).then_some(())
        });
        if warm.file("ckp.brood").exists() {
            let _ = self.home.brood(&["checkpoint", "verify", &warm.path]).ok();
            self.restore(warm, 1, "w", &[]);
            assert!(fs::read(self.disk("w-1")).unwrap() == image_with(b"of one moment"));
        } else if guest_lives {
            assert_eq!(standing, ["g-1"]);
            assert!(fs::read(self.disk("g-1")).unwrap() == image_with(b"of one moment"));
        }
        self.home.destroy_all();
        assert!(processes_in(&self.home.state()).is_empty());
        if self
            .home
            .brood(&["checkpoint", "list", warm_dir(warm)])
            .ok()
            .stdout
            .contains("warm")
        {
            let _ = self.home.brood(&["checkpoint", "remove", &warm.path]).ok();
        }
        self.sweep();
        self.is_clean();
    }
}

fn warm_dir(warm: &Demo) -> &str {
    warm.path.rsplit_once('/').unwrap().0
}

#[test]
fn where_blocks_cannot_be_shared_a_copy_is_made_only_when_asked_for() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    // Neither tmpfs nor two file systems at once can share blocks.
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let base = memory.path().join("base.img");
    fs::write(&base, image()).unwrap();
    let restore = |disk: &str| {
        let disk = format!("{disk}:{}", base.display());
        home.brood(&["restore", &demo.path, "-n", "2", "--disk", &disk])
    };
    let _ = restore("reflink")
        .exits(1)
        .says(&["share", "base.img", "reflink-or-copy"]);
    assert!(home.list().is_empty());
    let _ = restore("reflink-or-copy").ok();
    let shown = home.json(&["show", "demo-1"]);
    assert!(fs::read(text(&shown["disk_path"])).unwrap() == image());
    let warm = home.named("warm");
    let _ = home.brood(&["suspend", "demo-1", &warm.path]).ok();
    let inspected = home.json(&["checkpoint", "inspect", &warm.path]);
    let snapshot = home
        .checkpoints()
        .join(text(&array(&inspected["disks"])[0]["snapshot"]));
    assert!(fs::read(&snapshot).unwrap() == image());
    let _ = home.brood(&["checkpoint", "verify", &warm.path]).ok();
    let named = format!("reflink-or-copy:{}", snapshot.display());
    let _ = home
        .brood(&["restore", &warm.path, "-n", "1", "--disk", &named])
        .ok();
    home.destroy_all();
    let _ = home.brood(&["checkpoint", "remove", &warm.path]).ok();
    assert!(!snapshot.exists());
    let left: Vec<_> = fs::read_dir(memory.path().join("brood-disks"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_entries_of_a_pool_have_disks_and_each_claim_a_fresh_one() {
    on_every_storage(|scene| {
        scene.with_disks(1);
        scene.write("g-1", b"of one moment");
        let warm = scene.named("warm");
        let _ = scene.home.brood(&["suspend", "g-1", &warm.path]).ok();
        let create = ["pool", "create", "p", &warm.path, "--hot", "2"];
        let _ = scene.home.brood(&create).ok();
        let snapshots = scene.storage.brood_made().len() - scene.storage.disks();
        let hot = scene.home.names("paused");
        assert_eq!(hot.len(), 2);
        for _ in 0..3 {
            let claimed = scene.home.json(&["pool", "claim", "p"]);
            let guest = text(&claimed["guest"]);
            assert!(fs::read(scene.disk(guest)).unwrap() == image_with(b"of one moment"));
            scene.write(guest, b"its claimer's");
            let token = text(&claimed["token"]);
            let _ = scene.home.brood(&["pool", "release", token]).ok();
        }
        let _ = scene.home.brood(&["pool", "remove", "p"]).ok();
        assert_eq!(
            scene.storage.brood_made().len() - scene.storage.disks(),
            snapshots
        );
        assert!(scene.home.list().is_empty());
        let _ = scene.home.brood(&["checkpoint", "remove", &warm.path]).ok();
    });
}
