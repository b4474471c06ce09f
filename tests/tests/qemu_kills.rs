//! QEMU and the manager, killed at their steps: nothing is lost, nothing is there twice, and nothing
//! is left. A step is a system call of the manager that changes something outside its own memory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use brood_tests::{
    Call, Demo, Home, Ran, Running, Then, agent, array, linux_agent::said, signal, text, traced,
    until,
};
use nix::sys::signal::Signal;

/// Which steps of a restore and of a suspend are tried: these many, spread over all that there are;
/// with `BROOD_TRY_ALL_STEPS=1` all.
const TRIED: u64 = 9;
/// The same for commands that do one of these and something of the pool beside.
const TRIED_OF_POOL: u64 = 4;

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
    command_killed_at(home, &home.command(words), victim, nth)
}

fn command_killed_at(home: &Home, command: &Command, victim: Victim, nth: u64) -> (Ran, u64, bool) {
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
    let (ran, _) = traced(command, home.path(), decide);
    let was_hit = hit.load(Ordering::Relaxed) == 1;
    (ran, count.load(Ordering::Relaxed), was_hit)
}

/// The steps to try, of so many.
fn tried(steps: u64, most: u64) -> impl Iterator<Item = u64> {
    let most = match std::env::var("BROOD_TRY_ALL_STEPS") {
        Ok(all) if all == "1" => steps,
        _ => most.min(steps),
    };
    let between = most.saturating_sub(1).max(1);
    (0..most).map(move |number| 1 + number * steps.saturating_sub(1) / between)
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
    for nth in tried(steps, TRIED) {
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

fn suspending(victim: Victim, delta: bool) {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    marked(&home, &linux, 0);
    let first = home.named("first");
    let words = |to: &Demo| {
        let mut words = vec!["suspend".to_owned(), "k-1".to_owned(), to.path.clone()];
        words.extend(delta.then(|| "--delta".to_owned()));
        words
    };
    let steps = steps_of(&home, &strs(&words(&first)));
    home.destroy_all();
    let most = if delta { TRIED } else { TRIED_OF_POOL };
    for (mark, nth) in (1..).zip(tried(steps, most)) {
        marked(&home, &linux, mark);
        let to = home.named(&format!("to{nth}"));
        let words = words(&to);
        let (ran, _, hit) = killed_at(&home, &strs(&words), victim, nth);
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
            let _ = home.brood(&strs(&words)).ok();
        }
        home.destroy_all();
    }
}

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn the_manager_is_killed_at_its_steps_of_a_suspend() {
    suspending(Victim::Manager, true);
}

#[test]
fn qemu_is_killed_at_the_steps_of_a_suspend() {
    suspending(Victim::Qemu, true);
}

#[test]
fn the_manager_is_killed_at_its_steps_of_a_suspend_in_full() {
    suspending(Victim::Manager, false);
}

#[test]
fn qemu_is_killed_at_the_steps_of_a_suspend_in_full() {
    suspending(Victim::Qemu, false);
}

/// What a pool's command does to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Claim,
    Suspend,
    Resume,
    Release,
}

/// A home with a pool `p` of one hot guest.
fn pool(linux: &Demo, home: &Home) {
    let make = ["pool", "create", "p", &linux.path, "--hot", "1"];
    let _ = home.brood(&[&make[..], &["--lease", "3600"]].concat()).ok();
    let _ = home.fill();
}

/// A claim whose guest has a mark, and which is suspended when it is to be resumed.
fn claimed(home: &Home, of: Of, mark: u64) -> String {
    let claim = home.claim();
    let (token, guest) = (text(&claim["token"]), text(&claim["guest"]));
    let _ = said(&home.agent(guest), &format!("echo {mark} >/run/mark"));
    if of == Of::Resume {
        let _ = home.brood(&["pool", "suspend", token]).ok();
    }
    token.to_owned()
}

/// Words of the command.
fn words(of: Of, token: &str) -> Vec<&str> {
    match of {
        Of::Claim => vec!["pool", "claim", "p"],
        Of::Suspend => vec!["pool", "suspend", token],
        Of::Resume => vec!["pool", "resume", token],
        Of::Release => vec!["pool", "release", token],
    }
}

