//! Configuration, as commands use it.

use std::{fs, path::Path};

use brood_tests::{Daemon, Demo, Home, Running, array, keys, text, until, whole};
use nix::sys::signal::Signal;
use reqwest::Method;

/// Writes a configuration file; returns its path.
fn file(home: &Home, content: &str) -> String {
    let path = home.path().join("brood.toml");
    fs::write(&path, content).unwrap();
    path.to_str().expect("plain letters").to_owned()
}

/// What `brood config check` says of a setting: its value, and where it comes from.
fn setting(home: &Home, file: &str, key: &str) -> (String, String) {
    let checked = home.json(&["config", "check", file]);
    let found = array(&checked["settings"]).iter().find(|s| s["key"] == key);
    let found = found.expect(key);
    (
        text(&found["value"]).to_owned(),
        text(&found["source"]["kind"]).to_owned(),
    )
}

#[test]
fn the_example_is_a_configuration() {
    let home = Home::bare();
    let example = home.brood(&["config", "example"]).ok().stdout;
    let file = file(&home, &example);
    let checked = home.json(&["config", "check", &file]);
    assert_eq!(keys(&checked), ["file", "pools", "settings"]);
    assert_eq!(checked["file"], file.as_str());
    assert_eq!(
        setting(&home, &file, "restore.private_limit"),
        ("1 MiB".into(), "file".into())
    );
    assert_eq!(setting(&home, &file, "state.dir").1, "environment");
    assert!(!home.state().exists(), "a check makes no state folder");
}

#[test]
fn a_check_says_what_is_used_and_why() {
    let home = Home::bare();
    let file = file(
        &home,
        "[restore]\nconcurrency = 3\n[[pool]]\nname = 'web'\ncheckpoint = '/ckp/demo'\nhot = 5\n",
    );
    let mut command = home.command(&["config", "check", "--config", &file]);
    command.env("BROOD_RESTORE_PARK_AFTER", "60");
    let said = Running::start(command).wait().ok().stdout;
    for line in [
        &format!("restore.concurrency 3 {file}:2") as &str,
        "restore.park_after 60 BROOD_RESTORE_PARK_AFTER in the environment",
        "serve.socket_mode 0600 default",
        "web 5 - - - - - 300 s 1 MiB /ckp/demo",
    ] {
        let words = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert!(
            said.lines().any(|l| words(l) == words(line)),
            "{line}: {said}"
        );
    }
}

#[test]
fn every_command_refuses_a_configuration_that_makes_no_sense() {
    let home = Home::bare();
    let file = file(&home, "[restore]\nprivate-limit = '1M'\n");
    for command in [
        &["config", "check"][..],
        &["list"],
        &["doctor"],
        &["pool", "list"],
    ] {
        let ran = home.brood(&[command, &["--config", &file]].concat());
        let _ = ran
            .exits(1)
            .says(&["line 2, column 1", "private-limit", "hint"]);
    }
    assert!(!home.state().exists(), "refused before anything was done");
    let _ = home.brood(&["list", "--config", "none.toml"]).exits(1);
    // What says how to write one does not need one.
    let _ = home.brood(&["config", "example", "--config", &file]).ok();
    let _ = home.brood(&["completions", "bash", "--config", &file]).ok();
}

#[test]
fn the_state_folder_is_the_one_of_the_flag_the_environment_or_the_file() {
    let home = Home::bare();
    let there = |name: &str| home.path().join(name).join("brood.sqlite").exists();
    let dir = home.path().join("in-file");
    let file = file(&home, &format!("[state]\ndir = {dir:?}\n"));
    let list = |environment: Option<&str>, args: &[&str]| {
        let mut command = home.command(&[&["list", "--config", &file], args].concat());
        match environment {
            Some(dir) => command.env("BROOD_STATE_DIR", dir),
            None => command.env_remove("BROOD_STATE_DIR"),
        };
        let _ = Running::start(command).wait().ok();
    };
    list(Some("in-environment"), &["--state-dir", "by-flag"]);
    assert!(there("by-flag") && !there("in-environment") && !there("in-file"));
    list(Some("in-environment"), &[]);
    assert!(there("in-environment") && !there("in-file"));
    list(None, &[]);
    assert!(there("in-file"));
    assert!(Path::new(&file).exists());
}

/// Whether a guest's process has no virtual machine.
fn parked(pid: i32) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives");
    let mut links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    !links.any(|link| link.to_string_lossy().contains("kvm-v"))
}

