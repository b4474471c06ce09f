//! bhyve guests with disks of their own, on real file systems and a real ZFS, and on volumes of a
//! fake one: clones before the guest, a snapshot with the memory, a crash at each step of both. No
//! bhyve runs here.

use std::{cell::Cell, fs, path::PathBuf};

use brood_core::{
    checkpoint::{BundlePath, Checkpoint, unnoted},
    engine::{After, Engine, GuestNetwork, GuestOrder, GuestRef, Identity, SessionTerms, Suspend},
    guest_id::GuestId,
};
use brood_tests::{Kind, Lab, Running, Storage, array, signal, text, until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Where disks are.
enum Place {
    /// Of this machine.
    Real(Storage),
    /// Volumes of the fake machine.
    Volumes,
}

/// A lab, and a checkpoint `web` of a guest that writes to a disk there.
struct Scene {
    lab: Lab,
    place: Place,
    web: BundlePath,
}

/// The device that the disk belongs to.
const DEVICE: &str = "virtio-blk@pci.0.2.0";

fn volumes() -> Scene {
    Scene::new(Place::Volumes)
}

/// Runs a test with each kind of disk that this machine has.
fn on_every_place(test: impl Fn(&Scene)) {
    let real: [fn() -> Option<Storage>; 3] = [
        || Storage::files(Kind::Xfs),
        || Storage::files(Kind::Btrfs),
        Storage::zfs,
    ];
    let real = real.iter().filter_map(|storage| storage());
    for place in real.map(Place::Real).chain([Place::Volumes]) {
        let scene = Scene::new(place);
        test(&scene);
        scene.is_clean();
    }
}

impl Scene {
    fn new(place: Place) -> Self {
        let lab = Lab::new();
        match &place {
            Place::Volumes => lab.machine.add_volume(),
            Place::Real(_) => lab.machine.use_real_zfs(),
        }
        let web = lab.bundle("web");
        let scene = Self { lab, place, web };
        let config = scene.config();
        scene.lab.machine.checkpoint_of(&config, &scene.web);
        scene
    }

    /// The disk of the guest that the checkpoint is of.
    fn original(&self) -> String {
        match &self.place {
            Place::Real(Storage::Files(files)) => format!("{}/base.img", files.path().display()),
            Place::Real(Storage::Zfs(pool)) => format!("{}/data/disk", pool.path().display()),
            Place::Volumes => "/dev/zvol/tank/base".to_owned(),
        }
    }

    fn config(&self) -> String {
        self.lab.machine.config_with_disk(&self.original())
    }

    /// The same disk, as `--disk` names it.
    fn disk(&self) -> String {
        match &self.place {
            Place::Real(storage) => storage.disk(),
            Place::Volumes => "zfs:tank/base@clean".to_owned(),
        }
    }

    /// A bundle beside the disks.
    fn bundle(&self, name: &str) -> BundlePath {
        match &self.place {
            Place::Real(storage) => BundlePath::new(&storage.folder().join(name)).unwrap(),
            Place::Volumes => self.lab.bundle(name),
        }
    }

    /// Everything that brood has made there: guests' disks and bundles' snapshots.
    fn made(&self) -> Vec<String> {
        match &self.place {
            Place::Real(storage) => storage.brood_made(),
            Place::Volumes => {
                let all = ["list", "-H", "-o", "name", "-t", "all"];
                let all = self.lab.machine.run("zfs", &all);
                let made = all.lines().filter(|name| name.contains("brood-"));
                made.map(str::to_owned).collect()
            }
        }
    }

    fn snapshots(&self) -> usize {
        let made = self.made();
        let is_one = |name: &&String| name.contains('@') || name.contains(".ckp.disk-");
        made.iter().filter(is_one).count()
    }

    fn restore(&self, from: &BundlePath, guests: usize, prefix: &str, more: &[&str]) {
        let (from, count) = (from.to_string(), guests.to_string());
        let arguments = ["restore", &from, "-n", &count, "--prefix", prefix];
        let report = self.lab.json(&[&arguments[..], more].concat());
        assert_eq!(report["restored"], guests, "{report}");
    }

    fn read(&self, guest: &str, sector: u64) -> Value {
        self.lab.ask(guest, &format!("read {sector}"))["value"].clone()
    }

    /// No guest is left, nothing of one on the machine, and no disk.
    #[track_caller]
    fn is_clean(&self) {
        self.lab.destroy_all();
        assert_eq!(self.made(), [] as [String; 0]);
    }

    /// Removes a bundle, and then there is nothing left.
    #[track_caller]
    fn remove(&self, bundle: &BundlePath) {
        self.lab.destroy_all();
        let remove = ["checkpoint", "remove", &bundle.to_string()];
        let _ = self.lab.brood(&remove).ok();
        self.is_clean();
    }
}

#[test]
fn a_disk_goes_with_its_guest_into_a_checkpoint_and_out_again() {
    on_every_place(|scene| {
        let lab = &scene.lab;
        scene.restore(&scene.web, 3, "g", &["--disk", &scene.disk()]);
        let before = scene.read("g-3", 9);
        for (guest, value) in [("g-1", 1001), ("g-2", 1002)] {
            let _ = lab.ask(guest, &format!("write 9 {value}"));
        }
        assert_eq!(scene.read("g-1", 9), 1001);
        assert_eq!(scene.read("g-2", 9), 1002);
        assert_eq!(scene.read("g-3", 9), before);
        // Each guest's own configuration names its own disk, and the rest is the checkpoint's.
        let confs = fs::read_dir(lab.home.run_dir()).unwrap();
        let mut paths: Vec<String> = confs
            .map(|entry| fs::read_to_string(entry.unwrap().path().join("conf")).unwrap())
            .map(|conf| {
                let mut paths = conf
                    .lines()
                    .filter_map(|l| l.strip_prefix("pci.0.2.0.path="));
                paths.next().unwrap().to_owned()
            })
            .collect();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), 3);
        assert!(!paths.contains(&scene.original()), "{paths:?}");

        // Memory and disk of one moment.
        let _ = lab.ask("g-1", "poke 0x1000 4711");
        let warm = scene.bundle("warm");
        let _ = lab.brood(&["suspend", "g-1", &warm.to_string()]).ok();
        let _ = lab.ask("g-2", "write 9 5");
        let inspected = lab.json(&["checkpoint", "inspect", &warm.to_string()]);
        assert_eq!(
            array(&inspected["disks"])[0]["device"],
            DEVICE,
            "{inspected}"
        );
        let _ = lab.brood(&["checkpoint", "verify", &warm.to_string()]).ok();
        scene.restore(&warm, 2, "w", &[]);
        for guest in ["w-1", "w-2"] {
            assert_eq!(lab.ask(guest, "peek 0x1000")["value"], 4711);
            assert_eq!(scene.read(guest, 9), 1001);
        }
        let _ = lab.ask("w-1", "write 9 7");
        assert_eq!(scene.read("w-2", 9), 1001);

        // The error names its users, and another disk is not taken for the sealed one.
        let remove = ["checkpoint", "remove", &warm.to_string()];
        let _ = lab.brood(&remove).exits(1).says(&["w-1", "w-2"]);
        let other = [
            "restore",
            &warm.to_string(),
            "-n",
            "1",
            "--disk",
            &scene.disk(),
        ];
        let _ = lab.brood(&other).exits(1).says(&["leave --disk out"]);
        scene.remove(&warm);
    });
}

