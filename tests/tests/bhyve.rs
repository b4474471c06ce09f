//! bhyve engine and everything above it, on a fake machine of stand-ins: the order of its steps,
//! crashes at each of them, what they leave. No bhyve runs here.

use std::{fs, path::Path, time::Duration};

use brood_core::{
    checkpoint::{AgentProtocol, BhyveGuest, Checkpoint, Readiness, unnoted},
    engine::{
        Engine, GuestNetwork, GuestOrder, GuestRef, Identity, Outcome, SessionTerms,
        bhyve::config::Variables,
    },
    guest_id::GuestId,
};
use brood_tests::{Lab, Running, array, signal, text, until, whole};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Names of the files in a folder, sorted.
fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

const SEALED: [&str; 4] = ["web.ckp", "web.ckp.brood", "web.ckp.kern", "web.ckp.meta"];

#[test]
fn a_day_with_guests() {
    let lab = Lab::new();
    let raw = lab.home.checkpoints().join("first");
    lab.machine.suspend_to(&raw);
    let conf = lab.home.path().join("web.conf");
    fs::write(&conf, lab.machine.config()).unwrap();
    let (raw, conf) = (raw.to_str().unwrap(), conf.to_str().unwrap());
    let web = lab.bundle("web");
    let imported = lab.json(&[
        "checkpoint",
        "import",
        raw,
        &web.to_string(),
        "--bhyve-config",
        conf,
        "--agent",
        "1",
    ]);
    assert_eq!(imported["engine"], "bhyve");
    assert_eq!(files(&lab.home.checkpoints()), SEALED);

    let report = lab.restore(&web, 3);
    let guests = array(&report["guests"]);
    let nonce = text(&guests[0]["nonce"]);
    assert!(
        guests.iter().all(|guest| guest["nonce"] == nonce),
        "{report}"
    );
    let mut macs = Vec::new();
    for guest in lab.list() {
        assert_eq!(
            (text(&guest["state"]), text(&guest["engine"])),
            ("running", "bhyve")
        );
        let name = text(&guest["name"]);
        let identity = lab.ask(name, "identity");
        assert_eq!(
            (text(&identity["name"]), text(&identity["nonce"])),
            (name, nonce)
        );
        macs.push(text(&guest["mac"]).to_owned());
    }
    macs.dedup();
    assert_eq!(macs.len(), 3);
    assert_eq!(
        lab.machine
            .run("ifconfig", &["bridge0"])
            .matches("member:")
            .count(),
        3
    );

    // Memory is shared until it is written.
    let private = |guest: &str| whole(&lab.json(&["show", guest])["private_bytes"]);
    let (before, other) = (private("g-1"), private("g-2"));
    assert_eq!(lab.ask("g-1", "dirty 100")["answer"], "dirty 100");
    assert_eq!(private("g-1"), before + 100 * 4096);
    assert_eq!(private("g-2"), other);

    let _ = lab.brood(&["pause", "g-1"]).ok();
    let _ = lab
        .brood(&["ask", "g-1", "ping"])
        .exits(1)
        .says(&["paused"]);
    let _ = lab.brood(&["resume", "g-1"]).ok();
    let _ = lab
        .brood(&["ask", "g-1", "nonsense"])
        .exits(1)
        .says(&["not a word"]);

    let _ = lab.ask("g-1", "poke 0x1000 77");
    let warm = lab.bundle("warm");
    let _ = lab.brood(&["suspend", "g-1", &warm.to_string()]).ok();
    assert_eq!(files(&lab.home.checkpoints()).len(), 8);
    let _ = lab.brood(&["checkpoint", "verify", &warm.to_string()]).ok();
    assert_eq!(lab.list().len(), 2);
    let again = lab.json(&[
        "restore",
        &warm.to_string(),
        "--guests",
        "1",
        "--prefix",
        "w",
    ]);
    assert_eq!(again["guests"][0]["nonce"], nonce);
    assert_eq!(lab.ask("w-1", "peek 0x1000")["value"], 77);

    let _ = lab.brood(&["destroy", "g-2"]).ok();
    assert_eq!(lab.machine.processes().len(), 2);
    lab.destroy_all();
}

