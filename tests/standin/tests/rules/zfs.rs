//! Datasets: a root disk for each VM.

use std::{collections::BTreeSet, fs, path::PathBuf, thread};

use crate::lab::{Lab, until};

const USAGE: &str = "usage: zfs command args ...; see zfs(8)\n";

fn lab() -> Lab {
    let lab = Lab::new();
    lab.world.add_pool("tank").expect("a pool");
    lab
}

fn mountpoint(lab: &Lab, name: &str) -> PathBuf {
    lab.run("zfs", &["get", "-H", "-o", "value", "mountpoint", name])
        .good()
        .trim()
        .into()
}

#[test]
fn a_clone_begins_as_its_snapshot() {
    let lab = lab();
    lab.run(
        "zfs",
        &["create", "-o", "primarycache=metadata", "tank/base"],
    )
    .good();
    let disk = mountpoint(&lab, "tank/base").join("disk.img");
    fs::write(&disk, "installed").expect("a disk");
    lab.run("zfs", &["snapshot", "tank/base@ckp"]).good();
    fs::write(&disk, "changed since").expect("a disk");
    lab.run("zfs", &["clone", "tank/base@ckp", "tank/vm1"])
        .good();
    let clone = mountpoint(&lab, "tank/vm1").join("disk.img");
    assert_eq!(fs::read_to_string(&clone).expect("a disk"), "installed");
    fs::write(&clone, "its own").expect("a disk");
    lab.run("zfs", &["clone", "tank/base@ckp", "tank/vm2"])
        .good();
    let other = mountpoint(&lab, "tank/vm2").join("disk.img");
    assert_eq!(fs::read_to_string(other).expect("a disk"), "installed");
    let get = |property: &str, name: &str| {
        lab.run("zfs", &["get", "-H", "-o", "value,source", property, name])
            .good()
    };
    assert_eq!(get("origin", "tank/vm1"), "tank/base@ckp\t-\n");
    assert_eq!(get("primarycache", "tank/base"), "metadata\tlocal\n");
    assert_eq!(get("primarycache", "tank/vm1"), "all\tdefault\n");
    lab.run("zfs", &["set", "brood:guest=vm1", "tank/vm1"])
        .good();
    assert_eq!(get("brood:guest", "tank/vm1"), "vm1\tlocal\n");
    assert_eq!(get("brood:guest", "tank/vm2"), "-\t-\n");
    lab.run("zfs", &["rollback", "tank/base@ckp"]).good();
    assert_eq!(fs::read_to_string(&disk).expect("a disk"), "installed");
    lab.run("zfs", &["destroy", "tank/vm1"]).good();
    assert!(!clone.exists());
}

#[test]
fn volumes_are_devices() {
    let lab = lab();
    lab.run("zfs", &["create", "-s", "-V", "1M", "tank/v"])
        .good();
    let device = lab.world.path("dev/zvol/tank/v");
    assert_eq!(fs::metadata(&device).expect("a device").len(), 1 << 20);
    fs::write(&device, "data").expect("a volume");
    lab.run("zfs", &["snapshot", "tank/v@a"]).good();
    lab.run("zfs", &["clone", "tank/v@a", "tank/w"]).good();
    let config = lab.config(
        "vm",
        &[
            "pci.0.3.0.device=virtio-blk",
            "pci.0.3.0.path=/dev/zvol/tank/w",
        ],
    );
    let mut guest = lab.start("vm", &["-k", &config]);
    guest.ready();
    lab.run("zfs", &["destroy", "tank/w"])
        .refused(1, "cannot destroy 'tank/w': dataset is busy\n");
    guest.tell("poweroff");
    guest.end();
    lab.run("zfs", &["destroy", "tank/w"]).good();
    assert!(!lab.world.path("dev/zvol/tank/w").exists());
    let get = lab
        .run(
            "zfs",
            &["get", "-Hp", "-o", "value", "volsize,type", "tank/v"],
        )
        .good();
    assert_eq!(get, "1048576\nvolume\n");
}