#[test]
fn a_disk_that_no_device_would_read_is_not_made() {
    let scene = volumes();
    let lab = &scene.lab;
    let shared = lab.bundle("shared");
    lab.machine.checkpoint(&shared);
    let two = scene.config()
        + &format!(
            "pci.0.5.0.device=virtio-blk\npci.0.5.0.path={}\n",
            scene.original()
        );
    let both = lab.bundle("both");
    lab.machine.checkpoint_of(&two, &both);
    let disk = scene.disk();
    for (from, words) in [
        (&shared, ["writes to none of its disks", "--disk out"]),
        (&both, ["pci.0.2.0 and pci.0.5.0", "ro=true"]),
    ] {
        let restore = ["restore", &from.to_string(), "-n", "2", "--disk", &disk];
        let _ = lab.brood(&restore).exits(1).says(&words);
        assert_eq!(scene.made(), [] as [String; 0]);
        assert!(lab.list().is_empty());
    }
    // And one that is read by all is not written to by all.
    let restore = ["restore", &scene.web.to_string(), "-n", "2"];
    let _ = lab.brood(&restore).exits(1).says(&["pci.0.2.0.path"]);
    // A clone that bhyve is not to find fails its guest only.
    let missing = disk.replace("clean", "dirty");
    let restore = [
        "restore",
        &scene.web.to_string(),
        "-n",
        "1",
        "--disk",
        &missing,
    ];
    let _ = lab.brood(&restore).exits(1).says(&["does not exist"]);
    scene.is_clean();
}

