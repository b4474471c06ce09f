//! Kills at any moment: the next command finds and completes what is left.

use std::{
    thread,
    time::{Duration, Instant},
};

use brood_tests::{
    Demo, EngineKind, Home, PATIENCE, Random, Running, array, by_engine, on_both_engines, signal,
    until, whole,
};
use nix::sys::signal::Signal;

on_both_engines! {
    the_manager_is_killed_while_it_restores_a_crowd,
    single_guests_are_killed_while_their_siblings_are_restored,
    everything_is_killed_at_once,
    destroying_is_killed_and_done_again,
    suspending_is_killed_and_the_guest_is_there_once,
    an_interrupt_stops_cleanly_and_says_what_stands,
    an_interrupt_with_all_or_nothing_leaves_nothing,
    two_restores_at_once_give_out_each_name_once,
    destroy_all_takes_what_another_command_is_restoring,
    guests_whose_record_was_lost_are_found_and_can_be_ended,
}

fn scene(on: EngineKind) -> Option<(Home, Demo)> {
    let home = Home::on(on)?;
    let demo = home.demo("demo", "4M");
    Some((home, demo))
}

/// How many guests [`restoring`] restores.
fn crowd_of(home: &Home) -> usize {
    by_engine(home.engine(), 100, 12)
}

fn restoring(home: &Home, demo: &Demo, prefix: &str) -> Running {
    let count = crowd_of(home).to_string();
    home.start(&[
        "restore", &demo.path, "-n", &count, "--prefix", prefix, "--json",
    ])
}

/// Waits until `some` guests exist, or the restore is done already.
fn until_some(home: &Home, restoring: &mut Running, some: u64) {
    until("some guests to exist", || {
        (home.guests().len() as u64 >= some || restoring.ended()).then_some(())
    });
}

/// Lets a random moment pass: where in its work the restore is then is the point of it.
fn random_moment(random: &mut Random, most: Duration) {
    let micros = u64::try_from(most.as_micros()).unwrap();
    thread::sleep(Duration::from_micros(random.below(micros)));
}

fn the_manager_is_killed_while_it_restores_a_crowd(on: EngineKind) {
    let Some((home, demo)) = scene(on) else {
        return;
    };
    let crowd = crowd_of(&home);
    let mut random = Random::seeded();
    for round in 0..by_engine(on, 16, 6) {
        let mut manager = restoring(&home, &demo, "k");
        if round % 2 == 0 {
            random_moment(&mut random, Duration::from_millis(by_engine(on, 40, 400)));
        } else {
            until_some(&home, &mut manager, random.below(crowd as u64));
        }
        manager.signal(Signal::SIGKILL);
        let _ = manager.wait();
        let standing = home.converges();
        assert!(standing.len() <= crowd);
        assert!(home.names("dead").is_empty(), "{:?}", home.list());
        // What stands stays, and a new restore goes beside it.
        home.restore(&demo, 2, "k");
        assert_eq!(home.converges().len(), standing.len() + 2);
        home.destroy_all();
    }
}

// On KVM only: bhyve has no nursery.
#[test]
fn the_nursery_is_killed_while_it_restores_a_crowd() {
    let Some((home, demo)) = scene(EngineKind::Kvm) else {
        return;
    };
    let crowd = crowd_of(&home);
    let mut random = Random::seeded();
    for round in 0..10 {
        let mut manager = restoring(&home, &demo, "k");
        for _ in 0..=round % 3 {
            until_some(&home, &mut manager, random.below(crowd as u64));
            for nursery in home.nurseries() {
                signal(nursery.pid, Signal::SIGKILL);
            }
        }
        let ran = manager.wait();
        // Killed before it was ready, it fails the restore with nothing done; later it is replaced.
        let restored = match ran.code() {
            Some(0) => {
                assert_eq!(ran.json()["restored"], crowd);
                crowd
            }
            Some(1) => {
                assert!(ran.stderr.contains("nursery"), "{ran:?}");
                0
            }
            Some(3) => usize::try_from(whole(&ran.json()["restored"])).unwrap(),
            _ => panic!("{ran:?}"),
        };
        assert_eq!(home.converges().len(), restored, "{ran:?}");
        home.destroy_all();
    }
}

