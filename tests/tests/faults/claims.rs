//! Scenes of a pool's claims: claim, release, suspend, resume, and the pool's reconciliation.

use std::fs;

use brood_tests::{EngineKind, Home, Ran, array, pool_home, signal, text, whole};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    guests::MARK_AT,
    visits::{Scene, owned},
};

/// How many entries of the pool are in a state.
fn entries(home: &Home, state: &str) -> u64 {
    whole(&home.show_pool()["entries"][state])
}

/// Ends what is left, and makes sure that the pool works.
fn works(home: &Home, told: &str) {
    // What is suspended is no guest, and stays when all are destroyed.
    home.destroy_all();
    assert_eq!(entries(home, "suspended"), 0, "{told}");
    home.fill();
    let bundles = fs::read_dir(home.suspended())
        .into_iter()
        .flatten()
        .flatten();
    let left: Vec<_> = bundles.map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{told}: {left:?}");
}

/// A claim whose guest has a mark that no other has.
fn marked(home: &Home, mark: u64) -> Value {
    let claim = home.claim();
    let poke = format!("poke {MARK_AT} {mark}");
    let _ = home.ask(text(&claim["guest"]), &poke);
    claim
}

/// `brood pool claim`.
pub(crate) struct Claim {
    home: Home,
}

impl Claim {
    pub(crate) fn new(on: EngineKind, hot: u64) -> Option<Self> {
        let (home, _) = pool_home(on, hot, &["--lease", "3600"])?;
        Some(Self { home })
    }
}

impl Scene for Claim {
    fn home(&self) -> &Home {
        &self.home
    }

    fn prepare(&mut self) -> Vec<String> {
        self.home.fill();
        owned(&["pool", "claim", "p", "--json"])
    }

    fn check(&mut self, ran: &Ran, told: &str) {
        let home = &self.home;
        home.converges();
        let claimed = entries(home, "claimed");
        match ran.code() {
            Some(0) => {
                let claim = ran.json();
                assert_eq!(claimed, 1, "{told}");
                let _ = home.ask(text(&claim["guest"]), "ping");
                // Nobody else gets it.
                let other = home.claim();
                assert_ne!(other["guest"], claim["guest"], "{told}");
                home.release(&other);
                home.release(&claim);
            }
            _ => {
                assert!(claimed <= 1, "{told}");
                let before: Vec<String> = home.names("running");
                let other = home.claim();
                let guest = text(&other["guest"]).to_owned();
                // One whose claimer was not told is nobody's, until its lease is over.
                assert!(claimed == 0 || !before.contains(&guest), "{told}");
                home.release(&other);
                assert_eq!(entries(home, "claimed"), claimed, "{told}");
            }
        }
        works(home, told);
    }
}

/// `brood pool release`, of a claim that has its guest or that is suspended.
pub(crate) struct Release {
    home: Home,
    is_suspended: bool,
    token: String,
}

impl Release {
    pub(crate) fn new(on: EngineKind, is_suspended: bool) -> Option<Self> {
        let (home, _) = pool_home(on, 1, &["--lease", "3600"])?;
        Some(Self {
            home,
            is_suspended,
            token: String::new(),
        })
    }
}

impl Scene for Release {
    fn home(&self) -> &Home {
        &self.home
    }

    fn prepare(&mut self) -> Vec<String> {
        self.home.fill();
        text(&self.home.claim()["token"]).clone_into(&mut self.token);
        if self.is_suspended {
            let _ = self.home.brood(&["pool", "suspend", &self.token]).ok();
        }
        owned(&["pool", "release", &self.token])
    }

    fn check(&mut self, _ran: &Ran, told: &str) {
        let home = &self.home;
        home.converges();
        let again = home.brood(&["pool", "release", &self.token]);
        let over = again.code() == Some(0) || again.stderr.contains("no claim");
        assert!(over, "{told}: {again:?}");
        home.fill();
        for state in ["claimed", "releasing", "suspended"] {
            assert_eq!(entries(home, state), 0, "{told}");
        }
        works(home, told);
    }
}

/// What becomes of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Suspend,
    Resume,
}

/// `brood pool suspend` and `brood pool resume`.
pub(crate) struct Turn {
    home: Home,
    to: To,
    mark: u64,
    token: String,
}

impl Turn {
    pub(crate) fn new(on: EngineKind, to: To) -> Option<Self> {
        let (home, _) = pool_home(on, 1, &["--lease", "3600"])?;
        Some(Self {
            home,
            to,
            mark: 0,
            token: String::new(),
        })
    }
}

impl Scene for Turn {
    fn home(&self) -> &Home {
        &self.home
    }

    fn prepare(&mut self) -> Vec<String> {
        self.home.fill();
        self.mark += 1;
        let claim = marked(&self.home, self.mark);
        text(&claim["token"]).clone_into(&mut self.token);
        if self.to == To::Resume {
            let _ = self.home.brood(&["pool", "suspend", &self.token]).ok();
            owned(&["pool", "resume", &self.token])
        } else {
            owned(&["pool", "suspend", &self.token])
        }
    }

    fn check(&mut self, ran: &Ran, told: &str) {
        let home = &self.home;
        home.converges();
        if ran.code() == Some(0) && self.to == To::Suspend {
            assert_eq!(entries(home, "suspended"), 1, "{told}");
            assert_eq!(entries(home, "claimed"), 0, "{told}");
        }
        // Wherever it is, it comes back, once and as it was.
        let back = home.brood(&["pool", "resume", &self.token, "--json"]);
        assert_eq!(back.code(), Some(0), "{told}: {back:?}");
        let guest = text(&back.json()["guest"]).to_owned();
        assert_eq!(home.peek(&guest, MARK_AT), self.mark, "{told}");
        let shown = home.show_pool();
        assert_eq!(shown["entries"]["suspended"], 0, "{told}: {shown}");
        assert_eq!(array(&shown["claims"]).len(), 1, "{told}: {shown}");
        let _ = home.brood(&["pool", "release", &self.token]).ok();
        works(home, told);
    }
}

/// `brood pool fill` of a pool of which one guest is dead, one runs, and one is missing.
pub(crate) struct Reconcile {
    home: Home,
}

impl Reconcile {
    pub(crate) fn new(on: EngineKind) -> Option<Self> {
        let (home, _) = pool_home(on, 2, &["--lease", "3600"])?;
        Some(Self { home })
    }
}

impl Scene for Reconcile {
    fn home(&self) -> &Home {
        &self.home
    }

    fn prepare(&mut self) -> Vec<String> {
        self.home.fill();
        let hot = self.home.guests();
        signal(hot[0].pid, Signal::SIGKILL);
        signal(hot[1].pid, Signal::SIGCONT);
        owned(&["pool", "fill", "p"])
    }

    fn check(&mut self, ran: &Ran, told: &str) {
        let home = &self.home;
        home.converges();
        if ran.code() == Some(0) {
            assert_eq!(entries(home, "hot"), 2, "{told}");
        }
        home.fill();
        for state in ["claimed", "releasing", "filling"] {
            assert_eq!(entries(home, state), 0, "{told}");
        }
        let [one, other] = [home.claim(), home.claim()];
        assert_ne!(one["guest"], other["guest"], "{told}");
        home.release(&one);
        home.release(&other);
        works(home, told);
    }
}
