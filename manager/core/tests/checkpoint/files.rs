//! Bundles whose files are wrong, and the use of good ones.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::Path,
};

use brood_core::{
    checkpoint::{
        BundlePath, BundleState, Checkpoint, Error, FileStamp, list, remove, sha256_file,
    },
    units::Bytes,
};
use tempfile::TempDir;

use crate::sample::{KERN, Sample, replace, seal, writer};

#[test]
fn a_symlink_is_refused_even_to_the_right_content() {
    for n in 0..4 {
        let sample = Sample::new();
        let file = &sample.files()[n];
        let elsewhere = sample.dir.path().join("elsewhere");
        fs::rename(file, &elsewhere).unwrap();
        symlink(&elsewhere, file).unwrap();
        let error = sample.refusal("symlink");
        assert!(matches!(error, Error::Symlink { .. }), "{error}");
        assert_eq!(error.file(), file);
        // One that leads nowhere is no missing file either.
        fs::remove_file(&elsewhere).unwrap();
        assert!(matches!(sample.refusal("dangling"), Error::Symlink { .. }));
    }
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    for n in 0..4 {
        let sample = Sample::new();
        let file = &sample.files()[n];
        fs::remove_file(file).unwrap();
        nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = sample.refusal("pipe");
        assert!(
            matches!(error, Error::NotRegular { .. }) && error.file() == file,
            "{error}"
        );
        fs::remove_file(file).unwrap();
        fs::create_dir(file).unwrap();
        let error = sample.refusal("folder");
        assert!(
            matches!(error, Error::NotRegular { .. }) && error.file() == file,
            "{error}"
        );
        fs::remove_dir(file).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(file).unwrap();
        let error = sample.refusal("socket");
        assert!(
            matches!(error, Error::NotRegular { .. }) && error.file() == file,
            "{error}"
        );
    }
}

#[test]
fn a_missing_file_is_named() {
    for n in 0..4 {
        let sample = Sample::new();
        let file = &sample.files()[n];
        fs::remove_file(file).unwrap();
        let error = sample.refusal("missing");
        assert!(
            matches!(error, Error::Incomplete { .. }) && error.file() == file,
            "{error}"
        );
    }
    let dir = TempDir::new().unwrap();
    for path in ["none", "no/folder"] {
        let path = BundlePath::new(&dir.path().join(path)).unwrap();
        let error = Checkpoint::open(&path).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
        assert!(error.to_string().contains(&path.to_string()), "{error}");
    }
}

#[test]
fn shorter_and_longer_files_are_refused() {
    for n in 1..4 {
        let sample = Sample::new();
        let file = &sample.files()[n];
        let content = fs::read(file).unwrap();
        let longer = [content.as_slice(), &[0]].concat();
        for other in [&content[..content.len() - 1], &[], &longer] {
            replace(file, other);
            let error = sample.refusal("length");
            assert!(
                matches!(error, Error::Size { .. }) && error.file() == file,
                "{error}"
            );
            assert_eq!(
                error.field(),
                Some(["", "files.ckp.size", "files.kern.size", "files.meta.size"][n])
            );
        }
    }
}

#[test]
fn a_huge_manifest_is_not_read() {
    let sample = Sample::new();
    let mut text = fs::read(sample.path.manifest()).unwrap();
    text.resize((4 << 20) + 1, b' ');
    replace(&sample.path.manifest(), &text);
    assert!(matches!(
        sample.refusal("4 MiB of spaces"),
        Error::TooLarge { .. }
    ));
    let file = OpenOptions::new()
        .write(true)
        .open(sample.path.manifest())
        .unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(matches!(sample.refusal("1 TiB"), Error::TooLarge { .. }));
    file.set_len(4096).unwrap();
    file.set_len(1 << 20).unwrap();
    sample.refusal("zeros behind the text");
}

#[test]
fn other_memory_is_found_by_its_digest() {
    let sample = Sample::new();
    let mut memory = fs::read(sample.path.ckp()).unwrap();
    memory[60_000] ^= 1;
    replace(&sample.path.ckp(), &memory);
    // Opening does not read the memory.
    let checkpoint = Checkpoint::open(&sample.path).unwrap();
    let error = checkpoint
        .verify_memory(&brood_core::checkpoint::unwatched)
        .unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error}");
    assert_eq!(
        (error.file(), error.field()),
        (sample.path.ckp().as_path(), Some("files.ckp.sha256"))
    );
}

#[test]
fn memory_that_changes_after_opening_is_noticed() {
    let sample = Sample::new();
    let checkpoint = sample.check().unwrap();
    fs::set_permissions(sample.path.ckp(), fs::Permissions::from_mode(0o600)).unwrap();
    let file = OpenOptions::new()
        .write(true)
        .open(sample.path.ckp())
        .unwrap();
    file.set_len(4096).unwrap();
    drop(file);
    let error = checkpoint
        .verify_memory(&brood_core::checkpoint::unwatched)
        .unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    assert_eq!(error.file(), sample.path.ckp());
    assert_ne!(
        FileStamp::of(checkpoint.memory_file()).unwrap(),
        checkpoint.stamp()
    );
}