#[test]
fn a_clone_is_on_the_bridge_only_when_it_has_its_own_identity() {
    let (lab, web) = Lab::with_checkpoint();
    let web = web.to_string();
    let mut restore = lab.failing("guest.answer:1:hang", &["restore", &web, "-n", "1"]);
    let passed = lab.machine.root().join("faults/guest.answer");
    until("the guest to be told its identity", || {
        passed.exists().then_some(())
    });
    assert!(
        !lab.machine
            .run("ifconfig", &["bridge0"])
            .contains("member:")
    );
    restore.signal(Signal::SIGKILL);
    until("the manager's end", || restore.ended().then_some(()));
    assert_eq!(lab.list(), Vec::<Value>::new());
    lab.nothing_is_left();
}

/// The points that a restore passes, with those of the commands that undo it.
fn of_restores(points: Vec<String>) -> Vec<String> {
    let mut points = points;
    points.retain(|point| !point.starts_with("suspend.") && !point.starts_with("zfs."));
    assert!(points.len() > 20, "{points:?}");
    points
}

#[test]
fn a_restore_that_fails_at_any_step_leaves_nothing() {
    let (lab, web) = Lab::with_checkpoint();
    let web = web.to_string();
    let mut failed = 0;
    for point in of_restores(lab.machine.points()) {
        for action in ["error", "kill"] {
            let fault = format!("{point}:1:{action}");
            let _ = fs::remove_file(lab.machine.root().join("faults").join(&point));
            let ran = lab
                .failing(&fault, &["restore", &web, "-n", "1", "--prefix", "g"])
                .wait();
            match ran.code() {
                Some(0) => {
                    let _ = lab.ask("g-1", "ping");
                }
                Some(1) => {
                    failed += 1;
                    assert!(ran.stderr.contains("g-1: "), "{fault}: {}", ran.stderr);
                }
                other => panic!("{fault}: {other:?} {}", ran.stderr),
            }
            let _ = lab.brood(&["destroy", "--all", "--force"]).ok();
            assert_eq!(lab.machine.leftovers(), Vec::<String>::new(), "{fault}");
            lab.nothing_is_left();
        }
    }
    assert!(failed > 30, "{failed}");
    assert_eq!(files(&lab.home.checkpoints()), SEALED);
}

#[test]
fn a_manager_killed_at_any_step_of_a_restore_leaves_nothing() {
    let (lab, web) = Lab::with_checkpoint();
    let web = web.to_string();
    let mut killed = 0;
    for point in of_restores(lab.machine.points()) {
        let passed = lab.machine.root().join("faults").join(&point);
        let _ = fs::remove_file(&passed);
        let fault = format!("{point}:1:hang");
        let mut restore = lab.failing(&fault, &["restore", &web, "-n", "1", "--prefix", "g"]);
        until(&point, || {
            (passed.exists() || restore.ended()).then_some(())
        });
        if passed.exists() {
            killed += 1;
            restore.signal(Signal::SIGKILL);
            until("the manager's end", || restore.ended().then_some(()));
            // A command other than bhyve would have ended by itself, had it not been held up.
            for pid in lab.machine.held_up() {
                signal(pid, Signal::SIGKILL);
            }
            // It holds the restore's lock until it is quite dead.
            until(&point, || lab.list().is_empty().then_some(()));
        }
        let _ = lab.brood(&["destroy", "--all", "--force"]).ok();
        assert_eq!(lab.machine.leftovers(), Vec::<String>::new(), "{point}");
        lab.nothing_is_left();
    }
    assert!(killed > 18, "{killed}");
}

