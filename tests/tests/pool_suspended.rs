//! Suspended claims: the guest comes back as it was, whichever process is killed meanwhile.

use brood_core::{
    guest_id::GuestId,
    state::{State, TokenDigest},
};
use std::{fs, time::Duration};

use brood_tests::{
    EngineKind, Home, Random, by_engine, on_both_engines, pool_home, signal, text, until, whole,
};
use nix::sys::signal::Signal;

on_both_engines! {
    a_claim_rests_on_disk_and_comes_back_again_and_again,
    a_suspension_or_its_end_killed_at_any_moment_loses_nothing,
    a_guest_that_came_back_and_died_comes_back_again_as_it_rested,
    what_a_suspension_that_was_cut_off_has_left_is_in_nobodys_way,
    a_guest_that_came_back_untold_is_its_claim,
}

/// Writes that a claimer would not want to lose.
const MINE: [(u64, u64); 2] = [(0x20_0000, 7_000_001), (0x3f_f000, 7_000_002)];

fn write_mine(home: &Home, guest: &str, plus: u64) {
    for (address, value) in MINE {
        let _ = home.ask(guest, &format!("poke {address} {}", value + plus));
    }
}

#[track_caller]
fn finds_mine(home: &Home, guest: &str, plus: u64) {
    for (address, value) in MINE {
        assert_eq!(
            home.peek(guest, address),
            value + plus,
            "{guest} at {address:#x}"
        );
    }
}

/// Bundles of suspended claims.
fn bundles(home: &Home) -> Vec<String> {
    let entries = fs::read_dir(home.suspended()).into_iter().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| Some(name.strip_suffix(".ckp.brood")?.to_owned()))
        .collect();
    names.sort();
    names
}

fn a_claim_rests_on_disk_and_comes_back_again_and_again(on: EngineKind) {
    let Some((home, _)) = pool_home(on, 1, &["--lease", "600"]) else {
        return;
    };
    let mut claimed = home.claim();
    let token = text(&claimed["token"]).to_owned();
    // On KVM more often than deltas may be chained. bhyve writes none: each rest is in full.
    let rounds = by_engine(on, 11, 3);
    for round in 0..rounds {
        write_mine(&home, text(&claimed["guest"]), round);
        let rested = home.json(&["pool", "suspend", &token]);
        if round == 0 && on == EngineKind::Kvm {
            // Its memory is 4 MiB, of which it has written a few pages.
            assert!(whole(&rested["written_bytes"]) < 1 << 18, "{rested}");
        }
        let entries = home.show_pool()["entries"].clone();
        assert_eq!(
            (&entries["claimed"], &entries["suspended"]),
            (&0.into(), &1.into())
        );
        // A suspended claim takes no memory.
        home.nobody_is_left();
        assert_eq!(home.json(&["pool", "suspend", &token]), rested, "it rests");
        let _ = home
            .brood(&["pool", "renew", &token, "--lease", "60"])
            .exits(1)
            .says(&["is suspended", "pool resume"]);
        let listed = &home.show_pool()["suspended"][0];
        assert_eq!(
            (&listed["state"], &listed["written_bytes"]),
            (&"suspended".into(), &rested["written_bytes"])
        );
        claimed = home.json(&["pool", "resume", &token]);
        assert_eq!(
            (&claimed["token"], &claimed["tier"]),
            (&token.as_str().into(), &"cold".into())
        );
        finds_mine(&home, text(&claimed["guest"]), round);
        let again = home.json(&["pool", "resume", &token]);
        assert_eq!(again["guest"], claimed["guest"], "it is there already");
    }
    let _ = home.json(&["pool", "suspend", &token]);
    let _ = home
        .brood(&["pool", "remove", "p"])
        .exits(1)
        .says(&["1 of its entries"]);

    // The host's end takes guests, not what rests.
    home.reboot();
    home.fill();
    let back = home.json(&["pool", "resume", &token]);
    finds_mine(&home, text(&back["guest"]), rounds - 1);
    let _ = home.json(&["pool", "suspend", &token]);
    home.release(&back);
    assert_eq!(
        bundles(&home),
        Vec::<String>::new(),
        "a released claim leaves nothing"
    );
    let _ = home
        .brood(&["pool", "resume", &token])
        .exits(1)
        .says(&["no claim"]);
}

