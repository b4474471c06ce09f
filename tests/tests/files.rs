//! Checkpoint files that change under guests: a refusal with a reason or a right answer, never a
//! wrong one.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, symlink},
    path::Path,
    process::Command,
};

use brood_tests::{Demo, Home, Random, Words, processes_in, text, until};

const WHERE: [u64; 4] = [0x1_0000, 0x12_3450, 0x20_0008, 0x3f_fff8];

/// A 4 MiB checkpoint, its memory as it was sealed, and three guests of it.
struct Scene {
    home: Home,
    demo: Demo,
    /// An unchanged copy.
    sealed: Words,
}

impl Scene {
    fn new() -> Option<Self> {
        let home = Home::with_kvm()?;
        let demo = home.demo("demo", "4M");
        let copy = home.path().join("copy");
        fs::copy(demo.ckp(), &copy).unwrap();
        let sealed = Words::open(&copy);
        home.restore(&demo, 3, "g");
        Some(Self { home, demo, sealed })
    }

    /// Asks a guest about its memory. Whatever it answers is right; returns whether it answered.
    #[track_caller]
    fn answers_rightly(&self, guest: &str) -> bool {
        let mut answered = 0;
        for address in WHERE {
            let asked = self
                .home
                .brood(&["ask", "--json", guest, "peek", &address.to_string()]);
            if asked.code() == Some(0) {
                assert_eq!(
                    asked.json()["value"],
                    self.sealed.at(address),
                    "{guest} answered wrongly at {address:#x}"
                );
                answered += 1;
            } else {
                let _ = asked.exits(1).says(&[guest, "checkpoint", "chang"]);
            }
        }
        let sum = self
            .home
            .brood(&["ask", "--json", guest, "sum 0x10000 0x3f0000 4104"]);
        if sum.code() == Some(0) {
            let expected = self.sealed.sum(0x1_0000, 0x3f_0000, 4104);
            assert_eq!(sum.json()["sum"], expected, "{guest} summed wrongly");
            answered += 1;
        }
        assert!(
            answered == 0 || answered == WHERE.len() + 1,
            "{guest} answered {answered}"
        );
        answered > 0
    }

    /// All three guests answer, and rightly.
    #[track_caller]
    fn all_answer(&self) {
        for guest in ["g-1", "g-2", "g-3"] {
            assert!(self.answers_rightly(guest), "{guest} did not answer");
        }
    }

    /// All three refuse to answer from a changed checkpoint, and are listed as dead with that
    /// reason.
    #[track_caller]
    fn all_refuse(&self) {
        for guest in ["g-1", "g-2", "g-3"] {
            assert!(!self.answers_rightly(guest), "{guest} answered");
            let shown = self.home.json(&["show", guest]);
            assert_eq!(shown["state"], "dead", "{shown}");
            assert!(
                text(&shown["reason"]).contains("checkpoint was changed"),
                "{shown}"
            );
        }
    }

    /// A new restore is refused, with an error that names the file.
    #[track_caller]
    fn restore_is_refused(&self) {
        let refused = self
            .home
            .brood(&["restore", &self.demo.path, "-n", "2", "--prefix", "new"])
            .exits(1);
        let _ = refused.says(&["demo.ckp"]);
        assert!(
            !self
                .home
                .names("running")
                .iter()
                .any(|name| name.starts_with("new"))
        );
    }
}

/// Writes one byte of a file in place.
fn scribble(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

/// Does something to a file and sets its modification time back to what it was.
fn secretly(path: &Path, change: impl FnOnce()) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    change();
    File::open(path).unwrap().set_modified(modified).unwrap();
}

#[test]
fn cut_short_while_guests_live() {
    for length in [0, 0x1000, 0x20_0000, 0x3f_f000] {
        let Some(scene) = Scene::new() else { return };
        File::options()
            .write(true)
            .open(scene.demo.ckp())
            .unwrap()
            .set_len(length)
            .unwrap();
        scene.all_refuse();
        scene.restore_is_refused();
        let _ = scene
            .home
            .brood(&["checkpoint", "verify", &scene.demo.path])
            .exits(1);
    }
}

