//! Several engines at once: one state folder holds guests of KVM and of QEMU, and the checkpoint
//! decides which engine restores it.

use std::{fs, path::Path, process::Command};

use brood_tests::{Daemon, Demo, Home, Ran, Running, brood, text, without_kvm};
use serde_json::Value;

/// A home with a checkpoint of each engine; `None` where one of them is missing.
fn home() -> Option<(Home, Demo, Demo)> {
    if without_kvm() {
        return None;
    }
    let (home, linux) = Home::with_qemu()?;
    let demo = home.demo("demo", "4M");
    Some((home, demo, linux))
}

/// Each guest and its engine, as they are listed.
fn engines(home: &Home) -> Vec<(String, String)> {
    let mut listed = home.list();
    listed.sort_by_key(|guest| text(&guest["name"]).to_owned());
    let pair = |guest: &Value| {
        let word = |key: &str| text(&guest[key]).to_owned();
        (word("name"), word("engine"))
    };
    listed.iter().map(pair).collect()
}

fn named(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
    pairs.iter().map(owned).collect()
}

/// Says hello to a Linux guest.
#[track_caller]
fn hello(home: &Home, guest: &str) {
    let asked = home.brood(&["ask", guest, "--", "exec", "echo", "hello"]);
    assert_eq!(asked.ok().stdout.trim(), "hello");
}

const BOTH: [(&str, &str); 2] = [("k-1", "kvm"), ("q-1", "qemu")];

#[test]
fn one_state_folder_holds_guests_of_kvm_and_of_qemu() {
    let Some((home, demo, linux)) = home() else {
        return;
    };
    home.restore(&demo, 1, "k");
    home.restore(&linux, 1, "q");
    assert_eq!(engines(&home), named(&BOTH));
    assert_eq!(home.ask("k-1", "ping")["name"], Value::Null);
    hello(&home, "q-1");
    let shown = home.json(&["show", "q-1"]);
    assert_eq!(shown["engine"], "qemu");
    let accelerator = text(&shown["accelerator"]);
    assert!(["kvm", "tcg"].contains(&accelerator), "{shown}");
    let listed = &home.list()[1];
    assert_eq!(listed["accelerator"], shown["accelerator"], "{listed}");
    assert!(home.list()[0].get("accelerator").is_none());
    let page = home.brood(&["show", "q-1"]).ok().stdout;
    assert!(page.contains(&format!("qemu ({accelerator})")), "{page}");

    // Each is stopped, continued and suspended in its engine's way.
    let _ = home.brood(&["pause", "k-1", "q-1"]).ok();
    assert_eq!(home.names("paused"), ["k-1", "q-1"]);
    let _ = home.brood(&["resume", "k-1", "q-1"]).ok();
    assert_eq!(home.names("running"), ["k-1", "q-1"]);
    for (guest, to) in [("k-1", "k"), ("q-1", "q")] {
        let to = home.named(to);
        let _ = home.brood(&["suspend", guest, &to.path, "--delta"]).ok();
        home.restore(&to, 1, to.path.rsplit('/').next().unwrap());
    }
    assert_eq!(engines(&home), named(&BOTH));
    hello(&home, "q-1");
}

#[test]
fn guests_of_both_are_found_again_when_the_database_is_lost() {
    let Some((home, demo, linux)) = home() else {
        return;
    };
    home.restore(&demo, 1, "k");
    home.restore(&linux, 1, "q");
    for file in ["brood.sqlite", "brood.sqlite-wal", "brood.sqlite-shm"] {
        let _ = fs::remove_file(home.state().join(file));
    }
    assert_eq!(engines(&home), named(&BOTH));
    let shown = home.json(&["show", "q-1"]);
    assert!(shown["accelerator"].is_string(), "{shown}");
    let _ = home.brood(&["pause", "k-1", "q-1"]).ok();
    let _ = home.brood(&["destroy", "k-1", "q-1"]).ok();
}

#[test]
fn a_daemon_restores_what_each_checkpoint_says() {
    let Some((home, demo, linux)) = home() else {
        return;
    };
    let daemon = Daemon::start(&home);
    home.restore(&demo, 1, "k");
    home.restore(&linux, 1, "q");
    assert_eq!(engines(&home), named(&BOTH));
    let answer = daemon.get("/api/v1/daemon");
    assert_eq!(answer["engines"], serde_json::json!(["kvm", "qemu"]));
    // A command for one engine alone is not the daemon's.
    let ran = home.brood(&[
        "restore",
        &linux.path,
        "-n",
        "1",
        "--engine",
        "kvm",
        "--verbose",
    ]);
    ran.exits(1)
        .says(&["without the daemon", "it was made by qemu"]);
}