/// A restore can fail though its guest has come: its process could not be looked at, say. Then the
/// record has the claim twice, by its guest and by its bundle.
fn a_guest_that_came_back_untold_is_its_claim(on: EngineKind) {
    let Some((home, _)) = pool_home(on, 1, &["--lease", "600"]) else {
        return;
    };
    let claimed = home.claim();
    let token = text(&claimed["token"]).to_owned();
    let suspended: GuestId = text(&claimed["id"]).parse().unwrap();
    write_mine(&home, text(&claimed["guest"]), 0);
    let _ = home.json(&["pool", "suspend", &token]);
    let back = home.json(&["pool", "resume", &token]);
    write_mine(&home, text(&back["guest"]), 1);
    let record_it_twice = || {
        let bundle = home.suspended().join(suspended.to_string());
        let mut state = State::open(&home.state()).unwrap();
        let digest = TokenDigest::of(&token);
        let bundle = bundle.to_str().unwrap();
        assert!(state.suspend_again(&digest, &suspended, bundle).unwrap());
    };

    record_it_twice();
    let again = home.json(&["pool", "resume", &token]);
    assert_eq!(again["id"], back["id"]);
    let _ = home.json(&["pool", "renew", &token, "--lease", "60"]);
    finds_mine(&home, text(&back["guest"]), 1);

    record_it_twice();
    let _ = home.json(&["pool", "suspend", &token]);
    let last = home.json(&["pool", "resume", &token]);
    finds_mine(&home, text(&last["guest"]), 1);

    record_it_twice();
    home.release(&last);
    home.nobody_is_left();
    assert_eq!(bundles(&home), Vec::<String>::new());
}

fn a_suspension_or_its_end_killed_at_any_moment_loses_nothing(on: EngineKind) {
    let Some((home, _)) = pool_home(on, 0, &["--lease", "36000"]) else {
        return;
    };
    let mut random = Random::seeded();
    let claimed = home.claim();
    let token = text(&claimed["token"]).to_owned();
    let mut guest = text(&claimed["guest"]).to_owned();
    let (rounds, moment) = by_engine(on, (24, 25_000), (8, 250_000));
    for round in 0..rounds {
        write_mine(&home, &guest, round);
        let verb = ["suspend", "resume"];
        for verb in verb {
            let command = home.start(&["pool", verb, &token]);
            std::thread::sleep(Duration::from_micros(random.below(moment)));
            command.signal(Signal::SIGKILL);
            let _ = command.wait();
            if random.below(2) == 0 {
                home.fill();
            }
        }
        // Wherever it is now, it comes back as it was.
        home.fill();
        let back = home.json(&["pool", "resume", &token]);
        guest = text(&back["guest"]).to_owned();
        finds_mine(&home, &guest, round);
        until("one guest to run", || {
            (home.guests().len() == 1).then_some(())
        });
    }
    let _ = home.brood(&["pool", "release", &token]).ok();
    home.fill();
    assert_eq!(bundles(&home), Vec::<String>::new());
}

fn a_guest_that_came_back_and_died_comes_back_again_as_it_rested(on: EngineKind) {
    let Some((home, _)) = pool_home(on, 0, &["--lease", "36000"]) else {
        return;
    };
    let claimed = home.claim();
    let token = text(&claimed["token"]).to_owned();
    write_mine(&home, text(&claimed["guest"]), 7);
    // One that never rested is gone when it dies, and its claim says so.
    let other = home.claim();
    signal(home.pid(text(&other["guest"])), Signal::SIGKILL);
    until("it to be dead", || {
        (home.names("dead").len() == 1).then_some(())
    });
    let _ = home
        .brood(&["pool", "resume", text(&other["token"])])
        .exits(1);
    home.release(&other);

    let _ = home.json(&["pool", "suspend", &token]);
    let mut back = home.json(&["pool", "resume", &token]);
    for round in 0..3 {
        // What it has written since is lost with it.
        write_mine(&home, text(&back["guest"]), 8 + round);
        signal(home.pid(text(&back["guest"])), Signal::SIGKILL);
        until("it to be dead", || {
            (home.names("dead").len() == 1).then_some(())
        });
        home.fill();
        back = home.json(&["pool", "resume", &token]);
        finds_mine(&home, text(&back["guest"]), 7);
        assert!(home.names("dead").is_empty());
    }
    home.release(&back);
    home.fill();
    assert_eq!(bundles(&home), Vec::<String>::new());
}

fn what_a_suspension_that_was_cut_off_has_left_is_in_nobodys_way(on: EngineKind) {
    let Some((home, _)) = pool_home(on, 0, &["--lease", "36000"]) else {
        return;
    };
    let claimed = home.claim();
    let token = text(&claimed["token"]).to_owned();
    write_mine(&home, text(&claimed["guest"]), 3);
    // Its bundle was sealed, and it went on: what is there is not the guest.
    let cold = home.suspended();
    fs::create_dir_all(&cold).unwrap();
    let left = cold.join(text(&claimed["id"]));
    let _ = home.demo(left.to_str().unwrap(), "4M");
    let _ = home.json(&["pool", "suspend", &token]);
    let back = home.json(&["pool", "resume", &token]);
    finds_mine(&home, text(&back["guest"]), 3);
    home.release(&back);
    home.fill();
    assert_eq!(bundles(&home), Vec::<String>::new());
}
