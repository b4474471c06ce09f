//! Pools: a guest is handed out once, pristine and awake, whichever process is killed meanwhile.

use std::{collections::HashSet, fs, time::Duration};

use brood_tests::{
    EngineKind, Ran, Random, Running, array, by_engine, keys, on_both_engines, pool_home, signal,
    text, until, whole,
};
use nix::sys::signal::Signal;
use serde_json::Value;

on_both_engines! {
    a_pool_is_filled_claimed_from_released_and_removed,
    a_hundred_claimers_at_once_get_a_guest_each,
    a_claimer_killed_at_any_moment_costs_at_most_the_entry_it_was_given,
    a_fill_killed_at_any_moment_is_brought_to_its_end_by_the_next,
    a_releaser_killed_at_any_moment_has_released_or_not,
    nobody_finds_what_another_has_left,
    a_hot_guest_that_died_is_nobodys_and_one_that_ran_is_dropped,
    a_claim_ends_with_its_lease_unless_it_is_renewed,
    a_pool_has_no_more_entries_than_it_may_and_claimers_can_wait,
    after_a_reboot_a_pool_is_rebuilt_and_its_claims_are_over,
    a_pool_keeps_to_its_checkpoint,
    destroying_all_guests_empties_pools_and_evicting_drops_the_oldest,
    no_guest_gets_a_name_that_somebody_may_have,
    whatever_is_killed_nothing_is_handed_out_twice_lost_or_left,
}

fn a_pool_is_filled_claimed_from_released_and_removed(on: EngineKind) {
    let Some((home, demo)) = pool_home(on, 3, &["--lease", "60"]) else {
        return;
    };
    assert_eq!(home.names("paused"), ["p-1", "p-2", "p-3"]);
    let first = home.claim();
    assert_eq!(
        keys(&first),
        ["claim_ms", "guest", "id", "lease_s", "pid", "tier", "token"]
    );
    assert_eq!(
        (&first["guest"], &first["tier"]),
        (&"p-1".into(), &"hot".into())
    );
    assert_eq!(first["lease_s"], 60);
    // It has answered one request more than a guest that was just restored: its claimer's.
    home.restore(&demo, 1, "q");
    let counter = |guest| whole(&home.ask(guest, "ping")["counter"]);
    assert_eq!(counter("p-1"), counter("q-1") + 1);
    let _ = home.brood(&["destroy", "q-1"]).ok();

    let shown = home.show_pool();
    assert_eq!(shown["entries"]["hot"], 2);
    assert_eq!(shown["claims"][0]["guest"], "p-1");
    assert!(whole(&shown["claims"][0]["lease_left_s"]) <= 60);
    assert!(
        !shown.to_string().contains(text(&first["token"])),
        "a token is shown"
    );
    let _ = home
        .brood(&["pool", "remove", "p"])
        .exits(1)
        .says(&["1 of its entries", "--force"]);

    let report = home.fill();
    assert_eq!(
        (&report["restored"], &report["missing"]),
        (&1.into(), &0.into())
    );
    home.release(&first);
    assert!(home.names("running").is_empty(), "a released guest is gone");
    let _ = home
        .brood(&["pool", "release", text(&first["token"])])
        .exits(1)
        .says(&["no claim with this token"]);
    let _ = home
        .brood(&["pool", "renew", text(&first["token"]), "--lease", "5"])
        .exits(1);

    let _ = home
        .brood(&["pool", "create", "p", &demo.path, "--hot", "1"])
        .exits(1)
        .says(&["already"]);
    let _ = home
        .brood(&["pool", "claim", "q"])
        .exits(1)
        .says(&["no pool"]);
    assert_eq!(home.json(&["pool", "list"])[0]["name"], "p");
    let _ = home.brood(&["pool", "remove", "p"]).ok();
    assert!(home.list().is_empty() && array(&home.json(&["pool", "list"])).is_empty());
}

