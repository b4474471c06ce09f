//! Tests of a writer that dies at each of its steps.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
};

use tempfile::TempDir;

use super::*;
use crate::checkpoint::{BundleState, Checkpoint, catalogue, list, remove};

const STEPS: [Step; 9] = [
    Step::Described,
    Step::Hashed,
    Step::Journaled,
    Step::Named(Part::Ckp),
    Step::Named(Part::Kern),
    Step::Named(Part::Meta),
    Step::NamesOnDisk,
    Step::Named(Part::Manifest),
    Step::Sealed,
];

fn description() -> Description {
    let segment = super::super::manifest::Segment {
        guest_address: 0,
        size: Bytes::mib(1),
        file_offset: 0,
    };
    Description {
        guest: "web".to_owned(),
        engine: EngineKind::Kvm,
        engine_version: "test".to_owned(),
        memory: Memory {
            size: Bytes::mib(1),
            segments: vec![segment],
        },
        vcpus: 1,
        devices: Vec::new(),
        disks: Vec::new(),
        working_set: Vec::new(),
    }
}

fn write(path: &BundlePath, content: &[u8], crash_at: Option<Step>) -> Result<Manifest, Error> {
    let mut writer = Writer::create(path, Bytes::mib(1))?;
    writer.memory().write_all_at(content, 4096).unwrap();
    writer.write_kern(content).unwrap();
    writer.crash_at = crash_at;
    writer.seal(
        description(),
        jiff::Timestamp::UNIX_EPOCH,
        &crate::checkpoint::unwatched,
    )
}

/// Writes a delta of `parent` with one page of its own.
fn write_delta(
    path: &BundlePath,
    parent: &BundlePath,
    crash_at: Option<Step>,
) -> Result<Manifest, Error> {
    let mut writer = Writer::create_delta(path, &Checkpoint::open(parent)?, 1)?;
    writer.memory().write_all_at(&[7; 4096], 0).unwrap();
    writer.set_pages("9".parse().unwrap());
    writer.write_kern(b"delta").unwrap();
    writer.crash_at = crash_at;
    writer.seal(
        description(),
        jiff::Timestamp::UNIX_EPOCH,
        &crate::checkpoint::unwatched,
    )
}

#[test]
fn each_bundle_that_exists_was_noted_before() {
    for step in STEPS {
        let dir = TempDir::new().unwrap();
        let path = BundlePath::new(&dir.path().join("web")).unwrap();
        let mut writer = Writer::create(&path, Bytes::mib(1)).unwrap();
        writer.write_kern(b"state").unwrap();
        writer.crash_at = Some(step);
        let mut noted = Vec::new();
        let mut note = |_: &Manifest, sha256: &str| {
            assert!(!path.ckp().exists() && !path.manifest().exists());
            noted.push(sha256.to_owned());
        };
        let epoch = jiff::Timestamp::UNIX_EPOCH;
        let unwatched = &crate::checkpoint::unwatched;
        writer
            .seal_noted(description(), epoch, &mut note, unwatched)
            .unwrap_err();
        if let Ok(text) = fs::read(path.manifest()) {
            assert_eq!(noted, [sha256(&text)], "{step:?}");
        }
    }
}

fn entries(dir: &TempDir) -> usize {
    dir.path().read_dir().unwrap().count()
}

#[test]
fn a_crash_at_any_step_leaves_a_whole_bundle_or_none() {
    for step in STEPS {
        let dir = TempDir::new().unwrap();
        let path = BundlePath::new(&dir.path().join("web")).unwrap();
        write(&path, b"first", Some(step)).unwrap_err();

        let whole = matches!(step, Step::Named(Part::Manifest) | Step::Sealed);
        let listed = list(dir.path()).unwrap();
        assert_eq!(listed.len(), 1, "{step:?}");
        assert_eq!(listed[0].path, path);
        match Checkpoint::open(&path) {
            Ok(checkpoint) => {
                assert!(whole, "{step:?}");
                assert!(
                    matches!(listed[0].state, BundleState::Whole(_)),
                    "{listed:?}"
                );
                checkpoint
                    .verify_memory(&crate::checkpoint::unwatched)
                    .unwrap();
                let refusal = write(&path, b"second", None).unwrap_err();
                assert!(
                    matches!(refusal, Error::Exists { .. }),
                    "{step:?}: {refusal}"
                );
                Checkpoint::open(&path)
                    .unwrap()
                    .verify_memory(&crate::checkpoint::unwatched)
                    .unwrap();
            }
            Err(error) => {
                assert!(!whole, "{step:?}: {error}");
                assert!(
                    matches!(error, Error::Incomplete { .. }),
                    "{step:?}: {error}"
                );
                assert!(
                    matches!(listed[0].state, BundleState::Incomplete),
                    "{listed:?}"
                );
                write(&path, b"second", None).unwrap();
                let again = Checkpoint::open(&path).unwrap();
                again.verify_memory(&crate::checkpoint::unwatched).unwrap();
                assert_eq!(again.kern(), b"second");
            }
        }
        assert_eq!(entries(&dir), 4, "{step:?}: temporary files are left");
    }
}

#[test]
fn a_crash_at_any_step_leaves_a_whole_delta_or_none() {
    for step in STEPS {
        let dir = TempDir::new().unwrap();
        let [parent, path] =
            ["web", "delta"].map(|name| BundlePath::new(&dir.path().join(name)).unwrap());
        write(&parent, b"full", None).unwrap();
        write_delta(&path, &parent, Some(step)).unwrap_err();
        let whole = matches!(step, Step::Named(Part::Manifest) | Step::Sealed);
        assert_eq!(Checkpoint::open(&path).is_ok(), whole, "{step:?}");
        let again = write_delta(&path, &parent, None);
        assert_eq!(again.is_err(), whole, "{step:?}: {again:?}");
        let delta = Checkpoint::open(&path).unwrap();
        delta.verify_memory(&crate::checkpoint::unwatched).unwrap();
        assert_eq!(delta.kern(), b"delta");
        assert_eq!(delta.layers()[0].path(), &parent);
        assert_eq!(entries(&dir), 8, "{step:?}: temporary files are left");
    }
}

