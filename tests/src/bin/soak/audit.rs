//! Audit: checks, while all clients pause, that the whole system reaches the state that it should
//! have.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use brood_tests::{EngineKind, Proc, text};
use nix::{libc, sys::signal::Signal};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    mark,
    scene::{Pool, Scene, lock},
    talk::Talk,
};

/// How long all of it may take to come to rest: leases end, and daemons look once a second.
const PATIENCE: Duration = Duration::from_secs(60);
/// Spares of a nursery.
const SPARES: usize = 3;
/// Claims and releases, of which each tenth must not cost the daemon a descriptor. It keeps some
/// for each of the most requests that it ever had at once.
fn cycles(engine: EngineKind) -> usize {
    match engine {
        EngineKind::Kvm | EngineKind::Bhyve => 100,
        // Each is an operating system whose instructions are translated.
        EngineKind::Qemu => 20,
    }
}

/// Waits until `wrong` finds nothing wrong; after too long a time, fails with the last finding.
fn at_rest(wrong: impl Fn() -> Option<String>) {
    let begin = Instant::now();
    while let Some(what) = wrong() {
        assert!(begin.elapsed() <= PATIENCE, "does not come to rest: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Everything is as it should be, with the claims that there are.
pub(crate) fn whole(scene: &Scene) {
    let talk = scene.talk();
    at_rest(|| pools(scene, &talk).or_else(|| processes(scene)));
    let held = scene.held();
    let ids: HashSet<&str> = held.values().map(|held| held.id.as_str()).collect();
    assert_eq!(ids.len(), held.len(), "two claims have one guest: {held:?}");
    for (token, held) in &held {
        let shown = talk.until_told(&Method::GET, &format!("/claims/{token}"), None);
        if held.suspended {
            assert!(
                shown.is_ok(),
                "{held:?} is suspended, and is lost: {shown:?}"
            );
            assert_eq!(shown.body["state"], "suspended", "{held:?}");
        } else if shown.is_ok() && !scene.was_killed(held.pid) {
            // A claim that does not exist any more was not renewed in time: tell its client.
            let peek = json!({ "request": mark::read(scene.engine) });
            let path = format!("/guests/{}/ask", held.id);
            let answer = talk.until_told(&Method::POST, &path, Some(&peek));
            let over = talk.until_told(&Method::GET, &format!("/claims/{token}"), None);
            assert!(
                mark::of(scene.engine, &answer.body) == Some(held.mark) || over.status == 404,
                "{held:?} does not answer as it should: {answer:?}"
            );
        }
    }
}

/// What is wrong with a pool.
fn pools(scene: &Scene, talk: &Talk) -> Option<String> {
    scene.pools.iter().find_map(|pool| {
        let shown = talk.once(&Method::GET, &format!("/pools/{}", pool.name), None)?;
        (!is_full(pool, &shown.body)).then(|| format!("{}", shown.body))
    })
}

fn is_full(pool: &Pool, shown: &Value) -> bool {
    let entries = &shown["entries"];
    let count = |what: &str| entries[what].as_u64().unwrap_or(u64::MAX);
    let room = match shown["max"].as_u64() {
        Some(most) => most.saturating_sub(count("claimed")),
        None => u64::MAX,
    };
    count("hot") == pool.hot.min(room) && count("filling") == 0 && count("releasing") == 0
}

/// What runs that should not, or does not and should.
fn processes(scene: &Scene) -> Option<String> {
    let home = &scene.home;
    let listed = home.list();
    let known: HashSet<i64> = listed.iter().filter_map(|g| g["pid"].as_i64()).collect();
    let unknown: Vec<Proc> = home
        .guests()
        .into_iter()
        .filter(|guest| !known.contains(&i64::from(guest.pid)))
        .collect();
    let (spares, strays): (Vec<_>, Vec<_>) = unknown.into_iter().partition(is_spare);
    if !strays.is_empty() {
        return Some(format!("not listed, and running: {strays:?}"));
    }
    if spares.len() > SPARES * scene.pools.len() {
        return Some(format!("{} spares", spares.len()));
    }
    let ids: BTreeSet<&str> = listed.iter().map(|guest| text(&guest["id"])).collect();
    let nobodys = files(&home.run_dir()).into_iter().find(|name| {
        let (stem, end) = name.split_once('.').unwrap_or((name, ""));
        match end {
            "lock" => false,
            "sock" | "exit" | "bhyve" | "qemu" => !ids.contains(stem),
            // Memory that all guests of a checkpoint map.
            "ckp" => listed.is_empty(),
            _ => true,
        }
    });
    if let Some(name) = nobodys {
        return Some(format!(
            "{name} is nobody's in {}",
            home.run_dir().display()
        ));
    }
    let locks = files(&home.run_dir());
    let locks = locks.iter().filter(|name| name.ends_with(".lock")).count();
    // A command that was killed leaves one that the next look removes.
    if locks > scene.pools.len() {
        return Some(format!("{locks} locks"));
    }
    None
}

fn is_spare(process: &Proc) -> bool {
    let call = fs::read_to_string(format!("/proc/{}/syscall", process.pid));
    call.is_ok_and(|call| call.starts_with(&format!("{} 0x3 ", libc::SYS_recvfrom)))
}

fn files(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Gives everything back, and makes sure that nothing is left of it.
pub(crate) fn end(scene: Scene) {
    let talk = scene.talk();
    for token in scene.held().into_keys() {
        let _ = talk.until_told(&Method::DELETE, &format!("/claims/{token}"), None);
        scene.let_go(&token);
    }
    // A claim that no client knows of ends with its lease.
    at_rest(|| {
        pools(&scene, &talk)
            .or_else(|| processes(&scene))
            .or_else(|| {
                let left = scene.pools.iter().find_map(|pool| {
                    let shown = talk.once(&Method::GET, &format!("/pools/{}", pool.name), None)?;
                    let entries = &shown.body["entries"];
                    (entries["claimed"] != 0 || entries["suspended"] != 0)
                        .then(|| entries.to_string())
                });
                left.map(|left| format!("claims are left after {} s: {left}", scene.lease_s))
            })
    });
    let hot: u64 = scene.pools.iter().map(|pool| pool.hot).sum();
    at_rest(|| {
        let listed = scene.home.list();
        // One that was killed while it waited is replaced.
        let all_wait = listed.iter().all(|guest| guest["state"] == "paused");
        (listed.len() as u64 != hot || !all_wait).then(|| format!("listed: {listed:?}"))
    });
    at_rest(|| {
        let cold = scene.home.suspended();
        let mut left = files(&cold);
        // The folder of guests' disks.
        left.retain(|name| name != "brood-disks");
        left.extend(files(&cold.join("brood-disks")));
        (!left.is_empty()).then(|| format!("bundles are left: {left:?}"))
    });
    no_descriptor_leaks(&scene, &talk);
    if let Some(storage) = &scene.storage {
        let disks = scene.pools.iter().find(|pool| pool.name == "disk");
        let disks = disks.map_or(0, |pool| pool.hot);
        assert_eq!(storage.disks() as u64, disks, "{:?}", storage.brood_made());
    }
    for pool in &scene.pools {
        let gone = talk.until_told(&Method::DELETE, &format!("/pools/{}", pool.name), None);
        assert!(gone.is_ok(), "{gone:?}");
    }
    let daemon = lock(&scene.daemon).take().expect("there is a daemon");
    daemon.signal(Signal::SIGTERM);
    let ran = daemon.wait();
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    let (home, counts) = (scene.home, scene.counts);
    home.destroy_all();
    if let Some(storage) = &scene.storage {
        assert_eq!(storage.disks(), 0, "{:?}", storage.brood_made());
    }
    let kept = files(&home.state().join("pools"));
    assert!(kept.is_empty(), "{kept:?}");
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    println!(
        "soaked: {} claims, {} suspends, {} resumes, {} releases, {} left to their lease; {} kills, \
         {} hangs, {} daemons; {} guests lost that were killed; nothing handed out twice, lost or left",
        of(&counts.claims),
        of(&counts.suspends),
        of(&counts.resumes),
        of(&counts.releases),
        of(&counts.abandoned),
        of(&counts.kills),
        of(&counts.hangs),
        of(&counts.daemons),
        of(&counts.lost_with_their_guest)
    );
}

/// Claims and releases do not cost the daemon descriptors.
fn no_descriptor_leaks(scene: &Scene, talk: &Talk) {
    let pid = lock(&scene.daemon)
        .as_ref()
        .expect("there is a daemon")
        .pid();
    let open = || files(Path::new(&format!("/proc/{pid}/fd"))).len();
    let cycle = |times| {
        for _ in 0..times {
            let body = json!({ "wait_s": 30.0 });
            let claimed = talk.until_told(&Method::POST, "/pools/many/claims", Some(&body));
            assert!(claimed.is_ok(), "{claimed:?}");
            let token = text(&claimed.body["token"]);
            let released = talk.until_told(&Method::DELETE, &format!("/claims/{token}"), None);
            assert!(released.is_ok(), "{released:?}");
        }
    };
    // Once for what it opens for good.
    let cycles = cycles(scene.engine);
    cycle(cycles);
    at_rest(|| pools(scene, talk));
    let before = open();
    cycle(cycles);
    at_rest(|| {
        let now = open();
        let leaks = now > before + cycles / 10;
        leaks.then(|| format!("the daemon had {before} descriptors, and has {now}"))
    });
    let metrics = scene.home.state().join("brood.sqlite");
    let rows = rusqlite::Connection::open(metrics).expect("it is there");
    let count = |table: &str| -> u64 {
        let count = format!("SELECT count(*) FROM {table}");
        rows.query_row(&count, [], |row| row.get::<_, i64>(0))
            .expect("the table is there")
            .cast_unsigned()
    };
    let hot: u64 = scene.pools.iter().map(|pool| pool.hot).sum();
    at_rest(|| {
        let found = (count("entry"), count("guest"), count("suspended_claim"));
        (found != (hot, hot, 0))
            .then(|| format!("rows of entry, guest, suspended_claim: {found:?}"))
    });
}