// On KVM only: bhyve has no nursery.
#[test]
fn the_nursery_is_killed_again_and_again() {
    let Some((home, demo)) = scene(EngineKind::Kvm) else {
        return;
    };
    let crowd = crowd_of(&home);
    let mut manager = restoring(&home, &demo, "k");
    let begin = Instant::now();
    let mut killed = 0;
    while !manager.ended() && begin.elapsed() < PATIENCE {
        for nursery in home.nurseries() {
            signal(nursery.pid, Signal::SIGKILL);
            killed += 1;
        }
    }
    let ran = manager.wait();
    assert!(killed > 0 && ran.code().is_some(), "{ran:?}");
    assert!([0, 1, 3].contains(&ran.code().unwrap()), "{ran:?}");
    if let (Some(3), report) = (ran.code(), ran.stdout.as_str()) {
        let report: serde_json::Value = serde_json::from_str(report).unwrap();
        let errors = array(&report["errors"]).iter();
        let failed = errors.filter(|e| e["name"] != "the rest").count() as u64;
        let counted = whole(&report["restored"]) + failed + whole(&report["not_begun"]);
        assert_eq!(counted, crowd as u64, "each is accounted for: {report}");
        assert_eq!(home.converges().len(), array(&report["guests"]).len());
    }
    home.converges();
}

// On KVM only: bhyve has no nursery.
#[test]
fn guests_outlive_their_nursery_and_only_the_reason_of_their_end_is_lost() {
    let Some((home, demo)) = scene(EngineKind::Kvm) else {
        return;
    };
    home.restore(&demo, 4, "k");
    for nursery in home.nurseries() {
        signal(nursery.pid, Signal::SIGKILL);
    }
    until("the nursery to be gone", || {
        home.nurseries().is_empty().then_some(())
    });
    assert_eq!(home.converges().len(), 4);
    signal(home.pid("k-2"), Signal::SIGKILL);
    until("its end", || (home.names("dead") == ["k-2"]).then_some(()));
    let _ = home
        .brood(&["ask", "k-3", "crash"])
        .exits(1)
        .says(&["triple fault"]);
    assert_eq!(home.converges(), ["k-1", "k-4"]);
    let warm = home.named("warm");
    let _ = home.brood(&["suspend", "k-1", &warm.path]).ok();
    home.restore(&warm, 2, "warm");
    assert_eq!(home.converges(), ["k-4", "warm-1", "warm-2"]);
}

fn single_guests_are_killed_while_their_siblings_are_restored(on: EngineKind) {
    let Some((home, demo)) = scene(on) else {
        return;
    };
    let crowd = crowd_of(&home);
    let mut random = Random::seeded();
    for _ in 0..by_engine(on, 6, 3) {
        let mut manager = restoring(&home, &demo, "k");
        let mut killed = 0;
        for _ in 0..5 {
            let some = 1 + random.below(crowd as u64 - 5);
            until_some(&home, &mut manager, some);
            let guests = home.guests();
            if guests.is_empty() {
                continue;
            }
            let guest = random.choose(&guests);
            signal(guest.pid, Signal::SIGKILL);
            killed += 1;
        }
        let ran = manager.wait();
        assert!([Some(0), Some(3)].contains(&ran.code()), "{ran:?}");
        let report = ran.json();
        let failed = array(&report["errors"]).len();
        // Killed while it was restored, or while its answer was on its way.
        let reasons = ["SIGKILL", "gone at once"];
        for error in array(&report["errors"]) {
            let told = brood_tests::text(&error["error"]);
            assert!(
                reasons.iter().any(|reason| told.contains(reason)),
                "{error}"
            );
        }
        // A guest that was killed before it answered is a failure; after, it is dead.
        let running = home.converges();
        let dead = home.names("dead");
        assert!(
            failed + dead.len() <= killed,
            "{failed} failed, {dead:?} are dead of {killed}"
        );
        assert_eq!(running.len() + dead.len() + failed, crowd);
        home.destroy_all();
    }
}

fn everything_is_killed_at_once(on: EngineKind) {
    let Some((home, demo)) = scene(on) else {
        return;
    };
    let crowd = crowd_of(&home);
    let mut random = Random::seeded();
    for _ in 0..by_engine(on, 8, 4) {
        let mut manager = restoring(&home, &demo, "k");
        until_some(&home, &mut manager, random.below(crowd as u64));
        manager.signal(Signal::SIGKILL);
        let mut everybody = home.nurseries();
        everybody.extend(home.guests());
        for process in everybody {
            signal(process.pid, Signal::SIGKILL);
        }
        let _ = manager.wait();
        home.converges();
        home.destroy_all();
    }
}

