//! `brood restore` and `brood suspend` killed before each of their steps, one after the other. A
//! step is a system call that changes something outside the command's own memory.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use brood_tests::{Call, Home, Lab, Ran, Running, Then, array, text, traced, until, whole};
use serde_json::Value;

const MARK_AT: u64 = 0x20_0000;

/// Where `brood` runs.
trait Host {
    fn home(&self) -> &Home;
    fn command(&self, args: &[&str]) -> Command;
    /// Destroys all guests; nothing may be left of them.
    fn destroy_all(&self);

    fn brood(&self, args: &[&str]) -> Ran {
        Running::start(self.command(args)).wait()
    }

    fn ask(&self, guest: &str, request: &str) -> Value {
        self.brood(&["ask", "--json", guest, request]).ok().json()
    }

    fn list(&self) -> Vec<Value> {
        let listed = self.brood(&["list", "--json"]).ok().json();
        array(&listed).to_vec()
    }

    /// Files beside checkpoints that are not sealed.
    fn unsealed(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.home().checkpoints()).expect("the folder is there");
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            !name.contains(".ckp")
        });
        files
    }
}

impl Host for Home {
    fn home(&self) -> &Home {
        self
    }

    fn command(&self, args: &[&str]) -> Command {
        Self::command(self, args)
    }

    fn destroy_all(&self) {
        Self::destroy_all(self);
    }
}

impl Host for Lab {
    fn home(&self) -> &Home {
        &self.home
    }

    fn command(&self, args: &[&str]) -> Command {
        Self::command(self, args)
    }

    fn destroy_all(&self) {
        Self::destroy_all(self);
    }
}

/// Runs a command that is killed before its step `nth`; returns what came of it, and before which
/// call it was killed, if it has so many steps.
fn killed_at(host: &dyn Host, args: &[&str], nth: u64) -> (Ran, Option<Call>) {
    let count = Arc::new(AtomicU64::new(0));
    traced(&host.command(args), host.home().path(), move |call| {
        if call.is_step() && count.fetch_add(1, Ordering::Relaxed) + 1 == nth {
            return Then::Kill;
        }
        Then::GoOn
    })
}

/// Kills restores from the checkpoint `from`. Every listed guest then answers, and nothing else is
/// left once those are destroyed.
fn restores_are_killed_at_each_step(host: &dyn Host, from: &str) {
    for nth in 1.. {
        let restore = ["restore", from, "-n", "2", "-c", "1", "--prefix", "g"];
        let (ran, fate) = killed_at(host, &restore, nth);
        let mut listed = host.list();
        until("restores to be over", || {
            listed = host.list();
            let over = |guest: &Value| guest["state"] != "restoring";
            listed.iter().all(over).then_some(())
        });
        for guest in &listed {
            assert_eq!(guest["state"], "running", "at {fate:?}");
            let _ = host.ask(text(&guest["name"]), "ping");
        }
        host.destroy_all();
        if fate.is_none() {
            let _ = ran.ok();
            assert_eq!(listed.len(), 2);
            assert!(nth > 20, "{nth}");
            return;
        }
    }
}

/// Kills suspends of guests of the checkpoint `from`. There is the guest or its checkpoint then,
/// never neither, and the same command said again brings it to its end.
fn suspends_are_killed_at_each_step(host: &dyn Host, from: &str) {
    let warm = host.home().named("warm").path;
    for nth in 1.. {
        let restore = ["restore", from, "-n", "1", "--prefix", "g"];
        let _ = host.brood(&restore).ok();
        let _ = host.ask("g-1", &format!("poke {MARK_AT} {nth}"));
        let (ran, fate) = killed_at(host, &["suspend", "g-1", &warm], nth);
        let guests = host.list();
        if fate.is_none() {
            let _ = ran.ok();
            assert!(guests.is_empty(), "{guests:?}");
        }
        if let Some(guest) = guests.first() {
            let suspend = || host.brood(&["suspend", "g-1", &warm]);
            let mut again = suspend();
            if again.stderr.contains("warm.ckp.brood exists already") {
                // It was sealed, and the guest goes on, unless it had been told of that already: then
                // it was about to end.
                let peek = format!("peek {MARK_AT}");
                let asked = host.brood(&["ask", "--json", "g-1", &peek]);
                let _ = host.brood(&["checkpoint", "verify", &warm]).ok();
                if asked.code() == Some(0) {
                    assert_eq!(whole(&asked.json()["value"]), nth, "at {fate:?}");
                    let _ = host.brood(&["checkpoint", "remove", &warm]).ok();
                } else {
                    let _ = asked.says(&["g-1 is dead"]);
                }
                again = suspend();
            }
            let said = &again.stderr;
            assert_eq!(again.code(), Some(0), "at {fate:?}: {guest} {said}");
        }
        let _ = host.brood(&["checkpoint", "verify", &warm]).ok();
        let restore = ["restore", &warm, "-n", "1", "--prefix", "w"];
        let _ = host.brood(&restore).ok();
        let mark = whole(&host.ask("w-1", &format!("peek {MARK_AT}"))["value"]);
        assert_eq!(mark, nth, "at {fate:?}");
        host.destroy_all();
        let _ = host.brood(&["checkpoint", "remove", &warm]).ok();
        assert_eq!(host.unsealed(), Vec::<PathBuf>::new(), "at {fate:?}");
        if fate.is_none() {
            assert!(nth > 20, "{nth}");
            return;
        }
    }
}

#[test]
fn a_restore_on_kvm_is_killed_at_each_step() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    restores_are_killed_at_each_step(&home, &demo.path);
}

#[test]
fn a_restore_on_bhyve_is_killed_at_each_step() {
    let (lab, web) = Lab::with_checkpoint();
    restores_are_killed_at_each_step(&lab, &web.to_string());
}

#[test]
fn a_suspend_on_kvm_is_killed_at_each_step() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    suspends_are_killed_at_each_step(&home, &demo.path);
}

#[test]
fn a_suspend_on_bhyve_is_killed_at_each_step() {
    let (lab, web) = Lab::with_checkpoint();
    suspends_are_killed_at_each_step(&lab, &web.to_string());
}