#[test]
fn cut_short_and_grown_again_while_guests_live() {
    let Some(scene) = Scene::new() else { return };
    secretly(&scene.demo.ckp(), || {
        let file = File::options().write(true).open(scene.demo.ckp()).unwrap();
        let size = file.metadata().unwrap().len();
        file.set_len(0x1_0000).unwrap();
        file.set_len(size).unwrap();
    });
    scene.all_refuse();
    scene.restore_is_refused();
}

#[test]
fn overwritten_in_place_while_guests_live() {
    let Some(scene) = Scene::new() else { return };
    // Touched before by one of them: what it has mapped changes under it.
    assert!(scene.answers_rightly("g-1"));
    scribble(&scene.demo.ckp(), 0x12_3450);
    scene.all_refuse();
    scene.restore_is_refused();
}

#[test]
fn overwritten_in_place_with_its_time_set_back() {
    let Some(scene) = Scene::new() else { return };
    assert!(scene.answers_rightly("g-1"));
    let ckp = scene.demo.ckp();
    secretly(&ckp, || scribble(&ckp, 0x12_3450));
    scene.all_refuse();
    scene.restore_is_refused();
    // Put right again, it can be restored from.
    secretly(&ckp, || scribble(&ckp, 0x12_3450));
    scene.home.restore(&scene.demo, 1, "again");
    assert!(scene.answers_rightly("again-1"));
}

#[test]
fn the_state_of_its_processor_is_changed() {
    for suffix in ["ckp.kern", "ckp.meta", "ckp.brood"] {
        let Some(scene) = Scene::new() else { return };
        scribble(&scene.demo.file(suffix), 40);
        // Guests that live have nothing to do with it.
        scene.all_answer();
        let _ = scene
            .home
            .brood(&["restore", &scene.demo.path, "-n", "1"])
            .exits(1)
            .says(&[&format!("demo.{suffix}")]);
    }
}

#[test]
fn attributes_and_names_may_change() {
    let Some(scene) = Scene::new() else { return };
    let ckp = scene.demo.ckp();
    let mut permissions = fs::metadata(&ckp).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&ckp, permissions).unwrap();
    scene.all_answer();
    fs::hard_link(&ckp, scene.home.path().join("link")).unwrap();
    scene.all_answer();
    fs::rename(&ckp, scene.home.path().join("moved")).unwrap();
    scene.all_answer();
    scene.restore_is_refused();
    fs::rename(scene.home.path().join("moved"), &ckp).unwrap();
    scene.all_answer();
    scene.home.restore(&scene.demo, 1, "new");
    assert!(scene.answers_rightly("new-1"));
}

#[test]
fn replaced_by_renaming_over_it() {
    let Some(scene) = Scene::new() else { return };
    let other = scene.home.demo("other", "4M");
    // Same size, other content: the random nonce differs.
    fs::rename(other.ckp(), scene.demo.ckp()).unwrap();
    scene.all_answer();
    scene.restore_is_refused();
    let to = scene.home.named("to");
    let suspended = scene.home.brood(&["suspend", "g-1", &to.path]);
    if suspended.code() == Some(0) {
        scene.home.restore(&to, 1, "to");
        assert!(scene.answers_rightly("to-1"));
    } else {
        let _ = suspended.exits(1).says(&["demo"]);
        assert!(scene.answers_rightly("g-1"));
    }
}

#[test]
fn the_whole_bundle_replaced_by_another() {
    let Some(scene) = Scene::new() else { return };
    let other = scene.home.demo("other", "4M");
    scene.home.restore(&other, 1, "other");
    let nonce = scene.home.ask("other-1", "ping")["nonce"].clone();
    assert_ne!(scene.home.ask("g-1", "ping")["nonce"], nonce);
    for suffix in ["ckp", "ckp.kern", "ckp.meta", "ckp.brood"] {
        fs::rename(other.file(suffix), scene.demo.file(suffix)).unwrap();
    }
    scene.all_answer();
    let restored = scene
        .home
        .brood(&["restore", &scene.demo.path, "-n", "1", "--prefix", "new"]);
    if restored.code() == Some(0) {
        assert_eq!(scene.home.ask("new-1", "ping")["nonce"], nonce);
    } else {
        let _ = restored.exits(1).says(&["demo"]);
    }
    let to = scene.home.named("to");
    let _ = scene
        .home
        .brood(&["suspend", "g-1", &to.path])
        .exits(1)
        .says(&["not the checkpoint that it was restored from"]);
    scene.all_answer();
}