#[test]
fn a_suspend_that_fails_at_any_step_leaves_the_guest_or_its_checkpoint() {
    let (lab, web) = Lab::with_checkpoint();
    let (warm, raw) = (lab.bundle("warm"), lab.home.checkpoints().join("warm.raw"));
    let points: Vec<String> = lab
        .machine
        .points()
        .into_iter()
        .filter(|point| point.starts_with("suspend."))
        .collect();
    assert!(points.len() > 8, "{points:?}");
    let (mut lived, mut sealed) = (0, 0);
    for point in points {
        for action in ["error", "kill"] {
            let fault = format!("{point}:1:{action}");
            let _ = fs::remove_file(lab.machine.root().join("faults").join(&point));
            // bhyve must know of the fault too, and has the environment of its restore.
            let restored = lab.failing(
                &fault,
                &["restore", &web.to_string(), "-n", "1", "--prefix", "g"],
            );
            let _ = restored.wait().ok();
            let _ = lab.ask("g-1", "poke 0x1000 5");
            let ran = lab
                .failing(&fault, &["suspend", "g-1", &warm.to_string()])
                .wait();
            let there = files(&lab.home.checkpoints()).len();
            if ran.code() == Some(0) {
                sealed += 1;
                let _ = lab.brood(&["checkpoint", "verify", &warm.to_string()]).ok();
                let _ = lab.json(&["restore", &warm.to_string(), "-n", "1", "--prefix", "w"]);
                assert_eq!(lab.ask("w-1", "peek 0x1000")["value"], 5, "{fault}");
                let _ = lab.brood(&["destroy", "--all", "--force"]).ok();
                let _ = lab.brood(&["checkpoint", "remove", &warm.to_string()]).ok();
            } else {
                assert_eq!(
                    there,
                    SEALED.len(),
                    "{fault}: {} {}",
                    ran.stdout,
                    ran.stderr
                );
                assert!(!raw.exists());
                let state = text(&lab.list()[0]["state"]).to_owned();
                if state == "running" {
                    lived += 1;
                    assert_eq!(lab.ask("g-1", "peek 0x1000")["value"], 5, "{fault}");
                } else {
                    assert_eq!((&*state, action), ("dead", "kill"), "{fault}");
                }
            }
            lab.destroy_all();
        }
    }
    assert!(lived > 5 && sealed > 0, "{lived} {sealed}");
}

#[test]
fn a_suspend_that_was_not_sealed_is_told_of_and_can_be() {
    let (lab, web) = Lab::with_checkpoint();
    lab.restore(&web, 1);
    let _ = lab.ask("g-1", "poke 0x1000 6");
    let warm = lab.bundle("warm");
    // What a manager leaves that was killed between the guest's end and the seal.
    let raw = lab.home.checkpoints().join("warm.raw");
    let folder = fs::read_dir(lab.home.run_dir()).unwrap();
    let folder = folder
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "bhyve"))
        .unwrap();
    let note = serde_json::json!({ "memory": raw, "log": 0 });
    fs::write(folder.join("suspending"), note.to_string()).unwrap();
    let vm = format!(
        "--vm=brood-{}",
        folder.file_stem().unwrap().to_str().unwrap()
    );
    lab.machine
        .run("bhyvectl", &[&format!("--suspend={}", raw.display()), &vm]);
    let reason = until("the guest's end", || {
        lab.list()[0]["reason"].as_str().map(str::to_owned)
    });
    assert!(
        reason.contains("warm.raw") && reason.contains(&format!("brood suspend g-1 {warm}")),
        "{reason}"
    );
    // Its files are a checkpoint also without it.
    let other = lab.bundle("other");
    let (engine, guest) = (lab.machine.engine(&[]), lab.machine.guest());
    let copy = lab.home.checkpoints().join("copy");
    for end in ["", ".kern", ".meta"] {
        let name = |of: &Path| format!("{}{end}", of.display());
        fs::copy(name(&raw), name(&copy)).unwrap();
    }
    engine
        .import(
            &copy,
            &other,
            guest,
            &mut unnoted,
            &brood_core::checkpoint::unwatched,
        )
        .unwrap();
    // And with it, it is suspended after all. To another bundle it is not.
    let elsewhere = lab.bundle("elsewhere").to_string();
    let _ = lab
        .brood(&["suspend", "g-1", &elsewhere])
        .exits(1)
        .says(&["dead"]);
    let _ = lab.brood(&["suspend", "g-1", &warm.to_string()]).ok();
    assert!(lab.list().is_empty() && !raw.exists());
    lab.nothing_is_left();
    let _ = lab.json(&["restore", &warm.to_string(), "-n", "1", "--prefix", "w"]);
    assert_eq!(lab.ask("w-1", "peek 0x1000")["value"], 6);
    lab.destroy_all();
}

