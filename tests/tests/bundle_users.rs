//! Users of a bundle: every removal asks for them in one place, a delta that was moved finds its
//! parent, and a released bundle is gone from the disk.

use std::{fs, path::Path, process::Command};

use brood_tests::{
    Daemon, Demo, EngineKind, Home, Running, Then, pool_home, skip, text, traced, until,
};
use nix::sys::signal::Signal;

/// A delta of `demo` at this path, suspended by brood.
#[track_caller]
fn delta(home: &Home, demo: &Demo, path: &Path) -> String {
    home.restore(demo, 1, "d");
    let path = path.to_str().unwrap().to_owned();
    let _ = home.brood(&["suspend", "d-1", &path, "--delta"]).ok();
    path
}

/// Moves the files of a bundle.
fn moved(from: &str, to: &Path) -> String {
    let name = Path::new(from).file_name().unwrap();
    for end in ["ckp", "ckp.kern", "ckp.meta", "ckp.brood"] {
        let file = format!("{}.{end}", name.to_str().unwrap());
        fs::rename(format!("{from}.{end}"), to.join(file)).unwrap();
    }
    to.join(name).to_str().unwrap().to_owned()
}

/// Files in a folder.
fn files(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

/// Whether a process says in this folder that it is at a bundle.
fn says_so(in_use: &Path) -> bool {
    let files = fs::read_dir(in_use).into_iter().flatten().flatten();
    files
        .map(|file| file.path())
        .any(|file| file.extension().is_none())
}

fn folder(home: &Home, name: &str) -> std::path::PathBuf {
    let folder = home.path().join(name);
    fs::create_dir(&folder).unwrap();
    folder
}

#[test]
fn a_pool_without_entries_needs_its_checkpoint() {
    let Some((home, demo)) = pool_home(EngineKind::Kvm, 0, &[]) else {
        return;
    };
    let remove =
        |force: &[&str]| home.brood(&[&["checkpoint", "remove", &demo.path], force].concat());
    let _ = remove(&[]).exits(1).says(&["pool p", "restores from it"]);
    assert!(demo.ckp().exists());
    let _ = home.brood(&["pool", "remove", "p"]).ok();
    let _ = remove(&[]).ok();
}

#[test]
fn deltas_in_every_folder_are_asked_about_and_named() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let remove = |bundle: &str| home.brood(&["checkpoint", "remove", bundle]);
    let places = ["one", "two", "three"].map(|name| {
        let path = folder(&home, name).join("warm");
        delta(&home, &demo, &path)
    });
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    let _ = remove(&demo.path).exits(1).says(&places);
    // One over a delta, in a fourth folder: the one between is needed too.
    let between = Demo {
        path: places[0].to_owned(),
    };
    let over = delta(&home, &between, &folder(&home, "four").join("over"));
    let _ = remove(places[0]).exits(1).says(&[&over]);
    let _ = remove(&over).ok();
    // What is not there any more needs nothing.
    fs::remove_dir_all(home.path().join("three")).unwrap();
    let _ = remove(places[0]).ok();
    let ran = remove(&demo.path).exits(1).says(&[places[1]]);
    assert!(!ran.stderr.contains("three"), "{}", ran.stderr);
    let restored = Demo {
        path: places[1].to_owned(),
    };
    home.restore(&restored, 1, "r");
    home.destroy_all();
    let _ = remove(places[1]).ok();
    let _ = remove(&demo.path).ok();
}

