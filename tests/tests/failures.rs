//! Partial failure: one guest of many cannot be restored, the others can, and the command says
//! which and why.

use std::fs;

use brood_tests::{Home, Running, array, crowd, signal, text, until, whole};
use nix::sys::signal::Signal;

/// Starts a restore of 200 guests in which `victim` cannot be restored: where its control socket
/// has to be lies something else. The nursery is stopped while that is put there, so that it comes
/// in time.
fn restore_without(home: &Home, args: &[&str], victim: &str) -> Running {
    let restoring = home.start(args);
    let nursery = until("the nursery", || home.nurseries().pop());
    signal(nursery.pid, Signal::SIGSTOP);
    let id = until("the guests to be recorded", || {
        let guests = home.list();
        let found = guests.iter().find(|guest| guest["name"] == victim)?;
        assert_eq!(found["state"], "restoring", "it came too late");
        Some(text(&found["id"]).to_owned())
    });
    fs::write(home.run_dir().join(format!("{id}.sock")), "in the way").unwrap();
    signal(nursery.pid, Signal::SIGCONT);
    restoring
}

#[test]
fn one_of_two_hundred_fails_and_the_others_stand() {
    let Some(home) = Home::with_kvm() else { return };
    let _turn = crowd();
    let demo = home.demo("demo", "4M");
    let args = [
        "restore", &demo.path, "-n", "200", "-c", "8", "--prefix", "f", "--json",
    ];
    let ran = restore_without(&home, &args, "f-150").wait().exits(3);
    let report = ran.json();
    assert_eq!(
        (&report["asked"], &report["restored"], &report["failed"]),
        (&200.into(), &199.into(), &1.into())
    );
    let error = &array(&report["errors"])[0];
    assert_eq!(error["name"], "f-150");
    assert!(text(&error["error"]).contains("control socket"), "{error}");
    let _ = ran.says(&["f-150"]);
    let running = home.converges();
    assert_eq!(running.len(), 199);
    assert!(!running.contains(&"f-150".to_owned()));
    // Its name has been reported, so no guest gets it again.
    home.restore(&demo, 1, "f");
    assert_eq!(home.names("running").len(), 200);
    let _ = home.ask("f-201", "ping");
}

#[test]
fn all_or_nothing_of_two_hundred_is_nothing() {
    let Some(home) = Home::with_kvm() else { return };
    let _turn = crowd();
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 3, "before");
    let args = [
        "restore",
        &demo.path,
        "-n",
        "200",
        "--prefix",
        "f",
        "--all-or-nothing",
        "--json",
    ];
    let ran = restore_without(&home, &args, "f-100").wait().exits(1);
    let report = ran.json();
    assert_eq!(
        (&report["restored"], &report["rolled_back"]),
        (&0.into(), &true.into()),
        "{report}"
    );
    let _ = ran.says(&["f-100"]);
    // Guests of other restores are not touched.
    assert_eq!(home.converges(), ["before-1", "before-2", "before-3"]);
    assert_eq!(home.list().len(), 3);
}

#[test]
fn a_guest_killed_in_the_middle_of_its_restore_fails_alone() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 1, "busy");
    // A guest that was suspended in the middle of a long request finishes it before it is restored.
    let asking = home.busy("busy-1", 1_000_000);
    let slow = home.named("slow");
    let _ = home.brood(&["suspend", "busy-1", &slow.path]).ok();
    let _ = asking.wait();
    let restoring = home.start(&[
        "restore", &slow.path, "-n", "6", "-c", "6", "--prefix", "f", "--json",
    ]);
    // One that has computed for a while is in the middle of it.
    let guest = until("a guest to be under way", || {
        home.guests().into_iter().find(|guest| guest.ticks >= 5)
    });
    signal(guest.pid, Signal::SIGKILL);
    let ran = restoring.wait().exits(3);
    let report = ran.json();
    assert_eq!(
        (whole(&report["restored"]), whole(&report["failed"])),
        (5, 1)
    );
    let error = &array(&report["errors"])[0];
    assert!(
        text(&error["error"]).contains("killed by SIGKILL"),
        "{error}"
    );
    assert_eq!(home.converges().len(), 5);
}

#[test]
fn when_all_fail_it_is_told_and_nothing_is_left() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let restoring = home.start(&["restore", &demo.path, "-n", "4", "--prefix", "f"]);
    let nursery = until("the nursery", || home.nurseries().pop());
    signal(nursery.pid, Signal::SIGSTOP);
    let guests = until("the guests to be recorded", || {
        Some(home.list()).filter(|list| list.len() == 4)
    });
    for guest in guests {
        let socket = home.run_dir().join(format!("{}.sock", text(&guest["id"])));
        if !socket.exists() {
            fs::write(socket, "").unwrap();
        }
    }
    signal(nursery.pid, Signal::SIGCONT);
    let ran = restoring.wait();
    let failed = ran.stderr.matches("control socket").count();
    assert_eq!(ran.code(), Some([0, 3, 3, 3, 1][failed]), "{ran:?}");
    assert_eq!(home.converges().len(), 4 - failed);
}