fn a_hundred_claimers_at_once_get_a_guest_each(on: EngineKind) {
    let (all, hot) = by_engine(on, (100, 70), (24, 16));
    let Some((home, _)) = pool_home(on, hot, &[]) else {
        return;
    };
    let claimers: Vec<Running> = (0..all)
        .map(|_| home.start(&["pool", "claim", "p", "--json"]))
        .collect();
    let claims: Vec<Value> = claimers.into_iter().map(|c| c.wait().ok().json()).collect();
    let distinct = |key: &str| {
        claims
            .iter()
            .map(|c| text(&c[key]))
            .collect::<HashSet<_>>()
            .len()
    };
    assert_eq!((distinct("guest"), distinct("token")), (all, all));
    assert_eq!(
        claims.iter().filter(|c| c["tier"] == "hot").count() as u64,
        hot,
        "each hot guest is handed out before one is restored"
    );
    assert_eq!(
        home.converges().len(),
        all,
        "each guest that was claimed answers"
    );

    let tokens: Vec<&str> = claims.iter().map(|c| text(&c["token"])).collect();
    let mut args = vec!["pool", "release"];
    args.extend(&tokens);
    let _ = home.brood(&args).ok();
    assert!(home.list().is_empty());
    home.nobody_is_left();
}

fn a_claimer_killed_at_any_moment_costs_at_most_the_entry_it_was_given(on: EngineKind) {
    const HOT: u64 = 6;
    let Some((home, _)) = pool_home(on, HOT, &["--lease", "3600"]) else {
        return;
    };
    let mut random = Random::seeded();
    for _ in 0..24 {
        let before = whole(&home.show_pool()["entries"]["hot"]);
        let mut claimer = home.start(&["pool", "claim", "p", "--json"]);
        std::thread::sleep(Duration::from_micros(random.below(12_000)));
        let done = claimer.ended();
        claimer.signal(Signal::SIGKILL);
        let ran = claimer.wait();
        let shown = home.show_pool();
        let after = whole(&shown["entries"]["hot"]);
        assert!(
            before - after <= 1,
            "{before} were hot, {after} are: {shown}"
        );
        if done && ran.code() == Some(0) {
            let claimed = ran.json();
            assert!(
                array(&shown["claims"])
                    .iter()
                    .any(|c| c["guest"] == claimed["guest"]),
                "what was told is recorded: {claimed} {shown}"
            );
        }
        home.fill();
    }
    // A claim that no client knows of ends with its lease. None is over yet, so all of them are
    // there.
    let claims = whole(&home.show_pool()["entries"]["claimed"]);
    assert_eq!(home.list().len() as u64, claims + HOT);
}

fn a_fill_killed_at_any_moment_is_brought_to_its_end_by_the_next(on: EngineKind) {
    let (full, rounds) = by_engine(on, (60, 10), (8, 4));
    let Some((home, _)) = pool_home(on, 0, &[]) else {
        return;
    };
    let mut random = Random::seeded();
    let mut saved = 0;
    for round in 0..rounds {
        let hot = full.to_string();
        let mut filling = home.start(&["pool", "set", "p", "--hot", &hot]);
        let some = random.below(full);
        if round > 0 {
            until("some guests to exist", || {
                (home.guests().len() as u64 >= some || filling.ended()).then_some(())
            });
        }
        filling.signal(Signal::SIGKILL);
        let _ = filling.wait();
        // It may not have got so far as to say how many there should be.
        let _ = home.brood(&["pool", "set", "p", "--hot", &hot]).ok();
        let report = home.fill();
        saved += whole(&report["reconciled"]["saved"]);
        assert_eq!(home.list().len() as u64, full);
        until("nothing else to run", || {
            (home.guests().len() as u64 == full).then_some(())
        });
        assert!(home.names("running").is_empty());
        let _ = home.brood(&["pool", "set", "p", "--hot", "0"]).ok();
        assert!(home.list().is_empty(), "a smaller pool evicts");
    }
    println!("{saved} guests of cut-off fills were kept");
}

fn a_releaser_killed_at_any_moment_has_released_or_not(on: EngineKind) {
    let Some((home, _)) = pool_home(on, 2, &["--lease", "3600"]) else {
        return;
    };
    let mut random = Random::seeded();
    for _ in 0..16 {
        let claimed = home.claim();
        let token = text(&claimed["token"]);
        let releaser = home.start(&["pool", "release", token]);
        std::thread::sleep(Duration::from_micros(random.below(8_000)));
        releaser.signal(Signal::SIGKILL);
        let _ = releaser.wait();
        let state = home.show_pool()["entries"].clone();
        if state["claimed"] == 1 {
            assert!(
                home.names("running")
                    .contains(&text(&claimed["guest"]).to_owned())
            );
            home.release(&claimed);
        }
        home.fill();
        assert_eq!(home.list().len(), 2, "{:?}", home.list());
    }
}