#[test]
fn a_manifest_that_cannot_be_read_is_not_one_that_needs_nothing() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let elsewhere = folder(&home, "elsewhere");
    let warm = delta(&home, &demo, &elsewhere.join("warm"));
    // Without the right to pass over permissions, as every user but root.
    let drop = [
        "--bounding-set",
        "-dac_override,-dac_read_search",
        "--inh-caps",
        "-dac_override,-dac_read_search",
    ];
    if !Command::new("setpriv")
        .args(drop)
        .arg("true")
        .status()
        .is_ok_and(|s| s.success())
    {
        return skip("setpriv does not work here");
    }
    let manifest = format!("{warm}.ckp.brood");
    let mode = |mode: &str| {
        assert!(
            Command::new("chmod")
                .args([mode, &manifest])
                .status()
                .unwrap()
                .success()
        );
    };
    mode("000");
    let brood = home.command(&["checkpoint", "remove", &demo.path]);
    let mut command = Command::new("setpriv");
    command
        .args(drop)
        .arg(brood.get_program())
        .args(brood.get_args());
    command
        .env("BROOD_STATE_DIR", home.state())
        .env("BROOD_CONFIG", "/dev/null");
    command.current_dir(home.path());
    let _ = Running::start(command)
        .wait()
        .exits(1)
        .says(&["cannot open", "warm.ckp.brood"]);
    assert!(demo.ckp().exists());
    mode("400");
    home.restore(&Demo { path: warm }, 1, "r");
}

#[test]
fn a_delta_that_was_moved_finds_its_parent_by_its_digest() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let other = home.demo("other", "4M");
    let old = folder(&home, "old");
    let warm = delta(&home, &demo, &old.join("warm"));
    let fails = |bundle: &str| {
        let ran = home.brood(&["restore", bundle, "-n", "1"]).exits(1);
        let _ = ran.says(&["is a delta of", "brood checkpoint rebase", "--parent"]);
    };
    let restores = |bundle: &str| {
        home.restore(
            &Demo {
                path: bundle.to_owned(),
            },
            1,
            "r",
        );
        let _ = home.ask("r-1", "ping");
        home.destroy_all();
    };
    // Both into one new folder.
    let new = folder(&home, "new");
    let warm = moved(&warm, &new);
    let parent = moved(&demo.path, &new);
    restores(&warm);
    // The parent into a folder that brood has never used.
    let far = folder(&home, "far");
    let parent = moved(&parent, &far);
    fails(&warm);
    let rebase = |parent: &[&str]| home.brood(&[&["checkpoint", "rebase", &warm], parent].concat());
    let _ = rebase(&[]).exits(1).says(&["is a delta of"]);
    let _ = rebase(&["--parent", &other.path])
        .exits(1)
        .says(&["had SHA-256"]);
    let _ = rebase(&["--parent", &parent]).ok();
    restores(&warm);
    let _ = home.brood(&["checkpoint", "verify", &warm]).ok();
    let listed = home.json(&["checkpoint", "inspect", &warm]);
    assert_eq!(listed["parents"][0], parent.as_str());
    // Into a folder that brood knows, as one of a pool's.
    let known = folder(&home, "known");
    let pool = moved(&other.path, &known);
    let _ = home
        .brood(&["pool", "create", "p", &pool, "--hot", "0"])
        .ok();
    let parent = moved(&parent, &known);
    restores(&warm);
    let _ = home.brood(&["pool", "remove", "p"]).ok();
    fails(&warm);
    let _ = rebase(&["--parent", &parent]).ok();
    let _ = rebase(&["--parent", &warm]).exits(1);
    restores(&warm);
    // It is spared where it lies now.
    let _ = home
        .brood(&["checkpoint", "remove", &parent])
        .exits(1)
        .says(&[&warm]);
}

