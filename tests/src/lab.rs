//! Lab: a home whose `brood` runs bhyve on a fake machine.

use std::{fs, path::PathBuf, process::Command, thread, time::Duration};

use brood_core::checkpoint::BundlePath;
use serde_json::Value;

use crate::{Home, Machine, Ran, Running, array};

/// The most that a command has needed, as it was seen last before its end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peak {
    /// Memory in bytes.
    pub memory: u64,
    /// Threads.
    pub threads: u64,
}

/// A home whose `brood` finds the machine.
#[derive(Debug)]
pub struct Lab {
    /// The machine.
    pub machine: Machine,
    /// The home.
    pub home: Home,
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// A machine without a checkpoint.
    #[must_use]
    pub fn new() -> Self {
        let home = Home::bare();
        let machine = Machine::new(home.path());
        Self { machine, home }
    }

    /// The same, with a checkpoint `web`.
    #[must_use]
    pub fn with_checkpoint() -> (Self, BundlePath) {
        let lab = Self::new();
        let path = lab.bundle("web");
        lab.machine.checkpoint(&path);
        (lab, path)
    }

    /// The bundle of this name among the home's checkpoints.
    ///
    /// # Panics
    /// When it is no name.
    #[must_use]
    pub fn bundle(&self, name: &str) -> BundlePath {
        self.home.named(name).path.parse().unwrap()
    }

    /// A `brood` command on the machine.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.home.command(arguments);
        command.envs(self.machine.environment());
        command
    }

    /// Runs `brood` to its end.
    #[must_use]
    pub fn brood(&self, arguments: &[&str]) -> Ran {
        Running::start(self.command(arguments)).wait()
    }

    /// Runs `brood` on a machine whose commands fail as told.
    #[must_use]
    pub fn failing(&self, fault: &str, arguments: &[&str]) -> Running {
        let mut command = self.command(arguments);
        command.env("BROOD_STANDIN_FAIL", fault);
        // So that the points of its limits are passed too.
        command.env("BROOD_BHYVE_RCTL", "pcpu:deny=200");
        Running::start(command)
    }

    /// Runs `brood` with `--json`, which must succeed; returns what it printed.
    #[track_caller]
    #[must_use]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let with_json = [arguments, &["--json"]].concat();
        self.brood(&with_json).ok().json()
    }

    /// The same, with what the command has needed at most.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    #[must_use]
    pub fn watched(&self, arguments: &[&str]) -> (Value, Peak) {
        let with_json = [arguments, &["--json"]].concat();
        let mut running = Running::start(self.command(&with_json));
        let mut peak = Peak::default();
        while !running.ended() {
            let (memory, threads) = running.memory_and_threads();
            peak.memory = peak.memory.max(memory);
            peak.threads = peak.threads.max(threads);
            thread::sleep(Duration::from_millis(2));
        }
        (running.wait().ok().json(), peak)
    }

    /// Asks a guest, which must answer.
    #[track_caller]
    #[must_use]
    pub fn ask(&self, guest: &str, request: &str) -> Value {
        self.brood(&["ask", "--json", guest, request]).ok().json()
    }

    /// Restores guests `g-1`, `g-2` and so on, which must all succeed; returns the report.
    #[track_caller]
    pub fn restore(&self, from: &BundlePath, guests: usize) -> Value {
        let (from, count) = (from.to_string(), guests.to_string());
        let report = self.json(&["restore", &from, "--guests", &count, "--prefix", "g"]);
        assert_eq!(report["restored"], guests, "{report}");
        report
    }

    /// All guests that `brood list` shows.
    #[track_caller]
    #[must_use]
    pub fn list(&self) -> Vec<Value> {
        array(&self.json(&["list"])).to_vec()
    }

    /// Makes sure that nothing is left of any guest, in the state folder or on the machine.
    ///
    /// # Panics
    /// When something is.
    #[track_caller]
    pub fn nothing_is_left(&self) {
        assert_eq!(self.machine.leftovers(), Vec::<String>::new());
        let run = fs::read_dir(self.home.run_dir()).unwrap();
        let files: Vec<PathBuf> = run.map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files, Vec::<PathBuf>::new());
    }

    /// Destroys all guests and makes sure that nothing is left of them.
    #[track_caller]
    pub fn destroy_all(&self) {
        let _ = self.brood(&["destroy", "--all", "--force"]).ok();
        assert!(self.list().is_empty());
        self.nothing_is_left();
    }
}
