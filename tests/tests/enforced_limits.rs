//! Enforced private limits: the kernel ends a guest that comes to hold more than it was promised,
//! and no other; nothing of its control group stays.

use std::{
    fs,
    path::{Path, PathBuf},
};

use brood_tests::{Daemon, EngineKind, Home, Lab, Ran, pool_home, signal, skip, text, until};
use nix::sys::signal::Signal;
use serde_json::json;

/// A home whose host lets brood make control groups for memory.
fn home_with_groups() -> Option<Home> {
    let home = Home::with_kvm()?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let made = groups.lines().any(|line| {
        let (start, group) = line.rsplit_once(':').unwrap();
        let group = group.trim_start_matches('/');
        let parent = if start.ends_with(":memory") {
            Path::new("/sys/fs/cgroup/memory").join(group)
        } else if start == "0:" {
            let own = Path::new("/sys/fs/cgroup").join(group);
            own.parent().map_or(own.clone(), Path::to_owned)
        } else {
            return false;
        };
        let probe = parent.join(format!("brood-tests-{}", std::process::id()));
        let has_memory = parent.join("memory.limit_in_bytes").exists()
            || fs::read_to_string(parent.join("cgroup.controllers"))
                .is_ok_and(|names| names.split_whitespace().any(|name| name == "memory"));
        has_memory && fs::create_dir(&probe).is_ok() && fs::remove_dir(&probe).is_ok()
    });
    if !made {
        skip("no control group for memory can be made");
    }
    made.then_some(home)
}

/// The control groups that guests of this home were given.
fn groups(home: &Home) -> Vec<PathBuf> {
    let entries = fs::read_dir(home.run_dir()).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "group"))
        .map(|link| fs::read_link(link).unwrap())
        .collect()
}

fn pids_in(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap();
    text.lines().map(|pid| pid.parse().unwrap()).collect()
}

/// Has a guest write far more than a limit of 1 MiB allows.
fn overstep(home: &Home, guest: &str) -> Ran {
    home.brood(&["ask", guest, "dirty", "700"])
}

/// Waits until a guest is listed as dead; returns the reason.
fn reason(home: &Home, guest: &str) -> String {
    until("the guest's end to be listed", || {
        let shown = home.json(&["show", guest]);
        (shown["state"] == "dead").then(|| text(&shown["reason"]).to_owned())
    })
}

const ENFORCED: [&str; 3] = ["--private-limit", "1M", "--enforce-private-limit"];

#[test]
fn a_guest_that_oversteps_ends_and_its_siblings_do_not() {
    let Some(home) = home_with_groups() else {
        return;
    };
    let demo = home.demo("demo", "64M");
    let restore = ["restore", &demo.path, "-n", "3", "--prefix", "g"];
    let _ = home.brood(&[&restore[..], &ENFORCED].concat()).ok();
    let there = groups(&home);
    assert_eq!(there.len(), 3);
    let mut inside: Vec<i32> = there.iter().flat_map(|group| pids_in(group)).collect();
    let mut guests: Vec<i32> = ["g-1", "g-2", "g-3"].map(|name| home.pid(name)).into();
    inside.sort_unstable();
    guests.sort_unstable();
    assert_eq!(
        inside, guests,
        "each guest's process is in a group of its own"
    );

    // What it was promised it may have.
    let _ = home.ask("g-1", "dirty 200");
    let _ = overstep(&home, "g-1")
        .exits(1)
        .says(&["its control group allows", "its private limit"]);
    assert!(reason(&home, "g-1").contains("its control group allows"));
    assert_eq!(home.names("running"), ["g-2", "g-3"]);
    let _ = home.ask("g-2", "ping");
    let shown = home.json(&["show", "g-2"]);
    assert_eq!(
        (&shown["private_limit"], &shown["private_limit_enforced"]),
        (&json!(1 << 20), &json!(true))
    );

    // Without the option nothing ends it, and that is said.
    let _ = home
        .brood(&["restore", &demo.path, "-n", "1", "--prefix", "free"])
        .ok();
    let _ = overstep(&home, "free-1").ok();
    let shown = home.brood(&["show", "free-1"]).ok();
    assert!(shown.stdout.contains("not enforced"), "{}", shown.stdout);

    home.destroy_all();
    assert_eq!(fs::read_dir(home.run_dir()).unwrap().count(), 0);
    for group in there {
        assert!(!group.exists(), "{} is left", group.display());
    }
}