/// Names of the files of suspended claims.
fn rests(home: &Home) -> Vec<String> {
    let entries = fs::read_dir(home.suspended()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn a_damaged_claim_does_not_keep_the_memory_of_those_that_are_released() {
    let Some((home, _)) = pool_home(EngineKind::Kvm, 2, &[]) else {
        return;
    };
    for damage in ["ckp", "ckp.brood", "ckp.meta"] {
        let (a, b) = (home.claim(), home.claim());
        let _ = home.json(&["pool", "suspend", text(&a["token"])]);
        let file = rests(&home)
            .into_iter()
            .find(|name| name.ends_with(&format!(".{damage}")));
        let file = home.suspended().join(file.unwrap());
        fs::remove_file(&file).unwrap();
        fs::write(&file, "this was not sealed").unwrap();
        let kept = rests(&home);
        let _ = home.json(&["pool", "suspend", text(&b["token"])]);
        assert!(rests(&home).len() > kept.len());
        home.release(&b);
        let mut left = rests(&home);
        let mut expected = kept.clone();
        left.sort();
        expected.sort();
        assert_eq!(left, expected, "{damage}");
        home.release(&a);
        assert_eq!(rests(&home), Vec::<String>::new(), "{damage}");
        home.fill();
    }
}

#[test]
fn a_claim_file_with_nothing_behind_it_is_dropped() {
    let Some((home, _)) = pool_home(EngineKind::Kvm, 1, &[]) else {
        return;
    };
    let claimed = home.claim();
    let _ = home.json(&["pool", "suspend", text(&claimed["token"])]);
    let cold = home.suspended();
    let orphan = cold.join("00112233445566aa.claim");
    let bundle = cold.join("00112233445566aa");
    let text_of = format!(
        r#"{{"token":"{}","pool":"p","guest":"00112233445566aa","bundle":"{}","created_at":"2026-01-01T00:00:00Z"}}"#,
        "0f".repeat(32),
        bundle.display()
    );
    fs::write(&orphan, text_of).unwrap();
    home.release(&claimed);
    assert_eq!(rests(&home), Vec::<String>::new());
}

#[test]
fn a_pool_is_removed_with_claims_that_the_record_has_lost_at_the_first_try() {
    let Some((home, _)) = pool_home(EngineKind::Kvm, 1, &[]) else {
        return;
    };
    let claimed = home.claim();
    let _ = home.json(&["pool", "suspend", text(&claimed["token"])]);
    let database = rusqlite::Connection::open(home.state().join("brood.sqlite")).unwrap();
    assert_eq!(
        database.execute("DELETE FROM suspended_claim", []).unwrap(),
        1
    );
    drop(database);
    let _ = home
        .brood(&["pool", "remove", "p"])
        .exits(1)
        .says(&["1 of its entries"]);
    let database = rusqlite::Connection::open(home.state().join("brood.sqlite")).unwrap();
    assert_eq!(
        database.execute("DELETE FROM suspended_claim", []).unwrap(),
        1
    );
    drop(database);
    let _ = home.brood(&["pool", "remove", "p", "--force"]).ok();
    assert_eq!(rests(&home), Vec::<String>::new());
}

#[test]
fn a_restore_that_reads_a_checkpoint_is_a_user_of_it() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "512M");
    let in_use = home.state().join("bundles");
    let restore = home.start(&["restore", &demo.path, "-n", "1"]);
    until("it to read", || says_so(&in_use).then_some(()));
    restore.signal(Signal::SIGSTOP);
    let pid = format!("process {}", restore.pid());
    for force in [&[][..], &["--force"]] {
        let remove = [&["checkpoint", "remove", &demo.path][..], force].concat();
        let words = [&pid[..], "brood restore", "reads it"];
        let _ = home.brood(&remove).exits(1).says(&words);
        assert!(demo.ckp().exists());
    }
    restore.signal(Signal::SIGCONT);
    let _ = restore.wait().ok();
    assert_eq!(files(&in_use), 0, "it reads no more");
    home.destroy_all();
    let _ = home.brood(&["checkpoint", "remove", &demo.path]).ok();
}

