//! File modes: guests' memory, disks, the record, locks and sockets are their owner's alone, under
//! any umask and in any folder.

use std::{
    fs::{self, DirBuilder, Permissions},
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
};

use brood_tests::{Home, Ran, Running, text, until};
use nix::sys::stat::{Mode, umask};

/// Starts `brood` with a umask that lets everybody do everything.
fn start_open(home: &Home, args: &[&str]) -> Running {
    let mut command = home.command(args);
    // SAFETY: umask(2) is all that happens between fork and exec.
    unsafe {
        command.pre_exec(|| {
            umask(Mode::empty());
            Ok(())
        })
    };
    Running::start(command)
}

#[track_caller]
fn run_open(home: &Home, args: &[&str]) -> Ran {
    start_open(home, args).wait().ok()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("it is there").mode() & 0o777
}

/// Everything below a folder that is no folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .flat_map(|path| {
            if path.is_dir() {
                below(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

#[track_caller]
fn all_are_closed(folder: &Path) {
    for file in below(folder) {
        assert_eq!(
            mode(&file) & 0o077,
            0,
            "{}: {:o}",
            file.display(),
            mode(&file)
        );
    }
}

#[test]
fn all_that_is_made_in_an_open_folder_under_an_open_umask_is_its_owners_alone() {
    let Some(home) = Home::with_kvm() else { return };
    // Of a folder in which everybody may also rename what is another's, nothing is restored.
    let open = |folder: &Path| fs::set_permissions(folder, Permissions::from_mode(0o1777)).unwrap();
    fs::create_dir(home.state()).unwrap();
    for folder in [home.path(), &home.state(), &home.checkpoints()] {
        open(folder);
    }
    let demo = home.named("demo");
    let _ = run_open(&home, &["checkpoint", "demo", &demo.path, "--memory", "4M"]);
    let _ = run_open(&home, &["restore", &demo.path, "-n", "2", "--prefix", "g"]);
    let (full, delta) = (home.named("full"), home.named("delta"));
    let _ = run_open(&home, &["suspend", "g-1", &full.path]);
    let _ = run_open(&home, &["suspend", "g-2", &delta.path, "--delta"]);
    let flat = home.named("flat");
    let _ = run_open(&home, &["checkpoint", "flatten", &delta.path, &flat.path]);
    let daemon = start_open(&home, &["serve"]);
    until("the daemon's socket", || {
        home.state().join("api.sock").exists().then_some(())
    });
    let _ = run_open(&home, &["pool", "create", "p", &demo.path, "--hot", "2"]);
    let claim = run_open(&home, &["pool", "claim", "p", "--json"]).json();
    let other = run_open(&home, &["--no-daemon", "pool", "claim", "p", "--json"]).json();
    let _ = run_open(&home, &["pool", "suspend", text(&claim["token"])]);
    all_are_closed(&home.checkpoints());
    all_are_closed(&home.state());
    for bundle in [&demo, &full, &delta, &flat] {
        for part in ["ckp", "ckp.kern", "ckp.meta", "ckp.brood"] {
            assert_eq!(mode(&bundle.file(part)), 0o400, "{} {part}", bundle.path);
        }
    }
    // A reader of all of it, or of a backup of it, can claim nothing.
    for file in below(&home.state()).iter().filter(|file| file.is_file()) {
        let content = fs::read(file).unwrap();
        for token in [&claim, &other].map(|claim| text(&claim["token"])) {
            let found = content
                .windows(token.len())
                .any(|at| at == token.as_bytes());
            assert!(!found, "{} holds a token", file.display());
        }
    }
    let _ = run_open(&home, &["pool", "resume", text(&claim["token"])]);
    for claim in [&claim, &other] {
        let _ = run_open(&home, &["pool", "release", text(&claim["token"])]);
    }
    let _ = run_open(&home, &["pool", "remove", "p"]);
    drop(daemon);
}

#[test]
fn files_that_others_may_read_are_taken_from_them_and_the_folder_is_told_of() {
    let home = Home::bare();
    let _ = home.brood(&["list"]).ok();
    let doctor = ["doctor", "--guests", "1"];
    assert!(!home.brood(&doctor).stdout.contains("chmod 700"));
    let database = home.state().join("brood.sqlite");
    fs::set_permissions(&database, Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(home.state(), Permissions::from_mode(0o755)).unwrap();
    let told = home.brood(&doctor);
    let state = home.state();
    let advice = format!("chmod 700 {}", state.display());
    assert!(
        told.stdout.replace('\n', " ").contains("chmod 700"),
        "{advice}"
    );
    let _ = home.brood(&["list"]).ok();
    assert_eq!(mode(&database), 0o600);
    let daemon = home.start(&["serve"]);
    until("the daemon to tell of the folder", || {
        daemon.said().contains(&advice).then_some(())
    });
}

#[test]
fn folders_above_the_state_folder_have_the_mode_of_the_umask() {
    let home = Home::bare();
    let plain = home.path().join("plain");
    DirBuilder::new().mode(0o777).create(&plain).unwrap();
    let state = home.path().join("var/db/brood");
    let mut command = home.command(&["list"]);
    let _ = Running::start({
        command.env("BROOD_STATE_DIR", &state);
        command
    })
    .wait()
    .ok();
    assert_eq!(mode(&state), 0o700);
    for above in ["var", "var/db"] {
        assert_eq!(mode(&home.path().join(above)), mode(&plain), "{above}");
    }
}

/// Says what `brood` says, to whom, of a bundle whose file or folder has another mode or owner.
fn told_of(home: &Home, path: &str, says: &str) {
    let ran = home
        .brood(&["restore", path, "-n", "1", "--prefix", "w"])
        .ok();
    assert!(
        ran.stderr.contains("warning: ") && ran.stderr.contains(says),
        "{ran:?}"
    );
    let inspected = home.brood(&["checkpoint", "inspect", path]).ok();
    assert!(inspected.stdout.contains(says), "{inspected:?}");
    let ran = home
        .brood(&["pool", "create", "p", path, "--hot", "1"])
        .ok();
    assert!(ran.stderr.contains(says), "{ran:?}");
    let _ = home.brood(&["pool", "remove", "p", "--force"]).ok();
}

/// Nothing is restored of a bundle that everybody may change.
fn refused(home: &Home, path: &str, file: &Path) {
    let file = file.display().to_string();
    for command in [
        &["restore", path, "-n", "1"][..],
        &["pool", "create", "p", path, "--hot", "1"],
        &["density", path, "--guests", "1"],
    ] {
        let _ = home.brood(command).exits(1).says(&[
            "everybody on this host may change",
            &file,
            "chmod o-w",
        ]);
    }
    let _ = home.brood(&["checkpoint", "inspect", path]).ok();
}

#[test]
fn checkpoints_that_others_may_change_are_told_of_or_refused() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let clean = home
        .brood(&["restore", &demo.path, "-n", "1", "--prefix", "g"])
        .ok();
    assert!(!clean.stderr.contains("warning"), "{clean:?}");
    // A delta in a folder of its own: its parent's files count as well.
    let deltas = home.path().join("deltas");
    fs::create_dir(&deltas).unwrap();
    let delta = deltas.join("warm").display().to_string();
    let _ = home.brood(&["suspend", "g-1", &delta, "--delta"]).ok();
    let set =
        |path: &Path, mode: u32| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let (memory, kern) = (demo.file("ckp"), demo.file("ckp.kern"));
    for (file, mode, usual) in [
        (&memory, 0o606, 0o400),
        (&kern, 0o666, 0o400),
        (&home.checkpoints(), 0o777, 0o755),
    ] {
        set(file, mode);
        refused(&home, &demo.path, file);
        refused(&home, &delta, file);
        set(file, usual);
    }
    set(&deltas, 0o707);
    refused(&home, &delta, &deltas);
    // Where only owners may rename their files, others can only add some.
    set(&deltas, 0o1777);
    let quiet = home
        .brood(&["restore", &delta, "-n", "1", "--prefix", "q"])
        .ok();
    assert!(!quiet.stderr.contains("may change"), "{quiet:?}");
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let owned = |path: &Path, uid: u32, gid: u32| {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
    };
    owned(&memory, 4711, 0);
    told_of(&home, &demo.path, "user 4711 may change");
    told_of(
        &home,
        &delta,
        &format!("user 4711 may change {}", memory.display()),
    );
    owned(&memory, 0, 4712);
    set(&memory, 0o460);
    told_of(&home, &demo.path, "group 4712 may change");
    owned(&memory, 0, 0);
    home.destroy_all();
}

#[test]
fn doctor_tells_of_folders_and_brood_refuses_a_configuration_that_others_may_change() {
    let home = Home::bare();
    let dir = home.checkpoints();
    fs::create_dir_all(home.state()).unwrap();
    let doctor = || {
        let ran = home.brood(&[
            "doctor",
            "--guests",
            "1",
            "--checkpoint-dir",
            dir.to_str().unwrap(),
        ]);
        ran.stdout
    };
    assert!(!doctor().contains("may change"), "{}", doctor());
    for (folder, what) in [(home.state(), "brood's files"), (dir.clone(), "all guests")] {
        let usual = fs::metadata(&folder).unwrap().permissions();
        fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
        let told = doctor();
        assert!(
            told.contains("everybody may change") && told.contains(what),
            "{told}"
        );
        fs::set_permissions(&folder, usual).unwrap();
    }
    let file = home.path().join("brood.toml");
    fs::write(&file, "[restore]\nprivate_limit = \"2M\"\n").unwrap();
    let check = ["config", "check", "--config", file.to_str().unwrap()];
    let _ = home.brood(&check).ok();
    fs::set_permissions(&file, Permissions::from_mode(0o646)).unwrap();
    for command in [&check[..], &["--config", file.to_str().unwrap(), "list"]] {
        let _ = home
            .brood(command)
            .exits(1)
            .says(&["brood.toml", "everybody on this host"]);
    }
}
