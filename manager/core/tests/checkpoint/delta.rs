//! Chains of deltas as bundles: how parents are found, what is refused, and what a chain is
//! flattened to.

use std::{fs, os::unix::fs::FileExt, path::Path};

use brood_core::checkpoint::{
    BundlePath, Checkpoint, DELTAS_MAX, Error, PageList, Target, Writer, parents_of, rebase, remove,
};
use serde_json::{Value, json};

use crate::sample::{KERN, Sample, description, replace, seal, seal_diskless};

const PAGE: usize = 4096;

fn bundle(dir: &Path, name: &str) -> BundlePath {
    BundlePath::new(&dir.join(name)).unwrap()
}

fn pages(text: &str) -> PageList {
    text.parse().unwrap()
}

/// A delta whose pages are filled with `byte`.
fn delta(path: &BundlePath, parent: &BundlePath, list: &str, byte: u8) -> Result<(), Error> {
    seal_diskless(written(path, parent, list, byte)?).map(|_| ())
}

fn written(path: &BundlePath, parent: &BundlePath, list: &str, byte: u8) -> Result<Writer, Error> {
    let list = pages(list);
    let mut writer = Writer::create_delta(path, &Checkpoint::open(parent)?, list.count())?;
    let content = vec![byte; PAGE * usize::try_from(list.count()).unwrap()];
    writer.memory().write_all_at(&content, 0).unwrap();
    writer.set_pages(list);
    writer.write_kern(KERN)?;
    Ok(writer)
}

/// A full checkpoint and two deltas, one over the other.
fn chain() -> (Sample, BundlePath, BundlePath) {
    let sample = Sample::new();
    let (one, two) = (
        bundle(sample.dir.path(), "one"),
        bundle(sample.dir.path(), "two"),
    );
    delta(&one, &sample.path, "2-4,9", 1).unwrap();
    delta(&two, &one, "4-5,15", 2).unwrap();
    (sample, one, two)
}

fn check(path: &BundlePath) -> Result<(), Error> {
    Checkpoint::open(path)?.verify_memory(&brood_core::checkpoint::unwatched)
}

#[test]
fn a_chain_is_opened_verified_and_joined() {
    let (sample, one, two) = chain();
    check(&two).unwrap();
    let opened = Checkpoint::open(&two).unwrap();
    let paths: Vec<_> = opened
        .layers()
        .iter()
        .map(|layer| layer.path().name())
        .collect();
    assert_eq!(paths, ["web", "one", "two"]);
    assert_eq!(opened.parent().unwrap().path(), &one);
    let ids: Vec<_> = opened
        .layers()
        .iter()
        .map(|l| l.manifest().memory_sha256())
        .collect();
    assert_eq!(ids[0], sample.manifest.files.ckp.sha256);
    assert!(ids[1] != ids[0] && ids[2] != ids[1]);

    let full = bundle(sample.dir.path(), "full");
    let manifest = flatten(&opened, &full, &brood_core::checkpoint::unwatched).unwrap();
    assert_eq!(manifest.parent, None);
    check(&full).unwrap();
    let mut expected = fs::read(sample.path.ckp()).unwrap();
    for (page, byte) in [(2, 1), (3, 1), (9, 1), (4, 2), (5, 2), (15, 2)] {
        expected[page * PAGE..(page + 1) * PAGE].fill(byte);
    }
    assert!(fs::read(full.ckp()).unwrap() == expected);
    let joined = Checkpoint::open(&full).unwrap();
    assert_eq!(joined.kern(), KERN);
    assert_eq!(joined.manifest().memory, description().memory);
    let refused = flatten(
        &joined,
        &bundle(sample.dir.path(), "again"),
        &brood_core::checkpoint::unwatched,
    )
    .unwrap_err();
    assert!(matches!(refused, Error::NotADelta { .. }), "{refused}");
}

