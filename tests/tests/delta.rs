//! Guests suspended to deltas: only their own pages are written, and a restore brings back the same
//! guest.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
};

use brood_tests::{Demo, HEAP, Home, sha256, skip, text, until, whole};
use proptest::prelude::*;
use serde_json::Value;

const PAGE: u64 = 4096;

/// Suspends a guest to a delta, which must succeed; returns what was printed.
#[track_caller]
fn suspend(home: &Home, guest: &str, to: &Demo) -> Value {
    home.json(&["suspend", guest, &to.path, "--delta"])
}

/// Length of all files of a bundle.
fn length(bundle: &Demo) -> u64 {
    let files = ["ckp", "ckp.kern", "ckp.meta", "ckp.brood"];
    let length = |suffix: &&str| {
        fs::metadata(bundle.file(suffix))
            .expect("it is there")
            .len()
    };
    files.iter().map(length).sum()
}

/// The memory of a guest's process, as the kernel shows it, in the order of the guest's addresses.
/// It has all of its pages only when it has touched them all, or its checkpoint is a full one.
/// `None` where one process may not look at another's.
fn memory_of(pid: i32) -> Option<Vec<u8>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it lives");
    let memory = match File::open(format!("/proc/{pid}/mem")) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => return None,
        opened => opened.expect("it lives"),
    };
    let mut bytes = Vec::new();
    for line in maps.lines().filter(|line| line.ends_with(".ckp")) {
        let (range, _) = line.split_once(' ').expect("a mapping has a range");
        let (start, end) = range.split_once('-').expect("a range has two ends");
        let address = |text| u64::from_str_radix(text, 16).expect("in hexadecimal");
        let mut part = vec![0; usize::try_from(address(end) - address(start)).expect("it fits")];
        memory
            .read_exact_at(&mut part, address(start))
            .expect("it is mapped");
        bytes.extend(part);
    }
    Some(bytes)
}

/// Has a guest touch every page that it may.
fn touch_all(home: &Home, guest: &str, size: u64) {
    let _ = home.ask(guest, &format!("sum 0 {size} {PAGE}"));
}

#[test]
fn a_delta_has_the_pages_that_were_written_and_shares_the_rest() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "16M");
    let (words, digest) = (demo.words(), sha256(&demo.ckp()));
    home.restore(&demo, 2, "a");
    let _ = home.ask("a-1", "dirty 600");
    let _ = home.ask("a-1", "poke 0xc00008 77");
    // Written, and what it was before: not worth a page.
    let same = words.at(0xd0_0000);
    let _ = home.ask("a-1", &format!("poke 0xd00000 {same}"));
    let private = home.private_and_shared("a-1").0 / PAGE;
    assert!(private >= 602, "{private}");
    let dirtied = home.peek("a-1", HEAP + 599 * PAGE);
    assert_ne!(dirtied, words.at(HEAP + 599 * PAGE));

    let ping = home.ask("a-1", "ping");

    let delta = home.named("delta");
    let suspended = suspend(&home, "a-1", &delta);
    let pages = whole(&suspended["pages"]);
    assert!(pages >= 602 && pages < private, "{pages} of {private}");
    assert_eq!(suspended["parent"], "demo");
    let written = length(&delta);
    assert!(
        written * 10 <= private * PAGE * 11,
        "{written} for {private} pages"
    );

    let report = home.restore(&delta, 3, "b");
    for guest in brood_tests::array(&report["guests"]) {
        assert_eq!(guest["nonce"], ping["nonce"]);
        assert_eq!(whole(&guest["counter"]), whole(&ping["counter"]) + 1);
    }
    let (before, _) = home.private_and_shared("b-2");
    for (address, value) in [
        (0xc0_0008, 77),
        (HEAP + 599 * PAGE, dirtied),
        (0xd0_0000, same),
        (HEAP + 601 * PAGE, words.at(HEAP + 601 * PAGE)),
        (HEAP - 8, words.at(HEAP - 8)),
        (0xff_fff8, words.at(0xff_fff8)),
    ] {
        for guest in ["b-1", "b-2"] {
            assert_eq!(home.peek(guest, address), value, "{guest} at {address:#x}");
        }
    }
    touch_all(&home, "b-2", words.size());
    assert_eq!(
        home.private_and_shared("b-2").0,
        before,
        "reading took pages"
    );
    // What one writes the others do not see, nor those of the parent.
    let _ = home.ask("b-1", "poke 0xc00008 78");
    assert_eq!(home.peek("b-2", 0xc0_0008), 77);
    assert_eq!(home.peek("a-2", 0xc0_0008), words.at(0xc0_0008));
    assert_eq!(sha256(&demo.ckp()), digest);
}