#[test]
fn what_there_is_not() {
    let lab = lab();
    let nothing = "cannot open 'tank/x': dataset does not exist\n";
    lab.run("zfs", &["list", "tank/x"]).refused(1, nothing);
    lab.run("zfs", &["get", "type", "tank/x"])
        .refused(1, nothing);
    lab.run("zfs", &["destroy", "tank/x"]).refused(1, nothing);
    lab.run("zfs", &["set", "a:b=c", "tank/x"])
        .refused(1, nothing);
    lab.run("zfs", &["snapshot", "tank/x@a"])
        .refused(2, &format!("{nothing}{USAGE}"));
    lab.run("zfs", &["clone", "tank@a", "tank/y"])
        .refused(1, "cannot open 'tank@a': dataset does not exist\n");
    lab.run("zfs", &["destroy", "tank@a"]).refused(
        1,
        "could not find any snapshots to destroy; check snapshot names.\n",
    );
    lab.run("zfs", &["create", "tank/x/y"])
        .refused(1, "cannot create 'tank/x/y': parent does not exist\n");
    lab.run("zfs", &["create", "-p", "tank/x/y"]).good();
    lab.run("zfs", &["create", "-p", "tank/x/y"]).good();
    lab.run("zfs", &["create", "tank/x/y"])
        .refused(1, "cannot create 'tank/x/y': dataset already exists\n");
    lab.run("zfs", &["create", "other/x"])
        .refused(1, "cannot create 'other/x': parent does not exist\n");
    lab.run("zfs", &["create", "tank/b*d"]).refused(
        1,
        "cannot create 'tank/b*d': invalid character '*' in name\n",
    );
    lab.run("zfs", &["get", "colour", "tank"]).refused(
        2,
        &format!("bad property list: invalid property 'colour'\n{USAGE}"),
    );
    lab.run("zfs", &["set", "used=1", "tank"])
        .refused(1, "cannot set property for 'tank': 'used' is readonly\n");
    lab.run("zfs", &["defragment"])
        .refused(2, &format!("unrecognized command 'defragment'\n{USAGE}"));
    lab.run("zfs", &["send", "tank@a"])
        .refused(70, "standin: zfs send is not modelled\n");
}

#[test]
fn what_others_depend_on() {
    let lab = lab();
    lab.run("zfs", &["create", "tank/base"]).good();
    lab.run("zfs", &["snapshot", "tank/base@a"]).good();
    lab.run("zfs", &["snapshot", "tank/base@a"]).refused(
        1,
        "cannot create snapshot 'tank/base@a': dataset already exists\n",
    );
    lab.run("zfs", &["clone", "tank/base@a", "tank/vm"]).good();
    lab.run("zfs", &["clone", "tank/base@a", "tank/vm"])
        .refused(1, "cannot create 'tank/vm': dataset already exists\n");
    lab.run("zfs", &["clone", "tank/base", "tank/vm2"]).refused(
        1,
        "cannot open 'tank/base': operation not applicable to datasets of this type\n",
    );
    lab.run("zfs", &["destroy", "tank/base@a"]).refused(
        1,
        "cannot destroy 'tank/base@a': snapshot has dependent clones\n\
         use '-R' to destroy the following datasets:\ntank/vm\n",
    );
    lab.run("zfs", &["destroy", "tank/base"]).refused(
        1,
        "cannot destroy 'tank/base': filesystem has children\n\
         use '-r' to destroy the following datasets:\ntank/base@a\n",
    );
    lab.run("zfs", &["destroy", "-r", "tank/base"]).refused(
        1,
        "cannot destroy 'tank/base': filesystem has dependent clones\n\
         use '-R' to destroy the following datasets:\ntank/vm\n",
    );
    lab.run("zfs", &["snapshot", "tank/base@b"]).good();
    lab.run("zfs", &["rollback", "tank/base@a"]).refused_with(
        1,
        "cannot rollback to 'tank/base@a': more recent snapshots or bookmarks exist\n",
    );
    lab.run("zfs", &["rollback", "-r", "tank/base@a"]).good();
    assert_eq!(
        lab.run("zfs", &["list", "-H", "-t", "all", "-o", "name"])
            .good(),
        "tank\ntank/base\ntank/base@a\ntank/vm\n"
    );
    assert_eq!(
        lab.run(
            "zfs",
            &["list", "-H", "-t", "snapshot", "-o", "name", "tank/base"]
        )
        .good(),
        "tank/base@a\n"
    );
    lab.run("zfs", &["destroy", "-R", "tank/base"]).good();
    assert_eq!(
        lab.run("zfs", &["list", "-H", "-o", "name"]).good(),
        "tank\n"
    );
}