fn destroying_is_killed_and_done_again(on: EngineKind) {
    let Some((home, demo)) = scene(on) else {
        return;
    };
    let mut random = Random::seeded();
    for _ in 0..by_engine(on, 8, 4) {
        home.restore(&demo, by_engine(on, 40, 8), "k");
        let destroying = home.start(&["destroy", "--all", "--force"]);
        random_moment(&mut random, Duration::from_millis(by_engine(on, 25, 250)));
        destroying.signal(Signal::SIGKILL);
        let _ = destroying.wait();
        home.converges();
        home.destroy_all();
    }
}

fn suspending_is_killed_and_the_guest_is_there_once(on: EngineKind) {
    let Some((home, demo)) = scene(on) else {
        return;
    };
    let mut random = Random::seeded();
    for round in 0..by_engine(on, 16, 10) {
        home.restore(&demo, 1, "k");
        let _ = home.ask("k-1", &format!("poke 0x200000 {round}"));
        let to = home.named(&format!("to{round}"));
        // In full and, where the engine writes them, to a delta in turns.
        let delta = on == EngineKind::Kvm && round % 2 == 1;
        let mut suspend = vec!["suspend", "k-1", &to.path];
        suspend.extend(delta.then_some("--delta"));
        let suspending = home.start(&suspend);
        random_moment(&mut random, Duration::from_millis(by_engine(on, 30, 150)));
        suspending.signal(Signal::SIGKILL);
        let _ = suspending.wait();
        // Either it goes on here, or its checkpoint is whole.
        let alive = home.converges() == ["k-1"];
        let is_whole = || home.brood(&["checkpoint", "verify", &to.path]).code() == Some(0);
        let mut whole = is_whole();
        if on == EngineKind::Bhyve && !alive && !whole {
            // bhyve writes and ends by itself: the next suspend seals what it wrote.
            let _ = home.brood(&suspend).ok();
            whole = is_whole();
        }
        assert!(alive || whole, "the guest was lost");
        if alive {
            assert_eq!(home.peek("k-1", 0x20_0000), round);
        }
        if whole {
            home.restore(&to, 1, "again");
            assert_eq!(home.peek("again-1", 0x20_0000), round);
        } else {
            // Half-made leftovers are in no command's way.
            let _ = home.brood(&suspend).ok();
        }
        home.destroy_all();
    }
}

fn an_interrupt_stops_cleanly_and_says_what_stands(on: EngineKind) {
    let Some((home, demo)) = scene(on) else {
        return;
    };
    let crowd = crowd_of(&home);
    let mut random = Random::seeded();
    let mut in_the_middle = 0;
    for round in 0..by_engine(on, 8, 4) {
        let mut manager = restoring(&home, &demo, "k");
        until_some(&home, &mut manager, 1 + random.below(crowd as u64 / 2));
        manager.signal(if round % 2 == 0 {
            Signal::SIGINT
        } else {
            Signal::SIGTERM
        });
        let ran = manager.wait();
        let report = ran.json();
        let restored = whole(&report["restored"]);
        let not_begun = whole(&report["not_begun"]);
        assert_eq!(restored + not_begun, crowd as u64, "{ran:?}");
        if not_begun > 0 {
            assert_eq!(
                (ran.code(), &report["interrupted"]),
                (Some(130), &true.into())
            );
            in_the_middle += 1;
        }
        assert!(home.list().iter().all(|guest| guest["state"] == "running"));
        assert_eq!(home.converges().len() as u64, restored);
        home.destroy_all();
    }
    assert!(
        in_the_middle > 0,
        "no restore was interrupted in the middle"
    );
}

fn an_interrupt_with_all_or_nothing_leaves_nothing(on: EngineKind) {
    let Some((home, demo)) = scene(on) else {
        return;
    };
    let crowd = crowd_of(&home);
    let count = crowd.to_string();
    let mut manager = home.start(&[
        "restore",
        &demo.path,
        "-n",
        &count,
        "--all-or-nothing",
        "--json",
    ]);
    until_some(&home, &mut manager, by_engine(on, 10, 4));
    manager.signal(Signal::SIGINT);
    let ran = manager.wait();
    if ran.code() == Some(130) {
        assert_eq!(ran.json()["rolled_back"], true);
        assert!(home.list().is_empty());
        home.nobody_is_left();
    }
}

