//! Home with one pool, `p`.

use brood_core::checkpoint::manifest::EngineKind;
use serde_json::Value;

use crate::{Demo, Home, array, text};

/// A home with a pool `p` of so many hot guests of 4 MiB; `None` where it must be skipped for want
/// of KVM.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn pool_home(on: EngineKind, hot: u64, more: &[&str]) -> Option<(Home, Demo)> {
    let home = Home::on(on)?;
    let demo = home.demo("demo", "4M");
    let hot = hot.to_string();
    let mut args = vec!["pool", "create", "p", &demo.path, "--hot", &hot];
    args.extend(more);
    let _ = home.brood(&args).ok();
    Some((home, demo))
}

impl Home {
    /// Claims a guest of the pool, which must succeed.
    #[track_caller]
    #[must_use]
    pub fn claim(&self) -> Value {
        self.json(&["pool", "claim", "p"])
    }

    /// The pool as it is.
    #[track_caller]
    #[must_use]
    pub fn show_pool(&self) -> Value {
        self.json(&["pool", "show", "p"])
    }

    /// Fills the pool, which must then have all its hot guests, each stopped; returns the report.
    ///
    /// # Panics
    /// When it has not.
    #[track_caller]
    pub fn fill(&self) -> Value {
        let report = self.json(&["pool", "fill", "p"]);
        let shown = self.show_pool();
        assert_eq!(shown["entries"]["hot"], shown["hot"], "{shown}");
        assert_eq!(shown["entries"]["filling"], 0, "{shown}");
        assert_eq!(shown["entries"]["releasing"], 0, "{shown}");
        let paused = self.names("paused");
        for guest in array(&shown["hot_guests"]) {
            assert!(
                paused.contains(&text(guest).to_owned()),
                "{guest} is not stopped"
            );
        }
        report
    }

    /// Gives a claim back.
    #[track_caller]
    pub fn release(&self, claimed: &Value) {
        let _ = self
            .brood(&["pool", "release", text(&claimed["token"])])
            .ok();
    }
}