fn nobody_finds_what_another_has_left(on: EngineKind) {
    const WHERE: u64 = 0x30_0000;
    let Some((home, demo)) = pool_home(on, 2, &[]) else {
        return;
    };
    let pristine = demo.words().at(WHERE);
    let mut generations = HashSet::new();
    for round in 0..6 {
        let claimed = home.claim();
        let guest = text(&claimed["guest"]);
        assert_eq!(home.peek(guest, WHERE), pristine, "round {round}");
        assert!(
            generations.insert(text(&home.ask(guest, "identity")["generation"]).to_owned()),
            "an identity came back"
        );
        let _ = home.ask(guest, &format!("poke {WHERE} {}", 9_000_001 + round));
        home.release(&claimed);
        if round % 2 == 0 {
            home.fill();
        }
    }
}

// On KVM only: a stand-in's guest has no clock but this machine's, which is right whatever brood
// does.
#[test]
fn the_clock_of_a_claimed_guest_is_right() {
    let Some((home, _)) = pool_home(EngineKind::Kvm, 1, &[]) else {
        return;
    };
    let waited = std::time::Instant::now();
    until("the guest to have been stopped for a while", || {
        (waited.elapsed() > Duration::from_millis(1500)).then_some(())
    });
    let claimed = home.claim();
    let now = || {
        std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap()
            .as_secs_f64()
    };
    let before = now();
    let told = home.ask(text(&claimed["guest"]), "time")["unix_seconds"]
        .as_f64()
        .unwrap();
    let after = now();
    assert!(
        before - 0.5 < told && told < after + 0.5,
        "{before} {told} {after}"
    );
}

fn a_hot_guest_that_died_is_nobodys_and_one_that_ran_is_dropped(on: EngineKind) {
    let Some((home, _)) = pool_home(on, 4, &[]) else {
        return;
    };
    signal(home.pid("p-1"), Signal::SIGKILL);
    // Whether or not its end was seen, the next one is handed out.
    let claimed = home.claim();
    assert_eq!(
        (&claimed["guest"], &claimed["tier"]),
        (&"p-2".into(), &"hot".into())
    );

    for refused in ["resume", "suspend"] {
        let mut args = vec![refused, "p-3"];
        let target = home.named("x").path;
        if refused == "suspend" {
            args.push(&target);
        }
        let _ = home.brood(&args).exits(1).says(&["waits in a pool"]);
    }
    let was = home.pid("p-3");
    signal(was, Signal::SIGCONT);
    until("it to run", || {
        home.names("running")
            .contains(&"p-3".to_owned())
            .then_some(())
    });
    let report = home.fill();
    assert!(whole(&report["reconciled"]["destroyed"]) >= 1, "{report}");
    let pids: Vec<i32> = home.guests().iter().map(|g| g.pid).collect();
    assert!(
        !pids.contains(&was),
        "it is not what the checkpoint is any more"
    );
}

fn a_claim_ends_with_its_lease_unless_it_is_renewed(on: EngineKind) {
    let Some((home, _)) = pool_home(on, 2, &["--lease", "1"]) else {
        return;
    };
    let (short, long) = (home.claim(), home.claim());
    let _ = home
        .brood(&["pool", "renew", text(&long["token"]), "--lease", "1000"])
        .ok();
    until("the short lease to be over", || {
        let _ = home.brood(&["pool", "fill", "p"]).ok();
        (home.show_pool()["entries"]["claimed"] == 1).then_some(())
    });
    let shown = home.show_pool();
    assert_eq!(shown["claims"][0]["guest"], long["guest"]);
    assert!(whole(&shown["claims"][0]["lease_left_s"]) > 900);
    let running = home.names("running");
    assert_eq!(running, [text(&long["guest"])], "the other's guest is gone");
    for verb in [
        &["pool", "release"][..],
        &["pool", "renew", "--lease", "9"][..],
    ] {
        let mut args = verb.to_vec();
        args.push(text(&short["token"]));
        let _ = home
            .brood(&args)
            .exits(1)
            .says(&["no claim with this token"]);
    }
}