#[test]
fn restores_and_pools_do_as_is_configured() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let content = "[restore]\nconcurrency = 1\npark_after = 0\nprivate_limit = '900T'\n";
    let file = file(&home, content);
    let restore = |prefix: &str, more: &[&str]| {
        let args = ["restore", &demo.path, "-n", "1", "--prefix", prefix];
        let args = [&args[..], &["--config", &file], more].concat();
        let _ = home.brood(&args).ok();
    };
    restore("configured", &[]);
    restore("told", &["--park-after", "never"]);
    let pid = home.pid("configured-1");
    until("the guest to park", || parked(pid).then_some(()));
    assert!(!parked(home.pid("told-1")), "the flag comes first");

    let create = ["pool", "create", "web", &demo.path, "--hot", "1", "--empty"];
    let _ = home
        .brood(&[&create[..], &["--config", &file]].concat())
        .ok();
    let pool = home.json(&["pool", "show", "web"]);
    assert_eq!(pool["private_limit"], 900_u64 << 40);
}

#[test]
fn pools_become_what_the_configuration_has() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let other = home.demo("other", "4M");
    let pool = |name: &str, from: &Demo, hot: u32| {
        format!(
            "[[pool]]\nname = '{name}'\ncheckpoint = '{}'\nhot = {hot}\n",
            from.path
        )
    };
    let apply = |pools: &[String], code: i32| {
        let file = file(&home, &pools.concat());
        home.brood(&["pool", "apply", "--config", &file])
            .exits(code)
    };
    let hot = |name: &str| {
        let shown = home.json(&["pool", "show", name]);
        assert_eq!(shown["hot"], array(&shown["hot_guests"]).len());
        whole(&shown["hot"])
    };
    assert_eq!(apply(&[], 0).stdout, "no pools in the configuration\n");
    let _ = apply(&[pool("a", &demo, 2), pool("b", &other, 1)], 0);
    assert_eq!((hot("a"), hot("b")), (2, 1));
    let ids = |name: &str| home.json(&["pool", "show", name])["hot_guests"].clone();
    let before = ids("b");

    // One that changed is changed, one that did not keeps its guests, and one that went stays.
    let _ = apply(&[pool("a", &demo, 1), pool("b", &other, 1)], 0);
    assert_eq!((hot("a"), hot("b"), ids("b")), (1, 1, before.clone()));
    let lease = format!("{}lease = 7\nmax = 9\n", pool("a", &demo, 1));
    let _ = apply(&[lease], 0);
    let shown = home.json(&["pool", "show", "a"]);
    assert_eq!((whole(&shown["lease_s"]), whole(&shown["max"])), (7, 9));
    assert_eq!(ids("b"), before);

    // The daemon reports what it cannot change, and applies the rest.
    let mixed = [pool("b", &demo, 5), pool("c", &demo, 1)];
    let _ = apply(&mixed, 3).says(&["checkpoint", "pool b", "hint"]);
    assert_eq!((ids("b"), hot("c")), (before, 1));
    let _ = apply(&mixed[..1], 1);
    // A limit that is not there any more is taken away.
    let _ = apply(&[pool("a", &demo, 1)], 0);
    assert!(home.json(&["pool", "show", "a"])["max"].is_null());
    for name in ["a", "b", "c"] {
        let _ = home.brood(&["pool", "remove", name]).ok();
    }
}

#[test]
fn a_daemon_reads_it_again_at_sighup() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let path = home.path().join("brood.toml");
    let write = |text: &str| fs::write(&path, text).unwrap();
    let pool = |hot: u32| {
        format!(
            "[[pool]]\nname = 'a'\ncheckpoint = '{}'\nhot = {hot}\n",
            demo.path
        )
    };
    write("");
    let file = path.to_str().expect("plain letters");
    let daemon = Daemon::with_environment(&home, &[("BROOD_CONFIG", file)]);
    let told = |words: &str| {
        until(words, || daemon.log().contains(words).then_some(()));
    };
    write(&pool(2));
    daemon.signal(Signal::SIGHUP);
    until("the pool to be made and filled", || {
        let pools = daemon.get("/api/v1/pools");
        (pools[0]["entries"]["hot"] == 2).then_some(())
    });
    write(&format!(
        "[serve]\nlog_level = 'debug'\nsocket_mode = '0660'\n{}",
        pool(1)
    ));
    daemon.signal(Signal::SIGHUP);
    until("the pool to be changed", || {
        (daemon.get("/api/v1/pools/a")["entries"]["hot"] == 1).then_some(())
    });
    told("start the daemon again for serve.socket_mode");

    // An error is reported, and changes nothing.
    write(&pool(1).replace("hot", "hott"));
    daemon.signal(Signal::SIGHUP);
    told("the configuration is not used");
    told("hott");
    assert_eq!(daemon.get("/api/v1/pools/a")["hot"], 1);
    // Pools that are not named stay.
    write("");
    daemon.signal(Signal::SIGHUP);
    until("it to be read again", || {
        let reads = daemon.log().matches("configuration reloaded").count();
        (reads == 3).then_some(())
    });
    assert_eq!(daemon.get("/api/v1/pools/a")["entries"]["hot"], 1);
    let _ = daemon.send(Method::DELETE, "/api/v1/pools/a", 204);
    daemon.signal(Signal::SIGTERM);
    let _ = daemon.wait().ok();
}
