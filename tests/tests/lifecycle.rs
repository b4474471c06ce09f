//! Life of a guest: pause, resume, ask, suspend, crash, destroy.

use std::{fs, os::unix::fs::PermissionsExt, process::Command, time::Duration};

use brood_tests::{Demo, Home, array, processes_in, signal, text, until, whole};
use nix::sys::signal::Signal;

#[test]
fn guests_are_paused_resumed_and_destroyed_by_name_by_id_and_all_together() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 5, "g");
    let id = text(&home.json(&["show", "g-2"])["id"]).to_owned();
    let paused = home.json(&["pause", "g-1", &id, "g-1"]);
    assert_eq!(
        paused["paused"], 2,
        "one that is named twice counts once: {paused}"
    );
    assert_eq!(home.names("paused"), ["g-1", "g-2"]);
    // Pausing what is paused and resuming what runs is no error.
    assert_eq!(home.json(&["pause", "--all"])["paused"], 5);
    assert_eq!(home.names("running").len(), 0);
    // Processes that were held ready end with the restore that they were for.
    until("all guests' processes to be stopped", || {
        home.guests()
            .iter()
            .all(brood_tests::Proc::stopped)
            .then_some(())
    });
    let resumed = home.json(&["resume", "--all"]);
    assert_eq!(resumed["resumed"], 5);
    for guest in array(&resumed["guests"]) {
        assert!(guest["resume_ms"].as_f64().unwrap() > 0.0, "{guest}");
    }
    assert_eq!(home.json(&["resume", "g-3"])["resumed"], 1);
    assert_eq!(home.json(&["destroy", "g-3", &id])["destroyed"], 2);
    assert_eq!(home.names("running"), ["g-1", "g-4", "g-5"]);
    // A user may still have a name that is free again: numbers go on.
    home.restore(&demo, 2, "g");
    assert_eq!(home.names("running"), ["g-1", "g-4", "g-5", "g-6", "g-7"]);
    for unknown in [["show", "g-9"], ["pause", "g-9"], ["destroy", "g-9"]] {
        let _ = home
            .brood(&unknown)
            .exits(1)
            .says(&["there is no guest \"g-9\"", "brood list"]);
    }
    let _ = home.brood(&["pause"]).exits(2);
    let _ = home.brood(&["destroy", "--all", "g-1"]).exits(2);
}

#[test]
fn guests_can_be_restored_paused() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let report = home.json(&["restore", &demo.path, "--guests", "4", "--paused"]);
    assert_eq!(
        (&report["restored"], &report["paused"]),
        (&4.into(), &true.into())
    );
    assert_eq!(home.names("paused").len(), 4);
    let _ = home.brood(&["resume", "--all"]).ok();
    assert_eq!(home.converges().len(), 4);
}

#[test]
fn a_paused_guest_that_is_asked_says_so_at_once() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 2, "g");
    let _ = home.brood(&["pause", "g-1"]).ok();
    let asked = home
        .brood(&["ask", "g-1", "ping", "--timeout", "120s"])
        .exits(1);
    // Far sooner than the limit of an answer.
    assert!(asked.took < Duration::from_secs(30), "{:?}", asked.took);
    let _ = asked.says(&["g-1 is paused", "hint: resume it first: brood resume g-1"]);
    // Stopped by another process: the same.
    signal(home.pid("g-2"), Signal::SIGSTOP);
    until("g-2 to stop", || {
        (home.names("paused").len() == 2).then_some(())
    });
    let _ = home
        .brood(&["ask", "g-2", "ping"])
        .exits(1)
        .says(&["g-2 is paused"]);
    let before = home.json(&["resume", "--all"]);
    assert_eq!(before["resumed"], 2);
    let _ = home.ask("g-1", "ping");
}

#[test]
fn a_crash_is_told_with_its_reason_and_siblings_live() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 4, "g");
    let _ = home.brood(&["ask", "g-2", "crash"]).exits(1).says(&[
        "cannot ask guest g-2",
        "died",
        "triple fault",
    ]);
    signal(home.pid("g-3"), Signal::SIGKILL);
    until("both to be known as dead", || {
        (home.names("dead") == ["g-2", "g-3"]).then_some(())
    });
    let crashed = home.json(&["show", "g-2"]);
    assert_eq!(
        (&crashed["state"], &crashed["pid"]),
        (&"dead".into(), &serde_json::Value::Null)
    );
    assert!(
        text(&crashed["reason"]).contains("triple fault"),
        "{crashed}"
    );
    // It is written by the nursery, a moment later.
    until("the reason of the kill to be told", || {
        let killed = home.json(&["show", "g-3"]);
        text(&killed["reason"]).contains("SIGKILL").then_some(())
    });
    for command in [["pause", "g-2"], ["resume", "g-3"]] {
        let _ = home
            .brood(&command)
            .exits(1)
            .says(&["is dead", "brood destroy"]);
    }
    let _ = home
        .brood(&["ask", "g-3", "ping"])
        .exits(1)
        .says(&["is dead", "SIGKILL"]);
    let target = home.named("no");
    let _ = home
        .brood(&["suspend", "g-2", &target.path])
        .exits(1)
        .says(&["is dead"]);
    assert_eq!(home.converges(), ["g-1", "g-4"]);
    // Meant by --all, the dead are passed over, and destroyed with the rest.
    assert_eq!(home.json(&["pause", "--all"])["paused"], 2);
    assert_eq!(home.json(&["destroy", "--all"])["destroyed"], 4);
}

