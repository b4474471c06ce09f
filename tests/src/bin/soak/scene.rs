//! Scene of the soak: a daemon that comes and goes, pools, and what the clients know of them.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use brood_tests::{Daemon, Demo, EngineKind, Home, Kind, Random, Storage, without_kvm};
use serde_json::json;

use super::{mark::MARK_AT, talk::Talk};

/// How long a claim lasts when it is not renewed, in seconds.
fn lease_s(engine: EngineKind) -> u64 {
    match engine {
        EngineKind::Kvm | EngineKind::Bhyve => 10,
        // Its guests' instructions are translated.
        EngineKind::Qemu => 30,
    }
}

/// A pool.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) name: &'static str,
    pub(crate) hot: u64,
    /// The mark of a guest that was never claimed.
    pub(crate) pristine: u64,
}

/// A claim that its client knows of and has not released.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) guest: String,
    pub(crate) id: String,
    pub(crate) pid: i32,
    pub(crate) mark: u64,
    pub(crate) suspended: bool,
}

/// All of it. The home goes first: its guests' disks are in the storage.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) home: Home,
    pub(crate) engine: EngineKind,
    pub(crate) lease_s: u64,
    pub(crate) pools: Vec<Pool>,
    pub(crate) daemon: Mutex<Option<Daemon>>,
    /// Guests that were killed, by process id, and marks that may be lost with them.
    killed: Mutex<HashSet<i32>>,
    /// Claims by token.
    held: Mutex<BTreeMap<String, Held>>,
    /// Ids and generations that were ever handed out.
    given: Mutex<HashSet<String>>,
    /// Taken to read while something is done, and to write while all is looked at.
    still: RwLock<()>,
    pub(crate) done: AtomicBool,
    pub(crate) counts: Counts,
    pub(crate) storage: Option<Storage>,
    /// A guest that never answers, where one can be made.
    pub(crate) silent: Option<Silent>,
}

/// A guest that never answers.
#[derive(Debug)]
pub(crate) struct Silent {
    pub(crate) checkpoint: String,
    /// The fake machine's setting for that.
    pub(crate) fault: Option<&'static str>,
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) claims: AtomicU64,
    pub(crate) suspends: AtomicU64,
    pub(crate) resumes: AtomicU64,
    pub(crate) releases: AtomicU64,
    pub(crate) abandoned: AtomicU64,
    pub(crate) lost_with_their_guest: AtomicU64,
    pub(crate) daemons: AtomicU64,
    pub(crate) kills: AtomicU64,
    pub(crate) hangs: AtomicU64,
}

impl Counts {
    pub(crate) fn add(count: &AtomicU64) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where it plays.
struct Place {
    home: Home,
    demo: Demo,
    /// A file system of its own, which can be filled; and bundles of suspended claims share blocks
    /// with their guests' disks.
    storage: Option<Storage>,
}

impl Place {
    fn of(engine: EngineKind) -> Option<Self> {
        if engine == EngineKind::Qemu {
            let (home, demo) = Home::with_qemu()?;
            let storage = None;
            return Some(Self {
                home,
                demo,
                storage,
            });
        }
        let storage = Storage::files(Kind::Xfs);
        let home = match &storage {
            Some(storage) => Home::on_inside(engine, &storage.folder())?,
            None => Home::on(engine)?,
        };
        let demo = home.demo("demo", "4M");
        Some(Self {
            home,
            demo,
            storage,
        })
    }
}

impl Scene {
    /// Starts a daemon with its pools; `None` where guests cannot be run, which is said.
    pub(crate) fn new(engine: EngineKind, random: &mut Random) -> Option<Self> {
        if engine == EngineKind::Kvm && without_kvm() {
            return None;
        }
        let Place {
            home,
            demo,
            storage,
        } = Place::of(engine)?;
        let warm = storage
            .as_ref()
            .filter(|_| engine == EngineKind::Kvm)
            .map(|storage| with_disk(&home, &demo, storage));
        let silent = match engine {
            EngineKind::Kvm => silent(&home, &demo),
            EngineKind::Bhyve => Some(Silent {
                checkpoint: demo.path.clone(),
                fault: Some("guest.answer:hang"),
            }),
            EngineKind::Qemu => None,
        };
        let daemon = Daemon::start(&home);
        let lease_s = lease_s(engine);
        let mut pools = Vec::new();
        let mut make = |name, demo: &Demo, hot, most: Option<u64>| {
            let pool = json!({ "name": name, "checkpoint": demo.path, "hot": hot, "max": most,
                               "lease_s": lease_s });
            daemon.post("/api/v1/pools", &pool, 201);
            let pristine = match engine {
                EngineKind::Kvm | EngineKind::Bhyve => demo.words().at(MARK_AT),
                EngineKind::Qemu => 0,
            };
            pools.push(Pool {
                name,
                hot,
                pristine,
            });
        };
        let (many, few) = match engine {
            EngineKind::Kvm | EngineKind::Bhyve => (4 + random.below(4), 2),
            EngineKind::Qemu => (2, 1),
        };
        make("many", &demo, many, None);
        make("few", &demo, few, Some(few + 3));
        if let Some(warm) = &warm {
            make("disk", warm, 2, None);
        }
        Some(Self {
            home,
            engine,
            lease_s,
            pools,
            daemon: Mutex::new(Some(daemon)),
            killed: Mutex::default(),
            held: Mutex::default(),
            given: Mutex::default(),
            still: RwLock::default(),
            done: AtomicBool::new(false),
            counts: Counts::default(),
            storage,
            silent,
        })
    }

