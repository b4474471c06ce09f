//! Damaged database: every command says what to do and changes nothing, and `brood state rebuild`
//! makes a new one from what can still be read, from the guests that run, and from the bundles.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use brood_tests::{Daemon, Demo, Home, array, processes_in, text, until, whole};
use nix::sys::signal::Signal;
use serde_json::Value;

const MARK_AT: u64 = 0x20_0000;

fn database(home: &Home) -> PathBuf {
    home.state().join("brood.sqlite")
}

fn beside(home: &Home, end: &str) -> PathBuf {
    home.state().join(format!("brood.sqlite-{end}"))
}

/// Guests of a restore, a pool with hot guests, a claim that holds a guest, and a suspended one.
struct Scene {
    home: Home,
    demo: Demo,
    held: Value,
    suspended: Value,
}

impl Scene {
    fn new() -> Option<Self> {
        let home = Home::with_kvm()?;
        let demo = home.demo("demo", "4M");
        home.restore(&demo, 3, "g");
        let _ = home.brood(&["pause", "g-2"]).ok();
        let pool = [
            "pool", "create", "p", &demo.path, "--hot", "2", "--lease", "36000",
        ];
        let _ = home.brood(&pool).ok();
        let claim = || home.json(&["pool", "claim", "p"]);
        let (held, resting) = (claim(), claim());
        for (claim, mark) in [(&held, 11), (&resting, 22)] {
            let _ = home.ask(text(&claim["guest"]), &format!("poke {MARK_AT} {mark}"));
        }
        let _ = home
            .brood(&["pool", "suspend", text(&resting["token"])])
            .ok();
        let _ = home.brood(&["pool", "fill", "p"]).ok();
        Some(Self {
            home,
            demo,
            held,
            suspended: resting,
        })
    }

    /// Overwrites the header of the database.
    fn lose_header(&self) {
        let file = File::options().write(true).open(database(&self.home));
        file.unwrap().write_all_at(&[0x5a; 100], 0).unwrap();
    }

    /// Every command refuses, and so does the daemon; nothing is changed by that.
    fn is_refused(&self) {
        let token = text(&self.held["token"]);
        let home = &self.home;
        let before = fs::read(database(home)).unwrap_or_default();
        for command in [
            &["list"][..],
            &["show", "g-1"],
            &["ask", "g-1", "ping"],
            &["pause", "g-1"],
            &["resume", "g-2"],
            &["destroy", "--all"],
            &["suspend", "g-1", "/tmp/never"],
            &["restore", &self.demo.path, "-n", "1"],
            &["pool", "list"],
            &["pool", "show", "p"],
            &["pool", "claim", "p"],
            &["pool", "renew", token, "--lease", "9"],
            &["pool", "fill", "--all"],
            &["pool", "release", token],
            &["disk", "leftovers"],
            &["state", "check"],
            &["serve"],
        ] {
            let _ = home
                .brood(command)
                .exits(1)
                .says(&["damaged", "hint", "brood state rebuild"]);
        }
        assert_eq!(fs::read(database(home)).unwrap_or_default(), before);
        assert_eq!(self.running(), 6, "guests go on");
    }

    /// Guests' processes; there are no spares.
    fn running(&self) -> usize {
        self.home.guests().len()
    }

    fn rebuild(&self) -> Value {
        let ran = self.home.brood(&["state", "rebuild", "--json"]);
        assert!([Some(0), Some(3)].contains(&ran.code()), "{ran:?}");
        let rebuilt = ran.json();
        let _ = self.home.brood(&["state", "check"]).ok();
        let _ = self
            .home
            .brood(&["state", "rebuild"])
            .exits(1)
            .says(&["is whole"]);
        assert!(database(&self.home).exists());
        rebuilt
    }

    /// What is known again in any case: what runs, the pool, and the claim that rests.
    fn is_back(&self) {
        let home = &self.home;
        assert_eq!(self.home.names("paused").len(), 3, "{:?}", home.list());
        for guest in ["g-1", "g-3", text(&self.held["guest"])] {
            let _ = home.ask(guest, "ping");
        }
        assert_eq!(home.peek(text(&self.held["guest"]), MARK_AT), 11);
        let pool = home.json(&["pool", "show", "p"]);
        assert_eq!((&pool["hot"], &pool["lease_s"]), (&2.into(), &36000.into()));
        assert_eq!(pool["entries"]["suspended"], 1);
        let back = home.json(&["pool", "resume", text(&self.suspended["token"])]);
        assert_eq!(home.peek(text(&back["guest"]), MARK_AT), 22);
        // The pool works, with new guests.
        let _ = home.brood(&["pool", "fill", "p"]).ok();
        let new = home.json(&["pool", "claim", "p"]);
        assert_ne!(new["guest"], self.held["guest"]);
        assert_eq!(
            home.peek(text(&new["guest"]), MARK_AT),
            self.demo.words().at(MARK_AT)
        );
        for claim in [&back, &new] {
            let _ = home.brood(&["pool", "release", text(&claim["token"])]).ok();
        }
    }

    /// The claim that held a guest holds it.
    fn holds(&self) {
        let (home, token) = (&self.home, text(&self.held["token"]));
        let _ = home.brood(&["pool", "renew", token, "--lease", "100"]).ok();
        let _ = home.brood(&["pool", "suspend", token]).ok();
        let back = home.json(&["pool", "resume", token]);
        assert_eq!(home.peek(text(&back["guest"]), MARK_AT), 11);
        let _ = home.brood(&["pool", "release", token]).ok();
    }