#[test]
fn a_snapshot_that_is_held_stays() {
    let lab = lab();
    lab.run("zfs", &["create", "-V", "8G", "tank/v"]).good();
    lab.run("zfs", &["snapshot", "tank/v@a"]).good();
    lab.run("zfs", &["hold", "mine", "tank/v@a"]).good();
    lab.run("zfs", &["hold", "mine", "tank/v@a"]).refused(
        1,
        "cannot hold snapshot 'tank/v@a': tag already exists on this dataset\n",
    );
    lab.run("zfs", &["hold", "mine", "tank/v@b"]).refused(
        1,
        "cannot hold snapshot 'tank/v@b': dataset does not exist\n",
    );
    lab.run("zfs", &["hold", "mine", "tank/v"])
        .refused(1, "'tank/v' is not a snapshot\n");
    let refs = ["get", "-H", "-o", "value", "userrefs", "tank/v@a"];
    assert_eq!(lab.run("zfs", &refs).good(), "1\n");
    for destroy in [&["destroy", "tank/v@a"][..], &["destroy", "-r", "tank/v"]] {
        lab.run("zfs", destroy)
            .refused(1, "cannot destroy snapshot tank/v@a: dataset is busy\n");
    }
    lab.run("zfs", &["release", "other", "tank/v@a"]).refused(
        1,
        "cannot release hold from snapshot 'tank/v@a': no such tag on this dataset\n",
    );
    lab.run("zfs", &["release", "mine", "tank/v@a"]).good();
    lab.run("zfs", &["destroy", "-r", "tank/v"]).good();
    lab.run("zfs", &["create", "-o", "volmod=dev", "tank/x"])
        .refused(1, "cannot create 'tank/x': invalid property 'volmod'\n");
}

#[test]
fn a_file_system_with_an_open_disk_is_busy() {
    let lab = lab();
    lab.run("zfs", &["create", "tank/vm"]).good();
    let folder = mountpoint(&lab, "tank/vm");
    let disk = folder.join("disk");
    fs::write(&disk, "data").expect("a disk");
    let path = format!("pci.0.3.0.path={}", disk.display());
    let config = lab.config("vm", &["pci.0.3.0.device=virtio-blk", &path]);
    let mut guest = lab.start("vm", &["-k", &config]);
    guest.ready();
    lab.run("zfs", &["snapshot", "tank/vm@while-it-runs"])
        .good();
    let busy = format!(
        "cannot unmount '{}': pool or dataset is busy\n",
        folder.display()
    );
    lab.run("zfs", &["destroy", "-r", "tank/vm"])
        .refused(1, &busy);
    lab.run("zfs", &["destroy", "-rf", "tank/vm"]).good();
    guest.ask("ping");
}

