//! Disks of real Linux guests: a root file system that all clones read, and a disk that each has to
//! itself, by overlays and by shared blocks.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use brood_core::{
    checkpoint::{BundlePath, unwatched},
    disk::{Owner, Provider, Reflink, Token},
};
use brood_tests::{Demo, FileSystem, Home, Kind, array, signal, text, until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// What a command in a guest wrote.
#[track_caller]
fn exec(home: &Home, guest: &str, command: &str) -> String {
    let words = ["ask", "--json", guest, "--", "exec", "/bin/sh", "-c"];
    let asked = home.brood(&[&words[..], &[command]].concat());
    let answer = asked.ok().json();
    assert_eq!(answer["code"], 0, "{answer}");
    text(&answer["output"]).trim().to_owned()
}

/// Writes a file that no crash of QEMU takes.
#[track_caller]
fn write(home: &Home, guest: &str, file: &str, content: &str) {
    exec(home, guest, &format!("echo {content} >{file}; sync {file}"));
}

/// The files that a bundle has beside the four: of this device.
fn disk_of(home: &Home, bundle: &Demo, device: &str) -> PathBuf {
    let inspected = home.json(&["checkpoint", "inspect", &bundle.path]);
    let disks = array(&inspected["disks"]).to_vec();
    let disk = disks.iter().find(|disk| disk["device"] == device).unwrap();
    let folder = Path::new(&bundle.path).parent().unwrap();
    folder.join(text(&disk["snapshot"]))
}

/// Disks of guests that there are beside a checkpoint.
fn guests_disks(bundle: &Demo) -> Vec<PathBuf> {
    let folder = Path::new(&bundle.path)
        .parent()
        .unwrap()
        .join("brood-disks");
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn named(beside: &Demo, name: &str) -> Demo {
    let path = Path::new(&beside.path).with_file_name(name);
    Demo {
        path: path.to_str().unwrap().to_owned(),
    }
}

/// The inodes that a process has open for reading alone, of files with this in their names.
fn open_files(pid: i32, part: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let files = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    files
        .filter(|file| file.to_string_lossy().contains(part))
        .collect()
}

/// A guest's log of its console ends before the limit of its files, however large its disk is.
fn its_log_is_bounded(home: &Home, guest: &str) {
    exec(home, guest, "echo a-word-on-the-console >/dev/ttyS0");
    until("the console's word to be logged", || {
        let said = home.brood(&["logs", guest]).ok().stdout;
        assert!(!said.contains('\0'), "{said:?}");
        said.contains("a-word-on-the-console").then_some(())
    });
    let shown = home.json(&["show", guest]);
    let log = home
        .run_dir()
        .join(format!("{}.qemu/console", text(&shown["id"])));
    let limits = fs::read_to_string(format!("/proc/{}/limits", home.pid(guest))).unwrap();
    let of_files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max file size"));
    let words = of_files.unwrap().split_whitespace().next();
    let limit: u64 = words.unwrap().parse().unwrap();
    let facts = fs::metadata(&log).unwrap();
    let disk = fs::metadata(text(&shown["disk_path"])).unwrap().len();
    assert!(limit > disk && facts.len() <= limit, "{limit} {facts:?}");
    // What it has not used of 8 MiB, and no more, is left below the limit.
    assert!(limit - facts.len() <= 8 << 20, "{limit} {facts:?}");
    assert!(facts.blocks() * 512 <= 9 << 20, "{facts:?}");
}

/// Two clones, what each writes, suspends of one, and what is refused. `way` is how disks are made.
fn lives(home: &Home, linux: &Demo, way: &str) {
    let root = disk_of(home, linux, "root");
    home.restore(linux, 2, "a");
    for guest in ["a-1", "a-2"] {
        assert_eq!(exec(home, guest, "cat /srv/of-image"), "of the image");
        // The root file system is one file of this host, read by both.
        assert_eq!(open_files(home.pid(guest), ".ckp.disk-")[0], root);
        let shown = home.json(&["show", guest]);
        assert!(text(&shown["disk"]).starts_with(way), "{shown}");
        assert!(Path::new(text(&shown["disk_path"])).is_file(), "{shown}");
    }
    its_log_is_bounded(home, "a-1");
    write(home, "a-1", "/srv/mine", "of-a-1");
    write(home, "a-2", "/srv/mine", "of-a-2");
    assert_eq!(exec(home, "a-1", "cat /srv/mine"), "of-a-1");
    assert_eq!(exec(home, "a-2", "cat /srv/mine"), "of-a-2");

    // The disk goes with the memory, into a delta and into a full bundle.
    let delta = named(linux, "delta");
    let _ = home.brood(&["suspend", "--delta", "a-1", &delta.path]).ok();
    home.restore(&delta, 1, "b");
    assert_eq!(exec(home, "b-1", "cat /srv/mine"), "of-a-1");
    write(home, "b-1", "/srv/more", "of-b-1");
    let full = named(linux, "full");
    let _ = home.brood(&["suspend", "b-1", &full.path]).ok();
    let _ = home.brood(&["checkpoint", "verify", &full.path]).ok();
    home.restore(&full, 1, "c");
    assert_eq!(
        exec(home, "c-1", "cat /srv/mine /srv/more"),
        "of-a-1\nof-b-1"
    );
    let _ = home.brood(&["checkpoint", "remove", &delta.path]).ok();
    let refused = home.brood(&["checkpoint", "remove", &full.path]).exits(1);
    let _ = refused.says(&["c-1"]);
    // Memory without its disk would be no guest.
    let without = ["restore", &full.path, "-n", "1", "--disk", "none"];
    let _ = home.brood(&without).exits(1).says(&["have a disk"]);

    let _ = home.brood(&["destroy", "--all"]).ok();
    assert_eq!(guests_disks(linux), [] as [PathBuf; 0]);
    // Another disk than the sealed one is never handed out.
    for device in ["root", "disk"] {
        let file = disk_of(home, &full, device);
        let whole = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        let mut other = whole.clone();
        other[whole.len() / 2] ^= 1;
        fs::write(&file, other).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        for command in [
            &["restore", &full.path, "-n", "1"][..],
            &["checkpoint", "verify", &full.path],
        ] {
            let _ = home.brood(command).exits(1).says(&[name, "sealed"]);
        }
        fs::write(&file, whole).unwrap();
    }
    assert_eq!(home.names("running"), [] as [String; 0]);
    let _ = home.brood(&["checkpoint", "remove", &full.path]).ok();
    let left = home.json(&["disk", "leftovers"]);
    assert_eq!(array(&left["leftovers"]), &[] as &[Value]);
    let files = fs::read_dir(Path::new(&linux.path).parent().unwrap()).unwrap();
    let files = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut others = files.filter(|name| name.starts_with("full") || name.starts_with("delta"));
    assert_eq!(others.next(), None);
}

/// What a program of e2fsprogs says of a disk, and its exit code.
fn on_disk(disk: &Path, program: &str, words: &[&str]) -> (Option<i32>, String) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let mut command = Command::new(program);
    let ran = command.args(words).arg(disk).env("PATH", path).output();
    let ran = ran.unwrap();
    (ran.status.code(), String::from_utf8(ran.stdout).unwrap())
}

/// Kills a guest's QEMU, and looks at what its disk has: after the journal, as a kernel would.
fn survives_its_qemu(home: &Home, linux: &Demo) {
    home.restore(linux, 1, "k");
    for n in 0..20 {
        write(
            home,
            "k-1",
            &format!("/srv/file-{n}"),
            &format!("content-{n}"),
        );
    }
    let pid = home.pid("k-1");
    let shown = home.json(&["show", "k-1"]);
    signal(pid, Signal::SIGKILL);
    until("its end", || (home.names("dead") == ["k-1"]).then_some(()));
    let scratch = tempfile::tempdir().unwrap();
    let disk = scratch.path().join("disk");
    let its_own = Path::new(text(&shown["disk_path"]));
    if text(&shown["disk"]).starts_with("qcow2:") {
        // As a suspend would have written it.
        let base = disk_of(home, linux, "disk");
        let disks = Reflink::overlays(Owner::of(&home.state()), base);
        let bundle = BundlePath::new(&scratch.path().join("dead")).unwrap();
        let guest = text(&shown["id"]).parse().unwrap();
        let sealed = disks.snapshot(&guest, &bundle, &Token::random().unwrap(), &unwatched);
        fs::rename(scratch.path().join(sealed.unwrap().snapshot), &disk).unwrap();
        fs::set_permissions(&disk, fs::Permissions::from_mode(0o600)).unwrap();
    } else {
        fs::copy(its_own, &disk).unwrap();
    }
    let run = |program: &str, words: &[&str]| on_disk(&disk, program, words);
    let (code, said) = run("e2fsck", &["-fy"]);
    // 1: it has replayed the journal.
    assert!(matches!(code, Some(0 | 1)), "{said}");
    for n in 0..20 {
        let (_, said) = run("debugfs", &["-R", &format!("cat /files/srv/file-{n}")]);
        assert_eq!(said.trim(), format!("content-{n}"));
    }
    let _ = home.brood(&["destroy", "k-1"]).ok();
    assert_eq!(guests_disks(linux), [] as [PathBuf; 0]);
}

/// A delta and its parents are joined: guests of the whole bundle have its memory, its root file
/// system and its disk when the delta and the parent are gone.
fn joins(home: &Home, linux: &Demo) {
    home.restore(linux, 1, "a");
    write(home, "a-1", "/srv/mine", "of-a-1");
    exec(home, "a-1", "echo of-memory >/run/note");
    let (delta, flat) = (named(linux, "delta"), named(linux, "flat"));
    let _ = home.brood(&["suspend", "--delta", "a-1", &delta.path]).ok();
    let flatten = ["checkpoint", "flatten", &delta.path, &flat.path];
    let _ = home.brood(&flatten).ok();
    for device in ["root", "disk"] {
        let inode = |of| fs::metadata(disk_of(home, of, device)).unwrap().ino();
        assert_eq!(inode(&flat), inode(&delta), "the {device} is stored once");
    }
    // Nothing is left of one that is refused: it has no root file system to be joined with.
    let (root, away) = (disk_of(home, &delta, "root"), named(linux, "away").path);
    fs::rename(&root, &away).unwrap();
    let other = named(linux, "other");
    let flatten = ["checkpoint", "flatten", &delta.path, &other.path];
    let _ = home.brood(&flatten).exits(1).says(&["does not exist"]);
    fs::rename(&away, &root).unwrap();
    let files = fs::read_dir(Path::new(&linux.path).parent().unwrap()).unwrap();
    let mut files = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(files.find(|name| name.contains("other")), None);

    for gone in [&delta, linux] {
        let _ = home.brood(&["checkpoint", "remove", &gone.path]).ok();
    }
    let _ = home.brood(&["checkpoint", "verify", &flat.path]).ok();
    home.restore(&flat, 2, "f");
    for guest in ["f-1", "f-2"] {
        let read = "cat /srv/of-image /srv/mine /run/note";
        let said = exec(home, guest, read);
        assert_eq!(said, "of the image\nof-a-1\nof-memory");
        let root = disk_of(home, &flat, "root");
        assert_eq!(open_files(home.pid(guest), ".ckp.disk-")[0], root);
    }
    // Its disk is written to as any other.
    write(home, "f-1", "/srv/mine", "of-f-1");
    assert_eq!(exec(home, "f-1", "cat /srv/mine"), "of-f-1");
    assert_eq!(exec(home, "f-2", "cat /srv/mine"), "of-a-1");
    let _ = home.brood(&["destroy", "--all"]).ok();
    let left = home.json(&["disk", "leftovers"]);
    assert_eq!(array(&left["leftovers"]), &[] as &[Value]);
}

#[test]
fn a_delta_is_joined_with_its_disks_where_files_share_no_blocks() {
    let Some((home, linux)) = Home::with_qemu_disks(None) else {
        return;
    };
    joins(&home, &linux);
}

#[test]
fn a_delta_is_joined_with_its_disks_where_files_share_blocks() {
    let Some(files) = FileSystem::small(Kind::Xfs, 900) else {
        return;
    };
    let Some((home, linux)) = Home::with_qemu_disks(Some(&files.path())) else {
        return;
    };
    joins(&home, &linux);
    drop(home);
}

#[test]
fn clones_have_disks_where_files_share_no_blocks() {
    let Some((home, linux)) = Home::with_qemu_disks(None) else {
        return;
    };
    // Should this folder's files share blocks, the way is another, and the rest the same.
    let ext4 = FileSystem::small(Kind::Ext4, 900);
    let (home, linux) = match &ext4 {
        None => (home, linux),
        Some(files) => Home::with_qemu_disks(Some(&files.path())).unwrap(),
    };
    let way = if ext4.is_some() { "qcow2:" } else { "" };
    lives(&home, &linux, way);
    is_measured(&home, &linux);
    survives_its_qemu(&home, &linux);
    drop(home);
}

#[test]
fn clones_have_disks_where_files_share_blocks() {
    let Some(files) = FileSystem::small(Kind::Xfs, 900) else {
        return;
    };
    let Some((home, linux)) = Home::with_qemu_disks(Some(&files.path())) else {
        return;
    };
    lives(&home, &linux, "reflink:");
    is_measured(&home, &linux);
    survives_its_qemu(&home, &linux);
    drop(home);
}

/// A density run says what a guest's disk takes: what the guest has written, and not what is sealed.
fn is_measured(home: &Home, linux: &Demo) {
    let table = home.brood(&["density", &linux.path, "--guests", "1"]).ok();
    let mut lines = table.stdout.lines();
    let head = lines.next().unwrap();
    assert!(head.contains("MiB/guest  disk MiB/guest  "), "{head}");
    let row: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    let untouched: f64 = row[7].parse().unwrap();
    // Each clone of this one writes 3 MiB before it is handed out.
    home.restore(linux, 1, "w");
    let hook = "mkdir -p /etc/brood/restored.d; cd /etc/brood/restored.d; \
                printf '#!/bin/sh\\ndd if=/dev/urandom of=/srv/written bs=64k count=48 conv=fsync\\n' >50-write; \
                chmod 755 50-write";
    exec(home, "w-1", hook);
    let writes = named(linux, "writes");
    let _ = home.brood(&["suspend", "w-1", &writes.path]).ok();
    let ran = home.brood(&["density", &writes.path, "--guests", "2", "--json"]);
    let step = ran.ok().json();
    assert_eq!(step["answered"], 2, "{step}");
    let written = step["disk_per_guest_mib"].as_f64().unwrap();
    // Besides there are the file system's own notes, and clusters of 64 KiB of an overlay.
    assert!(
        untouched < 2.0,
        "{untouched} MiB of a disk that hardly was written to"
    );
    assert!((3.0..6.0).contains(&written), "{written} MiB");
    assert_eq!(home.list(), [] as [Value; 0]);
    let _ = home.brood(&["checkpoint", "remove", &writes.path]).ok();
}

#[test]
fn a_guest_whose_suspend_fails_goes_on_and_writes() {
    let Some((home, linux)) = Home::with_qemu_disks(None) else {
        return;
    };
    home.restore(&linux, 1, "a");
    // The snapshot of its disk is what fails: the guest was frozen and stopped by then.
    let disk = guests_disks(&linux).remove(0);
    fs::remove_file(&disk).unwrap();
    for delta in [false, true] {
        let to = named(&linux, "to");
        let mut words = vec!["suspend", "a-1", &to.path];
        words.extend(delta.then_some("--delta"));
        let _ = home.brood(&words).exits(1).says(&["does not exist"]);
        let written = format!("/srv/after-{delta}");
        write(&home, "a-1", &written, "goes-on");
        assert_eq!(exec(&home, "a-1", &format!("cat {written}")), "goes-on");
        let files = fs::read_dir(home.checkpoints()).unwrap();
        let mut files = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(files.find(|name| name.starts_with("to.")), None);
    }
    assert_eq!(home.names("running"), ["a-1"]);
}

/// The disk that was sealed is of the size that the guest knows; another is refused before the guest
/// could write past its end.
#[test]
fn an_overlay_over_a_disk_of_another_size_is_refused() {
    let Some((home, linux)) = Home::with_qemu_disks(None) else {
        return;
    };
    let disk = disk_of(&home, &linux, "disk");
    let file = File::options().append(true).open(&disk);
    let file = file.or_else(|_| {
        fs::set_permissions(&disk, fs::Permissions::from_mode(0o600))?;
        File::options().write(true).open(&disk)
    });
    let file = file.unwrap();
    file.write_all_at(b"more", file.metadata().unwrap().len())
        .unwrap();
    let refused = home.brood(&["restore", &linux.path, "-n", "1"]).exits(1);
    let _ = refused.says(&["is not the disk that was sealed"]);
    assert_eq!(guests_disks(&linux), [] as [PathBuf; 0]);
}

/// The disk that a guest has to itself.
fn own_disk(home: &Home, guest: &str) -> PathBuf {
    PathBuf::from(text(&home.json(&["show", guest])["disk_path"]))
}

/// The bundle of the only suspended claim.
fn suspended_bundle(home: &Home) -> Demo {
    let files = fs::read_dir(home.suspended()).unwrap();
    let mut files = files.map(|entry| entry.unwrap().path());
    let manifest = files.find(|file| file.to_string_lossy().ends_with(".ckp.brood"));
    let manifest = manifest.expect("a manifest").to_string_lossy().into_owned();
    Demo {
        path: manifest.strip_suffix(".ckp.brood").unwrap().to_owned(),
    }
}

#[test]
fn a_claims_disk_is_suspended_resumed_and_released_with_it() {
    let Some((home, linux)) = Home::with_qemu_disks(None) else {
        return;
    };
    let make = ["pool", "create", "p", &linux.path, "--hot", "1"];
    let _ = home.brood(&[&make[..], &["--lease", "3600"]].concat()).ok();
    let _ = home.fill();
    let claim = home.claim();
    let (token, guest) = (text(&claim["token"]), text(&claim["guest"]));
    write(&home, guest, "/srv/mine", "of-the-claim");
    let before = own_disk(&home, guest);
    assert!(before.is_file());

    let _ = home.brood(&["pool", "suspend", token]).ok();
    assert!(!before.exists());
    // It was frozen: its file system is clean as it lies there, and has nothing left in its journal.
    let kept = disk_of(&home, &suspended_bundle(&home), "disk");
    let (code, said) = on_disk(&kept, "e2fsck", &["-fn"]);
    assert_eq!(code, Some(0), "{said}");
    let (_, said) = on_disk(&kept, "debugfs", &["-R", "cat /files/srv/mine"]);
    assert_eq!(said.trim(), "of-the-claim");

    let resumed = home.json(&["pool", "resume", token]);
    let guest = text(&resumed["guest"]);
    assert_eq!(exec(&home, guest, "cat /srv/mine"), "of-the-claim");
    write(&home, guest, "/srv/more", "goes-on");
    // Read from the disk, and nothing of it is spoilt.
    let read = "echo 3 >/proc/sys/vm/drop_caches; cat /srv/mine /srv/more; cat /sys/fs/ext4/*/errors_count";
    let said = exec(&home, guest, read);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["of-the-claim", "goes-on"], "{said}");
    assert!(
        lines.len() > 2 && lines[2..].iter().all(|errors| *errors == "0"),
        "{said}"
    );

    let after = own_disk(&home, guest);
    assert!(after.is_file());
    home.release(&claim);
    until("the disk to be gone", || (!after.exists()).then_some(()));
    // The next claim has a disk of its own. What was suspended goes with the pool's next command.
    let _ = home.fill();
    assert!(!kept.exists());
    let other = home.claim();
    let mine = exec(
        &home,
        text(&other["guest"]),
        "cat /srv/of-image; ls /srv/mine 2>&1 || true",
    );
    assert!(
        mine.starts_with("of the image\n") && mine.contains("No such file"),
        "{mine}"
    );
    home.release(&other);
    let left = home.json(&["disk", "leftovers"]);
    assert_eq!(array(&left["leftovers"]), &[] as &[Value]);
}