#[test]
fn a_guest_whose_disk_is_not_recorded_any_more_is_not_suspended_without_it() {
    let scene = volumes();
    let lab = &scene.lab;
    scene.restore(&scene.web, 1, "g", &["--disk", &scene.disk()]);
    for file in ["brood.sqlite", "brood.sqlite-wal", "brood.sqlite-shm"] {
        let _ = fs::remove_file(lab.home.state().join(file));
    }
    let suspend = ["suspend", "g-1", &scene.bundle("warm").to_string()];
    let _ = lab
        .brood(&suspend)
        .exits(1)
        .says(&["/dev/zvol/tank/brood-", "not recorded"]);
    assert_eq!(scene.read("g-1", 1), 0);
    lab.destroy_all();
    let place = "zfs:tank";
    assert_eq!(
        array(&lab.json(&["disk", "sweep", place])["removed"]).len(),
        1
    );
    scene.is_clean();
}

/// The points that a restore of a guest with a disk passes, and the commands that undo it.
fn of_restores(scene: &Scene) -> Vec<String> {
    let mut points = scene.lab.machine.points();
    points.retain(|point| !point.starts_with("suspend.") && !point.starts_with("zfs.snapshot"));
    assert!(points.len() > 30, "{points:?}");
    points
}

/// Forgets that a point was passed.
fn afresh(scene: &Scene, point: &str) -> PathBuf {
    let passed = scene.lab.machine.root().join("faults").join(point);
    let _ = fs::remove_file(&passed);
    passed
}

#[test]
fn a_restore_that_fails_at_any_step_leaves_no_disk() {
    let scene = volumes();
    let (lab, web, disk) = (&scene.lab, scene.web.to_string(), scene.disk());
    let restore = ["restore", &web, "-n", "1", "--prefix", "g", "--disk", &disk];
    let mut failed = 0;
    for point in of_restores(&scene) {
        for action in ["error", "kill"] {
            let fault = format!("{point}:1:{action}");
            afresh(&scene, &point);
            let ran = lab.failing(&fault, &restore).wait();
            match ran.code() {
                Some(0) => assert_eq!(scene.read("g-1", 1), 0),
                Some(1) => failed += 1,
                other => panic!("{fault}: {other:?} {}", ran.stderr),
            }
            let _ = lab.brood(&["destroy", "--all", "--force"]).ok();
            assert_eq!(scene.made(), [] as [String; 0], "{fault}: {}", ran.stderr);
            lab.nothing_is_left();
        }
    }
    assert!(failed > 40, "{failed}");
    scene.is_clean();
}

#[test]
fn a_manager_killed_at_any_step_of_a_restore_leaves_no_disk() {
    let scene = volumes();
    let (lab, web, disk) = (&scene.lab, scene.web.to_string(), scene.disk());
    let restore = ["restore", &web, "-n", "1", "--prefix", "g", "--disk", &disk];
    let mut killed = 0;
    for point in of_restores(&scene) {
        let passed = afresh(&scene, &point);
        let mut manager = lab.failing(&format!("{point}:1:hang"), &restore);
        until(&point, || {
            (passed.exists() || manager.ended()).then_some(())
        });
        if passed.exists() {
            killed += 1;
            manager.signal(Signal::SIGKILL);
            until("the manager's end", || manager.ended().then_some(()));
            for pid in lab.machine.held_up() {
                signal(pid, Signal::SIGKILL);
            }
            // A command that was held up had the restore's lock, until it is quite gone.
            until(&format!("no guest: {point}"), || {
                lab.list().is_empty().then_some(())
            });
            assert_eq!(scene.made(), [] as [String; 0], "{point}");
        }
        let _ = lab.brood(&["destroy", "--all", "--force"]).ok();
        lab.nothing_is_left();
    }
    assert!(killed > 22, "{killed}");
    scene.is_clean();
}

/// The points that a suspend passes, each with the passage that is the suspend's: a restore has
/// held a snapshot before.
fn of_suspends(scene: &Scene) -> Vec<(String, u32)> {
    let points = scene.lab.machine.points().into_iter();
    let of_suspend = |point: String| match point.as_str() {
        "zfs.hold" | "zfs.held" => Some((point, 2)),
        _ if point.starts_with("suspend.") || point.starts_with("zfs.snapshot") => Some((point, 1)),
        _ => None,
    };
    let points: Vec<_> = points.filter_map(of_suspend).collect();
    assert!(points.len() > 12, "{points:?}");
    points
}

/// How a suspend that met with a fault went on.
#[derive(Default)]
struct Fates {
    lived: u32,
    sealed: u32,
    resumed: u32,
    died: u32,
}

