//! An error is not absence: a guest that cannot be looked at is not recorded as dead, its files
//! stay, and the command says why.

use std::fs;

use brood_tests::{Demo, Home, namespaces, signal, text, until};
use nix::sys::signal::Signal;

const GUESTS: usize = 3;

fn scene() -> Option<(Home, Demo)> {
    let home = Home::with_kvm()?;
    let demo = home.demo("demo", "4M");
    home.restore(&demo, GUESTS, "g");
    Some((home, demo))
}

/// Process ids of the guests that are listed.
fn listed(home: &Home) -> Vec<i64> {
    let guests = home.list();
    guests
        .iter()
        .filter_map(|guest| guest["pid"].as_i64())
        .collect()
}

fn lives(pid: i64) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat[stat.rfind(')').unwrap()..].starts_with(") Z"))
}

#[track_caller]
fn all_live(home: &Home) {
    assert_eq!(home.names("running").len(), GUESTS, "{:?}", home.list());
    assert!(listed(home).into_iter().all(lives), "{:?}", home.list());
}

#[test]
fn a_guest_that_proc_does_not_show_is_not_dead() {
    let Some((home, _)) = scene() else { return };
    if !namespaces("-m") {
        return;
    }
    let pid = home.pid("g-2");
    fs::create_dir(home.path().join("empty")).unwrap();
    let hide = format!("mount --bind empty /proc/{pid}");
    for args in [
        &["list"] as &[&str],
        &["ask", "g-2", "ping"],
        &["destroy", "g-2"],
        &["destroy", "--all"],
    ] {
        let ran = home.after(&["unshare", "-m"], &hide, args).exits(1);
        let _ = ran.says(&["cannot look at", "g-2", "/proc does not show it"]);
        all_live(&home);
    }
    // The command reports the others.
    let _ = home
        .after(&["unshare", "-m"], &hide, &["ask", "g-1", "ping"])
        .ok();
}

#[test]
fn without_proc_nothing_is_judged() {
    let Some((home, demo)) = scene() else { return };
    if !namespaces("-m") {
        return;
    }
    fs::create_dir(home.path().join("empty")).unwrap();
    for args in [
        &["list"] as &[&str],
        &["destroy", "--all"],
        &["checkpoint", "remove", &demo.path],
    ] {
        let _ = home
            .after(&["unshare", "-m"], "mount --bind empty /proc", args)
            .exits(1);
        all_live(&home);
    }
    assert!(demo.ckp().exists());
}

#[test]
fn a_command_without_descriptors_loses_no_guest() {
    let Some((home, _)) = scene() else { return };
    let (mut failed, mut listed) = (0, 0);
    for descriptors in 3..24 {
        let limit = format!("ulimit -n {descriptors}");
        let ran = home.after(&["env"], &limit, &["list", "--json"]);
        match ran.code() {
            Some(0) => {
                listed += 1;
                let guests = ran.json();
                let running = guests.as_array().unwrap().iter();
                assert_eq!(running.filter(|g| g["state"] == "running").count(), GUESTS);
            }
            _ => failed += 1,
        }
        all_live(&home);
    }
    assert!(failed > 0 && listed > 0, "{failed} {listed}");
}

#[test]
fn destroyed_means_ended_however_few_descriptors_there_are() {
    let Some((home, demo)) = scene() else { return };
    for descriptors in 8..16 {
        let before = listed(&home);
        assert_eq!(before.len(), GUESTS);
        let limit = format!("ulimit -n {descriptors}");
        let _ = home.after(&["env"], &limit, &["destroy", "--all"]);
        let still = listed(&home);
        for pid in before {
            assert!(
                !lives(pid) || still.contains(&pid),
                "{descriptors}: {pid} lives"
            );
        }
        home.destroy_all();
        home.restore(&demo, GUESTS, "g");
    }
}

#[test]
fn a_guest_that_was_taken_for_dead_is_alive_again_and_can_be_destroyed() {
    let Some((home, _)) = scene() else { return };
    let database = rusqlite::Connection::open(home.state().join("brood.sqlite")).unwrap();
    let dead = "UPDATE guest SET state = 'dead', reason = 'its process is gone'";
    assert_eq!(database.execute(dead, []).unwrap(), GUESTS);
    all_live(&home);
    assert_eq!(
        home.json(&["show", "g-1"])["reason"],
        serde_json::Value::Null
    );
    let _ = home.ask("g-1", "ping");
    // Those who did end stay dead, with what is known of their end.
    signal(home.pid("g-2"), Signal::SIGKILL);
    until("the guest to be dead", || {
        (home.names("dead") == ["g-2"]).then_some(())
    });
    assert_eq!(database.execute(dead, []).unwrap(), GUESTS);
    drop(database);
    assert_eq!(home.names("dead"), ["g-2"]);
    home.destroy_all();
}