#[test]
fn lists_for_people() {
    let lab = lab();
    lab.run("zfs", &["create", "-o", "mountpoint=none", "tank/a"])
        .good();
    let folder = mountpoint(&lab, "tank");
    fs::write(folder.join("file"), vec![0; 1536 * 1024]).expect("a file");
    let list = lab.run("zfs", &["list"]).good();
    let rows: Vec<Vec<&str>> = list
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let folder = folder.display().to_string();
    assert_eq!(rows[0], ["NAME", "USED", "AVAIL", "REFER", "MOUNTPOINT"]);
    assert_eq!(rows[1], ["tank", "1.50M", "100G", "1.50M", folder.as_str()]);
    assert_eq!(rows[2], ["tank/a", "0B", "100G", "0B", "none"]);
}

#[test]
fn fifty_clones_at_once() {
    let lab = lab();
    lab.run("zfs", &["create", "tank/base"]).good();
    fs::write(mountpoint(&lab, "tank/base").join("disk"), "data").expect("a disk");
    lab.run("zfs", &["snapshot", "tank/base@a"]).good();
    thread::scope(|scope| {
        for n in 0..50 {
            let lab = &lab;
            scope.spawn(move || {
                lab.run("zfs", &["clone", "tank/base@a", &format!("tank/vm{n}")])
                    .good();
            });
        }
    });
    let list = lab
        .run("zfs", &["list", "-H", "-o", "origin", "-d", "1", "tank"])
        .good();
    assert_eq!(
        list.lines()
            .filter(|origin| *origin == "tank/base@a")
            .count(),
        50
    );
    let contents: BTreeSet<String> = (0..50)
        .map(|n| lab.world.path(&format!("pool/tank/vm{n}/disk")))
        .map(|disk| fs::read_to_string(disk).expect("a disk"))
        .collect();
    assert_eq!(contents, BTreeSet::from(["data".to_owned()]));
}

#[test]
fn each_step_can_fail_or_be_killed() {
    let lab = lab();
    lab.run("zfs", &["create", "tank/base"]).good();
    let exists = |name: &str| lab.run("zfs", &["list", name]).code == 0;
    let snapshot = ["snapshot", "tank/base@a"];
    lab.run_failing("zfs.snapshot", "zfs", &snapshot)
        .refused_with(1, "out of space");
    lab.run_failing("zfs.snapshot:kill", "zfs", &snapshot)
        .refused(-9, "");
    assert!(!exists("tank/base@a"));
    lab.run_failing("zfs.snapshotted:kill", "zfs", &snapshot)
        .refused(-9, "");
    assert!(exists("tank/base@a"));
    let clone = ["clone", "tank/base@a", "tank/vm"];
    lab.run_failing("zfs.clone:kill", "zfs", &clone)
        .refused(-9, "");
    assert!(!exists("tank/vm"));
    lab.run_failing("zfs.cloned", "zfs", &clone)
        .refused_with(1, "created, but not mounted");
    assert!(exists("tank/vm"));
    lab.run_failing("zfs.destroy:kill", "zfs", &["destroy", "tank/vm"])
        .refused(-9, "");
    assert!(exists("tank/vm"));
    lab.run("zfs", &["destroy", "tank/vm"]).good();

    let clone = |name: &str| {
        lab.run_failing("zfs.clone:2", "zfs", &["clone", "tank/base@a", name])
            .code
    };
    assert_eq!(["tank/1", "tank/2", "tank/3"].map(clone), [0, 1, 0]);
}

#[test]
fn one_that_hangs_keeps_no_other_from_going_on() {
    let lab = lab();
    lab.run("zfs", &["create", "tank/base"]).good();
    let mut hanging = lab.command("zfs", &["snapshot", "tank/base@a"]);
    hanging.env("BROOD_STANDIN_FAIL", "zfs.snapshotted:hang");
    let mut hanging = hanging.spawn().expect("zfs");
    until("the snapshot", || {
        (lab.run("zfs", &["list", "tank/base@a"]).code == 0).then_some(())
    });
    lab.run("zfs", &["clone", "tank/base@a", "tank/vm"]).good();
    assert!(hanging.try_wait().expect("its state").is_none());
    hanging.kill().expect("its end");
    hanging.wait().expect("its end");
}