#[test]
fn what_was_opened_stays_what_it_is() {
    let sample = Sample::new();
    let checkpoint = sample.check().unwrap();
    let digest =
        || sha256_file(checkpoint.memory_file(), &brood_core::checkpoint::unwatched).unwrap();
    replace(&sample.path.ckp(), b"another checkpoint's memory");
    assert_eq!(digest(), sample.manifest.files.ckp.sha256);
    remove(&sample.path).unwrap();
    assert_eq!(digest(), sample.manifest.files.ckp.sha256);
    assert!(
        checkpoint.memory_file().write_at(b"x", 0).is_err(),
        "opened for reading only"
    );
    assert_eq!(checkpoint.kern(), KERN);
}

#[test]
fn one_bundle_has_many_names() {
    let named = |text: &str| text.parse::<BundlePath>();
    let path = named("DIR/web").unwrap();
    for text in [
        "DIR/web.ckp",
        "DIR/web.ckp.brood",
        "DIR/web.ckp.kern",
        "DIR/web.ckp.meta",
    ] {
        assert_eq!(named(text).unwrap(), path);
    }
    assert_eq!(path.to_string(), "DIR/web");
    assert_eq!((path.name(), path.dir()), ("web", Path::new("DIR")));
    assert_eq!(path.ckp(), Path::new("DIR/web.ckp"));
    assert_eq!(path.kern(), Path::new("DIR/web.ckp.kern"));
    assert_eq!(path.meta(), Path::new("DIR/web.ckp.meta"));
    assert_eq!(path.manifest(), Path::new("DIR/web.ckp.brood"));
    assert_eq!(named("web").unwrap().dir(), Path::new("."));
    assert_eq!(named("a.b/c.d").unwrap().name(), "c.d");
    let long = "x".repeat(201);
    for bad in [
        "",
        "/",
        ".",
        "..",
        "DIR/",
        "DIR/..",
        ".ckp",
        "DIR/.web",
        "web.ckp.ckp",
        "a\nb",
        &long,
    ] {
        let error = named(bad).unwrap_err();
        assert!(
            matches!(error, Error::Name { .. }) && error.hint().is_some(),
            "{bad:?}"
        );
    }
    let dir = TempDir::new().unwrap();
    symlink(dir.path(), dir.path().join("link")).unwrap();
    let linked = BundlePath::new(&dir.path().join("link/web")).unwrap();
    assert_eq!(
        linked.absolute().unwrap().dir(),
        dir.path().canonicalize().unwrap()
    );
    assert!(named("no/such/web").unwrap().absolute().is_err());
}

#[test]
fn a_folder_is_listed_with_what_is_broken_in_it() {
    let sample = Sample::new();
    let dir = sample.dir.path();
    let at = |name: &str| BundlePath::new(&dir.join(name)).unwrap();
    for name in ["broken", "half", "zeta"] {
        seal(writer(&at(name)).unwrap()).unwrap();
    }
    replace(&at("broken").kern(), b"x");
    fs::remove_file(at("half").manifest()).unwrap();
    let _writing = writer(&at("growing")).unwrap();
    fs::write(dir.join("notes.txt"), "not a bundle").unwrap();
    fs::write(dir.join(".hidden.ckp"), "not a bundle").unwrap();

    let listed = list(dir).unwrap();
    let states: Vec<_> = listed
        .iter()
        .map(|one| {
            let state = match &one.state {
                BundleState::Whole(manifest) => manifest.guest.clone(),
                BundleState::Incomplete => "incomplete".to_owned(),
                BundleState::Broken(error) => error.field().unwrap().to_owned(),
            };
            (one.path.name(), state)
        })
        .collect();
    let expected = [
        ("broken", "files.kern.size"),
        ("growing", "incomplete"),
        ("half", "incomplete"),
        ("web", "web-1"),
        ("zeta", "web-1"),
    ];
    assert_eq!(
        states,
        expected.map(|(name, state)| (name, state.to_owned()))
    );
    assert!(listed.iter().all(|one| one.size > Bytes::kib(64)));
    assert!(list(&dir.join("none")).is_err());
}

#[test]
fn a_broken_bundle_is_removed_once() {
    let sample = Sample::new();
    replace(&sample.path.meta(), b"broken");
    assert!(remove(&sample.path).unwrap() > Bytes(0));
    assert_eq!(sample.dir.path().read_dir().unwrap().count(), 0);
    assert!(matches!(remove(&sample.path), Err(Error::NotFound { .. })));
}

#[test]
fn a_bundle_that_is_being_written_is_not_removed() {
    let dir = TempDir::new().unwrap();
    let path = BundlePath::new(&dir.path().join("web")).unwrap();
    let writing = writer(&path).unwrap();
    let error = remove(&path).unwrap_err();
    assert!(
        matches!(error, Error::Busy { .. }) && error.hint().is_some(),
        "{error}"
    );
    seal(writing).unwrap();
    Checkpoint::open(&path).unwrap();
}

#[test]
fn sealed_files_are_read_only() {
    let sample = Sample::new();
    for file in sample.files() {
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
            0o400
        );
        assert!(File::open(&file).is_ok());
    }
}