#[test]
fn a_guest_of_a_delta_is_suspended_either_way() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 1, "a");
    let _ = home.ask("a-1", "poke 0x200000 1");
    let (one, two, full) = (home.named("one"), home.named("two"), home.named("full"));
    let _ = suspend(&home, "a-1", &one);
    home.restore(&one, 2, "b");
    let _ = home.ask("b-1", "poke 0x300000 2");
    let _ = home.ask("b-2", "poke 0x300000 3");
    let over = suspend(&home, "b-1", &two);
    assert_eq!(over["parent"], "one");
    // Its data page and the one that it wrote.
    assert_eq!(over["pages"], 2);
    let _ = home.brood(&["suspend", "b-2", &full.path]).ok();
    assert_eq!(full.words().size(), 4 << 20);
    home.restore(&two, 1, "c");
    home.restore(&full, 1, "d");
    for (guest, last) in [("c-1", 2), ("d-1", 3)] {
        assert_eq!(home.peek(guest, 0x20_0000), 1);
        assert_eq!(home.peek(guest, 0x30_0000), last);
        assert_eq!(home.peek(guest, 0x30_0008), demo.words().at(0x30_0008));
    }
    let shown = home.json(&["checkpoint", "inspect", &two.path]);
    let parents = brood_tests::array(&shown["parents"]);
    assert_eq!(parents, [one.path.as_str(), demo.path.as_str()]);
    let listed = home.json(&["checkpoint", "list", home.checkpoints().to_str().unwrap()]);
    let parents: BTreeMap<_, _> = brood_tests::array(&listed)
        .iter()
        .map(|bundle| (text(&bundle["name"]), &bundle["parent"]))
        .collect();
    assert_eq!(parents["two"], "one");
    assert_eq!(parents["full"], &Value::Null);
}

#[test]
fn parked_paused_and_busy_guests_become_deltas_too() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let args = [
        "restore",
        &demo.path,
        "-n",
        "3",
        "--prefix",
        "p",
        "--park-after",
        "0",
    ];
    assert_eq!(home.json(&args)["restored"], 3);
    for guest in ["p-1", "p-2", "p-3"] {
        let _ = home.ask(guest, "poke 0x200000 5");
        let _ = home.ask(guest, "poke 0x380000 6");
    }
    let parked = |pid: i32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives");
        let mut links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        !links.any(|link| link.to_string_lossy().contains("kvm-v"))
    };
    until("a guest to park", || {
        let is = parked(home.pid("p-1"));
        if !is {
            let _ = home.ask("p-1", "ping");
        }
        is.then_some(())
    });
    let _ = home.brood(&["pause", "p-2"]).ok();
    let asking = home.busy("p-3", 1_000_000);
    for guest in ["p-1", "p-2", "p-3"] {
        let to = home.named(&format!("of-{guest}"));
        let pages = whole(&suspend(&home, guest, &to)["pages"]);
        assert!((3..20).contains(&pages), "{guest}: {pages} pages");
        home.restore(&to, 1, &format!("again-{guest}"));
        let again = format!("again-{guest}-1");
        assert_eq!(home.peek(&again, 0x20_0000), 5);
        assert_eq!(home.peek(&again, 0x38_0000), 6);
    }
    drop(asking.wait());
    // A guest of a delta that parks has its pages when it wakes.
    let of = home.named("of-p-1");
    let args = [
        "restore",
        &of.path,
        "-n",
        "1",
        "--prefix",
        "q",
        "--park-after",
        "0",
    ];
    assert_eq!(home.json(&args)["restored"], 1);
    let _ = home.ask("q-1", "poke 0x200008 7");
    until("it to park", || parked(home.pid("q-1")).then_some(()));
    assert_eq!(home.peek("q-1", 0x20_0008), 7);
    assert_eq!(home.peek("q-1", 0x20_0000), 5);
}

/// What a guest is asked between two suspends.
#[derive(Clone, Debug)]
enum Write {
    Poke { page: u64, word: u64, value: u64 },
    Dirty(u64),
}

/// Pages that `poke` may write in a guest of 4 MiB.
const POKED: std::ops::Range<u64> = 16..1024;

