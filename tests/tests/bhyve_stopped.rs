//! Stopped guests on the bhyve engine: they outlive the command that restored them, and run on with
//! or without an agent.

use std::{fs, process::Command};

use brood_tests::{Daemon, EngineKind, Home, Lab, Ran, Running, array, until, whole};
use nix::sys::signal::Signal;

/// A command line for `sh -c` that ends before its children do.
fn by_a_shell(lab: &Lab, script: &str) -> Ran {
    let brood = lab.command(&[]);
    let mut shell = Command::new("setsid");
    shell
        .args(["--wait", "sh", "-c", script, "sh"])
        .arg(brood.get_program())
        .current_dir(lab.home.path());
    for (name, value) in brood.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    Running::start(shell).wait().ok()
}

#[test]
fn guests_restored_paused_outlive_the_command_and_its_shell() {
    let (lab, web) = Lab::with_checkpoint();
    // The shell is a session's leader, as a login shell is, and ends with the command.
    let script = format!(r#""$1" restore {web} --guests 3 --prefix q --paused && exit 0"#);
    let _ = by_a_shell(&lab, &script);
    let listed = lab.list();
    assert_eq!(listed.len(), 3);
    for guest in &listed {
        assert_eq!(guest["state"], "paused", "{guest}");
        let pid = guest["pid"].as_i64().unwrap();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
        assert_eq!(fields[3], pid.to_string(), "it leads a session: {stat}");
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.contains("core file size"));
        let words: Vec<&str> = core.unwrap().split_whitespace().collect();
        assert_eq!(words[4..6], ["0", "0"], "no core files: {limits}");
    }
    let _ = lab.brood(&["resume", "q-1", "q-2", "q-3"]).ok();
    let _ = lab.ask("q-3", "ping");
    lab.destroy_all();
}

#[test]
fn a_pool_filled_by_a_daemon_outlives_it() {
    let home = Home::on(EngineKind::Bhyve).unwrap();
    let demo = home.demo("demo", "4M");
    for ending in [Signal::SIGTERM, Signal::SIGKILL] {
        let daemon = Daemon::start(&home);
        let _ = home
            .brood(&["pool", "create", "p", &demo.path, "--hot", "3"])
            .ok();
        until("it to be full", || {
            (home.names("paused").len() == 3).then_some(())
        });
        daemon.signal(ending);
        let _ = daemon.wait();
        assert_eq!(home.names("paused").len(), 3, "after {ending}");
        assert_eq!(home.claim()["tier"], "hot");
        let _ = home.brood(&["pool", "remove", "p", "--force"]).ok();
    }
}

#[test]
fn a_guest_without_an_agent_is_paused_resumed_and_claimed() {
    let lab = Lab::new();
    let raw = lab.home.checkpoints().join("first");
    lab.machine.suspend_to(&raw);
    let conf = lab.home.path().join("web.conf");
    // A card on a bridge needs an agent, so this guest has none.
    let config = lab
        .machine
        .config()
        .replace("pci.0.3.0.bridge=bridge0\n", "");
    fs::write(&conf, config).unwrap();
    let (web, sign) = (lab.bundle("web"), lab.home.path().join("ready"));
    fs::write(&sign, "").unwrap();
    let _ = lab
        .brood(&[
            "checkpoint",
            "import",
            raw.to_str().unwrap(),
            &web.to_string(),
            "--bhyve-config",
            conf.to_str().unwrap(),
            "--ready",
            &format!("command:test -e {}", sign.display()),
        ])
        .ok();
    let _ = lab.restore(&web, 1);
    let _ = lab.brood(&["pause", "g-1"]).ok();
    assert_eq!(lab.list()[0]["state"], "paused");
    let _ = lab.brood(&["resume", "g-1"]).ok();
    assert_eq!(lab.list()[0]["state"], "running");
    let _ = lab
        .brood(&["pool", "create", "p", &web.to_string(), "--hot", "2"])
        .ok();
    let claimed = lab.json(&["pool", "claim", "p"]);
    assert_eq!(
        (&claimed["tier"], &claimed["guest"]),
        (&"hot".into(), &"p-1".into())
    );

    // One that does not show that it is ready is not handed out as if it did.
    fs::remove_file(&sign).unwrap();
    let _ = lab.brood(&["pause", "g-1"]).ok();
    let _ = lab
        .brood(&["resume", "g-1", "--timeout", "0.3"])
        .exits(1)
        .says(&["did not answer within 0.3 s"]);
    lab.destroy_all();
}

#[test]
fn a_slow_guest_takes_its_identity_once_and_hears_the_next_request() {
    let (lab, web) = Lab::with_checkpoint();
    let report = lab.restore(&web, 1);
    let quick = whole(&array(&report["guests"])[0]["counter"]);
    let _ = lab.brood(&["destroy", "--all"]).ok();
    let restored = lab.failing(
        "guest.answer:slow",
        &[
            "restore",
            &web.to_string(),
            "--guests",
            "1",
            "--prefix",
            "g",
        ],
    );
    let _ = restored.wait().ok();
    // It takes three seconds for each answer, and counts them: its identity, perhaps once again,
    // and this one.
    let counted = whole(&lab.ask("g-1", "ping")["counter"]);
    assert!(
        (quick + 1..=quick + 2).contains(&counted),
        "{quick} when it is quick, {counted} when it is slow"
    );
    lab.destroy_all();
}