#[test]
fn a_suspended_guest_goes_on_in_its_clones() {
    let Some(home) = Home::with_kvm() else { return };
    let mut from = home.demo("demo", "4M");
    home.restore(&from, 1, "g0");
    let nonce = home.ask("g0-1", "ping")["nonce"].clone();
    // Each generation writes a word, is suspended, and is found again by the next.
    for generation in 1..=6_u64 {
        let name = format!("g{}-1", generation - 1);
        let _ = home.ask(
            &name,
            &format!("poke {} {generation}", 0x20_0000 + generation * 8),
        );
        let counter = whole(&home.ask(&name, "ping")["counter"]);
        if generation % 2 == 0 {
            let _ = home.brood(&["pause", &name]).ok();
        }
        let next = home.named(&format!("gen{generation}"));
        let suspended = home.json(&["suspend", &name, &next.path]);
        assert_eq!(suspended["guest"], name);
        assert!(home.list().is_empty(), "a suspended guest is gone");
        let _ = home.brood(&["checkpoint", "verify", &next.path]).ok();
        let report = home.restore(&next, 1, &format!("g{generation}"));
        let guest = &report["guests"][0];
        assert_eq!(
            (&guest["nonce"], whole(&guest["counter"])),
            (&nonce, counter + 1)
        );
        let name = format!("g{generation}-1");
        for earlier in 1..=generation {
            assert_eq!(home.peek(&name, 0x20_0000 + earlier * 8), earlier);
        }
        from = next;
    }
    // The whole of memory is that of the first checkpoint, with six words written.
    let (first, last) = (home.named("demo").words(), from.words());
    for address in (0x1_0000..first.size()).step_by(8) {
        let n = address.wrapping_sub(0x20_0000) / 8;
        let expected = if (1..=6).contains(&n) {
            n
        } else {
            first.at(address)
        };
        assert_eq!(last.at(address), expected, "{address:#x}");
    }
}

#[test]
fn a_busy_guest_is_suspended_in_the_middle_and_goes_on_in_its_clones() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 1, "g");
    let _ = home.ask("g-1", "poke 0x200000 77");
    let counter = whole(&home.ask("g-1", "ping")["counter"]);
    let asking = home.busy("g-1", 600_000);
    let warm = home.named("warm");
    let _ = home.brood(&["suspend", "g-1", &warm.path]).ok();
    // Who asked it learns that there will be no answer from this guest, and of the suspend, where
    // that was recorded by then.
    let _ = asking.wait().exits(1).says(&["guest g-1"]);
    home.restore(&warm, 3, "w");
    for n in 1..=3 {
        let name = format!("w-{n}");
        let ping = home.ask(&name, "ping");
        assert!(whole(&ping["counter"]) > counter, "{ping}");
        assert_eq!(home.peek(&name, 0x20_0000), 77);
    }
    let random: Vec<_> = (1..=3)
        .map(|n| home.ask(&format!("w-{n}"), "random 1")["random"].to_string())
        .collect();
    assert!(
        random[0] != random[1] && random[1] != random[2] && random[0] != random[2],
        "{random:?}"
    );
}