#[test]
fn guests_are_found_again_when_the_record_of_them_is_lost() {
    let (lab, web) = Lab::with_checkpoint();
    lab.restore(&web, 2);
    for name in files(&lab.home.state()) {
        if name.starts_with("brood.sqlite") {
            fs::remove_file(lab.home.state().join(name)).unwrap();
        }
    }
    let names: Vec<Value> = lab
        .list()
        .iter()
        .map(|guest| guest["name"].clone())
        .collect();
    assert_eq!(names, ["g-1", "g-2"]);
    let _ = lab.ask("g-2", "ping");
    let _ = lab
        .brood(&["suspend", "g-2", &lab.bundle("warm").to_string()])
        .ok();
    lab.destroy_all();
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let lab = Lab::new();
    let raw = lab.home.checkpoints().join("first");
    lab.machine.suspend_to(&raw);
    let (path, engine) = (lab.bundle("web"), lab.machine.engine(&[]));
    let guest = |from: &str, to: &str| {
        let changed = lab.machine.config().replace(from, to);
        let config = changed.parse::<Variables>().unwrap().0;
        BhyveGuest {
            config,
            ..lab.machine.guest()
        }
    };
    for (from, to, key) in [
        ("cpus=1", "cpus=2", "cpus"),
        ("memory.size=4M", "memory.size=8M", "memory.size"),
        ("pci.0.4.0.device=virtio-rnd\n", "", "pci.0.4.0.device"),
        ("pci.0.4.0", "pci.0.5.0", "pci.0.5.0.device"),
        ("virtio-net", "e1000", "pci.0.3.0.device"),
    ] {
        let refusal = engine
            .import(
                &raw,
                &path,
                guest(from, to),
                &mut unnoted,
                &brood_core::checkpoint::unwatched,
            )
            .unwrap_err();
        assert!(refusal.to_string().contains(key), "{refusal}");
        assert_eq!(
            files(&lab.home.checkpoints()),
            ["first", "first.kern", "first.meta"]
        );
    }
    // Clones that would write to one disk are refused before anything is started.
    lab.machine
        .import(&raw, &path, guest("pci.0.2.0.ro=true\n", ""))
        .unwrap();
    let ran = lab
        .brood(&["restore", &path.to_string(), "-n", "1"])
        .exits(1);
    assert!(ran.stderr.contains("pci.0.2.0.path"), "{}", ran.stderr);
    lab.nothing_is_left();
    // The other engine does not take it.
    let mut command = lab.command(&["restore", &path.to_string(), "-n", "1"]);
    command.env("BROOD_ENGINE", "kvm");
    let _ = Running::start(command)
        .wait()
        .exits(1)
        .says(&["made by bhyve"]);
    let mut command = lab.command(&["list"]);
    command.env("BROOD_ENGINE", "xen");
    let _ = Running::start(command)
        .wait()
        .exits(1)
        .says(&["no such engine"]);
}

#[test]
fn a_guest_without_an_agent_is_ready_when_it_says_so_otherwise() {
    let lab = Lab::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (there, absent) = ("/bin/sh".to_owned(), "/nonexistent/%(name)".to_owned());
    let command = |path: String| Readiness::Command {
        argv: vec!["/usr/bin/test".to_owned(), "-e".to_owned(), path],
    };
    let console = Readiness::Console {
        com: 1,
        words: "ready name=".to_owned(),
    };
    let ways = [
        console,
        Readiness::Tcp { address },
        command(there),
        command(absent),
    ];
    for (n, readiness) in ways.into_iter().enumerate() {
        let (raw, path) = (
            lab.home.checkpoints().join("raw"),
            lab.bundle(&format!("way{n}")),
        );
        lab.machine.suspend_to(&raw);
        let config = lab
            .machine
            .config()
            .replace("pci.0.3.0.bridge=bridge0\n", "");
        let guest = BhyveGuest {
            config: config.parse::<Variables>().unwrap().0,
            agent: None,
            agent_protocol: AgentProtocol::Lines,
            readiness,
        };
        lab.machine.import(&raw, &path, guest).unwrap();
        if n == 3 {
            // Never ready: the wait is ended by the guest's end.
            let mut restore =
                Running::start(lab.command(&["restore", &path.to_string(), "-n", "1"]));
            // Not one that only told what this bhyve can do.
            let restores = |pid: &i32| {
                let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                command.starts_with(b"bhyve: brood-")
            };
            let pid = until("bhyve", || {
                lab.machine.processes().into_iter().find(restores)
            });
            signal(pid, Signal::SIGKILL);
            until("the restore's end", || restore.ended().then_some(()));
            let _ = restore.wait().exits(1).says(&["bhyve ended"]);
        } else {
            lab.restore(&path, 2);
            let _ = lab
                .brood(&["ask", "g-1", "ping"])
                .exits(1)
                .says(&["no agent"]);
        }
        lab.destroy_all();
    }
}