fn write() -> impl Strategy<Value = Write> {
    prop_oneof![
        (POKED, 0_u64..512, any::<u64>()).prop_map(|(page, word, value)| Write::Poke {
            page,
            word,
            value
        }),
        (1_u64..60).prop_map(Write::Dirty),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    /// A guest writes, is suspended to a delta and restored, again and again: the chain, joined, is
    /// what its process had in memory, byte for byte.
    #[test]
    fn a_chain_composes_to_what_the_guest_had(
        chain in prop::collection::vec(prop::collection::vec(write(), 0..6), 1..4),
    ) {
        let Some(home) = Home::with_kvm() else { return Ok(()) };
        let mut from = home.demo("demo", "4M");
        let mut poked = BTreeMap::new();
        for (n, writes) in chain.iter().enumerate() {
            let prefix = format!("g{n}");
            let guest = format!("{prefix}-1");
            home.restore(&from, 1, &prefix);
            for write in writes {
                match write {
                    Write::Poke { page, word, value } => {
                        let address = page * PAGE + word * 8;
                        let _ = home.ask(&guest, &format!("poke {address} {value}"));
                        poked.insert(address, *value);
                    }
                    Write::Dirty(pages) => {
                        let _ = home.ask(&guest, &format!("dirty {pages}"));
                        // It writes words that may have been poked before.
                        poked.retain(|address, _| address % PAGE != 0 || *address < HEAP);
                    }
                }
            }
            touch_all(&home, &guest, 4 << 20);
            let _ = home.brood(&["pause", &guest]).ok();
            let Some(memory) = memory_of(home.pid(&guest)) else {
                skip("no permission to read /proc/PID/mem");
                return Ok(());
            };
            let to = home.named(&format!("d{n}"));
            let _ = suspend(&home, &guest, &to);
            let full = home.named(&format!("f{n}"));
            let _ = home.brood(&["checkpoint", "flatten", &to.path, &full.path]).ok();
            let joined = fs::read(full.ckp()).unwrap();
            prop_assert_eq!(joined.len(), memory.len());
            let differ: Vec<usize> = (0..joined.len() / 4096)
                .filter(|n| joined[n * 4096..][..4096] != memory[n * 4096..][..4096])
                .collect();
            prop_assert!(differ.is_empty(), "pages {:?} differ after {:?}", differ, chain);
            for (address, value) in &poked {
                prop_assert_eq!(full.words().at(*address), *value);
            }
            from = to;
        }
        let _ = home.brood(&["checkpoint", "verify", &from.path]).ok();
    }
}

#[test]
fn a_chain_that_is_too_long_is_refused_and_the_guest_lives_on() {
    let Some(home) = Home::with_kvm() else { return };
    let mut from = home.demo("demo", "4M");
    for n in 1..=8 {
        home.restore(&from, 1, &format!("g{n}"));
        let _ = home.ask(
            &format!("g{n}-1"),
            &format!("poke {} {n}", 0x20_0000 + n * PAGE),
        );
        from = home.named(&format!("d{n}"));
        let _ = suspend(&home, &format!("g{n}-1"), &from);
    }
    home.restore(&from, 1, "last");
    let over = home.named("over");
    let _ = home
        .brood(&["suspend", "last-1", &over.path, "--delta"])
        .exits(1)
        .says(&["at most 8 deltas", "flatten", "without --delta"]);
    for n in 1..=8 {
        assert_eq!(home.peek("last-1", 0x20_0000 + n * PAGE), n);
    }
    let flat = home.named("flat");
    let _ = home
        .brood(&["checkpoint", "flatten", &from.path, &flat.path])
        .ok();
    home.restore(&flat, 1, "flat");
    assert_eq!(home.peek("flat-1", 0x20_4000), 4);
    let _ = suspend(&home, "flat-1", &over);
    let _ = home
        .brood(&["checkpoint", "flatten", &flat.path, &home.named("no").path])
        .exits(1)
        .says(&["full one"]);
}

#[test]
fn a_delta_without_its_parent_is_refused_by_name() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 2, "a");
    let (one, two) = (home.named("one"), home.named("two"));
    let _ = suspend(&home, "a-1", &one);
    home.restore(&one, 2, "b");
    let _ = suspend(&home, "b-1", &two);
    // Parents are spared: deltas need them, and guests share their memory.
    let remove = |bundle: &Demo, force: &[&str]| {
        home.brood(&[&["checkpoint", "remove", &bundle.path], force].concat())
    };
    let _ = remove(&demo, &[])
        .exits(1)
        .says(&["it is the parent of one", "flatten"]);
    let _ = remove(&demo, &["--force"])
        .exits(1)
        .says(&["2 guests use it: a-2, b-2"]);
    let _ = remove(&one, &["--force"])
        .exits(1)
        .says(&["1 guest use", "b-2"]);
    home.destroy_all();
    let _ = remove(&one, &[])
        .exits(1)
        .says(&["it is the parent of two"]);
    let restore = || home.brood(&["restore", &two.path, "-n", "1"]);

    // Damaged in its memory.
    let good = fs::read(one.ckp()).unwrap();
    let mut bad = good.clone();
    bad[100] ^= 1;
    fs::remove_file(one.ckp()).unwrap();
    fs::write(one.ckp(), &bad).unwrap();
    let _ = restore().exits(1).says(&["one.ckp has SHA-256"]);
    let _ = home
        .brood(&["checkpoint", "verify", &two.path])
        .exits(1)
        .says(&["one.ckp"]);
    fs::write(one.ckp(), &good).unwrap();
    home.restore(&two, 1, "good");
    let _ = home.brood(&["destroy", "good-1"]).ok();

    // Another checkpoint by its name.
    let _ = remove(&one, &["--force"]).ok();
    let _ = restore().exits(1).says(&[
        "is a delta of",
        "one, which cannot be used",
        "does not exist",
    ]);
    home.restore(&demo, 1, "c");
    let _ = suspend(&home, "c-1", &one);
    let _ = restore()
        .exits(1)
        .says(&["is a delta of what", "one was", "bring"]);
    let listed = home.json(&["checkpoint", "list", home.checkpoints().to_str().unwrap()]);
    let states: Vec<_> = brood_tests::array(&listed)
        .iter()
        .map(|b| text(&b["state"]))
        .collect();
    assert_eq!(states, ["whole", "whole", "broken"]);
}

