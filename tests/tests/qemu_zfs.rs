//! Real Linux guests whose disks are clones of a ZFS snapshot, on a real pool: what each writes,
//! suspends of one, and a QEMU that is killed.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use brood_tests::{Demo, Home, Running, ZfsPool, array, signal, skip, text, until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Size of the guests' disk.
const SIZE: u64 = 24 << 20;
/// Mounts the disk in the guest that is booted; all clones have it mounted.
const MOUNT: &str = ". /etc/init.d/disks; mkdir /data && mount -t ext4 \"$(find_disk disk)\" /data";

/// A program of e2fsprogs on a disk: what it says, and its exit code. `None` where there is none.
fn on_disk(disk: &Path, program: &str, words: &[&str]) -> Option<(Option<i32>, String)> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let mut command = Command::new(program);
    let ran = command.args(words).arg(disk).env("PATH", path).output();
    let ran = ran.ok()?;
    Some((ran.status.code(), String::from_utf8(ran.stdout).unwrap()))
}

/// A pool with a dataset `data`, in which a file is a disk with an ext4 file system, its snapshot
/// `data@now`, and a checkpoint of a guest whose disk is a clone of that.
struct Scene {
    home: Home,
    linux: Demo,
    pool: ZfsPool,
}

/// What the pool has that is not of guests and bundles.
const OWN: [&str; 2] = ["data", "data@now"];

impl Scene {
    fn new() -> Option<Self> {
        let (home, plain) = Home::with_qemu()?;
        let pool = ZfsPool::new()?;
        let data = format!("{}/data", pool.name());
        pool.zfs(&["create", &data]).unwrap();
        let disk = pool.path().join("data/disk");
        File::create(&disk).unwrap().set_len(SIZE).unwrap();
        let Some((code, said)) = on_disk(&disk, "mke2fs", &["-q", "-F", "-t", "ext4"]) else {
            skip("no mke2fs");
            return None;
        };
        assert_eq!(code, Some(0), "{said}");
        pool.zfs(&["snapshot", &format!("{data}@now")]).unwrap();

        // Beside the checkpoint is the state folder that has its image.
        let made = Path::new(&plain.path).ancestors().nth(2)?;
        let (linux, source) = (home.named("db"), format!("zfs:{data}@now"));
        let make = ["checkpoint", "make", "linux", &linux.path, "--disk"];
        let mut make = home.command(&[&make[..], &[&source, "--warm", MOUNT]].concat());
        make.env("BROOD_IMAGE_DIR", made.join("state/images"));
        let _ = Running::start(make).wait().ok();
        Some(Self { home, linux, pool })
    }

    /// What a command in a guest wrote.
    #[track_caller]
    fn exec(&self, guest: &str, command: &str) -> String {
        let words = ["ask", "--json", guest, "--", "exec", "sh", "-c", command];
        let answer = self.home.brood(&words).ok().json();
        assert_eq!(answer["code"], 0, "{answer}");
        text(&answer["output"]).trim().to_owned()
    }

    /// Writes a file that no crash of QEMU takes.
    #[track_caller]
    fn write(&self, guest: &str, file: &str, content: &str) {
        self.exec(guest, &format!("echo {content} >{file}; sync {file}"));
    }

    /// What a guest has in its disk, read from the disk, and no error was found in it.
    #[track_caller]
    fn read(&self, guest: &str, files: &str) -> String {
        let read = format!(
            "echo 3 >/proc/sys/vm/drop_caches; cat {files}; cat /sys/fs/ext4/*/errors_count"
        );
        let said = self.exec(guest, &read);
        let content = said.strip_suffix("\n0");
        content.expect("no error in the file system").to_owned()
    }

    /// The file that is a guest's disk: in a dataset of its own, a clone of this snapshot.
    #[track_caller]
    fn disk(&self, guest: &str, of: &str) -> PathBuf {
        let shown = self.home.json(&["show", guest]);
        assert_eq!(shown["disk"], of, "{shown}");
        let folder = Path::new(text(&shown["disk_path"]));
        let name = folder.file_name().unwrap().to_str().unwrap();
        let name = format!("{}/{name}", self.pool.name());
        let origin = self
            .pool
            .zfs(&["get", "-H", "-o", "value", "origin", &name]);
        assert_eq!(format!("zfs:{}", origin.unwrap().trim()), of);
        let disk = folder.join("disk");
        assert_eq!(fs::metadata(&disk).unwrap().len(), SIZE);
        disk
    }

    /// The snapshot that is a bundle's disk.
    #[track_caller]
    fn snapshot_of(&self, bundle: &Demo) -> String {
        let inspected = self.home.json(&["checkpoint", "inspect", &bundle.path]);
        let disks = array(&inspected["disks"]);
        assert_eq!((disks.len(), &disks[0]["provider"]), (1, &"zfs".into()));
        format!("zfs:{}", text(&disks[0]["snapshot"]))
    }

    #[track_caller]
    fn suspend(&self, guest: &str, name: &str, options: &[&str]) -> Demo {
        let to = self.home.named(name);
        let words = [&["suspend", guest, &to.path], options].concat();
        let _ = self.home.brood(&words).ok();
        to
    }

