//! Copies of files and folders into guests and out of them.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use brood_tests::{Home, until, whole};
use nix::sys::signal::Signal;

use super::{MIB, bytes, digest, sh};

#[test]
fn files_and_folders_are_copied_both_ways() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    let top = home.path().join("tree");
    fs::create_dir_all(top.join("deep/er")).unwrap();
    fs::write(top.join("deep/er/ü file"), bytes(100_000)).unwrap();
    fs::write(top.join("run.sh"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(top.join("run.sh"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::write(top.join("empty"), "").unwrap();
    symlink("deep/er", top.join("link")).unwrap();
    let tree = top.to_str().unwrap();
    // To a name that is new, into a folder that is there.
    let copied = home.json(&["cp", tree, "a-1:/root/new"]);
    assert_eq!(whole(&copied["files"]), 3);
    let _ = home.brood(&["cp", tree, "a-1:/root/"]).ok();
    let said = sh(
        &home,
        "a-1",
        "cd /root/tree && stat -c %a run.sh && ./run.sh && readlink link && cat 'deep/er/ü file' | wc -c && cd ../new && find . | wc -l",
    );
    assert_eq!(said.stdout, "751\nran\ndeep/er\n100000\n7\n", "{said:?}");
    let back = home.path().join("back");
    let _ = home
        .brood(&["cp", "a-1:/root/tree", back.to_str().unwrap()])
        .ok();
    assert_eq!(
        fs::read(back.join("deep/er/ü file")).unwrap(),
        bytes(100_000)
    );
    assert_eq!(
        fs::read_link(back.join("link")).unwrap(),
        Path::new("deep/er")
    );
    let mode = fs::metadata(back.join("run.sh"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o751);
    // A second time into the same place, and a file in place of a file.
    let _ = home.brood(&["cp", "a-1:/root/tree/.", back.to_str().unwrap()]);
    let _ = home
        .brood(&[
            "cp",
            "a-1:/root/tree/run.sh",
            back.join("empty").to_str().unwrap(),
        ])
        .ok();
    assert_eq!(
        fs::read_to_string(back.join("empty")).unwrap(),
        "#!/bin/sh\necho ran\n"
    );
    // Nothing half is left.
    let failed = home.brood(&["cp", "a-1:/proc/1/mem", back.join("mem").to_str().unwrap()]);
    assert_ne!(failed.code(), Some(0));
    let names = fs::read_dir(&back).unwrap().flatten();
    let names: Vec<_> = names
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert!(
        names
            .iter()
            .all(|name| !name.contains("brood") && name != "mem"),
        "{names:?}"
    );
    let missing = home.brood(&["cp", "a-1:/no/such/file", "."]);
    assert!(missing.stderr.contains("No such file"), "{missing:?}");
}

/// A guest with room for a hundred megabytes in its memory.
#[test]
fn a_hundred_megabytes_are_copied_both_ways() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    let roomy = home.named("roomy");
    let images = Path::new(&linux.path).ancestors().nth(2).unwrap();
    let mut make = home.command(&[
        "checkpoint",
        "make",
        "--memory",
        "400M",
        "linux",
        &roomy.path,
    ]);
    make.env("BROOD_IMAGE_DIR", images.join("state/images"));
    let made = make.output().unwrap();
    assert!(made.status.success(), "{made:?}");
    home.restore(&roomy, 1, "a");
    let sent = bytes(100 * MIB);
    let file = home.path().join("hundred");
    fs::write(&file, &sent).unwrap();
    let _ = home
        .brood(&["cp", file.to_str().unwrap(), "a-1:/root/hundred"])
        .ok();
    let said = sh(&home, "a-1", "sha256sum /root/hundred").stdout;
    assert!(said.starts_with(&digest(&sent)), "{said}");
    let back = home.path().join("back");
    let _ = home
        .brood(&["cp", "a-1:/root/hundred", back.to_str().unwrap()])
        .ok();
    assert!(fs::read(&back).unwrap() == sent);
    // Killed half-way: the name is not there.
    let half = home.path().join("half");
    let copying = home.start(&["cp", "a-1:/root/hundred", half.to_str().unwrap()]);
    until("a part of it", || {
        let entries = fs::read_dir(home.path()).unwrap().flatten();
        let mut sizes = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.starts_with(".brood-")
                .then_some(entry.metadata().ok()?.len())
        });
        sizes.any(|size| size > 100_000).then_some(())
    });
    copying.signal(Signal::SIGKILL);
    let _ = copying.wait();
    assert!(!half.exists());
}
