//! Visits of fault points: which ones a command makes, and each of them made to fail.

use std::{fs, path::PathBuf};

use brood_core::faults::{FAULT_VARIABLE, Fault, Point, VISITS_VARIABLE};
use brood_tests::{Home, Ran, Running};
use nix::sys::signal::Signal;

/// A command and what it needs.
pub(crate) trait Scene {
    fn home(&self) -> &Home;

    /// Makes what the command needs; returns its words.
    fn prepare(&mut self) -> Vec<String>;

    /// Checks what the command has left, whether it was disturbed or not, and tidies up for the
    /// next one.
    fn check(&mut self, ran: &Ran, told: &str);
}

/// Points that a command visits in the order of the first visit, and how often.
pub(crate) fn visits_of(scene: &mut dyn Scene) -> Vec<(Point, u64)> {
    let words = scene.prepare();
    let file = scene.home().path().join("visits");
    let mut command = scene.home().command(&strs(&words));
    command.env(VISITS_VARIABLE, &file);
    let ran = Running::start(command).wait();
    let text = fs::read_to_string(&file).unwrap_or_default();
    fs::remove_file(&file).expect("some points are visited");
    // A rebuilt record may lack something.
    assert!(matches!(ran.code(), Some(0 | 3)), "{ran:?}");
    scene.check(&ran, "undisturbed");
    let mut visits: Vec<(Point, u64)> = Vec::new();
    for name in text.lines() {
        let point = Point::ALL.iter().find(|point| point.name() == name);
        let point = *point.expect("a point's name");
        match visits.iter_mut().find(|(known, _)| *known == point) {
            Some((_, count)) => *count += 1,
            None => visits.push((point, 1)),
        }
    }
    visits
}

/// Runs the scene's command once for each fault of each visit.
pub(crate) fn each_fault(scene: Option<impl Scene>) {
    let Some(mut scene) = scene else { return };
    let visits = visits_of(&mut scene);
    let all = std::env::var_os("BROOD_ALL_FAULTS").is_some_and(|value| value == "1");
    let mut tried = 0;
    for &(point, count) in &visits {
        for nth in 1..=count {
            let is_end = nth == 1 || nth == count;
            for fault in Fault::ALL {
                let is_chosen = match fault {
                    // One delay of a point is enough to see whom it holds up.
                    Fault::Delay => nth == 1 && (all || is_waited_for(point)),
                    _ if all => true,
                    Fault::Kill | Fault::Error => is_end,
                    // Some changes can wait until there is room: those after them see no error.
                    Fault::Enospc => nth == count || point == Point::RecordChange,
                    // As for the error, except what it says.
                    Fault::Short => nth == count,
                };
                if point.takes(fault) && is_chosen {
                    disturbed(&mut scene, point, nth, fault);
                    tried += 1;
                }
            }
        }
    }
    println!("{tried} faults at {} points", visits.len());
    assert!(tried > visits.len(), "{visits:?}");
}

/// Whether other commands may have to wait for what is done there.
fn is_waited_for(point: Point) -> bool {
    [
        Point::RecordChange,
        Point::RecordSync,
        Point::BundleSync,
        Point::SuspendWrite,
        Point::RestoreOrder,
        Point::FlattenCopy,
    ]
    .contains(&point)
}

fn disturbed(scene: &mut dyn Scene, point: Point, nth: u64, fault: Fault) {
    let words = scene.prepare();
    let plan = format!("{}:{nth}={}", point.name(), fault.name());
    println!("{plan}");
    let mut command = scene.home().command(&strs(&words));
    command.env(FAULT_VARIABLE, &plan);
    let running = Running::start(command);
    if fault == Fault::Delay {
        // Who only looks does not wait for it.
        let _ = scene.home().brood(&["list"]);
    }
    let ran = running.wait();
    let told = format!("{plan}: {ran:?}");
    match fault {
        // Only the visits of one run are known: another may have fewer.
        Fault::Kill if ran.code().is_none() => {
            assert_eq!(ran.killed_by(), Some(Signal::SIGKILL as i32), "{told}");
        }
        Fault::Delay => assert!(matches!(ran.code(), Some(0 | 3)), "{told}"),
        Fault::Kill | Fault::Error | Fault::Enospc | Fault::Short => {
            let code = ran.code();
            assert!(matches!(code, Some(0 | 1 | 3)), "{told}");
            let says_why = ran.stderr.contains("error") || ran.stdout.contains("cannot");
            assert!(code == Some(0) || says_why, "{told}");
        }
    }
    for fault in ["panicked", "internal error"] {
        assert!(!ran.stderr.contains(fault), "{told}");
    }
    scene.check(&ran, &told);
}

/// Files beside checkpoints that belong to no sealed bundle.
pub(crate) fn unsealed(home: &Home) -> Vec<PathBuf> {
    let entries = fs::read_dir(home.checkpoints()).expect("the folder is there");
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    let names = files.clone();
    files.retain(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let Some((bundle, _)) = name.split_once(".ckp") else {
            return true;
        };
        name.starts_with('.')
            || !names.contains(&home.checkpoints().join(format!("{bundle}.ckp.brood")))
    });
    files
}

/// What a killed command has left of a bundle is gone with the next look at guests.
pub(crate) fn no_drafts(home: &Home, told: &str) {
    let _ = home.list();
    if told.contains("=kill") {
        assert_eq!(drafts(home), Vec::<PathBuf>::new(), "{told}");
    }
}

/// Files with temporary names beside checkpoints.
fn drafts(home: &Home) -> Vec<PathBuf> {
    let mut files = unsealed(home);
    files.retain(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with('.')
    });
    files
}

pub(crate) fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

pub(crate) fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