#[test]
fn a_guest_whose_suspend_fails_goes_on() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 1, "g");
    let counter = whole(&home.ask("g-1", "ping")["counter"]);
    let lives = |more: u64| {
        let ping = home.ask("g-1", "ping");
        assert_eq!(whole(&ping["counter"]), counter + more, "{ping}");
    };
    // Onto the checkpoint that it runs from, and onto another's file.
    let _ = home
        .brood(&["suspend", "g-1", &demo.path])
        .exits(1)
        .says(&["exists"]);
    lives(1);
    fs::write(home.checkpoints().join("taken.ckp.kern"), "").unwrap();
    let _ = home
        .brood(&["suspend", "g-1", &home.named("taken").path])
        .exits(1)
        .says(&["taken.ckp.kern"]);
    lives(2);
    fs::write(home.path().join("file"), "").unwrap();
    let below_file = home.path().join("file/new");
    let _ = home
        .brood(&["suspend", "g-1", below_file.to_str().unwrap()])
        .exits(1)
        .says(&["file"]);
    lives(3);
    // A paused guest is paused again.
    let _ = home.brood(&["pause", "g-1"]).ok();
    let _ = home.brood(&["suspend", "g-1", &demo.path]).exits(1);
    until("it to be paused", || {
        (home.names("paused") == ["g-1"]).then_some(())
    });
    let _ = home.brood(&["resume", "g-1"]).ok();
    lives(5);
    // In a folder that may not be written: root may, everywhere but in /proc.
    let _ = home
        .brood(&["suspend", "g-1", "/proc/new"])
        .exits(1)
        .says(&["/proc"]);
    lives(6);
    // After all this it can be suspended.
    let _ = home
        .brood(&["suspend", "g-1", &home.named("good").path])
        .ok();
    home.restore(&home.named("good"), 1, "good");
    let left: Vec<_> = home
        .checkpoints()
        .read_dir()
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(
        left.len(),
        9,
        "two bundles and the file that was in the way: {left:?}"
    );
}

/// A small filesystem of its own; `None` where none can be mounted.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn tmpfs(at: std::path::PathBuf, size: &str) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "brood-tests"])
            .arg(&at)
            .output();
        if done.is_ok_and(|done| done.status.success()) {
            Some(Self(at))
        } else {
            brood_tests::skip("no tmpfs can be mounted");
            None
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_full_disk_fails_a_suspend_and_not_the_guest() {
    let Some(home) = Home::with_kvm() else { return };
    let Some(small) = Mounted::tmpfs(home.path().join("small"), "6M") else {
        return;
    };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 2, "g");
    let target = |name: &str| small.0.join(name).to_str().unwrap().to_owned();
    let _ = home.brood(&["suspend", "g-1", &target("first")]).ok();
    let full = home.brood(&["suspend", "g-2", &target("second")]).exits(1);
    let _ = full.says(&["small", "free", "hint"]);
    let _ = home.ask("g-2", "ping");
    let names: Vec<_> = small
        .0
        .read_dir()
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 4, "nothing of the second is left: {names:?}");
    // A checkpoint that fits nowhere is not begun.
    let _ = home
        .brood(&["checkpoint", "demo", &target("third"), "--memory", "64M"])
        .exits(1)
        .says(&["small", "free"]);
    let first = Demo {
        path: target("first"),
    };
    home.restore(&first, 1, "from-tmpfs");
    home.destroy_all();
}

#[test]
fn a_checkpoint_in_use_is_not_removed() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 2, "g");
    let remove = || home.brood(&["checkpoint", "remove", &demo.path]);
    let _ = remove().exits(1).says(&["g-1"]);
    let _ = home.brood(&["pause", "g-1"]).ok();
    let _ = home.brood(&["destroy", "g-2"]).ok();
    let _ = remove().exits(1).says(&["g-1"]);
    // By another way to the same files.
    let roundabout = demo.path.replace("/ckp/", "/ckp/../ckp/");
    let _ = home
        .brood(&["checkpoint", "remove", &roundabout])
        .exits(1)
        .says(&["g-1"]);
    // A dead guest uses nothing.
    signal(home.pid("g-1"), Signal::SIGKILL);
    until("its end", || (home.names("dead").len() == 1).then_some(()));
    let _ = remove().ok();
    assert_eq!(home.checkpoints().read_dir().unwrap().count(), 0);
    let _ = remove().exits(1);
    let _ = home.brood(&["restore", &demo.path, "-n", "1"]).exits(1);
}

#[test]
fn guests_outlive_the_command_and_what_is_typed_at_its_terminal() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let mut restoring = home.start(&["restore", &demo.path, "--guests", "5", "--json"]);
    until("the restore to end", || restoring.ended().then_some(()));
    let group = restoring.pid();
    for guest in home.guests() {
        assert_ne!(
            guest.parent, group,
            "a guest is the restore command's child"
        );
    }
    // The group has no member left that could hear it; neither do guests when they are signalled
    // themselves.
    for which in [Signal::SIGHUP, Signal::SIGINT] {
        signal(-group, which);
        for process in processes_in(&home.state()) {
            signal(process.pid, which);
        }
    }
    assert_eq!(home.converges().len(), 5);
    assert_eq!(home.nurseries().len(), 1);
}

#[test]
fn the_state_folder_is_its_owners_alone() {
    let home = Home::bare();
    let _ = home.brood(&["list"]).ok();
    for folder in [home.state(), home.run_dir()] {
        let mode = fs::metadata(&folder).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700, "{}", folder.display());
    }
}