#[test]
fn an_engine_that_is_named_restores_alone_and_hides_nobodys_guests() {
    let Some((home, demo, linux)) = home() else {
        return;
    };
    home.restore(&linux, 1, "q");
    let restore = |from: &Demo, engine: &str| {
        let mut command = home.command(&["restore", &from.path, "-n", "1", "--prefix", "k"]);
        command.env("BROOD_ENGINE", engine);
        Running::start(command).wait()
    };
    restore(&linux, "kvm")
        .exits(1)
        .says(&["it was made by qemu", "--engine qemu"]);
    restore(&demo, "qemu")
        .exits(1)
        .says(&["it was made by kvm", "--engine kvm"]);
    restore(&demo, "xen").exits(1).says(&["no such engine"]);
    let _ = restore(&demo, "kvm").ok();
    assert_eq!(engines(&home), named(&BOTH));
    let config = home.path().join("brood.toml");
    fs::write(&config, "engine = \"kvm\"\n[qemu]\naccel = \"tcg\"\n").unwrap();
    let config = config.to_str().unwrap();
    home.brood(&["--config", config, "restore", &linux.path, "-n", "1"])
        .exits(1)
        .says(&["it was made by qemu"]);
    let set = home
        .brood(&["--config", config, "config", "check"])
        .ok()
        .stdout;
    assert!(set.contains("qemu.accel"), "{set}");
    let ask = [
        "--engine", "kvm", "ask", "q-1", "--", "exec", "echo", "hello",
    ];
    assert_eq!(home.brood(&ask).ok().stdout.trim(), "hello");
    let _ = home.brood(&["--engine", "kvm", "destroy", "q-1"]).ok();
    let left: Vec<_> = fs::read_dir(home.run_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().ends_with(".qemu"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A command of a host that lacks an engine: no QEMU in its path, or no KVM device.
fn lacking(home: &Home, engine: &str, words: &[&str]) -> Ran {
    let command = home.command(words);
    let mut lacking = match engine {
        "qemu" => {
            let mut command = Command::new(brood());
            command.args(words).env("PATH", "/nonexistent");
            command
        }
        _ => {
            let mut unshare = Command::new("unshare");
            let hide = "mount --bind /dev/null /dev/kvm && exec \"$@\"";
            unshare.args(["--mount", "sh", "-c", hide, "sh"]);
            unshare.arg(brood()).args(words);
            unshare
        }
    };
    let set = command
        .get_envs()
        .filter_map(|(key, value)| Some((key, value?)));
    lacking.envs(set).current_dir(home.path());
    Running::start(lacking).wait()
}

#[test]
fn an_engine_that_is_missing_is_no_obstacle_for_the_other() {
    let Some((home, demo, linux)) = home() else {
        return;
    };
    let restore = |path: &str, prefix: &str| {
        ["restore", path, "-n", "1", "--prefix", prefix].map(str::to_owned)
    };
    let run = |lack: &str, words: [String; 6]| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        lacking(&home, lack, &words)
    };
    let _ = run("qemu", restore(&demo.path, "k")).ok();
    run("qemu", restore(&linux.path, "q"))
        .exits(1)
        .says(&["qemu-system-x86_64"]);
    let doctor = lacking(&home, "qemu", &["doctor"]);
    assert_eq!(doctor.code(), Some(0), "{doctor:?}");
    assert!(doctor.stdout.contains("qemu-system-x86_64"), "{doctor:?}");
    let both = home.brood(&["doctor"]).ok().stdout;
    assert!(
        both.contains("/dev/kvm") && both.contains("QEMU accelerator"),
        "{both}"
    );
    // Only root may hide a device from a process; and a guest that has run with KVM needs it.
    let manifest = fs::read_to_string(format!("{}.ckp.brood", linux.path)).unwrap();
    let translates = manifest.contains("\"tcg\"");
    if nix::unistd::geteuid().is_root() && Path::new("/usr/bin/unshare").exists() && translates {
        let _ = run("kvm", restore(&linux.path, "q")).ok();
        run("kvm", restore(&demo.path, "x")).exits(1).says(&["KVM"]);
        assert_eq!(
            lacking(&home, "kvm", &["doctor", "--guests", "9"]).code(),
            Some(0)
        );
        assert_eq!(engines(&home), named(&BOTH));
    }
}