#[test]
fn a_parent_that_changes_under_guests_of_a_delta_is_noticed() {
    for (which, page) in [("demo", 0x20_0000), ("delta", 0x3000)] {
        let Some(home) = Home::with_kvm() else { return };
        let demo = home.demo("demo", "4M");
        home.restore(&demo, 1, "a");
        let _ = home.ask("a-1", "dirty 30");
        let delta = home.named("delta");
        let _ = suspend(&home, "a-1", &delta);
        home.restore(&delta, 2, "b");
        let _ = home.ask("b-1", "peek 0x100000");
        let changed = File::options()
            .write(true)
            .open(home.named(which).ckp())
            .unwrap();
        changed.write_all_at(&[1; 8], page).unwrap();
        for guest in ["b-1", "b-2"] {
            let _ = home
                .brood(&["ask", guest, "peek 0x100000"])
                .exits(1)
                .says(&["checkpoint was changed"]);
        }
        let _ = home
            .brood(&["restore", &delta.path, "-n", "1", "--prefix", "new"])
            .exits(1)
            .says(&[&format!("{which}.ckp")]);
    }
}

/// Makes sure that a suspend which failed has left nothing, and the guest as it was.
#[track_caller]
fn lives_on(home: &Home, guest: &str, folder: &Path, entries: usize) {
    assert_eq!(home.peek(guest, 0x20_0000), 9);
    assert_eq!(folder.read_dir().unwrap().count(), entries);
}

#[test]
fn a_full_disk_fails_the_suspend_and_not_the_guest() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "8M");
    home.restore(&demo, 1, "a");
    let _ = home.ask("a-1", "dirty 700");
    let _ = home.ask("a-1", "poke 0x200000 9");
    // In the middle: the guest's process may write no further.
    let pid = home.pid("a-1").to_string();
    let limit = |limit: &str| {
        let mut command = Command::new("prlimit");
        command.args(["--pid", &pid, &format!("--fsize={limit}")]);
        command.status().is_ok_and(|status| status.success())
    };
    let to = home.named("to");
    if limit("1000000:") {
        for kind in [&["--delta"][..], &[]] {
            let _ = home
                .brood(&[&["suspend", "a-1", &to.path], kind].concat())
                .exits(1)
                .says(&["cannot write the guest's memory", "too large"]);
            lives_on(&home, "a-1", &home.checkpoints(), 4);
        }
        assert!(limit("unlimited:"));
    } else {
        skip("no prlimit");
    }
    // Before it begins: there is no room for what the guest has.
    let small = home.path().join("small");
    fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2M", "tmpfs"])
        .arg(&small)
        .output();
    if mounted.is_ok_and(|ran| ran.status.success()) {
        let full = small.join("to");
        let _ = home
            .brood(&["suspend", "a-1", full.to_str().unwrap(), "--delta"])
            .exits(1)
            .says(&["it needs up to", "free"]);
        lives_on(&home, "a-1", &small, 0);
        assert!(
            Command::new("umount")
                .arg(&small)
                .status()
                .unwrap()
                .success()
        );
    } else {
        skip("no permission to mount a small file system");
    }
    let _ = suspend(&home, "a-1", &to);
    home.restore(&to, 1, "b");
    lives_on(&home, "b-1", &home.checkpoints(), 8);
}

#[test]
fn guests_of_a_delta_are_found_when_their_record_is_lost() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "8M");
    home.restore(&demo, 1, "a");
    let _ = home.ask("a-1", "dirty 3");
    let delta = home.named("delta");
    let _ = suspend(&home, "a-1", &delta);
    home.restore(&delta, 1, "b");
    for name in ["brood.sqlite", "brood.sqlite-wal", "brood.sqlite-shm"] {
        let _ = fs::remove_file(home.state().join(name));
    }
    let found = home.list();
    assert_eq!(found[0]["checkpoint"], *delta.path, "{found:?}");
    assert_eq!(found[0]["memory_mib"], 8.0);
    let again = home.named("again");
    assert_eq!(suspend(&home, "b-1", &again)["parent"], "delta");
}
