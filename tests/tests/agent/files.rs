//! Files in the guest by its agent: whole or not at all, with digests; folders; changes.

use std::{
    fs,
    io::{self, Read},
    net::Shutdown,
    os::unix::fs::{PermissionsExt, symlink},
    thread,
};

use crate::refused;
use brood_core::agent::{
    AgentError,
    protocol::{Change, ChangeKind, FailureKind, FileKind, OsBytes, ReadFile, WriteFile},
};
use brood_tests::{
    PATIENCE,
    agent::{GuestAgent, over},
    until,
};
use sha2::{Digest, Sha256};

const SIZE: usize = 100_000_000;

fn whole(path: impl Into<OsBytes>) -> ReadFile {
    ReadFile {
        path: path.into(),
        offset: 0,
        length: None,
        digest: true,
    }
}

fn new(path: impl Into<OsBytes>) -> WriteFile {
    WriteFile {
        path: path.into(),
        mode: 0o640,
        user: None,
        parents: false,
        sync: false,
        digest: true,
    }
}

/// Bytes with and without zeros, in runs of all lengths.
fn content(size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size);
    let mut run = 0;
    while bytes.len() < size {
        run = run % 700 + 1;
        bytes.resize(size.min(bytes.len() + run), (run % 256) as u8);
        bytes.resize(size.min(bytes.len() + run / 3), 0);
    }
    bytes
}

#[test]
fn a_hundred_megabytes_both_ways() {
    let guest = GuestAgent::start();
    let agent = guest.session();
    let bytes = content(SIZE);
    let digest: [u8; 32] = Sha256::digest(&bytes).into();
    let path = guest.path("large");

    let sent = agent
        .write_file(new(path.as_path()), &mut bytes.as_slice())
        .unwrap();
    assert_eq!((sent.bytes, sent.sha256), (SIZE as u64, Some(digest)));
    assert!(fs::read(&path).unwrap() == bytes);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o640
    );

    let mut back = Vec::new();
    let received = agent.read_file(whole(path.as_path()), &mut back).unwrap();
    assert_eq!(received, sent);
    assert!(back == bytes);

    let mut part = Vec::new();
    let asked = ReadFile {
        offset: 1_000_000,
        length: Some(70_000),
        ..whole(path.as_path())
    };
    agent.read_file(asked, &mut part).unwrap();
    assert!(part == bytes[1_000_000..1_070_000]);
    // No more than is there.
    let asked = ReadFile {
        offset: SIZE as u64 - 3,
        length: Some(10),
        ..whole(path.as_path())
    };
    assert_eq!(agent.read_file(asked, &mut io::sink()).unwrap().bytes, 3);
}

#[test]
fn a_file_is_written_as_a_whole_or_stays_as_it_was() {
    struct Breaks(usize);
    impl Read for Breaks {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::Other)?;
            Ok(bytes.len())
        }
    }

    let guest = GuestAgent::start();
    let agent = guest.session();
    let folder = guest.path("folder");
    fs::create_dir(&folder).unwrap();
    let names = || {
        let names = fs::read_dir(&folder).unwrap();
        names
            .map(|entry| entry.unwrap().file_name())
            .collect::<Vec<_>>()
    };
    let path = folder.join("file");
    fs::write(&path, "before").unwrap();

    let broken = agent.write_file(new(path.as_path()), &mut Breaks(20));
    assert!(matches!(broken, Err(AgentError::Local { .. })));
    until("the draft to be removed", || {
        (names() == ["file"]).then_some(())
    });
    assert_eq!(fs::read_to_string(&path).unwrap(), "before");

    // The same when the channel is cut.
    drop(agent);
    let stream = guest.stream();
    let agent = over(&stream);
    thread::scope(|scope| {
        let writer = scope.spawn(|| agent.write_file(new(path.as_path()), &mut io::repeat(7)));
        until("the draft to be there", || {
            (names().len() == 2).then_some(())
        });
        stream.shutdown(Shutdown::Both).unwrap();
        let lost = writer.join().unwrap();
        assert!(matches!(lost, Err(AgentError::Lost { .. })), "{lost:?}");
    });
    until("the draft to be removed", || {
        (names() == ["file"]).then_some(())
    });
    assert_eq!(fs::read_to_string(&path).unwrap(), "before");

    // A link is replaced; what it leads to stays.
    let agent = guest.session();
    let link = folder.join("link");
    symlink("file", &link).unwrap();
    agent
        .write_file(new(link.as_path()), &mut &b"after"[..])
        .unwrap();
    assert_eq!(fs::read_to_string(&link).unwrap(), "after");
    assert_eq!(fs::read_to_string(&path).unwrap(), "before");

    let inside = folder.join("a/b/c");
    assert_eq!(
        refused(agent.write_file(new(inside.as_path()), &mut &b"x"[..])),
        FailureKind::NotFound
    );
    let asked = WriteFile {
        parents: true,
        sync: true,
        mode: 0o4755,
        ..new(inside.as_path())
    };
    agent.write_file(asked, &mut &b""[..]).unwrap();
    assert_eq!(
        fs::metadata(&inside).unwrap().permissions().mode() & 0o7777,
        0o4755
    );
    let large = &mut io::repeat(1);
    assert_eq!(
        refused(agent.write_file(new(folder.as_path()), large)),
        FailureKind::Invalid
    );
}