#[test]
fn a_folder_with_a_chain_can_be_moved() {
    let (sample, _, _) = chain();
    let moved = sample.dir.path().join("moved");
    fs::create_dir(&moved).unwrap();
    for entry in fs::read_dir(sample.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::rename(&path, moved.join(path.file_name().unwrap())).unwrap();
        }
    }
    check(&bundle(&moved, "two")).unwrap();
    // One whose parent lies elsewhere finds it by its whole path, wherever it goes itself.
    let elsewhere = sample.dir.path().join("elsewhere");
    let far = bundle(&elsewhere, "far");
    delta(&far, &bundle(&moved, "one"), "1", 3).unwrap();
    fs::rename(&elsewhere, sample.dir.path().join("further")).unwrap();
    check(&bundle(&sample.dir.path().join("further"), "far")).unwrap();
}

#[test]
fn a_parent_that_is_not_what_it_was_is_named() {
    let wrong = |path: &BundlePath| {
        let error = check(path).unwrap_err();
        assert!(error.hint().is_some(), "{error}");
        error
    };
    // Damaged in its memory: found when that is read.
    let (_sample, one, two) = chain();
    replace(&one.ckp(), &vec![9; 4 * PAGE]);
    let error = wrong(&two);
    assert!(matches!(error, Error::Digest { .. }), "{error}");
    assert_eq!(error.file(), one.ckp());
    // Of another length, and gone: found at once.
    replace(&one.ckp(), &[9; 100]);
    let error = wrong(&two);
    let Error::Parent { parent, cause, .. } = &error else {
        panic!("{error}")
    };
    assert!(
        parent == &one && matches!(**cause, Error::Size { .. }),
        "{error}"
    );
    remove(&one).unwrap();
    let error = wrong(&two);
    assert!(
        error.to_string().contains("one.ckp.brood does not exist"),
        "{error}"
    );

    // The parent's parent, in the parent's words.
    let (sample, one, two) = chain();
    remove(&sample.path).unwrap();
    let error = wrong(&two);
    let Error::Parent { bundle, parent, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((bundle, parent), (&one, &sample.path));

    // Another in its place: the same pages, other content; the same content, other pages.
    for (list, byte) in [("2-4,9", 7), ("2-4,10", 1)] {
        let (sample, one, two) = chain();
        remove(&one).unwrap();
        delta(&one, &sample.path, list, byte).unwrap();
        let error = wrong(&two);
        let Error::OtherParent { parent, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(parent, &one);
    }
}

#[test]
fn a_chain_has_an_end() {
    let sample = Sample::new();
    let mut last = sample.path.clone();
    for n in 1..=DELTAS_MAX {
        let next = bundle(sample.dir.path(), &format!("d{n}"));
        delta(&next, &last, &n.to_string(), 5).unwrap();
        last = next;
    }
    check(&last).unwrap();
    let over = bundle(sample.dir.path(), "over");
    let error = delta(&over, &last, "1", 5).unwrap_err();
    assert!(matches!(error, Error::TooDeep { .. }), "{error}");
    assert!(error.hint().unwrap().contains("flatten"), "{error}");
    assert!(!over.manifest().exists());
    let full = bundle(sample.dir.path(), "full");
    flatten(
        &Checkpoint::open(&last).unwrap(),
        &full,
        &brood_core::checkpoint::unwatched,
    )
    .unwrap();
    delta(&over, &full, "1", 5).unwrap();
    check(&over).unwrap();
}

#[test]
fn a_chain_with_a_disk_of_its_own_is_not_joined() {
    let (sample, one, _) = chain();
    let with_disk = bundle(sample.dir.path(), "disk");
    seal(written(&with_disk, &one, "5", 3).unwrap()).unwrap();
    let full = bundle(sample.dir.path(), "full");
    let opened = Checkpoint::open(&with_disk).unwrap();
    let watch = &brood_core::checkpoint::unwatched;
    let error = brood_core::disk::flatten::<Failed>(&opened, &full, watch).unwrap_err();
    assert!(
        matches!(error, Failed::Checkpoint(Error::OwnDisk { .. })),
        "{error:?}"
    );
    assert!(!full.manifest().exists() && !full.ckp().exists());
}

#[test]
fn deltas_of_a_bundle_are_found_by_name_and_by_digest() {
    let (sample, one, two) = chain();
    let deltas = |bundle: &BundlePath| {
        let found = Target::of(bundle).unwrap().deltas_in(sample.dir.path());
        let found = found.unwrap().into_iter();
        found
            .map(|delta| delta.name().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(deltas(&sample.path), ["one"]);
    assert_eq!(deltas(&one), ["two"]);
    assert_eq!(
        parents_of(&two).unwrap(),
        [one.clone(), sample.path.clone()]
    );
    assert!(
        Target::of(&sample.path)
            .unwrap()
            .is_needed_by(&two)
            .unwrap()
    );
    // What is damaged needs nothing; what lost its parent needs another of that memory.
    replace(&one.manifest(), b"{");
    assert_eq!(deltas(&sample.path), Vec::<String>::new());
    let (sample, one, _) = chain();
    let moved = bundle(sample.dir.path(), "moved");
    for end in ["ckp", "ckp.kern", "ckp.meta", "ckp.brood"] {
        let file = |bundle: &BundlePath| bundle.dir().join(format!("{}.{end}", bundle.name()));
        fs::rename(file(&one), file(&moved)).unwrap();
    }
    let target = Target::of(&moved).unwrap();
    assert_eq!(target.deltas_in(sample.dir.path()).unwrap().len(), 1);
    let two = bundle(sample.dir.path(), "two");
    check(&two).unwrap();
    rebase(&two, &moved).unwrap();
    assert_eq!(parents_of(&two).unwrap()[0], moved);
    check(&two).unwrap();
    remove(&two).unwrap();
    assert!(target.deltas_in(sample.dir.path()).unwrap().is_empty());
}

#[test]
fn fields_of_a_delta_that_cannot_be_are_refused() {
    let long = "x".repeat(5000);
    let wrong = [
        ("parent.path", json!("")),
        ("parent.path", json!("a\nb")),
        ("parent.path", json!(long)),
        ("parent.sha256", json!("0")),
        ("parent.sha256", json!("A".repeat(64))),
        ("parent.pages", json!("1,1")),
        ("parent.pages", json!("2-4,9,16")),
        ("parent.pages", json!("all")),
        ("parent.pages", json!([2, 3])),
        ("files.ckp.size", json!(4096)),
        ("parent.other", json!(1)),
    ];
    for (field, value) in wrong {
        let (_sample, one, _) = chain();
        let mut manifest: Value =
            serde_json::from_slice(&fs::read(one.manifest()).unwrap()).unwrap();
        let pointer = format!("/{}", field.replace('.', "/"));
        match manifest.pointer_mut(&pointer) {
            Some(place) => *place = value.clone(),
            None => manifest["parent"]["other"] = value.clone(),
        }
        replace(&one.manifest(), manifest.to_string().as_bytes());
        let error = check(&one).unwrap_err();
        assert_eq!(error.field(), Some(field), "{value}: {error}");
        assert_eq!(error.file(), one.manifest(), "{value}: {error}");
        let shown = error.to_string();
        assert!(!shown.contains(|c: char| c.is_control()), "{shown:?}");
    }
    // What could be, and is not what was sealed.
    // Where the parent lies is not sealed: it may be moved, and is known by its digest.
    for (field, value) in [
        ("sha256", json!("0".repeat(64))),
        ("pages", json!("2-4,10")),
    ] {
        let (_sample, one, _) = chain();
        let mut manifest: Value =
            serde_json::from_slice(&fs::read(one.manifest()).unwrap()).unwrap();
        manifest["parent"][field] = value;
        replace(&one.manifest(), manifest.to_string().as_bytes());
        let error = check(&one).unwrap_err();
        assert_eq!(error.field(), Some("parent"), "{field}: {error}");
    }
}

/// How a join of a bundle with disks fails.
#[derive(Debug)]
enum Failed {
    Checkpoint(Error),
    Disk(#[expect(dead_code, reason = "shown by a test that fails")] brood_core::disk::Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Checkpoint(error)
    }
}

impl From<brood_core::disk::Error> for Failed {
    fn from(error: brood_core::disk::Error) -> Self {
        Self::Disk(error)
    }
}

/// Joins a delta without disks.
fn flatten(
    delta: &Checkpoint,
    to: &BundlePath,
    watch: brood_core::checkpoint::Watch<'_>,
) -> Result<brood_core::checkpoint::manifest::Manifest, Error> {
    brood_core::checkpoint::flatten(delta, to, || Ok(Vec::new()), watch)
}