    #[track_caller]
    fn remove(&self, bundle: &Demo) {
        let _ = self
            .home
            .brood(&["checkpoint", "remove", &bundle.path])
            .ok();
    }

    /// Clones of the sealed disk of the checkpoint.
    fn clones(&self) -> Vec<String> {
        let origins = ["list", "-H", "-r", "-o", "name,origin", self.pool.name()];
        let listed = self.pool.zfs(&origins).unwrap();
        let rows = listed.lines().filter_map(|line| line.split_once('\t'));
        rows.filter(|(_, origin)| *origin != "-")
            .map(|(name, _)| name.to_owned())
            .collect()
    }
}

/// Two clones, what each writes, and suspends of one.
fn lives(scene: &Scene) {
    let Scene { home, linux, pool } = scene;
    let sealed = scene.snapshot_of(linux);
    // The dataset of the guest that was booted stays for the bundle's snapshot.
    let booted = scene.clones();
    assert_eq!(booted.len(), 1, "{booted:?}");
    let _ = home.restore(linux, 2, "a");
    for guest in ["a-1", "a-2"] {
        let _ = scene.disk(guest, &sealed);
        scene.write(guest, "/data/mine", &format!("of-{guest}"));
    }
    for guest in ["a-1", "a-2"] {
        assert_eq!(scene.read(guest, "/data/mine"), format!("of-{guest}"));
    }
    scene.write("a-1", "/data/only-a-1", "x");
    let none = scene.exec("a-2", "ls /data/only-a-1 2>/dev/null || echo none");
    assert_eq!(none, "none");
    assert_eq!(scene.clones().len(), 3);

    // The disk goes with the memory, into a delta and into a full bundle.
    let delta = scene.suspend("a-1", "delta", &["--delta"]);
    let _ = home.restore(&delta, 1, "b");
    let _ = scene.disk("b-1", &scene.snapshot_of(&delta));
    assert_eq!(scene.read("b-1", "/data/mine"), "of-a-1");
    scene.write("b-1", "/data/more", "of-b-1");
    let full = scene.suspend("b-1", "full", &[]);
    let _ = home.brood(&["checkpoint", "verify", &full.path]).ok();
    let _ = home.restore(&full, 2, "c");
    scene.write("c-2", "/data/mine", "of-c-2");
    let said = scene.read("c-1", "/data/mine /data/more");
    assert_eq!(said, "of-a-1\nof-b-1");
    assert_eq!(scene.read("c-2", "/data/mine"), "of-c-2");

    // A disk is no file that a joined bundle could have, and stays with those who need it.
    let flat = home.named("flat");
    let flatten = ["checkpoint", "flatten", &delta.path, &flat.path];
    let _ = home.brood(&flatten).exits(1).says(&["ZFS"]);
    let remove = ["checkpoint", "remove", &full.path];
    let _ = home.brood(&remove).exits(1).says(&["c-1"]);
    let without = ["restore", &full.path, "-n", "1", "--disk", "none"];
    let _ = home.brood(&without).exits(1).says(&["have a disk"]);

    let _ = home.brood(&["destroy", "--all"]).ok();
    for bundle in [&full, &delta] {
        scene.remove(bundle);
    }
    assert_eq!(scene.clones(), booted, "{:?}", pool.names());
}

/// Kills a guest's QEMU, and looks at what its disk has: after the journal, as a kernel would.
fn survives_its_qemu(scene: &Scene) {
    let home = &scene.home;
    let booted = scene.clones();
    let _ = home.restore(&scene.linux, 1, "k");
    for n in 0..20 {
        scene.write("k-1", &format!("/data/file-{n}"), &format!("content-{n}"));
    }
    let disk = scene.disk("k-1", &scene.snapshot_of(&scene.linux));
    signal(home.pid("k-1"), Signal::SIGKILL);
    until("its end", || (home.names("dead") == ["k-1"]).then_some(()));
    let scratch = tempfile::tempdir().unwrap();
    let copy = scratch.path().join("disk");
    let _ = fs::copy(&disk, &copy).unwrap();
    let run = |program: &str, words: &[&str]| on_disk(&copy, program, words).unwrap();
    let (code, said) = run("e2fsck", &["-fy"]);
    // 1: it has replayed the journal.
    assert!(matches!(code, Some(0 | 1)), "{said}");
    for n in 0..20 {
        let (_, said) = run("debugfs", &["-R", &format!("cat /file-{n}")]);
        assert_eq!(said.trim(), format!("content-{n}"));
    }
    let _ = home.brood(&["destroy", "k-1"]).ok();
    assert_eq!(scene.clones(), booted);
}

#[test]
fn clones_have_datasets_of_their_own() {
    let Some(scene) = Scene::new() else { return };
    lives(&scene);
    survives_its_qemu(&scene);
    let place = format!("zfs:{}", scene.pool.name());
    let left = scene.home.json(&["disk", "leftovers", &place]);
    assert_eq!(array(&left["leftovers"]), &[] as &[Value]);
    scene.remove(&scene.linux);
    assert_eq!(scene.pool.names(), OWN);
}