fn a_pool_has_no_more_entries_than_it_may_and_claimers_can_wait(on: EngineKind) {
    let Some((home, _)) = pool_home(on, 2, &["--max", "3"]) else {
        return;
    };
    let claims: Vec<Value> = (0..3).map(|_| home.claim()).collect();
    let tiers: Vec<&str> = claims.iter().map(|c| text(&c["tier"])).collect();
    assert_eq!(tiers, ["hot", "hot", "cold"]);
    let _ = home
        .brood(&["pool", "claim", "p"])
        .exits(4)
        .says(&["takes no more entries", "--wait"]);
    let full = home.brood(&["pool", "fill", "p", "--json"]).exits(1).json();
    assert_eq!(
        (&full["restored"], &full["missing"]),
        (&0.into(), &2.into())
    );
    assert!(text(&full["no_room"]).contains("3 entries"), "{full}");

    let waiting = home.start(&["pool", "claim", "p", "--wait", "60", "--json"]);
    home.release(&claims[1]);
    let got = waiting.wait().ok().json();
    assert_ne!(got["guest"], claims[1]["guest"], "a name that somebody had");
    assert_ne!(got["token"], claims[1]["token"]);
    assert_eq!(home.show_pool()["entries"]["claimed"], 3);
}

fn after_a_reboot_a_pool_is_rebuilt_and_its_claims_are_over(on: EngineKind) {
    const HOT: u64 = 8;
    let Some((home, _)) = pool_home(on, HOT, &["--lease", "36000"]) else {
        return;
    };
    let claimed = home.claim();
    // A claimer was killed between its claim and the answer, a fill in the middle, and so on: all
    // of it goes with the host.
    home.reboot();

    let _ = home.brood(&["pool", "release", "0000"]).exits(1);
    let report: Value = home.json(&["pool", "fill", "--all"]);
    assert_eq!(report["restored"], HOT);
    assert_eq!(report["reconciled"]["destroyed"], HOT);
    assert_eq!(report["entries"]["claimed"], 0);
    home.fill();
    let _ = home
        .brood(&["pool", "release", text(&claimed["token"])])
        .exits(1);
    assert_eq!(home.claim()["tier"], "hot");
}

fn a_pool_keeps_to_its_checkpoint(on: EngineKind) {
    let Some((home, demo)) = pool_home(on, 1, &[]) else {
        return;
    };
    let other = home.demo("other", "8M");
    for part in ["ckp", "ckp.kern", "ckp.meta", "ckp.brood"] {
        fs::rename(other.file(part), demo.file(part)).unwrap();
    }
    // What is hot is still the old one; nothing is mixed into it.
    assert_eq!(home.claim()["tier"], "hot");
    for verb in ["claim", "fill"] {
        let ran: Ran = home.brood(&["pool", verb, "p"]);
        assert_eq!(ran.code(), Some(1), "{ran:?}");
    }
}

fn no_guest_gets_a_name_that_somebody_may_have(on: EngineKind) {
    let Some((home, demo)) = pool_home(on, 1, &["--lease", "600"]) else {
        return;
    };
    let claim = || home.claim();
    let name = |claimed: &Value| text(&claimed["guest"]).to_owned();
    let mut given = HashSet::new();
    for _ in 0..3 {
        let claimed = claim();
        assert!(given.insert(name(&claimed)), "{claimed} {given:?}");
        home.release(&claimed);
        home.fill();
    }
    // A guest has its name while its claim is suspended, and has it again afterwards.
    let suspended = claim();
    let token = text(&suspended["token"]);
    let _ = home.json(&["pool", "suspend", token]);
    for _ in 0..2 {
        let other = claim();
        assert_ne!(other["guest"], suspended["guest"]);
        given.insert(name(&other));
        home.release(&other);
        // Free guests of the same prefix fill no gaps either.
        let free = home.restore(&demo, 1, "p");
        let free = text(&free["guests"][0]["name"]).to_owned();
        assert!(given.insert(free.clone()), "{free} {given:?}");
        let _ = home.brood(&["destroy", &free]).ok();
    }
    let resumed = home.json(&["pool", "resume", token]);
    assert_eq!(resumed["guest"], suspended["guest"]);
    // It is the same claim that is suspended once more.
    let _ = home.json(&["pool", "suspend", token]);
    let resumed = home.json(&["pool", "resume", token]);
    assert_eq!(resumed["guest"], suspended["guest"]);
    home.release(&resumed);
    // Not in a new pool of the same name, either.
    let _ = home.brood(&["pool", "remove", "p", "--force"]).ok();
    let _ = home
        .brood(&["pool", "create", "p", &demo.path, "--hot", "1"])
        .ok();
    let claimed = claim();
    assert!(given.insert(name(&claimed)), "{claimed} {given:?}");
}

