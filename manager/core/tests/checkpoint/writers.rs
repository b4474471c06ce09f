//! Writing of a bundle: what is refused, which of two writers wins, what a dead writer leaves.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::{Barrier, Mutex},
    thread,
};

use brood_core::{
    checkpoint::{BundlePath, Checkpoint, Error, Progress, Writer},
    units::Bytes,
};
use tempfile::TempDir;

use crate::sample::{Sample, description, seal, writer};

fn bundle(dir: &Path) -> BundlePath {
    BundlePath::new(&dir.join("new/web")).unwrap()
}

fn is_empty(dir: &Path) -> bool {
    dir.read_dir().unwrap().next().is_none()
}

#[test]
fn a_writer_that_gives_up_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let path = bundle(dir.path());
    drop(writer(&path).unwrap());
    assert!(is_empty(path.dir()));
    // Nor does one whose description is refused.
    let mut wrong = description();
    wrong.vcpus = 0;
    let error = writer(&path).unwrap().seal(
        wrong,
        jiff::Timestamp::UNIX_EPOCH,
        &brood_core::checkpoint::unwatched,
    );
    assert_eq!(error.unwrap_err().field(), Some("vcpus"));
    assert!(is_empty(path.dir()));
    // Nor one that was told nothing of the CPUs.
    let silent = Writer::create(&path, description().memory.size).unwrap();
    assert_eq!(seal(silent).unwrap_err().field(), Some("files.kern.size"));
    assert!(is_empty(path.dir()));
}

#[test]
fn what_no_guest_can_have_is_refused() {
    let dir = TempDir::new().unwrap();
    for size in [0, 1, 4097, (4 << 40) + 4096, u64::MAX] {
        let error = Writer::create(&bundle(dir.path()), Bytes(size)).unwrap_err();
        assert_eq!(error.field(), Some("memory.size"), "{error}");
    }
    let mut writer = writer(&bundle(dir.path())).unwrap();
    let error = writer.write_kern(&vec![0; (64 << 20) + 1]).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[test]
fn what_cannot_fit_on_the_disk_is_refused_before_anything_is_made() {
    let dir = TempDir::new().unwrap();
    let facts = nix::sys::statvfs::statvfs(dir.path()).unwrap();
    let size = Bytes::gib(4096);
    if facts.blocks_available() * facts.fragment_size() > size.0 {
        return;
    }
    let error = Writer::create(&bundle(dir.path()), size).unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    assert!(
        error.to_string().contains("it needs up to 4.0 TiB"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("larger file system"));
    assert!(is_empty(dir.path()));
}

#[test]
fn a_bundle_is_never_written_over() {
    let sample = Sample::new();
    let error = writer(&sample.path).unwrap_err();
    assert!(
        matches!(error, Error::Exists { .. }) && error.hint().is_some(),
        "{error}"
    );
    sample.check().unwrap();
    // Nor is any file that only has the name of one.
    let dir = TempDir::new().unwrap();
    for file in ["web.ckp", "web.ckp.kern", "web.ckp.meta", "web.ckp.brood"] {
        let file = dir.path().join(file);
        std::fs::write(&file, b"precious").unwrap();
        let error = writer(&BundlePath::new(&dir.path().join("web")).unwrap()).unwrap_err();
        assert!(
            matches!(error, Error::Exists { .. }) && error.file() == file,
            "{error}"
        );
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        std::fs::remove_file(&file).unwrap();
    }
    assert!(is_empty(dir.path()));
}

#[test]
fn of_many_writers_one_wins() {
    // Most of a round is the patience of those who lose.
    for _ in 0..4 {
        thread::scope(|rounds| {
            for _ in 0..5 {
                rounds.spawn(one_of_eight_wins);
            }
        });
    }
}

fn one_of_eight_wins() {
    let dir = TempDir::new().unwrap();
    let path = bundle(dir.path());
    let barrier = Barrier::new(8);
    let results: Vec<_> = thread::scope(|scope| {
        let start = || {
            barrier.wait();
            let writer = writer(&path);
            barrier.wait();
            writer.and_then(seal)
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(
        results.iter().filter(|result| result.is_ok()).count(),
        1,
        "{results:?}"
    );
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(matches!(error, Error::Busy { .. }), "{error}");
    }
    Checkpoint::open(&path)
        .unwrap()
        .verify_memory(&brood_core::checkpoint::unwatched)
        .unwrap();
    assert_eq!(path.dir().read_dir().unwrap().count(), 4);
}

/// Not a test by itself: the writer that [`a_killed_writer_is_told_from_a_living_one`] kills.
#[test]
#[ignore = "run by a_killed_writer_is_told_from_a_living_one, in a process of its own"]
fn write_until_killed() {
    let Some(dir) = std::env::var_os("BROOD_TEST_DIR") else {
        return;
    };
    let _writer = writer(&bundle(Path::new(&dir))).unwrap();
    println!("\nwriting");
    std::io::stdout().flush().unwrap();
    // Ends with the pipe, if nobody kills it before.
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn a_killed_writer_is_told_from_a_living_one() {
    let dir = TempDir::new().unwrap();
    let path = bundle(dir.path());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "writers::write_until_killed",
            "--ignored",
            "--nocapture",
        ])
        .env("BROOD_TEST_DIR", dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap() == "writing"));

    let error = writer(&path).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(
        Checkpoint::open(&path).unwrap_err(),
        Error::Incomplete { .. }
    ));
    seal(writer(&path).unwrap()).unwrap();
    assert_eq!(path.dir().read_dir().unwrap().count(), 4);
}

#[test]
fn progress_reaches_the_end() {
    let dir = TempDir::new().unwrap();
    let reports = Mutex::new(Vec::<Progress>::new());
    let report = |progress| {
        reports.lock().unwrap().push(progress);
        std::ops::ControlFlow::Continue(())
    };
    let size = Bytes::mib(32);
    let mut what = description();
    what.memory.segments.truncate(1);
    what.memory.segments[0].size = size;
    what.memory.size = size;
    let mut writer = Writer::create(&bundle(dir.path()), size).unwrap();
    writer.write_kern(b"state").unwrap();
    let manifest = writer
        .seal(what, jiff::Timestamp::UNIX_EPOCH, &report)
        .unwrap();
    let files = &manifest.files;
    let total = files.ckp.size + files.kern.size + files.meta.size;
    let mut seen = reports.into_inner().unwrap();
    assert!(seen.len() >= 6, "{seen:?}");
    assert!(seen.iter().all(|report| report.total == total));
    seen.sort_by_key(|report| report.done);
    assert_eq!(seen.last().unwrap().done, total);
}