#[test]
fn a_guest_without_its_socket_is_told_of_as_it_is() {
    let Some((home, _)) = scene() else { return };
    for entry in fs::read_dir(home.run_dir()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "sock") {
            fs::remove_file(path).unwrap();
        }
    }
    all_live(&home);
    let pid = home.pid("g-1").to_string();
    let lives = [pid.as_str(), "lives", "socket", "brood destroy g-1"];
    let _ = home.brood(&["ask", "g-1", "ping"]).exits(1).says(&lives);
    let bundle = home.named("saved").path;
    let _ = home
        .brood(&["suspend", "g-1", &bundle])
        .exits(1)
        .says(&lives);
    let _ = home.brood(&["pause", "g-1"]).ok();
    let _ = home.brood(&["resume", "g-1"]).exits(1).says(&lives);
    all_live(&home);
    let _ = home.brood(&["destroy", "g-1"]).ok();
    assert_eq!(home.names("running"), ["g-2", "g-3"]);
}

#[test]
fn guests_of_another_pid_namespace_are_left_alone_until_it_is_gone() {
    let Some((home, demo)) = scene() else { return };
    if !namespaces("-pf") {
        return;
    }
    let inside = ["unshare", "-pf", "--mount-proc"];
    for args in [
        &["list"] as &[&str],
        &["destroy", "--all"],
        &["ask", "g-1", "ping"],
    ] {
        let ran = home.after(&inside, "true", args).exits(1);
        let _ = ran.says(&["cannot look at guest g-1", "another PID namespace"]);
        all_live(&home);
    }
    home.destroy_all();
    // The namespace ends with its first process, and its guests with it: they are known to be gone.
    let restore = ["restore", &demo.path, "-n", "2", "--prefix", "c"];
    let _ = home.after(&inside, "true", &restore).ok();
    until("the container's guests to end", || {
        home.guests().is_empty().then_some(())
    });
    assert_eq!(home.names("dead"), ["c-1", "c-2"]);
    let reason = home.json(&["show", "c-1"]);
    assert!(text(&reason["reason"]).contains("gone") || text(&reason["reason"]).contains("killed"));
    home.destroy_all();
}

/// A loss of power ends all guests, and may leave files without their content that were not on the
/// disk yet.
#[test]
fn after_a_loss_of_power_no_file_of_before_is_in_the_way() {
    let Some((home, _)) = scene() else { return };
    let guests = home.list();
    for pid in listed(&home) {
        signal(i32::try_from(pid).unwrap(), Signal::SIGKILL);
    }
    until("the guests to be dead", || {
        (home.names("dead").len() == GUESTS).then_some(())
    });
    let database = rusqlite::Connection::open(home.state().join("brood.sqlite")).unwrap();
    let before = "UPDATE guest SET state = 'running', reason = NULL,
                         boot = '00000000-0000-4000-8000-000000000000'";
    assert_eq!(database.execute(before, []).unwrap(), GUESTS);
    let by_qemu = "UPDATE guest SET engine = 'qemu' WHERE name = 'g-2'";
    assert_eq!(database.execute(by_qemu, []).unwrap(), 1);
    drop(database);
    // A Linux guest of the KVM engine, and one of QEMU.
    let mut folders = Vec::new();
    for (guest, end, lost) in [(0, "linux", ""), (1, "qemu", "\0\0\0\0")] {
        let id = text(&guests[guest]["id"]);
        // Of the test guest.
        for file in ["sock", "exit"] {
            let _ = fs::remove_file(home.run_dir().join(format!("{id}.{file}")));
        }
        let folder = home.run_dir().join(format!("{id}.{end}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("ready"), lost).unwrap();
        fs::write(folder.join("pid"), lost).unwrap();
        folders.push(folder);
    }
    let list = home.list();
    let lost = |guest: &serde_json::Value| guest["reason"] == "the host was rebooted";
    assert!(list.len() == GUESTS && list.iter().all(lost), "{list:?}");
    home.destroy_all();
    assert!(folders.iter().all(|folder| !folder.exists()), "{folders:?}");
}