#[test]
fn what_a_crash_left_can_be_removed() {
    for step in STEPS {
        let dir = TempDir::new().unwrap();
        let path = BundlePath::new(&dir.path().join("web")).unwrap();
        write(&path, b"first", Some(step)).unwrap_err();
        assert!(remove(&path).unwrap() > Bytes(0), "{step:?}");
        assert_eq!(entries(&dir), 0, "{step:?}");
    }
}

#[test]
fn a_crash_before_seal_is_recovered_too() {
    let dir = TempDir::new().unwrap();
    let path = BundlePath::new(&dir.path().join("web")).unwrap();
    let mut writer = Writer::create(&path, Bytes::mib(1)).unwrap();
    writer.write_kern(b"first").unwrap();
    writer.finish();
    drop(writer);
    assert_eq!(entries(&dir), 3, "nothing is removed by the dead");
    write(&path, b"second", None).unwrap();
    assert_eq!(entries(&dir), 4);
}

#[test]
fn recovery_spares_files_that_the_dead_writer_did_not_write() {
    for step in STEPS {
        let dir = TempDir::new().unwrap();
        let path = BundlePath::new(&dir.path().join("web")).unwrap();
        write(&path, b"first", Some(step)).unwrap_err();
        // As long as the dead writer's.
        fs::write(dir.path().join("foreign"), b"hands").unwrap();
        // Over the dead writer's file where that has its name already.
        fs::rename(dir.path().join("foreign"), path.kern()).unwrap();
        let refusal = write(&path, b"second", None).unwrap_err();
        assert!(
            matches!(refusal, Error::Exists { .. }),
            "{step:?}: {refusal}"
        );
        assert_eq!(fs::read(path.kern()).unwrap(), b"hands", "{step:?}");
    }
}

#[test]
fn a_file_that_appears_while_sealing_is_not_replaced() {
    let dir = TempDir::new().unwrap();
    let path = BundlePath::new(&dir.path().join("web")).unwrap();
    let mut writer = Writer::create(&path, Bytes::mib(1)).unwrap();
    writer.write_kern(b"first").unwrap();
    fs::write(path.meta(), b"precious").unwrap();
    let refusal = writer
        .seal(
            description(),
            jiff::Timestamp::UNIX_EPOCH,
            &crate::checkpoint::unwatched,
        )
        .unwrap_err();
    assert!(matches!(refusal, Error::Exists { .. }), "{refusal}");
    assert_eq!(fs::read(path.meta()).unwrap(), b"precious");
    assert_eq!(entries(&dir), 1, "the writer cleaned up");
}

#[test]
fn a_crash_between_two_names_of_one_file_is_recovered() {
    for (part, whole) in [
        (Part::Ckp, false),
        (Part::Meta, false),
        (Part::Manifest, true),
    ] {
        let dir = TempDir::new().unwrap();
        let path = BundlePath::new(&dir.path().join("web")).unwrap();
        write(&path, b"first", Some(Step::Named(part))).unwrap_err();
        let temporary = dir.path().join(path.temporary_name(part));
        fs::hard_link(path.file(part), &temporary).unwrap();
        let again = write(&path, b"second", None);
        assert_eq!(again.is_err(), whole, "{part:?}: {again:?}");
        let checkpoint = Checkpoint::open(&path).unwrap();
        checkpoint
            .verify_memory(&crate::checkpoint::unwatched)
            .unwrap();
        assert_eq!(
            checkpoint.kern(),
            if whole {
                b"first".as_slice()
            } else {
                b"second"
            }
        );
        assert_eq!(entries(&dir), 4, "{part:?}");
    }
}

/// A manager that was killed left a draft; the next one removes it, or looks at it, while whoever
/// was not answered asks again.
#[test]
fn a_writer_is_not_refused_while_a_dead_ones_files_are_removed() {
    let dir = TempDir::new().unwrap();
    let path = BundlePath::new(&dir.path().join("web")).unwrap();
    let draft = dir.path().join(path.temporary_name(Part::Manifest));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sweeper = || {
            while !done.load(Ordering::Relaxed) {
                catalogue::remove_draft(&path).unwrap();
                catalogue::is_being_written(&path).unwrap();
            }
        };
        (0..2).for_each(|_| drop(scope.spawn(sweeper)));
        for _ in 0..500 {
            fs::write(&draft, "left").unwrap();
            let written = Writer::create(&path, Bytes::mib(1));
            let refused = written.err();
            if refused.is_some() {
                done.store(true, Ordering::Relaxed);
            }
            assert!(refused.is_none(), "{refused:?}");
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn writers_that_come_and_go_never_disturb_each_other() {
    let dir = TempDir::new().unwrap();
    let path = BundlePath::new(&dir.path().join("web")).unwrap();
    let temporary = dir.path().join(path.temporary_name(Part::Ckp));
    let rounds = || {
        let mut wins = 0;
        while wins < 20 {
            match Writer::create(&path, Bytes::mib(1)) {
                Ok(_writer) => {
                    wins += 1;
                    for _ in 0..20 {
                        assert!(temporary.exists(), "another writer removed it");
                        thread::yield_now();
                    }
                }
                Err(Error::Busy { .. }) => thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    };
    thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(rounds))));
    assert_eq!(entries(&dir), 0);
}