impl Scene {
    /// After a suspend of `g-1` to `warm` that met with a fault: the guest goes on with its disk
    /// and there is no snapshot, or it is sealed with its disk, at once or when it is asked for
    /// again. Only one that was killed in the middle may be gone.
    fn is_one_unit(&self, warm: &BundlePath, fault: &str, fates: &Fates) -> Fates {
        let lab = &self.lab;
        eprintln!("{fault}");
        let mut fates = Fates { ..*fates };
        let guests = lab.list();
        let state = guests.first().map(|guest| text(&guest["state"]).to_owned());
        let suspend = ["suspend", "g-1", &warm.to_string()];
        match state.as_deref() {
            Some("running") => {
                fates.lived += 1;
                assert_eq!(lab.ask("g-1", "peek 0x1000")["value"], 5, "{fault}");
                assert_eq!(self.read("g-1", 9), 55, "{fault}");
                // What a killed manager left of a snapshot belongs to nothing.
                let _ = lab.brood(&["disk", "sweep"]).ok();
                assert_eq!(self.snapshots(), 0, "{fault}");
                let _ = lab.brood(&suspend).ok();
            }
            Some("dead") => {
                let reason = guests[0]["reason"].as_str().unwrap_or_default();
                if reason.contains("not sealed") {
                    fates.resumed += 1;
                    let raw = format!("{warm}.raw");
                    let import = [
                        "checkpoint",
                        "import",
                        &raw,
                        &format!("{warm}-alone"),
                        "--bhyve-config",
                        "/dev/null",
                    ];
                    let _ = lab.brood(&import).exits(1).says(&["g-1", "has a disk"]);
                    let _ = lab.brood(&suspend).ok();
                } else {
                    fates.died += 1;
                    assert!(fault.contains("kill"), "{fault}: {reason}");
                    let _ = lab.brood(&["destroy", "g-1"]).ok();
                }
            }
            None => fates.sealed += 1,
            Some(other) => panic!("{fault}: {other}"),
        }
        assert!(lab.list().is_empty(), "{fault}");
        if warm.ckp().exists() {
            let _ = lab.brood(&["checkpoint", "verify", &warm.to_string()]).ok();
            self.restore(warm, 1, "w", &[]);
            assert_eq!(lab.ask("w-1", "peek 0x1000")["value"], 5, "{fault}");
            assert_eq!(self.read("w-1", 9), 55, "{fault}");
            lab.destroy_all();
            let _ = lab.brood(&["checkpoint", "remove", &warm.to_string()]).ok();
        }
        let _ = lab.brood(&["disk", "sweep"]).ok();
        self.is_clean();
        let raw: Vec<_> = fs::read_dir(warm.dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("warm"))
            .collect();
        assert_eq!(raw, [] as [String; 0], "{fault}");
        fates
    }

    /// A guest `g-1` with 5 in its memory and 55 on its disk, on a machine that fails as told.
    fn guest(&self, fault: Option<&String>) {
        let (web, disk) = (self.web.to_string(), self.disk());
        let restore = ["restore", &web, "-n", "1", "--prefix", "g", "--disk", &disk];
        let mut command = self.lab.command(&restore);
        command.envs(fault.map(|fault| ("BROOD_STANDIN_FAIL", fault)));
        let _ = Running::start(command).wait().ok();
        let _ = self.lab.ask("g-1", "poke 0x1000 5");
        let _ = self.lab.ask("g-1", "write 9 55");
    }
}

#[test]
fn a_suspend_that_fails_at_any_step_is_undone_or_can_be_done_again() {
    let scene = volumes();
    let (lab, warm) = (&scene.lab, scene.bundle("warm"));
    let mut fates = Fates::default();
    for (point, passage) in of_suspends(&scene) {
        for action in ["error", "kill"] {
            // bhyve must know of the fault too, and has the environment of its restore.
            let fault = format!("{point}:{passage}:{action}");
            afresh(&scene, &point);
            scene.guest(Some(&fault));
            let suspend = ["suspend", "g-1", &warm.to_string()];
            let _ = lab.failing(&fault, &suspend).wait();
            fates = scene.is_one_unit(&warm, &fault, &fates);
        }
    }
    let Fates {
        lived,
        sealed,
        resumed,
        died,
    } = fates;
    assert!(
        lived > 5 && sealed > 0 && resumed > 5 && died > 3,
        "{lived} {sealed} {resumed} {died}"
    );
}

