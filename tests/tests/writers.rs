//! Writers of a checkpoint's memory file that come after a restore: they wait until its nursery lets
//! them in, no guest answers while they are there, and what they leave decides about the guests.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    time::{Duration, Instant},
};

use brood_tests::{Demo, EngineKind, FileSystem, HEAP, Home, Kind, text, until};
use nix::{
    sys::{
        mman::{MapFlags, ProtFlags, mmap, munmap},
        signal::{Signal, kill},
    },
    unistd::Pid,
};

/// A shared mapping of a whole file, for reading and writing. No descriptor of the file is left.
struct Mapping {
    start: std::ptr::NonNull<libc::c_void>,
    size: usize,
}

impl Mapping {
    fn of(file: &Path) -> Self {
        let file = File::options().read(true).write(true).open(file).unwrap();
        let size = usize::try_from(file.metadata().unwrap().len()).unwrap();
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let length = size.try_into().unwrap();
        // SAFETY: the kernel chooses an address where nothing is.
        let start = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
        Self { start, size }
    }

    /// Changes the byte at this place.
    fn store(&self, at: usize) {
        assert!(at < self.size);
        // SAFETY: the place lies in the mapping, which only this value uses.
        unsafe {
            let byte = self.start.cast::<u8>().add(at);
            byte.write_volatile(!byte.read_volatile());
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nothing points into it any more.
        unsafe { munmap(self.start, self.size) }.unwrap();
    }
}

/// Where this test's checkpoint and state lie: on a disk, and in memory.
const FOLDERS: [&str; 2] = ["/var/tmp", "/dev/shm"];

/// Three guests of a checkpoint that its owner may write to.
fn three_guests(folder: &str) -> Option<(Home, Demo)> {
    let home = Home::on_inside(EngineKind::Kvm, Path::new(folder))?;
    let demo = home.demo("demo", "4M");
    fs::set_permissions(demo.ckp(), Permissions::from_mode(0o600)).unwrap();
    home.restore(&demo, 3, "g");
    Some((home, demo))
}

/// The processes that have leases of this file (proc_locks(5)), in the order of their ids.
fn leases_of(file: &Path) -> Vec<i32> {
    let inode = fs::metadata(file).unwrap().ino().to_string();
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let leases = locks.lines().filter_map(|line| {
        // NUMBER: LEASE STATE KIND PID DEVICE:INODE START END
        let words: Vec<_> = line.split_whitespace().collect();
        let of = words.get(5)?.rsplit(':').next()?;
        (words[1] == "LEASE" && of == inode).then(|| words[4].parse().unwrap())
    });
    let mut leases: Vec<_> = leases.collect();
    leases.sort_unstable();
    leases
}

fn nurseries(home: &Home) -> Vec<i32> {
    let mut pids: Vec<_> = home.nurseries().iter().map(|process| process.pid).collect();
    pids.sort_unstable();
    pids
}

/// Waits until all three guests are dead because their checkpoint was changed.
fn all_end(home: &Home) {
    until("the guests to end", || {
        (home.names("dead").len() == 3).then_some(())
    });
    for guest in ["g-1", "g-2", "g-3"] {
        let shown = home.json(&["show", guest]);
        let reason = text(&shown["reason"]);
        assert!(reason.contains("checkpoint was changed"), "{shown}");
    }
}

#[test]
fn a_nursery_has_a_lease_of_each_memory_file_as_long_as_it_lives() {
    for folder in FOLDERS {
        let Some((home, demo)) = three_guests(folder) else {
            return;
        };
        assert_eq!(leases_of(&demo.ckp()), nurseries(&home), "{folder}");
        let warm = home.named("warm");
        let _ = home.brood(&["suspend", "g-1", &warm.path, "--delta"]).ok();
        home.restore(&warm, 1, "warm");
        let both = nurseries(&home);
        assert_eq!(both.len(), 2);
        assert_eq!(leases_of(&demo.ckp()), both, "{folder}");
        assert_eq!(leases_of(&warm.ckp()).len(), 1, "{folder}");
        home.destroy_all();
        until("the leases to go", || {
            leases_of(&demo.ckp()).is_empty().then_some(())
        });
    }
}

#[test]
fn a_writer_that_changes_nothing_is_let_in_and_guests_go_on() {
    for folder in FOLDERS {
        let Some((home, demo)) = three_guests(folder) else {
            return;
        };
        for _ in 0..3 {
            let begin = Instant::now();
            drop(File::options().write(true).open(demo.ckp()).unwrap());
            // The kernel takes a lease away after 45 s; nobody has to wait for that.
            assert!(begin.elapsed() < Duration::from_secs(20), "{folder}");
            for guest in ["g-1", "g-2", "g-3"] {
                let _ = home.ask(guest, "ping");
            }
        }
        until("the lease to be taken again", || {
            (leases_of(&demo.ckp()) == nurseries(&home)).then_some(())
        });
        home.restore(&demo, 1, "later");
    }
}

#[test]
fn a_store_through_a_mapping_made_after_the_restore_ends_guests_that_nobody_asks() {
    for folder in FOLDERS {
        let Some((home, demo)) = three_guests(folder) else {
            return;
        };
        let mapping = Mapping::of(&demo.ckp());
        mapping.store(usize::try_from(HEAP).unwrap() + 0x10_0000);
        drop(mapping);
        all_end(&home);
        let _ = home
            .brood(&["restore", &demo.path, "-n", "1"])
            .exits(1)
            .says(&["demo.ckp"]);
    }
}

#[test]
fn while_somebody_may_write_no_guest_answers() {
    for folder in FOLDERS {
        let Some((home, demo)) = three_guests(folder) else {
            return;
        };
        let mapping = Mapping::of(&demo.ckp());
        let _ = home
            .brood(&["ask", "g-1", "ping"])
            .exits(1)
            .says(&["g-1", "open for writing, or mapped so"]);
        let own = std::process::id().to_string();
        let _ = home
            .brood(&["restore", &demo.path, "-n", "1"])
            .exits(1)
            .says(&["open for writing", &own]);
        drop(mapping);
        // Those whom nobody has asked meanwhile are as they were.
        for guest in ["g-2", "g-3"] {
            let _ = home.ask(guest, "ping");
        }
        assert_eq!(home.names("dead"), ["g-1"], "{folder}");
    }
}

#[test]
fn guests_that_outlive_their_nursery_outlive_writers_that_change_nothing() {
    let Some((home, demo)) = three_guests(FOLDERS[1]) else {
        return;
    };
    for nursery in home.nurseries() {
        kill(Pid::from_raw(nursery.pid), Signal::SIGKILL).unwrap();
    }
    until("the nursery to be gone", || {
        home.nurseries().is_empty().then_some(())
    });
    // By a link: it opens nothing, and changes the stamp.
    fs::hard_link(demo.ckp(), home.path().join("link")).unwrap();
    for guest in ["g-1", "g-2", "g-3"] {
        let _ = home.ask(guest, "ping");
    }
}

#[test]
fn leases_are_had_on_each_file_system_that_can_be_mounted() {
    for kind in [Kind::Xfs, Kind::Btrfs] {
        let Some(mounted) = FileSystem::new(kind) else {
            continue;
        };
        let folder = mounted.path();
        let Some((home, demo)) = three_guests(folder.to_str().unwrap()) else {
            return;
        };
        assert_eq!(leases_of(&demo.ckp()), nurseries(&home));
        let mapping = Mapping::of(&demo.ckp());
        mapping.store(usize::try_from(HEAP).unwrap() + 0x10_0000);
        drop(mapping);
        all_end(&home);
        home.destroy_all();
    }
}