// On KVM only: bhyve has no nursery.
#[test]
fn a_stopped_nursery_goes_on_where_it_was() {
    let Some((home, demo)) = scene(EngineKind::Kvm) else {
        return;
    };
    let crowd = crowd_of(&home);
    let mut manager = restoring(&home, &demo, "k");
    until_some(&home, &mut manager, 10);
    let nurseries = home.nurseries();
    for nursery in &nurseries {
        signal(nursery.pid, Signal::SIGSTOP);
    }
    until("it to stop", || {
        home.nurseries()
            .iter()
            .all(brood_tests::Proc::stopped)
            .then_some(())
    });
    // Guests that stand answer all the while, and other commands do not wait for it.
    assert!(!manager.ended());
    let running = until("some to be recorded or not", || Some(home.names("running")));
    for guest in running {
        let _ = home.ask(&guest, "ping");
    }
    for nursery in &nurseries {
        signal(nursery.pid, Signal::SIGCONT);
    }
    let ran = manager.wait().ok();
    assert_eq!(ran.json()["restored"], crowd);
    assert_eq!(home.converges().len(), crowd);
}

// On KVM only: bhyve has no nursery.
#[test]
fn a_second_interrupt_does_not_wait_for_a_stopped_nursery() {
    let Some((home, demo)) = scene(EngineKind::Kvm) else {
        return;
    };
    let mut manager = restoring(&home, &demo, "k");
    until_some(&home, &mut manager, 10);
    let nurseries = home.nurseries();
    for nursery in &nurseries {
        signal(nursery.pid, Signal::SIGSTOP);
    }
    manager.signal(Signal::SIGINT);
    // It would wait for ever.
    until("the command to give up", || {
        manager.signal(Signal::SIGINT);
        manager.ended().then_some(())
    });
    let ran = manager.wait();
    assert_eq!(ran.code(), Some(130), "{ran:?}");
    for nursery in &nurseries {
        signal(nursery.pid, Signal::SIGCONT);
    }
    home.converges();
}

fn two_restores_at_once_give_out_each_name_once(on: EngineKind) {
    let Some((home, demo)) = scene(on) else {
        return;
    };
    let crowd = crowd_of(&home);
    let both = [restoring(&home, &demo, "k"), restoring(&home, &demo, "k")];
    for restore in both {
        let ran = restore.wait().ok();
        assert_eq!(ran.json()["restored"], crowd);
    }
    let running = home.converges();
    assert_eq!(running.len(), 2 * crowd);
    assert!(running.contains(&format!("k-{}", 2 * crowd)));
}

fn destroy_all_takes_what_another_command_is_restoring(on: EngineKind) {
    let Some((home, demo)) = scene(on) else {
        return;
    };
    let crowd = crowd_of(&home);
    let mut random = Random::seeded();
    for _ in 0..3 {
        let mut manager = restoring(&home, &demo, "k");
        until_some(&home, &mut manager, 1 + random.below(crowd as u64 / 2));
        let _ = home.brood(&["destroy", "--all", "--force"]).ok();
        let ran = manager.wait();
        assert!([Some(0), Some(3)].contains(&ran.code()), "{ran:?}");
        assert_eq!(home.converges().len(), 0);
    }
}

fn guests_whose_record_was_lost_are_found_and_can_be_ended(on: EngineKind) {
    let Some((home, demo)) = scene(on) else {
        return;
    };
    home.restore(&demo, 3, "g");
    let _ = home.brood(&["pause", "g-2"]).ok();
    for name in ["brood.sqlite", "brood.sqlite-wal", "brood.sqlite-shm"] {
        let _ = std::fs::remove_file(home.state().join(name));
    }
    assert_eq!(home.names("running"), ["g-1", "g-3"]);
    assert_eq!(home.names("paused"), ["g-2"]);
    let found = home.list();
    assert!(
        found.iter().all(|guest| guest["checkpoint"] == *demo.path),
        "{found:?}"
    );
    let _ = home.ask("g-3", "ping");
    // Suspending needs the checkpoint, which was found again.
    let _ = home
        .brood(&["suspend", "g-2", &home.named("warm").path])
        .ok();
    let _ = home.brood(&["destroy", "--all", "--force"]).ok();
    home.nobody_is_left();
    assert!(home.list().is_empty());
}