#[test]
fn a_manager_killed_at_any_step_of_a_suspend_can_do_it_again() {
    let scene = volumes();
    let (lab, warm) = (&scene.lab, scene.bundle("warm"));
    let mut fates = Fates::default();
    let mut killed = 0;
    // A process that is about to end has lost its command line, and is there a moment longer.
    let has_ended = || {
        let lives = |guest: &Value| guest["state"] == "running";
        lab.machine.processes().is_empty() && !lab.list().iter().any(lives)
    };
    for (point, passage) in of_suspends(&scene) {
        let passed = afresh(&scene, &point);
        let fault = format!("{point}:{passage}:hang");
        // The guest's own steps go on: what hangs is what the manager waits for.
        let own =
            point.starts_with("zfs.") || ["suspend.connect", "suspend.sent"].contains(&&*point);
        scene.guest(Some(&fault).filter(|_| !own));
        let mut manager = lab.failing(&fault, &["suspend", "g-1", &warm.to_string()]);
        let passages = || fs::metadata(&passed).map_or(0, |facts| facts.len());
        let due = if own && passage == 2 {
            1
        } else {
            u64::from(passage)
        };
        until(&point, || {
            (passages() >= due || manager.ended()).then_some(())
        });
        killed += u32::from(!manager.ended());
        manager.signal(Signal::SIGKILL);
        until("the manager's end", || manager.ended().then_some(()));
        for pid in lab.machine.held_up() {
            signal(pid, Signal::SIGKILL);
        }
        if !own {
            // bhyve is in the middle of it, and nothing will continue it.
            for pid in lab.machine.processes() {
                signal(pid, Signal::SIGKILL);
            }
            until("its end", || has_ended().then_some(()));
        }
        if point == "suspend.sent" {
            // The request is on its way.
            until("the guest's end", || has_ended().then_some(()));
        }
        fates = scene.is_one_unit(&warm, &format!("{fault} kill"), &fates);
    }
    assert!(killed > 10, "{killed}");
    assert!(fates.lived > 0 && fates.resumed > 2 && fates.died > 3);
}

#[test]
fn a_bundle_that_was_sealed_but_for_the_last_names_is_not_sealed_again() {
    let scene = volumes();
    let engine = scene.lab.machine.engine(&[]);
    let run_dir = scene.lab.home.run_dir();
    fs::create_dir_all(&run_dir).unwrap();
    let lock = fs::File::create(scene.lab.home.path().join("lock")).unwrap();
    let web = Checkpoint::open(&scene.web).unwrap();
    assert!(engine.reads_disk(&web).unwrap());
    let (id, identity) = (GuestId::random().unwrap(), Identity::fresh("a").unwrap());
    let disk = Some("/dev/zvol/tank/base".into());
    let mut session = engine
        .session(&web, &run_dir, &lock, &SessionTerms::default())
        .unwrap();
    session
        .start(&GuestOrder {
            network: GuestNetwork::default(),
            id,
            identity,
            disk,
            memory_limit: None,
        })
        .unwrap();
    let outcome = until("the guest", || {
        session.wait(std::time::Duration::from_millis(50)).unwrap()
    });
    outcome.result.unwrap();
    let (warm, taken) = (scene.bundle("warm"), Cell::new(0));
    let suspend = || {
        let mut disks = || {
            taken.set(taken.get() + 1);
            Ok(Vec::new())
        };
        engine.suspend(
            GuestRef::new(&run_dir, &id),
            Suspend {
                name: "a",
                from: &web,
                to: &warm,
                delta: false,
                after: After::End,
                disks: &mut disks,
                note: &mut unnoted,
                progress: &brood_core::checkpoint::unwatched,
            },
        )
    };
    let sealed = suspend().unwrap();
    // As if the manager had been killed before it had removed the last name.
    let raw = PathBuf::from(format!("{warm}.raw"));
    fs::hard_link(warm.ckp(), &raw).unwrap();
    let note = run_dir.join(format!("{id}.bhyve/suspending"));
    let begun = serde_json::json!({ "memory": raw, "log": 0 });
    fs::write(note, begun.to_string()).unwrap();
    let unsealed = engine
        .unsealed(GuestRef::new(&run_dir, &id))
        .unwrap()
        .unwrap();
    assert_eq!(unsealed.memory, raw);
    assert_eq!(suspend().unwrap(), sealed);
    assert!(!raw.exists() && taken.get() == 1);
    assert_eq!(engine.unsealed(GuestRef::new(&run_dir, &id)).unwrap(), None);
    session.abort();
    engine.forget(GuestRef::new(&run_dir, &id)).unwrap();
}