#[test]
fn a_killed_nursery_and_its_killed_guests_leave_no_groups() {
    let Some(home) = home_with_groups() else {
        return;
    };
    let demo = home.demo("demo", "64M");
    let restore = ["restore", &demo.path, "-n", "2", "--prefix", "g"];
    let _ = home.brood(&[&restore[..], &ENFORCED].concat()).ok();
    let there = groups(&home);
    for nursery in home.nurseries() {
        signal(nursery.pid, Signal::SIGKILL);
    }
    until("the nursery's end", || {
        home.nurseries().is_empty().then_some(())
    });
    // Nobody records this end: the group itself tells the reason.
    let _ = overstep(&home, "g-1").exits(1);
    assert!(reason(&home, "g-1").contains("its control group allows"));
    signal(home.pid("g-2"), Signal::SIGKILL);
    let why = reason(&home, "g-2");
    assert!(!why.contains("control group"), "{why}");
    home.destroy_all();
    assert_eq!(there.len(), 2);
    assert!(there.iter().all(|group| !group.exists()));
}

#[test]
fn a_stray_of_a_lost_state_folder_takes_its_group_along() {
    let Some(home) = home_with_groups() else {
        return;
    };
    let demo = home.demo("demo", "64M");
    let restore = ["restore", &demo.path, "-n", "1", "--prefix", "g"];
    let _ = home.brood(&[&restore[..], &ENFORCED].concat()).ok();
    let there = groups(&home);
    fs::remove_dir_all(home.state()).unwrap();
    let _ = home.brood(&["destroy", "--strays"]).ok();
    home.nobody_is_left();
    assert_eq!(there.len(), 1);
    assert!(!there[0].exists(), "{} is left", there[0].display());
}

#[test]
fn guests_of_a_pool_have_the_limit_in_each_life() {
    if home_with_groups().is_none() {
        return;
    }
    let Some((home, _)) = pool_home(EngineKind::Kvm, 1, &["--enforce-private-limit"]) else {
        return;
    };
    assert_eq!(home.show_pool()["enforce_private_limit"], true);
    // A hot entry, then one that is restored for the claim, then one that was suspended.
    for _ in 0..2 {
        let claimed = home.claim();
        let _ = overstep(&home, text(&claimed["guest"])).exits(1);
        assert!(reason(&home, text(&claimed["guest"])).contains("its control group allows"));
        home.release(&claimed);
    }
    let claimed = home.claim();
    let token = text(&claimed["token"]).to_owned();
    let _ = home.json(&["pool", "suspend", &token]);
    assert!(groups(&home).is_empty());
    let resumed = home.json(&["pool", "resume", &token]);
    assert_eq!(groups(&home).len(), 1);
    let _ = overstep(&home, text(&resumed["guest"])).exits(1);
    let again = home.json(&["pool", "resume", &token]);
    let _ = home.ask(text(&again["guest"]), "ping");
    let _ = home.brood(&["pool", "release", &token]).ok();
    let _ = home.brood(&["pool", "remove", "p"]).ok();
    assert_eq!(fs::read_dir(home.run_dir()).unwrap().count(), 0);
}

#[test]
fn the_daemon_enforces_what_a_client_or_the_configuration_wants() {
    let Some(home) = home_with_groups() else {
        return;
    };
    let _demo = home.demo("demo", "64M");
    let daemon = Daemon::start(&home);
    let body = json!({
        "checkpoint": "demo", "guests": 1, "prefix": "api", "private_limit": 1 << 20,
        "enforce_private_limit": true,
    });
    let _ = daemon.post("/api/v1/guests", &body, 201);
    assert_eq!(groups(&home).len(), 1);
    let _ = daemon.ask("api-1", &["dirty", "700"], 409);
    assert!(reason(&home, "api-1").contains("its control group allows"));

    let mut command = home.command(&["restore", "-n", "1", "--prefix", "set"]);
    command
        .arg(home.checkpoints().join("demo"))
        .env("BROOD_RESTORE_ENFORCE_PRIVATE_LIMIT", "true");
    let _ = brood_tests::Running::start(command).wait().ok();
    assert_eq!(
        home.json(&["show", "set-1"])["private_limit_enforced"],
        true
    );
    // Its warm nurseries go with it.
    drop(daemon);
    home.destroy_all();
}

#[test]
fn bhyve_refuses_before_anything_is_begun() {
    let (lab, checkpoint) = Lab::with_checkpoint();
    let checkpoint = checkpoint.to_string();
    let _ = lab
        .brood(&["restore", &checkpoint, "-n", "1", "--enforce-private-limit"])
        .exits(1)
        .says(&[
            "cannot enforce private limits",
            "leave out --enforce-private-limit",
        ]);
    let _ = lab
        .brood(&[
            "pool",
            "create",
            "p",
            &checkpoint,
            "--hot",
            "1",
            "--enforce-private-limit",
        ])
        .exits(1)
        .says(&["cannot enforce private limits"]);
    lab.nothing_is_left();
}