fn destroying_all_guests_empties_pools_and_evicting_drops_the_oldest(on: EngineKind) {
    let Some((home, _)) = pool_home(on, 5, &[]) else {
        return;
    };
    assert_eq!(
        home.json(&["pool", "evict", "p", "--entries", "2"])["evicted"],
        2
    );
    assert_eq!(home.names("paused"), ["p-3", "p-4", "p-5"]);
    assert_eq!(
        home.json(&["pool", "evict", "p", "--entries", "9"])["evicted"],
        3
    );
    home.fill();
    let _ = home.claim();
    home.destroy_all();
    assert_eq!(
        home.show_pool()["entries"],
        serde_json::json!({ "filling": 0, "hot": 0, "claimed": 0, "releasing": 0, "suspended": 0 })
    );
    home.fill();
    let _ = home.claim();
    let _ = home.brood(&["pool", "remove", "p", "--force"]).ok();
    assert!(home.list().is_empty());
}

/// What a claimer was told and has not given back.
struct Told {
    guest: String,
    token: String,
}

fn whatever_is_killed_nothing_is_handed_out_twice_lost_or_left(on: EngineKind) {
    const HOT: u64 = 8;
    const ROUNDS: u32 = 40;
    let Some((home, _)) = pool_home(on, HOT, &["--lease", "36000"]) else {
        return;
    };
    let mut random = Random::seeded();
    let mut told: Vec<Told> = Vec::new();
    for _ in 0..ROUNDS {
        let mut claimers = Vec::new();
        let mut others = Vec::new();
        let mut giving_back = Vec::new();
        for _ in 0..4 {
            match random.below(10) {
                0..5 => claimers.push(home.start(&["pool", "claim", "p", "--json"])),
                5..7 if !told.is_empty() => {
                    let at = usize::try_from(random.below(told.len() as u64)).unwrap();
                    let gone = told.swap_remove(at);
                    giving_back.push(home.start(&["pool", "release", &gone.token]));
                }
                7 => others.push(home.start(&["pool", "evict", "p", "--entries", "2"])),
                _ => others.push(home.start(&["pool", "fill", "p"])),
            }
        }
        std::thread::sleep(Duration::from_micros(random.below(20_000)));
        for command in claimers.iter().chain(&others).chain(&giving_back) {
            if random.below(3) == 0 {
                command.signal(Signal::SIGKILL);
            }
        }
        // An unclaimed guest may die too, and a nursery.
        let hot: Vec<Value> = array(&home.show_pool()["hot_guests"]).to_vec();
        if random.below(2) == 0 && !hot.is_empty() {
            let guest = text(random.choose(&hot)).to_owned();
            let shown = home.brood(&["show", &guest, "--json"]);
            let there = shown.code() == Some(0);
            if let Some(pid) = there.then(|| shown.json()["pid"].as_i64()).flatten() {
                let claimed = array(&home.show_pool()["claims"])
                    .iter()
                    .any(|c| c["guest"] == *guest);
                if !claimed {
                    signal(pid.try_into().unwrap(), Signal::SIGKILL);
                }
            }
        }
        if random.below(4) == 0 {
            for nursery in home.nurseries() {
                signal(nursery.pid, Signal::SIGKILL);
            }
        }
        for claimer in claimers {
            let ran = claimer.wait();
            if ran.code() == Some(0) {
                let claimed = ran.json();
                told.push(Told {
                    guest: text(&claimed["guest"]).to_owned(),
                    token: text(&claimed["token"]).to_owned(),
                });
            }
        }
        for command in others.into_iter().chain(giving_back) {
            let _ = command.wait();
        }
        let distinct: HashSet<&str> = told.iter().map(|t| t.guest.as_str()).collect();
        assert_eq!(distinct.len(), told.len(), "a guest is two claimers'");
    }

    home.fill();
    let shown = home.show_pool();
    let recorded: Vec<&str> = array(&shown["claims"])
        .iter()
        .map(|c| text(&c["guest"]))
        .collect();
    for claim in &told {
        // A guest may have been killed between being chosen and being claimed.
        if home.names("dead").contains(&claim.guest) {
            continue;
        }
        assert!(
            recorded.contains(&claim.guest.as_str()),
            "{} was lost: {shown}",
            claim.guest
        );
        let _ = home.ask(&claim.guest, "ping");
    }
    // Everything that runs is an entry.
    until("nothing but entries to run", || {
        (home.guests().len() + home.names("dead").len()
            == recorded.len() + usize::try_from(HOT).unwrap())
        .then_some(())
    });
    for claim in &told {
        let _ = home.brood(&["pool", "release", &claim.token]).ok();
    }
}