/// A claim is as it was, is as the command was to make it, or has ended; and its guest is its own.
fn is_whole(home: &Home, token: &str, mark: u64, victim_died: bool, told: &str) {
    let shown = home.show_pool();
    let entries = &shown["entries"];
    let suspended = entries["suspended"] == 1;
    if suspended {
        let _ = home.brood(&["pool", "resume", token]).ok();
    }
    let shown = home.show_pool();
    let claim = brood_tests::array(&shown["claims"]).first().cloned();
    match claim {
        Some(claim) => {
            let guest = text(&claim["guest"]);
            if home.names("running").iter().any(|name| name == guest) {
                assert_eq!(mark_of(home, guest), mark, "{told}");
            } else {
                assert!(victim_died, "{told}: its guest is gone: {shown}");
            }
            let _ = home.brood(&["pool", "release", token]).ok();
        }
        None => assert!(victim_died && !suspended, "{told}: lost: {shown}"),
    }
}

fn of_a_pool(victim: Victim, of: Of) {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    pool(&linux, &home);
    let token = match of {
        Of::Claim => String::new(),
        _ => claimed(&home, of, 1),
    };
    let steps = steps_of(&home, &words(of, &token));
    if of == Of::Suspend {
        // A suspended claim is no guest, and stays when all are destroyed.
        let _ = home.brood(&["pool", "release", &token]).ok();
    }
    home.destroy_all();
    for (mark, nth) in (2..).zip(tried(steps, TRIED_OF_POOL)) {
        let _ = home.fill();
        let token = match of {
            Of::Claim => String::new(),
            _ => claimed(&home, of, mark),
        };
        let (ran, _, hit) = killed_at(&home, &words(of, &token), victim, nth);
        let told = format!("step {nth} of {steps}: {ran:?}");
        let standing = home.converges();
        let is_dead = victim == Victim::Qemu && hit;
        match of {
            // Nobody knows the token of a claim that was killed: it ends with its lease.
            Of::Claim => assert!(standing.len() <= 1, "{told}: {standing:?}"),
            // It was to end.
            Of::Release => {
                let _ = home.brood(&["pool", "release", &token]);
                let shown = home.show_pool();
                assert_eq!(shown["entries"]["claimed"], 0, "{told}: {shown}");
            }
            Of::Suspend | Of::Resume => is_whole(&home, &token, mark, is_dead, &told),
        }
        home.destroy_all();
    }
    // What was killed is in nobody's way.
    let _ = home.fill();
    let claim = home.claim();
    let guest = home.agent(text(&claim["guest"]));
    assert_eq!(said(&guest, "echo there"), "there");
}

#[test]
fn the_manager_is_killed_at_its_steps_of_a_claim() {
    of_a_pool(Victim::Manager, Of::Claim);
}

#[test]
fn qemu_is_killed_at_the_steps_of_a_claim() {
    of_a_pool(Victim::Qemu, Of::Claim);
}

#[test]
fn the_manager_is_killed_at_its_steps_of_a_claims_suspend() {
    of_a_pool(Victim::Manager, Of::Suspend);
}

#[test]
fn the_manager_is_killed_at_its_steps_of_a_claims_resume() {
    of_a_pool(Victim::Manager, Of::Resume);
}

#[test]
fn qemu_is_killed_at_the_steps_of_a_claims_resume() {
    of_a_pool(Victim::Qemu, Of::Resume);
}

#[test]
fn the_manager_is_killed_at_its_steps_of_a_release() {
    of_a_pool(Victim::Manager, Of::Release);
}

/// A checkpoint that is made of the image of the shared one.
struct Making {
    home: Home,
    /// The image's folder.
    images: PathBuf,
    to: Demo,
    /// What the guest's disk is a clone of.
    base: PathBuf,
}

impl Making {
    fn new() -> Option<Self> {
        let (home, linux) = Home::with_qemu()?;
        // Beside the checkpoint is the state folder that has its image.
        let made = Path::new(&linux.path).ancestors().nth(2)?;
        let to = home.named("made");
        let folder = Path::new(&to.path).parent()?.to_owned();
        let base = folder.join("base.img");
        fs::create_dir_all(folder).unwrap();
        let file = fs::File::create(&base).unwrap();
        file.set_len(8 << 20).unwrap();
        Some(Self {
            images: made.join("state/images"),
            home,
            to,
            base,
        })
    }

    fn command(&self, options: &[&str]) -> Command {
        let disk = format!("qcow2:{}", self.base.display());
        let words = [
            "checkpoint",
            "make",
            "linux",
            &self.to.path,
            "--disk",
            &disk,
        ];
        let mut make = self.home.command(&[&words[..], options].concat());
        make.env("BROOD_IMAGE_DIR", &self.images);
        make
    }