#[test]
fn folders_are_made_listed_moved_and_removed() {
    let guest = GuestAgent::start();
    let agent = guest.session();
    let folder = guest.path("folder");
    let at = |name: &str| OsBytes::from(folder.join(name).as_path());
    agent.make_dir(at("a/b"), 0o750, true).unwrap();
    agent.make_dir(at("a/b"), 0o750, true).unwrap();
    assert_eq!(
        refused(agent.make_dir(at("a/b"), 0o750, false)),
        FailureKind::Exists
    );
    assert_eq!(
        refused(agent.make_dir(at("x/y"), 0o750, false)),
        FailureKind::NotFound
    );

    fs::write(folder.join("a/file"), "12345").unwrap();
    symlink("file", folder.join("a/link")).unwrap();
    let file = agent.stat(at("a/file"), false).unwrap();
    assert_eq!(
        (file.kind, file.size, file.target),
        (FileKind::File, 5, None)
    );
    let link = agent.stat(at("a/link"), false).unwrap();
    assert_eq!(
        (link.kind, link.target),
        (FileKind::Link, Some("file".into()))
    );
    assert_eq!(agent.stat(at("a/link"), true).unwrap().kind, FileKind::File);
    assert_eq!(agent.stat("/dev/null", true).unwrap().kind, FileKind::Other);
    assert_eq!(agent.stat(at("a/b"), false).unwrap().mode & 0o700, 0o700);
    assert_eq!(refused(agent.stat(at("no"), false)), FailureKind::NotFound);
    assert_eq!(
        refused(agent.stat(OsBytes::from("a\0b"), false)),
        FailureKind::Invalid
    );
    assert_eq!(
        refused(agent.read_file(whole(at("a")), &mut io::sink())),
        FailureKind::Invalid
    );
    assert_eq!(
        refused(agent.read_file(whole("/dev/zero"), &mut io::sink())),
        FailureKind::Invalid
    );

    let listed = agent.list(at("a"), 100).unwrap();
    let names: Vec<_> = listed.iter().map(|entry| entry.name.clone()).collect();
    assert_eq!(names, ["b", "file", "link"].map(OsBytes::from));

    // A name is bytes, and need be no text.
    let odd = OsBytes::from(vec![b'o', 0xff, b'\n']);
    agent
        .rename(at("a/file"), {
            let mut path = at("a/").as_bytes().to_vec();
            path.extend_from_slice(odd.as_bytes());
            OsBytes::from(path)
        })
        .unwrap();
    assert_eq!(agent.list(at("a"), 100).unwrap()[2].name, odd);

    assert_eq!(refused(agent.remove(at("a"), false)), FailureKind::Invalid);
    agent.remove(at("a/link"), true).unwrap();
    agent.remove(at("a"), true).unwrap();
    assert_eq!(agent.list(at(""), 100).unwrap(), []);
    assert_eq!(refused(agent.remove(at("a"), true)), FailureKind::NotFound);
}

#[test]
fn a_large_folder_is_listed_in_parts() {
    let guest = GuestAgent::start();
    let agent = guest.session();
    let folder = guest.path("folder");
    fs::create_dir(&folder).unwrap();
    let name = |number: usize| format!("{number:0>200}");
    for number in 0..3000 {
        fs::write(folder.join(name(number)), "").unwrap();
    }
    let listed = agent.list(folder.as_path(), usize::MAX).unwrap();
    assert_eq!(listed.len(), 3000);
    for (number, entry) in listed.iter().enumerate() {
        assert_eq!(entry.name, name(number).into());
    }
    assert_eq!(agent.list(folder.as_path(), 7).unwrap(), listed[..7]);
}

#[test]
fn changes_are_reported_until_nobody_watches() {
    let guest = GuestAgent::start();
    let agent = guest.session();
    let folder = guest.path("folder");
    fs::create_dir_all(folder.join("old")).unwrap();
    let watch = agent.watch(folder.as_path(), true).unwrap();
    let mut seen: Vec<Change> = Vec::new();
    let mut expect = |name: &str, kind, directory| {
        let path = OsBytes::from(folder.join(name).as_path());
        let change = Change {
            path,
            kind,
            directory,
        };
        while !seen.contains(&change) {
            let (changes, lost) = watch.next(Some(PATIENCE)).unwrap();
            assert!(!lost);
            seen.extend(changes);
        }
    };
    fs::write(folder.join("file"), "text").unwrap();
    expect("file", ChangeKind::Created, false);
    expect("file", ChangeKind::Written, false);
    fs::rename(folder.join("file"), folder.join("old/other")).unwrap();
    expect("file", ChangeKind::MovedFrom, false);
    expect("old/other", ChangeKind::MovedTo, false);
    fs::create_dir_all(folder.join("new/inner")).unwrap();
    expect("new", ChangeKind::Created, true);
    expect("new/inner", ChangeKind::Created, true);
    // A folder that was made after the watch began is watched, too.
    fs::write(folder.join("new/inner/file"), "text").unwrap();
    expect("new/inner/file", ChangeKind::Written, false);
    fs::remove_file(folder.join("new/inner/file")).unwrap();
    expect("new/inner/file", ChangeKind::Removed, false);
    fs::set_permissions(folder.join("old/other"), fs::Permissions::from_mode(0o600)).unwrap();
    expect("old/other", ChangeKind::Attributes, false);

    drop(watch);
    assert_eq!(
        refused(agent.watch("/no/such/folder", false)),
        FailureKind::NotFound
    );
    // The agent has no descriptor of it any more.
    let fds = format!("/proc/{}/fd", guest.pid());
    until("the watch to end", || {
        let mut fds = fs::read_dir(&fds).unwrap();
        let watches = fds.any(|fd| {
            let target = fs::read_link(fd.unwrap().path());
            target.is_ok_and(|target| target.to_string_lossy().contains("inotify"))
        });
        (!watches).then_some(())
    });
}
