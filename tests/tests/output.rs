//! Output that cannot be written: standard output on a full disk, standard error that nobody reads.

use std::{fs::File, process::Stdio};

use brood_tests::{Home, text, whole};

fn full() -> Stdio {
    let full = File::options().write(true).open("/dev/full");
    full.expect("/dev/full").into()
}

#[test]
fn every_command_that_prints_fails_when_standard_output_is_full() {
    let home = Home::bare();
    for args in [
        &["--help"][..],
        &["--version"],
        &["restore", "--help"],
        &["completions", "bash"],
        &["config", "example"],
        &["list"],
        &["list", "--json"],
        &["pool", "list"],
        &["disk", "leftovers"],
        &["state", "check"],
        &["checkpoint", "list", "ckp"],
    ] {
        let output = home
            .command(args)
            .stdout(full())
            .output()
            .expect("brood runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        let why = "cannot write to standard output: No space left on device";
        assert!(said.contains(why), "{args:?}: {said}");
    }
}

#[test]
fn a_claim_whose_token_is_lost_is_given_back() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M").path;
    home.brood(&["pool", "create", "p", &demo, "--hot", "2"])
        .ok();
    let output = home
        .command(&["pool", "claim", "p"])
        .stdout(full())
        .output()
        .expect("brood runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the claim was given back"), "{said}");
    let pool = home.json(&["pool", "show", "p"]);
    assert_eq!(whole(&pool["entries"]["claimed"]), 0, "{pool}");
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let home = Home::bare();
    let mut list = home
        .command(&["config", "example"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("brood runs");
    drop(list.stdout.take());
    assert!(list.wait().expect("it ends").success());
}

#[test]
fn warnings_that_nobody_can_read_change_nothing() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M").path;
    // More than this host has: a warning comes before the first guest.
    let args = [
        "restore",
        &demo,
        "-n",
        "2",
        "--prefix",
        "g",
        "--overcommit",
        "--private-limit",
    ];
    let output = home
        .command(&[&args[..], &["1T", "--json"]].concat())
        .stderr(full())
        .output()
        .expect("brood runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let states = home.json(&["list"]);
    let states: Vec<&str> = brood_tests::array(&states)
        .iter()
        .map(|guest| text(&guest["state"]))
        .collect();
    assert_eq!(states, ["running", "running"]);
}
