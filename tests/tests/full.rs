//! Full file system in the middle of an action: the error says what to do, guests live on and
//! answer, nothing half-written is left, and the action works once there is room.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use brood_tests::{Daemon, Demo, FileSystem, Home, Kind, text, until, whole, without_kvm};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;

/// Behind what `dirty` writes.
const MARK_AT: u64 = 0x3f_0000;

/// A home on a small file system of its own, and a checkpoint elsewhere.
struct Scene {
    home: Home,
    elsewhere: Home,
    demo: Demo,
    files: FileSystem,
}

impl Scene {
    fn new() -> Option<Self> {
        if without_kvm() {
            return None;
        }
        let files = FileSystem::small(Kind::Ext4, 24)?;
        let elsewhere = Home::bare();
        let demo = elsewhere.demo("demo", "4M");
        let home = Home::inside(&files.path());
        Some(Self {
            home,
            elsewhere,
            demo,
            files,
        })
    }

    fn filler(&self) -> PathBuf {
        self.files.path().join("filler")
    }

    /// Takes the room, but for so many KiB.
    fn fill(&self, but: u64) {
        let mut file = File::create(self.filler()).unwrap();
        let chunk = vec![7; 1 << 10];
        while file.write_all(&chunk).is_ok() {}
        file.sync_all().unwrap_or(());
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(but << 10)).unwrap();
        file.sync_all().unwrap();
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
        // The room is there when the file's end is on the disk.
        let _ = self.files.used();
    }

    fn mark(&self, guest: &str, mark: u64) {
        let _ = self.home.ask(guest, &format!("poke {MARK_AT} {mark}"));
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_guest_outlives_a_suspend_to_a_full_disk() {
    let Some(scene) = Scene::new() else { return };
    let home = &scene.home;
    home.restore(&scene.demo, 1, "g");
    scene.mark("g-1", 5);
    let to = home.named("to");
    let _ = home.ask("g-1", "dirty 600");
    for delta in [false, true] {
        let mut suspend = vec!["suspend", "g-1", &to.path];
        suspend.extend(delta.then_some("--delta"));
        // Refused before anything is written, and in the middle of it.
        for but in [600, 1 << 11] {
            scene.fill(but);
            let ran = home.brood(&suspend).exits(1);
            assert!(ran.stderr.contains("hint: free "), "{}", ran.stderr);
            assert_eq!(
                names(&home.checkpoints()),
                Vec::<String>::new(),
                "{}",
                ran.stderr
            );
            assert_eq!(home.peek("g-1", MARK_AT), 5);
            scene.make_room();
        }
    }
    let _ = home.brood(&["suspend", "g-1", &to.path]).ok();
    home.restore(&to, 1, "again");
    assert_eq!(home.peek("again-1", MARK_AT), 5);
}

#[test]
fn a_claim_outlives_its_suspension_to_a_full_disk() {
    let Some(scene) = Scene::new() else { return };
    let home = &scene.home;
    let daemon = Daemon::start(home);
    let pool = json!({ "name": "p", "checkpoint": scene.demo.path, "hot": 0 });
    daemon.post("/api/v1/pools", &pool, 201);
    let claim = daemon.post("/api/v1/pools/p/claims", &json!({}), 201);
    let (token, guest) = (text(&claim["token"]), text(&claim["id"]));
    let ask = |words: &[&str]| {
        let path = format!("/api/v1/guests/{guest}/ask");
        daemon.post(&path, &json!({ "request": words }), 200)
    };
    ask(&["poke", &MARK_AT.to_string(), "9"]);
    ask(&["dirty", "600"]);
    let suspend = format!("/api/v1/claims/{token}/suspend");
    for but in [0, 8, 40, 200, 600, 1500, 2500] {
        scene.fill(but);
        let answer = daemon.request(Method::POST, &suspend).send().unwrap();
        let (status, told) = (answer.status().as_u16(), answer.text().unwrap());
        assert!([500, 507].contains(&status), "{but} KiB: {status} {told}");
        assert!(told.contains("\"hint\""), "{but} KiB: {told}");
        assert_eq!(
            ask(&["peek", &MARK_AT.to_string()])["value"],
            9,
            "{but} KiB"
        );
        scene.make_room();
        until("the suspension to be over", || {
            let claim = daemon.request(Method::GET, &format!("/api/v1/claims/{token}"));
            let claim: serde_json::Value = claim.send().ok()?.json().ok()?;
            // The next look at a pool reconciles what could not be recorded.
            daemon.post("/api/v1/pools/p/fill", &json!({}), 200);
            (claim["state"] == "claimed").then_some(())
        });
        assert_eq!(names(&home.suspended()), Vec::<String>::new(), "{but} KiB");
    }
    daemon.send(Method::POST, &suspend, 200);
    let resume = format!("/api/v1/claims/{token}/resume");
    let back = daemon.post(&resume, &json!({}), 200);
    assert_eq!(home.peek(text(&back["guest"]), MARK_AT), 9);
    daemon.send(Method::DELETE, &format!("/api/v1/claims/{token}"), 204);
    daemon.send(Method::DELETE, "/api/v1/pools/p", 204);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn what_cannot_be_recorded_is_not_done() {
    let Some(scene) = Scene::new() else { return };
    let home = &scene.home;
    let _ = home
        .brood(&["pool", "create", "p", &scene.demo.path, "--hot", "2"])
        .ok();
    // So that its journal is not emptied and used again.
    let database = rusqlite::Connection::open(home.state().join("brood.sqlite")).unwrap();
    database
        .execute_batch("BEGIN; SELECT count(*) FROM guest;")
        .unwrap();
    let claim = home.json(&["pool", "claim", "p"]);
    let guest = text(&claim["guest"]);
    scene.mark(guest, 3);
    scene.fill(0);
    let refused = home
        .brood(&["restore", &scene.demo.path, "-n", "20", "--prefix", "g"])
        .exits(1);
    assert!(
        refused.stderr.contains("free disk space"),
        "{}",
        refused.stderr
    );
    let refused = home.brood(&["pool", "claim", "p"]).exits(1);
    assert!(
        refused.stderr.contains("free disk space"),
        "{}",
        refused.stderr
    );
    // Who has a guest goes on.
    assert_eq!(home.peek(guest, MARK_AT), 3);
    scene.make_room();
    database.execute_batch("COMMIT").unwrap();
    drop(database);
    home.restore(&scene.demo, 3, "g");
    let second = home.json(&["pool", "claim", "p"]);
    assert_ne!(second["guest"], claim["guest"]);
    assert_eq!(home.peek(guest, MARK_AT), 3);
    assert_eq!(
        whole(&home.json(&["pool", "show", "p"])["entries"]["claimed"]),
        2
    );
    let _ = home.brood(&["pool", "remove", "p", "--force"]).ok();
    drop(scene.elsewhere);
}