    /// Held while something is done that must not be looked at.
    pub(crate) fn doing(&self) -> RwLockReadGuard<'_, ()> {
        self.still.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all clients are idle, and keeps them so.
    pub(crate) fn hold_still(&self) -> RwLockWriteGuard<'_, ()> {
        self.still.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    pub(crate) fn talk(&self) -> Talk {
        Talk::new(&self.home)
    }

    /// Notes that a process is about to be killed.
    pub(crate) fn kill(&self, pid: i32) {
        lock(&self.killed).insert(pid);
        Counts::add(&self.counts.kills);
        brood_tests::signal(pid, nix::sys::signal::Signal::SIGKILL);
    }

    pub(crate) fn was_killed(&self, pid: i32) -> bool {
        lock(&self.killed).contains(&pid)
    }

    /// Notes a value that must never be handed out again.
    pub(crate) fn give(&self, what: &str) {
        let new = lock(&self.given).insert(what.to_owned());
        assert!(new, "{what} was handed out twice");
    }

    pub(crate) fn hold(&self, token: &str, held: Held) {
        lock(&self.held).insert(token.to_owned(), held);
    }

    pub(crate) fn let_go(&self, token: &str) {
        lock(&self.held).remove(token);
    }

    pub(crate) fn held(&self) -> BTreeMap<String, Held> {
        lock(&self.held).clone()
    }

    /// Prints the daemon's last log lines, unless the daemon is being replaced.
    pub(crate) fn tell_of_daemon(&self) {
        let Ok(daemon) = self.daemon.try_lock() else {
            return;
        };
        let said = daemon.as_ref().map(Daemon::log).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        for line in &lines[lines.len().saturating_sub(40)..] {
            eprintln!("{line}");
        }
    }
}

const MAKE_SPIN: &str = "import sys; sys.path.insert(0, sys.argv[1]); import guests; \
                         guests.make(sys.argv[2], sys.argv[3], 'spin', guests.P['spin'])";

/// A checkpoint whose guest never answers; none without the tools that make it.
fn silent(home: &Home, demo: &Demo) -> Option<Silent> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/hostile");
    let made = Command::new("python3")
        .args(["-c", MAKE_SPIN])
        .arg(&folder)
        .arg(&demo.path)
        .arg(home.checkpoints())
        .output();
    let made = made.is_ok_and(|made| made.status.success());
    made.then(|| Silent {
        checkpoint: home.named("spin").path,
        fault: None,
    })
}

/// A checkpoint of a guest that has a disk.
fn with_disk(home: &Home, demo: &Demo, storage: &Storage) -> Demo {
    let disk = storage.disk();
    let restore = [
        "restore", &demo.path, "-n", "1", "--prefix", "w", "--disk", &disk,
    ];
    let _ = home.brood(&restore).ok();
    let path = storage.folder().join("warm");
    let warm = Demo {
        path: path.to_str().expect("plain letters").to_owned(),
    };
    let _ = home.brood(&["suspend", "w-1", &warm.path]).ok();
    warm
}
