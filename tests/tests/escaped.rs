//! Text of guests and names of folders: no terminal acts on them.

use std::{ffi::OsString, fs, os::unix::ffi::OsStringExt, path::PathBuf};

use brood_tests::{Home, Running, acts_on_terminal, text};

/// What terminals act on: a title, colours by C0 and by C1, and a turn of the writing direction.
const HOSTILE: &str = "a\u{1b}]0;x\u{7}\u{9b}31m\u{202e}z";

#[test]
fn names_of_folders_reach_a_terminal_escaped() {
    let Some(home) = Home::with_kvm() else { return };
    let folder = home.path().join(HOSTILE);
    fs::create_dir(&folder).unwrap();
    let made = format!("{}/demo", folder.display());
    let _ = home
        .brood(&["checkpoint", "demo", &made, "--memory", "4M"])
        .ok();
    let missing = format!("{}/none", folder.display());
    let there = folder.display().to_string();
    let _ = home
        .brood(&["restore", &made, "-n", "1", "--prefix", "g"])
        .ok();
    let _ = home
        .brood(&["pool", "create", "p", &made, "--hot", "1"])
        .ok();
    for command in [
        &["list"][..],
        &["show", "g-1"],
        &["pool", "list"],
        &["pool", "show", "p"],
        &["checkpoint", "list", &there],
        &["checkpoint", "inspect", &made],
        &["checkpoint", "inspect", &missing],
        &["checkpoint", "verify", &made],
        &["restore", &missing, "-n", "1"],
        &["doctor", "--checkpoint-dir", &there, "--guests", "1"],
        &["top", "--once"],
        &["disk", "list"],
        &["restore", "--bogus", HOSTILE],
        &[HOSTILE],
        &["list", "--json"],
        &["show", "g-1", "--json"],
        &["checkpoint", "list", &there, "--json"],
    ] {
        let ran = home.brood(command);
        assert!(
            !acts_on_terminal(&ran.stdout),
            "{command:?}: {:?}",
            ran.stdout
        );
        assert!(
            !acts_on_terminal(&ran.stderr),
            "{command:?}: {:?}",
            ran.stderr
        );
    }
    // JSON says the same all the same.
    let shown = home.json(&["show", "g-1"]);
    assert!(text(&shown["checkpoint"]).contains(HOSTILE), "{shown}");
}

#[test]
fn words_of_guests_reach_a_terminal_escaped() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 1, "g");
    let ran = home.brood(&["ask", "g-1", "ping", HOSTILE]).ok();
    assert!(
        !acts_on_terminal(&ran.stdout) && ran.stdout.contains(r"\u{1b}"),
        "{:?}",
        ran.stdout
    );
    let ran = home.brood(&["ask", "--json", "g-1", "ping", HOSTILE]).ok();
    assert!(!acts_on_terminal(&ran.stdout), "{:?}", ran.stdout);
    assert_eq!(ran.json()["text"], HOSTILE);
}

#[test]
fn a_guests_name_begins_with_a_letter_or_digit() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    for prefix in [".", "..", "-", "_", ".hidden", ""] {
        let ran = home.brood(&[
            "restore",
            &demo.path,
            "-n",
            "1",
            &format!("--prefix={prefix}"),
        ]);
        assert!(matches!(ran.code(), Some(1 | 2)), "{prefix}: {ran:?}");
    }
    assert!(home.list().is_empty());
}

#[test]
fn a_state_folder_may_have_any_name() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let state = home
        .path()
        .join(OsString::from_vec(b"st\xff\xfeate".to_vec()));
    let run = |args: &[&str]| {
        let mut command = home.command(args);
        command.env("BROOD_STATE_DIR", &state);
        Running::start(command).wait()
    };
    let _ = run(&["restore", &demo.path, "-n", "1", "--prefix", "g"]).ok();
    let _ = run(&["ask", "g-1", "ping"]).ok();
    let _ = run(&["destroy", "--all"]).ok();
    // No file has got a name of something else.
    let mut names: Vec<PathBuf> = fs::read_dir(home.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    names.retain(|name| *name != state && !name.ends_with("ckp") && !name.ends_with("state"));
    assert_eq!(names, [] as [PathBuf; 0]);
}
