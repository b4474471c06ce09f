//! QEMU and the manager, killed at their steps: nothing is lost, nothing is there twice, and nothing
//! is left. A step is a system call of the manager that changes something outside its own memory.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use brood_tests::{Call, Demo, Home, Ran, Then, agent, linux_agent::said, signal, text, traced};
use nix::sys::signal::Signal;

/// Which steps are tried: these many, spread over all that there are.
const TRIED: u64 = 9;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Manager,
    Qemu,
}

/// Processes of QEMU that are this home's guests, by their records.
fn qemus(run_dir: &PathBuf) -> Vec<i32> {
    let folders = fs::read_dir(run_dir).into_iter().flatten().flatten();
    let pids = folders.filter_map(|folder| {
        let pid = fs::read_to_string(folder.path().join("pid")).ok()?;
        pid.trim().parse().ok()
    });
    pids.collect()
}

/// Runs a command, and kills the victim before its step `nth`; how many steps it made, and whether
/// one was killed.
fn killed_at(home: &Home, words: &[&str], victim: Victim, nth: u64) -> (Ran, u64, bool) {
    let count = Arc::new(AtomicU64::new(0));
    let hit = Arc::new(AtomicU64::new(0));
    let (steps, killed, run_dir) = (Arc::clone(&count), Arc::clone(&hit), home.run_dir());
    let decide = move |call: &Call| {
        if !call.is_step() || steps.fetch_add(1, Ordering::Relaxed) + 1 != nth {
            return Then::GoOn;
        }
        match victim {
            Victim::Manager => {
                killed.store(1, Ordering::Relaxed);
                Then::Kill
            }
            Victim::Qemu => {
                for pid in qemus(&run_dir) {
                    signal(pid, Signal::SIGKILL);
                    killed.store(1, Ordering::Relaxed);
                }
                Then::GoOn
            }
        }
    };
    let (ran, _) = traced(&home.command(words), home.path(), decide);
    let was_hit = hit.load(Ordering::Relaxed) == 1;
    (ran, count.load(Ordering::Relaxed), was_hit)
}

/// The steps to try, of so many.
fn tried(steps: u64) -> impl Iterator<Item = u64> {
    (0..TRIED).map(move |number| 1 + number * steps.saturating_sub(1) / (TRIED - 1))
}

/// How many steps a command has that nobody disturbs.
fn steps_of(home: &Home, words: &[&str]) -> u64 {
    let (ran, steps, _) = killed_at(home, words, Victim::Manager, u64::MAX);
    let _ = ran.ok();
    steps
}

fn restoring(victim: Victim) {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    let words = ["restore", &linux.path, "--guests", "1", "--prefix", "k"];
    let steps = steps_of(&home, &words);
    home.destroy_all();
    for nth in tried(steps) {
        let (ran, _, hit) = killed_at(&home, &words, victim, nth);
        let standing = home.converges();
        assert!(standing.len() <= 1, "step {nth}: {standing:?}");
        match victim {
            // It may have been killed after its guest was handed out.
            Victim::Manager => assert!(home.names("dead").is_empty(), "{:?}", home.list()),
            Victim::Qemu if hit && ran.code() != Some(0) => {
                assert_eq!(standing.len(), 0, "step {nth}: {ran:?}");
                assert!(home.list().is_empty(), "step {nth}: {:?}", home.list());
                let told = format!("{}{}", ran.stdout, ran.stderr);
                assert!(told.contains("QEMU ended"), "step {nth}: {ran:?}");
            }
            // It was killed after it was handed out, or before it was there.
            Victim::Qemu => assert!(ran.code() == Some(0) || !hit, "step {nth}: {ran:?}"),
        }
        home.destroy_all();
    }
    // What was killed is in nobody's way.
    home.restore(&linux, 1, "after");
    assert_eq!(said(&home.agent("after-1"), "echo there"), "there");
}

#[test]
fn the_manager_is_killed_at_its_steps_of_a_restore() {
    restoring(Victim::Manager);
}

#[test]
fn qemu_is_killed_at_the_steps_of_a_restore() {
    restoring(Victim::Qemu);
}

/// Restores a guest with a mark that no other has.
fn marked(home: &Home, linux: &Demo, mark: u64) {
    home.restore(linux, 1, "k");
    let _ = said(&home.agent("k-1"), &format!("echo {mark} >/run/mark"));
}

fn mark_of(home: &Home, guest: &str) -> u64 {
    let agent = home.agent(guest);
    let said = agent::run(&agent, "cat /run/mark");
    String::from_utf8_lossy(&said.output)
        .trim()
        .parse()
        .unwrap()
}

fn suspending(victim: Victim) {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    marked(&home, &linux, 0);
    let first = home.named("first");
    let steps = steps_of(&home, &["suspend", "k-1", &first.path, "--delta"]);
    home.destroy_all();
    for (mark, nth) in (1..).zip(tried(steps)) {
        marked(&home, &linux, mark);
        let to = home.named(&format!("to{nth}"));
        let words = ["suspend", "k-1", &to.path, "--delta"];
        let (ran, _, hit) = killed_at(&home, &words, victim, nth);
        let alive = home.converges() == ["k-1"];
        let is_whole = home.brood(&["checkpoint", "verify", &to.path]).code() == Some(0);
        // A guest whose QEMU is killed is gone, unless its bundle was whole before.
        let may_be_lost = victim == Victim::Qemu && hit;
        assert!(
            alive || is_whole || may_be_lost,
            "step {nth}: lost: {ran:?}"
        );
        if ran.code() == Some(0) {
            assert!(is_whole && !alive, "step {nth}: {ran:?}");
        }
        if alive {
            assert_eq!(mark_of(&home, "k-1"), mark, "step {nth}");
        } else if let Some(dead) = home.list().first() {
            assert!(
                ["dead", "suspended"].contains(&text(&dead["state"])),
                "{dead}"
            );
        }
        if is_whole {
            home.restore(&to, 1, "again");
            assert_eq!(mark_of(&home, "again-1"), mark, "step {nth}");
        } else if alive {
            // What is left of the first attempt is in no command's way.
            let _ = home.brood(&words).ok();
        }
        home.destroy_all();
    }
}

#[test]
fn the_manager_is_killed_at_its_steps_of_a_suspend() {
    suspending(Victim::Manager);
}

#[test]
fn qemu_is_killed_at_the_steps_of_a_suspend() {
    suspending(Victim::Qemu);
}
