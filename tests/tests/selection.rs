//! Selection of guests without their names: by the beginning of their names, their state, their
//! pool. Claimed guests are never destroyed by such a selection unless the command says so.

use brood_tests::{Daemon, Home, array, text};

/// Three free guests, one of them paused; a pool with one claimed and one hot guest.
fn scene() -> Option<(Home, String)> {
    let home = Home::with_kvm()?;
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 2, "a");
    home.restore(&demo, 1, "ab");
    let _ = home.brood(&["pause", "a-2"]).ok();
    let _ = home
        .brood(&["pool", "create", "p", &demo.path, "--hot", "2"])
        .ok();
    let claim = home.json(&["pool", "claim", "p"]);
    let claimed = text(&claim["guest"]).to_owned();
    Some((home, claimed))
}

fn listed(home: &Home, args: &[&str]) -> Vec<String> {
    let ran = home.brood(&[&["list", "-q"], args].concat()).ok();
    ran.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn a_list_is_filtered_and_sorted() {
    let Some((home, claimed)) = scene() else {
        return;
    };
    assert_eq!(listed(&home, &["--prefix", "a-"]), ["a-1", "a-2"]);
    assert_eq!(
        listed(&home, &["--prefix", "a", "--state", "running"]),
        ["a-1", "ab-1"]
    );
    assert_eq!(
        listed(&home, &["--pool", "p", "--state", "running"]),
        [claimed.as_str()]
    );
    assert_eq!(listed(&home, &["--pool", "q"]), [""; 0]);
    let _ = home.json(&["ask", "ab-1", "dirty", "500"]);
    let by_private = home.json(&["list", "--sort", "private", "--prefix", "a"]);
    assert_eq!(by_private[0]["name"], "ab-1");
    assert!(by_private[0]["private_bytes"].as_u64() > by_private[1]["private_bytes"].as_u64());
    let pools = home.json(&["list", "--pool", "p"]);
    let mut entries: Vec<&str> = array(&pools).iter().map(|g| text(&g["entry"])).collect();
    entries.sort_unstable();
    assert_eq!(entries, ["claimed", "hot"]);
}

#[test]
fn a_sweep_spares_claimed_guests_with_a_daemon_and_without() {
    for daemon in [false, true] {
        let Some((home, claimed)) = scene() else {
            return;
        };
        let _daemon = daemon.then(|| Daemon::start(&home));
        let done = home.json(&["destroy", "--prefix", "a-"]);
        assert_eq!(
            (&done["destroyed"], &done["spared"]),
            (&2.into(), &serde_json::json!([]))
        );
        let done = home.json(&["destroy", "--pool", "p"]);
        assert_eq!(done["spared"], serde_json::json!([claimed]));
        let said = home.brood(&["destroy", "--all"]).ok().stdout;
        let why = "1 guest not destroyed, because claimed: --force";
        assert!(said.contains(why), "{said}");
        assert!(listed(&home, &[]).contains(&claimed));
        let _ = home.brood(&["destroy", "--all", "--force"]).ok();
        assert!(!listed(&home, &[]).contains(&claimed));
    }
}

#[test]
fn names_that_no_guest_has_can_be_passed_over() {
    for daemon in [false, true] {
        let Some((home, _)) = scene() else { return };
        let _daemon = daemon.then(|| Daemon::start(&home));
        let _ = home.brood(&["destroy", "a-1", "nobody"]).exits(1);
        assert!(listed(&home, &[]).contains(&"a-1".to_owned()));
        let done = home.json(&["destroy", "a-1", "nobody", "--ignore-missing"]);
        assert_eq!(done["destroyed"], 1);
    }
}

#[test]
fn paused_guests_are_resumed_by_state() {
    let Some((home, _)) = scene() else { return };
    let done = home.json(&["resume", "--state", "paused", "--prefix", "a"]);
    assert_eq!(done["guests"][0]["name"], "a-2");
    assert_eq!(done["resumed"], 1);
}