#[test]
fn deleted_while_guests_live() {
    let Some(scene) = Scene::new() else { return };
    fs::remove_file(scene.demo.ckp()).unwrap();
    scene.all_answer();
    scene.restore_is_refused();
    let to = scene.home.named("to");
    let _ = scene
        .home
        .brood(&["suspend", "g-1", &to.path])
        .exits(1)
        .says(&["demo.ckp"]);
    assert!(scene.answers_rightly("g-1"));
    let listed = scene.home.json(&[
        "checkpoint",
        "list",
        scene.home.checkpoints().to_str().unwrap(),
    ]);
    assert_eq!(listed[0]["state"], "broken", "{listed}");
}

#[test]
fn replaced_by_a_link() {
    let Some(scene) = Scene::new() else { return };
    let (ckp, elsewhere) = (scene.demo.ckp(), scene.home.path().join("elsewhere.ckp"));
    // To the same content elsewhere, to another's, to nothing, to itself, to a device.
    let other = scene.home.demo("other", "4M");
    fs::rename(&ckp, &elsewhere).unwrap();
    for target in [
        elsewhere,
        other.ckp(),
        "missing".into(),
        ckp.clone(),
        "/dev/zero".into(),
    ] {
        symlink(&target, &ckp).unwrap();
        scene.all_answer();
        let restored =
            scene
                .home
                .brood(&["restore", &scene.demo.path, "-n", "1", "--prefix", "new"]);
        if restored.code() == Some(0) {
            assert!(scene.answers_rightly("new-1"));
            let _ = scene.home.brood(&["destroy", "new-1"]).ok();
        } else {
            let _ = restored.exits(1).says(&["demo.ckp"]);
        }
        fs::remove_file(&ckp).unwrap();
    }
    // Neither is a folder or a pipe opened as a memory file, nor waited for.
    fs::create_dir(&ckp).unwrap();
    scene.restore_is_refused();
    fs::remove_dir(&ckp).unwrap();
    let made = Command::new("mkfifo").arg(&ckp).status().unwrap();
    assert!(made.success());
    scene.restore_is_refused();
}

/// What a user may do to a checkpoint while guests are restored from it.
const HARM: [&str; 5] = [
    "cut",
    "overwrite",
    "overwrite secretly",
    "delete",
    "replace",
];

fn harm(scene: &Scene, how: &str) {
    let ckp = scene.demo.ckp();
    match how {
        "cut" => drop(
            File::options()
                .write(true)
                .open(&ckp)
                .unwrap()
                .set_len(0x10_0000),
        ),
        "overwrite" => scribble(&ckp, WHERE[1]),
        "overwrite secretly" => secretly(&ckp, || scribble(&ckp, WHERE[1])),
        "delete" => fs::remove_file(&ckp).unwrap(),
        _ => {
            let new = scene.home.path().join("new");
            fs::copy(&ckp, &new).unwrap();
            scribble(&new, WHERE[1]);
            fs::rename(&new, &ckp).unwrap();
        }
    }
}

#[test]
fn changed_while_guests_are_restored() {
    let mut random = Random::seeded();
    for how in HARM {
        let Some(scene) = Scene::new() else { return };
        let home = &scene.home;
        let restoring = home.start(&[
            "restore",
            &scene.demo.path,
            "-n",
            "60",
            "--prefix",
            "r",
            "--json",
        ]);
        let some = 3 + usize::try_from(random.below(50)).unwrap();
        let mut restoring = restoring;
        until("some to be restored", || {
            (processes_in(&home.state()).len() > some || restoring.ended()).then_some(())
        });
        harm(&scene, how);
        let ran = restoring.wait();
        assert!(
            [Some(0), Some(1), Some(3)].contains(&ran.code()),
            "{how}: {ran:?}"
        );
        for guest in home.names("running") {
            let answered = scene.answers_rightly(&guest);
            // One whose file is merely out of sight goes on.
            assert!(
                answered || !["delete", "replace"].contains(&how),
                "{guest} after {how}"
            );
        }
        scene.restore_is_refused();
    }
}
