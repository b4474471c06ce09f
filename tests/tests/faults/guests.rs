//! Scenes of guests: restore, suspend and destroy.

use std::{fs, path::PathBuf};

use brood_tests::{Demo, EngineKind, Home, Ran, text, until, whole};

use crate::visits::{Scene, no_drafts, owned, strs, unsealed};

pub(crate) const MARK_AT: u64 = 0x20_0000;

/// Words that give each guest a disk of its own.
fn disk(home: &Home) -> [String; 2] {
    let source = home.path().join("disk.img");
    if !source.exists() {
        fs::write(&source, vec![5; 1 << 16]).unwrap();
    }
    let source = format!("reflink-or-copy:{}", source.display());
    ["--disk".to_owned(), source]
}

/// `brood restore` of two guests.
pub(crate) struct Restore {
    home: Home,
    demo: Demo,
    with_disk: bool,
}

impl Restore {
    pub(crate) fn new(on: EngineKind, with_disk: bool) -> Option<Self> {
        let home = Home::on(on)?;
        let demo = home.demo("demo", "4M");
        Some(Self {
            home,
            demo,
            with_disk,
        })
    }
}

impl Scene for Restore {
    fn home(&self) -> &Home {
        &self.home
    }

    fn prepare(&mut self) -> Vec<String> {
        let words = [
            "restore",
            &self.demo.path,
            "-n",
            "2",
            "-c",
            "1",
            "--prefix",
            "g",
        ];
        let mut words = owned(&words);
        if self.with_disk {
            words.extend(disk(&self.home));
        }
        words
    }

    fn check(&mut self, ran: &Ran, told: &str) {
        let home = &self.home;
        let running = home.converges();
        assert!(home.names("dead").is_empty(), "{told}: {:?}", home.list());
        match ran.code() {
            Some(0) => assert_eq!(running, ["g-1", "g-2"], "{told}"),
            // Nothing was restored at all.
            Some(1) => assert_eq!(running, [] as [&str; 0], "{told}"),
            _ => assert!(running.len() <= 2, "{told}: {running:?}"),
        }
        // What was disturbed is in nobody's way.
        home.restore(&self.demo, 1, "after");
        let _ = home.ask("after-1", "ping");
        home.destroy_all();
        let left = home.json(&["disk", "leftovers"]);
        assert_eq!(left["leftovers"], serde_json::json!([]), "{told}");
    }
}

/// `brood suspend` of a guest.
pub(crate) struct Suspend {
    home: Home,
    demo: Demo,
    mark: u64,
}

impl Suspend {
    pub(crate) fn new(on: EngineKind) -> Option<Self> {
        let home = Home::on(on)?;
        let demo = home.demo("demo", "4M");
        Some(Self {
            home,
            demo,
            mark: 0,
        })
    }

    fn words(&self) -> Vec<String> {
        owned(&["suspend", "g-1", &self.home.named("warm").path])
    }

    /// Makes the suspend whole that was disturbed.
    fn again(&self, told: &str) {
        let (home, warm) = (&self.home, self.home.named("warm").path);
        let suspend = || home.brood(&strs(&self.words()));
        let mut again = suspend();
        if again.stderr.contains("warm.ckp.brood exists already") {
            // It was sealed, and the guest goes on, unless it had been told of that already: then
            // it was about to end.
            let asked = home.brood(&["ask", "--json", "g-1", &format!("peek {MARK_AT}")]);
            let _ = home.brood(&["checkpoint", "verify", &warm]).ok();
            if asked.code() == Some(0) {
                assert_eq!(whole(&asked.json()["value"]), self.mark, "{told}");
                let _ = home.brood(&["checkpoint", "remove", &warm]).ok();
            }
            again = suspend();
        }
        assert_eq!(again.code(), Some(0), "{told}: {again:?}");
    }
}

impl Scene for Suspend {
    fn home(&self) -> &Home {
        &self.home
    }

    fn prepare(&mut self) -> Vec<String> {
        self.mark += 1;
        self.home.restore(&self.demo, 1, "g");
        let poke = format!("poke {MARK_AT} {}", self.mark);
        let _ = self.home.ask("g-1", &poke);
        self.words()
    }

    fn check(&mut self, ran: &Ran, told: &str) {
        let home = &self.home;
        let warm = home.named("warm");
        let running = home.converges();
        no_drafts(home, told);
        if ran.code() == Some(1) && running == ["g-1"] {
            // It says that it failed, and the guest goes on as it was.
            assert_eq!(home.peek("g-1", MARK_AT), self.mark, "{told}");
        }
        if !home.list().is_empty() {
            // On a full disk its end may not be recorded.
            assert!(ran.code() != Some(0) || running.is_empty(), "{told}");
            self.again(told);
        }
        let _ = home.brood(&["checkpoint", "verify", &warm.path]).ok();
        home.restore(&warm, 1, "w");
        assert_eq!(home.peek("w-1", MARK_AT), self.mark, "{told}");
        home.destroy_all();
        let _ = home.brood(&["checkpoint", "remove", &warm.path]).ok();
        assert_eq!(unsealed(home), Vec::<PathBuf>::new(), "{told}");
    }
}

/// `brood destroy` of two guests of three.
pub(crate) struct Destroy {
    home: Home,
    demo: Demo,
}

impl Destroy {
    pub(crate) fn new(on: EngineKind) -> Option<Self> {
        let home = Home::on(on)?;
        let demo = home.demo("demo", "4M");
        Some(Self { home, demo })
    }
}

impl Scene for Destroy {
    fn home(&self) -> &Home {
        &self.home
    }

    fn prepare(&mut self) -> Vec<String> {
        let words = ["restore", &self.demo.path, "-n", "3", "--prefix", "g"];
        let mut words = owned(&words);
        if self.home.engine() == EngineKind::Kvm {
            words.extend(disk(&self.home));
        }
        let _ = self.home.brood(&strs(&words)).ok();
        owned(&["destroy", "g-1", "g-3"])
    }

    fn check(&mut self, ran: &Ran, told: &str) {
        let home = &self.home;
        let _ = home.ask("g-2", "ping");
        let listed = || {
            let guests = home.list();
            let names = guests.iter().map(|guest| text(&guest["name"]).to_owned());
            names.collect::<Vec<_>>()
        };
        let names = listed();
        if ran.code() == Some(0) {
            // On a full disk the others' end may not be recorded.
            assert_eq!(home.converges(), ["g-2"], "{told}");
        }
        // The same again, for those that are left.
        for name in names.iter().filter(|name| *name != "g-2") {
            let ran = home.brood(&["destroy", name]);
            assert_eq!(ran.code(), Some(0), "{told}: {ran:?}");
        }
        until("only one to be left", || {
            (listed() == ["g-2"]).then_some(())
        });
        home.destroy_all();
    }
}
