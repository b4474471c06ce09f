//! Backups and other tools that touch a checkpoint's files: guests go on as long as the content is
//! what was sealed, and one of them reads it for all.

use std::{
    fs::{self, File, FileTimes, Permissions},
    io,
    os::unix::fs::{FileExt, PermissionsExt, chown},
    thread,
    time::{Duration, SystemTime},
};

use brood_tests::{Demo, HEAP, Home, text, until};

/// Bytes that guests' processes and their nurseries have read, all together. A spare process that
/// became no guest ends some time after its restore, and has read nothing.
fn read_by(home: &Home) -> u64 {
    let processes = home.guests().into_iter().chain(home.nurseries());
    let io = processes.filter_map(|process| {
        match fs::read_to_string(format!("/proc/{}/io", process.pid)) {
            // It ended before the file was opened, or while it was read.
            Err(e) if gone(&e) => None,
            io => Some(io.expect("what it read")),
        }
    });
    io.map(|io| {
        let read = io.lines().find_map(|line| line.strip_prefix("rchar: "));
        read.expect("a line").parse::<u64>().expect("a number")
    })
    .sum()
}

/// Whether a process is gone whose file could not be read.
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[test]
fn guests_outlive_every_change_of_attributes_and_read_the_file_once_for_all() {
    const GUESTS: usize = 12;
    const MEMORY: u64 = 64 << 20;
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "64M");
    home.restore(&demo, GUESTS, "g");
    let ckp = demo.ckp();
    let times = |secs| {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let times = FileTimes::new().set_modified(time).set_accessed(time);
        File::open(&ckp).unwrap().set_times(times).unwrap();
    };
    let changes: [(&str, &dyn Fn()); 5] = [
        ("link", &|| {
            fs::hard_link(&ckp, home.path().join("backup")).unwrap();
        }),
        ("chmod", &|| {
            fs::set_permissions(&ckp, Permissions::from_mode(0o440)).unwrap();
        }),
        ("chown", &|| {
            chown(&ckp, None, Some(nix::unistd::getgid().as_raw())).unwrap();
        }),
        ("touch", &|| times(1_580_608_922)),
        ("unlink", &|| {
            fs::remove_file(home.path().join("backup")).unwrap();
        }),
    ];
    for (what, change) in changes {
        change();
        let before = read_by(&home);
        for n in 1..=GUESTS {
            let _ = home.ask(&format!("g-{n}"), "ping");
        }
        let read = read_by(&home) - before;
        assert!(read >= MEMORY, "{what}: nobody looked at the content");
        assert!(
            read < 2 * MEMORY,
            "{what}: {read} bytes were read, more than once the file"
        );
    }
    // All of it is known by now.
    let before = read_by(&home);
    let _ = home.ask("g-1", "ping");
    assert!(read_by(&home) - before < MEMORY);
    let _ = home.brood(&["checkpoint", "verify", &demo.path]).ok();
    home.restore(&demo, 1, "later");
}

/// Changes a word that no guest has touched, with the size and, as far as that goes, the times as
/// they were.
fn write_to(demo: &Demo) {
    let ckp = demo.ckp();
    let before = fs::metadata(&ckp).unwrap();
    fs::set_permissions(&ckp, Permissions::from_mode(0o600)).unwrap();
    let file = File::options().write(true).open(&ckp).unwrap();
    file.write_all_at(&[0x45], HEAP + 0x10_0000).unwrap();
    let times = FileTimes::new().set_modified(before.modified().unwrap());
    file.set_times(times).unwrap();
}

#[test]
fn guests_end_when_the_content_is_another_though_the_time_says_that_it_is_not() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "16M");
    home.restore(&demo, 3, "g");
    write_to(&demo);
    for n in 1..=3 {
        let _ = home
            .brood(&["ask", &format!("g-{n}"), "ping"])
            .exits(1)
            .says(&["not what was sealed"]);
    }
    // Each tells it before it ends.
    until("their ends", || {
        (home.names("dead").len() == 3).then_some(())
    });
    let _ = home
        .brood(&["restore", &demo.path, "-n", "1"])
        .exits(1)
        .says(&["sha256"]);
}

#[test]
fn a_file_that_somebody_may_write_to_is_refused_by_whoever_reads_it() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    fs::set_permissions(demo.ckp(), Permissions::from_mode(0o600)).unwrap();
    let writer = File::options().write(true).open(demo.ckp()).unwrap();
    let own = std::process::id().to_string();
    for command in [
        &["restore", &demo.path, "-n", "1"][..],
        &["pool", "create", "p", &demo.path, "--hot", "1"],
        &["checkpoint", "verify", &demo.path],
    ] {
        let _ = home
            .brood(command)
            .exits(1)
            .says(&["open for writing", &own]);
    }
    drop(writer);
    let _ = home.brood(&["checkpoint", "verify", &demo.path]).ok();
    home.restore(&demo, 1, "g");
}

#[test]
fn hot_guests_of_a_pool_wait_through_a_backup() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "64M");
    let _ = home
        .brood(&["pool", "create", "p", &demo.path, "--hot", "3"])
        .ok();
    let names = || -> Vec<String> {
        let shown = home.json(&["pool", "show", "p"]);
        let hot = shown["hot_guests"].as_array().expect("a list").iter();
        hot.map(|name| text(name).to_owned()).collect()
    };
    let hot = names();
    assert_eq!(hot.len(), 3);
    fs::hard_link(demo.ckp(), home.path().join("backup")).unwrap();
    for _ in 0..3 {
        let claim = home.json(&["pool", "claim", "p"]);
        assert_eq!(claim["tier"], "hot");
        assert!(hot.contains(&text(&claim["guest"]).to_owned()), "{claim}");
    }
    until("nothing to be left of it", || {
        let _ = home.brood(&["pool", "remove", "p", "--force"]).ok();
        Some(())
    });
}

#[test]
fn nurseries_of_one_checkpoint_share_one_look_at_it() {
    const NURSERIES: usize = 3;
    const MEMORY: u64 = 64 << 20;
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "64M");
    for n in 0..NURSERIES {
        home.restore(&demo, 3, &format!("n{n}"));
    }
    assert_eq!(home.nurseries().len(), NURSERIES);
    let ask_all = || {
        let before = read_by(&home);
        thread::scope(|scope| {
            // The first of each nursery at once: they wait for one of them.
            for n in 0..NURSERIES {
                let home = &home;
                scope.spawn(move || home.ask(&format!("n{n}-1"), "ping"));
            }
        });
        for n in 0..NURSERIES {
            for guest in 2..=3 {
                let _ = home.ask(&format!("n{n}-{guest}"), "ping");
            }
        }
        read_by(&home) - before
    };
    fs::hard_link(demo.ckp(), home.path().join("backup")).unwrap();
    let read = ask_all();
    assert!(read >= MEMORY, "nobody looked at the content");
    assert!(read < 2 * MEMORY, "{read} bytes were read");
    // A nursery that comes later knows it, too.
    fs::set_permissions(demo.ckp(), Permissions::from_mode(0o440)).unwrap();
    let read = ask_all();
    assert!((MEMORY..2 * MEMORY).contains(&read), "{read} bytes");
    // When the manager has read the file, guests need not.
    fs::remove_file(home.path().join("backup")).unwrap();
    until("the change to be an old one", || {
        use std::os::unix::fs::MetadataExt;
        let changed = fs::metadata(demo.ckp()).ok()?.ctime();
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .ok()?;
        (now.as_secs() > changed.cast_unsigned() + 3).then_some(())
    });
    home.restore(&demo, 1, "later");
    assert!(ask_all() < MEMORY);
    home.destroy_all();
}