#[test]
fn a_session_called_off_leaves_only_guests_that_are_told_of() {
    let (lab, web) = Lab::with_checkpoint();
    let engine = lab
        .machine
        .engine(&[("BROOD_STANDIN_FAIL", "guest.answer:2:hang")]);
    fs::create_dir_all(lab.home.run_dir()).unwrap();
    let lock = fs::File::create(lab.home.path().join("lock")).unwrap();
    let checkpoint = Checkpoint::open(&web).unwrap();
    let mut session = engine
        .session(
            &checkpoint,
            &lab.home.run_dir(),
            &lock,
            &SessionTerms::default(),
        )
        .unwrap();
    let mut ids = Vec::new();
    for n in 0..2 {
        let id = GuestId::random().unwrap();
        let identity = Identity::fresh(&format!("g-{n}")).unwrap();
        session
            .start(&GuestOrder {
                network: GuestNetwork::default(),
                id,
                identity,
                disk: None,
                memory_limit: None,
            })
            .unwrap();
        ids.push(id);
    }
    // One of the two answers, the other is held up.
    let first = until("an answer", || {
        session.wait(Duration::from_millis(50)).unwrap()
    });
    assert!(matches!(first, Outcome { result: Ok(_), .. }), "{first:?}");
    session.abort();
    drop(session);
    assert_eq!(lab.machine.processes().len(), 1);
    let found = ids.iter().filter(|id| {
        engine
            .find(GuestRef::new(&lab.home.run_dir(), id))
            .unwrap()
            .is_some()
    });
    assert_eq!(found.count(), 1);
    for id in ids {
        engine
            .forget(GuestRef::new(&lab.home.run_dir(), &id))
            .unwrap();
    }
    fs::remove_file(lab.home.path().join("lock")).unwrap();
    lab.nothing_is_left();
}

#[test]
fn a_checkpoint_of_another_makers_processor_is_refused() {
    let (lab, web) = Lab::with_checkpoint();
    let bin = lab.home.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let script = "#!/bin/sh\n\
                  [ \"$*\" = '-n hw.model' ] && echo \"$MODEL\" && exit\n\
                  PATH=${PATH#*:} exec sysctl \"$@\"\n";
    fs::write(bin.join("sysctl"), script).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(bin.join("sysctl"), executable).unwrap();
    let on = |model: &str| {
        let web = web.to_string();
        let mut command = lab.command(&["restore", &web, "--guests", "1", "--prefix", "g"]);
        let path = lab.machine.environment();
        let (_, path) = path.iter().find(|(name, _)| name == "PATH").unwrap();
        command.env("PATH", format!("{}:{path}", bin.display()));
        command.env("MODEL", model);
        Running::start(command).wait()
    };
    // The stand-in's virtual CPUs have the state of AMD's.
    let _ = on("Intel(R) Xeon(R) Gold 6338")
        .exits(1)
        .says(&["a processor of AMD", "Intel(R) Xeon(R) Gold 6338"]);
    assert!(lab.list().is_empty());
    let _ = on("AMD EPYC 7763 64-Core Processor").ok();
    lab.destroy_all();
}