    fn end(self) {
        let _ = self.home.brood(&["pool", "remove", "p", "--force"]).ok();
        self.home.destroy_all();
    }
}

#[test]
fn a_database_without_its_header_is_made_anew_from_what_runs_and_the_bundles() {
    let Some(scene) = Scene::new() else { return };
    scene.lose_header();
    scene.is_refused();
    let rebuilt = scene.rebuild();
    assert_eq!(rebuilt["pools"], serde_json::json!(["p"]));
    assert_eq!(array(&rebuilt["guests"]).len(), 6, "{rebuilt}");
    assert_eq!(
        (whole(&rebuilt["claims"]), whole(&rebuilt["suspended"])),
        (0, 1)
    );
    assert_eq!(array(&rebuilt["loose"]).len(), 3, "{rebuilt}");
    let aside = fs::read(text(&rebuilt["damaged"])).unwrap();
    assert_eq!(aside[..100], [0x5a; 100]);
    scene.is_back();
    scene.end();
}

#[test]
fn a_database_with_a_damaged_page_gives_back_what_is_on_the_others() {
    let Some(scene) = Scene::new() else { return };
    let page = 4096;
    let root = {
        let opened = rusqlite::Connection::open(database(&scene.home)).unwrap();
        let root = "SELECT rootpage FROM sqlite_schema WHERE name = 'measured'";
        opened
            .query_row(root, [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    let file = File::options()
        .write(true)
        .open(database(&scene.home))
        .unwrap();
    let at = (root.cast_unsigned() - 1) * page;
    file.write_all_at(&[0x5a; 4096], at).unwrap();
    scene.is_refused();
    let rebuilt = scene.rebuild();
    assert_eq!(
        (whole(&rebuilt["claims"]), whole(&rebuilt["suspended"])),
        (1, 1),
        "{rebuilt}"
    );
    assert_eq!(array(&rebuilt["loose"]).len(), 2, "{rebuilt}");
    scene.is_back();
    scene.holds();
    scene.end();
}

#[test]
fn a_database_that_was_cut_short_or_emptied_is_made_anew() {
    for keep in [Some(5 * 4096), Some(0), None] {
        let Some(scene) = Scene::new() else { return };
        match keep {
            Some(length) => {
                let file = File::options()
                    .write(true)
                    .open(database(&scene.home))
                    .unwrap();
                file.set_len(length).unwrap();
            }
            None => fs::remove_file(database(&scene.home)).unwrap(),
        }
        scene.is_refused();
        let rebuilt = scene.rebuild();
        assert_eq!(whole(&rebuilt["suspended"]), 1, "{rebuilt}");
        scene.is_back();
        scene.end();
    }
}

#[test]
fn a_database_whose_journal_was_taken_is_made_anew() {
    let Some(scene) = Scene::new() else { return };
    let before = processes_in(&scene.home.state()).len();
    let daemon = Daemon::start(&scene.home);
    // Something that is in the journal alone.
    let other = rusqlite::Connection::open(database(&scene.home)).unwrap();
    let changed = other.execute("UPDATE guest SET private_limit = private_limit + 1", []);
    assert!(changed.unwrap() > 0);
    drop(other);
    daemon.signal(Signal::SIGKILL);
    let _ = daemon.wait();
    until("what it started to be gone", || {
        (processes_in(&scene.home.state()).len() <= before).then_some(())
    });
    assert!(beside(&scene.home, "shm").exists());
    fs::remove_file(beside(&scene.home, "wal")).unwrap();
    scene.is_refused();
    let rebuilt = scene.rebuild();
    assert_eq!(
        (whole(&rebuilt["claims"]), whole(&rebuilt["suspended"])),
        (1, 1),
        "{rebuilt}"
    );
    scene.is_back();
    scene.holds();
    scene.end();
}

#[test]
fn a_rebuild_that_is_killed_is_done_again() {
    let Some(scene) = Scene::new() else { return };
    scene.lose_header();
    for _ in 0..5 {
        let rebuilding = scene.home.start(&["state", "rebuild"]);
        until("it to have begun", || {
            let new = scene.home.state().join("brood.sqlite.new");
            new.exists().then_some(())
        });
        rebuilding.signal(Signal::SIGKILL);
        let _ = rebuilding.wait();
        if scene.home.brood(&["state", "check"]).code() == Some(0) {
            break;
        }
        scene.is_refused();
    }
    if scene.home.brood(&["state", "check"]).code() != Some(0) {
        scene.rebuild();
    }
    scene.is_back();
    scene.end();
}

#[test]
fn a_daemon_goes_on_with_the_new_database() {
    let Some(scene) = Scene::new() else { return };
    let daemon = Daemon::start(&scene.home);
    scene.lose_header();
    let _ = scene.rebuild();
    until("the daemon to see the pool's claim that rests", || {
        let shown = daemon
            .request(reqwest::Method::GET, "/api/v1/pools/p")
            .send()
            .ok()?;
        let shown: Value = shown.json().ok()?;
        (shown["entries"]["suspended"] == 1).then_some(())
    });
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    scene.is_back();
    scene.end();
}