    /// What there is of a guest that is booted or was, and of an unfinished bundle.
    fn parts(&self) -> Vec<PathBuf> {
        let folder = self.base.parent().unwrap();
        let folders = [
            self.home.run_dir(),
            folder.join("brood-disks"),
            folder.to_owned(),
        ];
        let entries = folders
            .iter()
            .flat_map(|folder| fs::read_dir(folder).into_iter().flatten());
        let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        let own = |path: &PathBuf| *path == self.base || path.ends_with("brood-disks");
        found.retain(|path| !own(path));
        found
    }

    fn is_whole(&self) -> bool {
        let verified = self.home.brood(&["checkpoint", "verify", &self.to.path]);
        verified.code() == Some(0)
    }

    /// Nothing is left of a command that did not make the checkpoint, and of one that did only that.
    fn nothing_is_left(&self, told: &str) {
        self.home.nobody_is_left();
        let is_whole = self.is_whole();
        if is_whole {
            let _ = self
                .home
                .brood(&["checkpoint", "remove", &self.to.path])
                .ok();
        }
        assert_eq!(
            self.parts(),
            [] as [PathBuf; 0],
            "{told}, whole: {is_whole}"
        );
        let left = self.home.json(&["disk", "leftovers"]);
        assert_eq!(array(&left["leftovers"]).len(), 0, "{told}: {left}");
    }
}

#[test]
fn a_guest_that_is_booted_is_nobody_elses_until_its_command_is_killed() {
    let Some(making) = Making::new() else { return };
    let home = &making.home;
    let folder = making.base.parent().unwrap().to_str().unwrap();
    let place = format!("reflink:{folder}");
    for look in [
        &["list"][..],
        &["list", "--strays"],
        &["destroy", "--strays"],
        &["disk", "sweep", &place],
    ] {
        let never = ["--ready", "test -e /never", "--timeout", "1h"];
        let make = Running::start(making.command(&never));
        let pid = until("the guest to be booted", || {
            let booted = make.said().contains("its agent has answered");
            home.guests()
                .first()
                .filter(|_| booted)
                .map(|guest| guest.pid)
        });
        let before = making.parts();
        for untouched in [
            &["list"][..],
            &["destroy", "--strays"],
            &["destroy", "--all"],
            &["disk", "sweep"],
            &["disk", "sweep", &place],
        ] {
            let ran = home.brood(untouched);
            let now: Vec<i32> = home.guests().iter().map(|guest| guest.pid).collect();
            assert_eq!(now, [pid], "{untouched:?}: {ran:?}");
            assert_eq!(making.parts(), before, "{untouched:?}: {ran:?}");
        }
        assert_eq!(home.json(&["list", "--strays"]), serde_json::json!([]));
        signal(make.pid(), Signal::SIGKILL);
        let _ = make.wait();
        let _ = home.brood(look);
        making.nothing_is_left(&format!("{look:?}"));
    }
}

fn making(victim: Victim) {
    let Some(making) = Making::new() else { return };
    let home = &making.home;
    let (ran, steps, _) = command_killed_at(home, &making.command(&[]), victim, u64::MAX);
    let _ = ran.ok();
    assert!(making.is_whole());
    making.nothing_is_left("undisturbed");
    let most = match victim {
        // It hardly lasts.
        Victim::Manager => TRIED,
        Victim::Qemu => TRIED_OF_POOL,
    };
    for nth in tried(steps, most) {
        let (ran, _, hit) = command_killed_at(home, &making.command(&[]), victim, nth);
        let told = format!("step {nth} of {steps}: {ran:?}");
        match victim {
            Victim::Manager => {
                let _ = home.list();
            }
            Victim::Qemu if hit => {
                assert_eq!(making.is_whole(), ran.code() == Some(0), "{told}");
            }
            Victim::Qemu => assert!(making.is_whole(), "{told}"),
        }
        making.nothing_is_left(&told);
    }
    let _ = Running::start(making.command(&[])).wait().ok();
    let made = making.to.clone();
    home.restore(&made, 1, "after");
    assert_eq!(said(&home.agent("after-1"), "echo there"), "there");
}

#[test]
fn the_manager_is_killed_at_its_steps_of_a_boot() {
    making(Victim::Manager);
}