#[test]
fn a_flatten_uses_the_delta_and_its_parents() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "512M");
    home.restore(&demo, 1, "d");
    let warm = home.named("warm");
    let _ = home.brood(&["suspend", "d-1", &warm.path, "--delta"]).ok();
    let (full, in_use) = (home.named("full"), home.state().join("bundles"));
    let flatten = home.start(&["checkpoint", "flatten", &warm.path, &full.path]);
    until("it to read", || says_so(&in_use).then_some(()));
    flatten.signal(Signal::SIGSTOP);
    let pid = format!("process {}", flatten.pid());
    let refused: [&[&str]; 3] = [
        &["checkpoint", "remove", &demo.path, "--force"],
        &["checkpoint", "remove", &warm.path],
        &["checkpoint", "rebase", &warm.path, "--parent", &demo.path],
    ];
    for command in refused {
        let _ = home.brood(command).exits(1).says(&[&pid, "reads it"]);
    }
    flatten.signal(Signal::SIGCONT);
    let _ = flatten.wait().ok();
    assert_eq!(files(&in_use), 0, "it reads no more");
    let _ = home.brood(&["checkpoint", "verify", &full.path]).ok();
    // Over the API it is the daemon that reads, as long as its client waits.
    let daemon = Daemon::start(&home);
    let route = format!(
        "/api/v1/checkpoints/{}/flatten",
        warm.path.replace('/', "%2F")
    );
    let other = home.named("other");
    let body = serde_json::json!({ "checkpoint": other.path });
    std::thread::scope(|scope| {
        let flattened = scope.spawn(|| daemon.post(&route, &body, 201));
        until("the daemon to read", || says_so(&in_use).then_some(()));
        daemon.signal(Signal::SIGSTOP);
        let pid = format!("process {}", daemon.pid());
        let remove = ["--no-daemon", "checkpoint", "remove", &warm.path];
        let _ = home.brood(&remove).exits(1).says(&[&pid, "reads it"]);
        daemon.signal(Signal::SIGCONT);
        let _ = flattened.join().unwrap();
    });
    let _ = home.brood(&["checkpoint", "remove", &warm.path]).ok();
}

#[test]
fn a_restore_of_a_delta_uses_its_parents_and_keeps_its_place_from_being_changed() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "512M");
    let other = home.demo("other", "512M");
    home.restore(&demo, 1, "d");
    let warm = home.named("warm");
    let _ = home.brood(&["suspend", "d-1", &warm.path, "--delta"]).ok();
    // Another record, which has verified nothing yet.
    let state = home.path().join("fresh");
    let brood = |args: &[&str]| {
        let mut command = home.command(args);
        command.env("BROOD_STATE_DIR", &state);
        Running::start(command)
    };
    let restore = brood(&["restore", &warm.path, "-n", "1"]);
    until("it to read", || {
        says_so(&state.join("bundles")).then_some(())
    });
    restore.signal(Signal::SIGSTOP);
    let refused: [&[&str]; 3] = [
        &["checkpoint", "remove", &demo.path, "--force"],
        &["checkpoint", "remove", &warm.path],
        &["checkpoint", "rebase", &warm.path, "--parent", &demo.path],
    ];
    for command in refused {
        let ran = brood(command).wait().exits(1);
        let _ = ran.says(&[&restore.pid().to_string(), "reads it"]);
    }
    // No process reads the other one.
    let _ = brood(&["checkpoint", "remove", &other.path]).wait().ok();
    // One that is killed is no user any more.
    restore.signal(Signal::SIGKILL);
    let _ = restore.wait();
    let _ = brood(&["checkpoint", "rebase", &warm.path, "--parent", &demo.path])
        .wait()
        .ok();
    let _ = brood(&["checkpoint", "remove", &warm.path]).wait().ok();
    assert_eq!(files(&state.join("bundles")), 0);
}

#[test]
fn a_checkpoint_that_is_being_removed_is_not_restored_from() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "16M");
    home.restore(&demo, 1, "first");
    home.destroy_all();
    // It says so before it looks for users; a restore that begins at that moment does nothing.
    let in_use = home.state().join("bundles");
    let mut restore = home.command(&["restore", &demo.path, "-n", "1"]);
    let mut tried = false;
    let remove = home.command(&["checkpoint", "remove", &demo.path]);
    let (ran, stopped) = traced(&remove, home.path(), move |_| {
        if !tried && says_so(&in_use) {
            tried = true;
            let output = restore.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("being removed"), "{said}");
        }
        Then::GoOn
    });
    assert_eq!(stopped, None);
    let _ = ran.ok();
    assert!(!demo.ckp().exists());
    assert!(home.list().is_empty());
    home.nobody_is_left();
}
