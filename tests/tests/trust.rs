//! Checkpoints of bhyve guests from elsewhere: what they want of the host is done once somebody trusts them.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use brood_core::checkpoint::{BhyveGuest, BundlePath, Readiness, unnoted, unwatched};
use brood_tests::{Daemon, Lab, text};
use serde_json::{Value, json};

/// Makes bhyve's files, and a guest of whom a change is wanted.
fn bhyves(lab: &Lab, change: &dyn Fn(&mut BhyveGuest)) -> (PathBuf, BhyveGuest) {
    let raw = lab.home.checkpoints().join("first");
    lab.machine.suspend_to(&raw);
    let mut guest = lab.machine.guest();
    change(&mut guest);
    (raw, guest)
}

#[test]
fn each_clone_has_its_own_firmware_variables() {
    let lab = Lab::new();
    let vars = lab.home.path().join("VARS.fd");
    fs::write(&vars, b"variables of the firmware").unwrap();
    fs::set_permissions(&vars, fs::Permissions::from_mode(0o644)).unwrap();
    let (raw, guest) = bhyves(&lab, &|guest| {
        let path = vars.display().to_string();
        guest.config.insert("lpc.bootvars".to_owned(), path);
        // `bhyve -o config.dump=1` prints it as well.
        guest
            .config
            .insert("config.dump".to_owned(), "true".to_owned());
    });
    let web = lab.bundle("web");
    lab.machine.import(&raw, &web, guest).unwrap();
    lab.restore(&web, 2);
    let mut copies = Vec::new();
    for entry in fs::read_dir(lab.home.run_dir()).unwrap() {
        let folder = entry.unwrap().path();
        let Ok(conf) = fs::read_to_string(folder.join("conf")) else {
            continue;
        };
        assert!(!conf.contains("config.dump"), "{conf}");
        let path = conf
            .lines()
            .find_map(|line| line.strip_prefix("lpc.bootvars="));
        let path = PathBuf::from(path.expect("it has variables"));
        assert_eq!(fs::read(&path).unwrap(), fs::read(&vars).unwrap());
        fs::write(&path, "written by the guest").unwrap();
        copies.push(path);
    }
    assert_eq!(copies.len(), 2);
    assert_ne!(copies[0], copies[1]);
    assert_eq!(fs::read(&vars).unwrap(), b"variables of the firmware");
    lab.destroy_all();
    assert!(copies.iter().all(|copy| !copy.exists()));
    // Without the file no clone can be made, and the error says so.
    fs::remove_file(&vars).unwrap();
    let _ = lab
        .brood(&["restore", &web.to_string(), "-n", "1"])
        .exits(1)
        .says(&["lpc.bootvars", "VARS.fd"]);
    lab.destroy_all();
}

#[test]
fn what_bhyve_could_not_restore_is_not_sealed() {
    let lab = Lab::new();
    let (raw, guest) = bhyves(&lab, &|_| ());
    let meta = lab.home.checkpoints().join("first.meta");
    let whole: Value = serde_json::from_slice(&fs::read(&meta).unwrap()).unwrap();
    let web = lab.bundle("web");
    let refuses = |change: &dyn Fn(&mut Value), says: &[&str]| {
        let mut changed = whole.clone();
        change(&mut changed);
        fs::write(&meta, changed.to_string()).unwrap();
        let refused = lab.machine.import(&raw, &web, guest.clone()).unwrap_err();
        for word in says {
            assert!(refused.to_string().contains(word), "{refused}");
        }
    };
    refuses(
        &|meta| meta["basic metadata"]["memflags"] = 2.into(),
        &["memflags", "wired"],
    );
    refuses(
        &|meta| {
            let structs = meta["kern_structs"].as_array_mut().unwrap();
            structs.retain(|part| part["device"] != "vlapic" && part["device"] != "vrtc");
        },
        &["vlapic, vrtc"],
    );
    fs::write(&meta, whole.to_string()).unwrap();
    lab.machine.import(&raw, &web, guest).unwrap();
}

/// Seals a checkpoint as another host does: this one's state folder knows nothing of it.
fn made_elsewhere(lab: &Lab, name: &str, change: &dyn Fn(&mut BhyveGuest)) -> BundlePath {
    let (raw, guest) = bhyves(lab, change);
    let path = lab.bundle(name);
    let engine = lab.machine.engine(&[]);
    engine
        .import(&raw, &path, guest, &mut unnoted, &unwatched)
        .unwrap();
    path
}

#[test]
fn a_checkpoint_made_elsewhere_has_this_host_do_nothing_until_somebody_says_so() {
    let lab = Lab::new();
    let mark = lab.home.path().join("it-was-run");
    let argv = vec!["touch".to_owned(), mark.display().to_string()];
    let web = made_elsewhere(&lab, "web", &|guest| {
        guest.readiness = Readiness::Command { argv: argv.clone() };
    });
    let at = web.to_string();
    let inspect = ["checkpoint", "inspect", &at];
    let all = ["it-was-run", "lpc.bootrom", "pci.0.2.0.path", "bridge0"];
    let told = lab.brood(&inspect).ok().stdout;
    assert!(
        told.contains("wants to") && told.contains("trusted      no"),
        "{told}"
    );
    assert!(all.iter().all(|want| told.contains(want)), "{told}");
    assert!(
        !lab.home.state().exists(),
        "to look at it makes no state folder"
    );
    let restore = ["restore", &at, "-n", "1", "--prefix", "g"];
    let refused = [
        &restore[..],
        &["pool", "create", "p", &at, "--hot", "1"],
        &["density", &at, "--guests", "1"],
    ];
    for command in refused {
        let _ = lab
            .brood(command)
            .exits(1)
            .says(&["not made here", &format!("brood checkpoint trust {at}")])
            .says(&all);
    }
    assert!(!mark.exists() && lab.list().is_empty());
    let _ = lab.brood(&[&restore[..], &["--trust"]].concat()).ok();
    assert!(mark.exists());
    let told = lab.brood(&inspect).ok().stdout;
    assert!(told.contains("trusted      yes"), "{told}");
    // It is remembered, and what is made of it here is trusted as well.
    let warm = lab.bundle("warm").to_string();
    let _ = lab.brood(&["suspend", "g-1", &warm]).ok();
    for from in [&at, &warm] {
        let _ = lab
            .brood(&["restore", from, "-n", "1", "--prefix", "h"])
            .ok();
    }
    // Wherever it is moved to, and after the database is lost; not when anything is changed.
    let moved = lab.bundle("moved");
    for part in ["ckp", "ckp.kern", "ckp.meta", "ckp.brood"] {
        let of = |path: &BundlePath| path.dir().join(format!("{}.{part}", path.name()));
        fs::copy(of(&web), of(&moved)).unwrap();
    }
    lab.destroy_all();
    for file in ["brood.sqlite", "brood.sqlite-wal", "brood.sqlite-shm"] {
        let _ = fs::remove_file(lab.home.state().join(file));
    }
    let moved = moved.to_string();
    let _ = lab.brood(&["restore", &moved, "-n", "1"]).ok();
    lab.destroy_all();
    let other = made_elsewhere(&lab, "other", &|guest| {
        guest.readiness = Readiness::Command {
            argv: [&argv[..], &["more".to_owned()]].concat(),
        };
    });
    let _ = lab
        .brood(&["restore", &other.to_string(), "-n", "1"])
        .exits(1);
    lab.nothing_is_left();
}

#[test]
fn pools_and_the_daemon_ask_for_trust_as_well() {
    let lab = Lab::new();
    let web = made_elsewhere(&lab, "web", &|_| ()).to_string();
    let tcp = made_elsewhere(&lab, "tcp", &|guest| {
        guest.readiness = Readiness::Tcp {
            address: "192.0.2.1:22".to_owned(),
        };
    });
    let environment = lab.machine.environment();
    let environment: Vec<_> = environment.iter().map(|(k, v)| (&k[..], &v[..])).collect();
    let daemon = Daemon::with_environment(&lab.home, &environment);
    let at = |of: &str| format!("/api/v1/checkpoints/{}", of.replace('/', "%2F"));
    let shown = daemon.get(&at(&tcp.to_string()));
    assert_eq!(shown["trusted"], false);
    assert!(
        shown["wants"].to_string().contains("192.0.2.1:22"),
        "{shown}"
    );
    let guests =
        |trust: bool| json!({ "checkpoint": web, "guests": 1, "prefix": "g", "trust": trust });
    let pool = |trust: bool| json!({ "name": "p", "checkpoint": web, "hot": 1, "trust": trust, "fill": {} });
    for (path, body) in [("/guests", guests(false)), ("/pools", pool(false))] {
        let problem = daemon.post(&format!("/api/v1{path}"), &body, 403);
        assert!(
            text(&problem["type"]).ends_with("checkpoint-not-trusted"),
            "{problem}"
        );
        assert!(
            text(&problem["detail"]).contains("lpc.bootrom"),
            "{problem}"
        );
    }
    // By the command, which has the daemon do it.
    let create = ["pool", "create", "p", &web, "--hot", "1"];
    let _ = lab.brood(&create).exits(1).says(&["checkpoint trust"]);
    assert!(lab.list().is_empty());
    let _ = lab.brood(&[&create[..], &["--trust"]].concat()).ok();
    let _ = daemon.post("/api/v1/guests", &guests(false), 201);
    // A suspended claim is the state folder's own.
    let claim = lab.json(&["pool", "claim", "p"]);
    let token = text(&claim["token"]);
    let _ = lab.brood(&["pool", "suspend", token]).ok();
    fs::remove_dir_all(lab.home.state().join("trusted")).unwrap();
    let _ = lab.brood(&["pool", "resume", token]).ok();
    let _ = daemon.post("/api/v1/guests", &guests(false), 403);
    let trusted = daemon.post(&format!("{}/trust", at(&web)), &json!({}), 200);
    assert_eq!(trusted["trusted"], true);
    let _ = daemon.post("/api/v1/guests", &guests(false), 201);
    let _ = lab.brood(&["pool", "remove", "p", "--force"]).ok();
    drop(daemon);
    lab.destroy_all();
}

#[test]
fn pools_of_the_configuration_are_trusted_when_it_says_so() {
    let lab = Lab::new();
    let web = made_elsewhere(&lab, "web", &|_| ());
    let file = lab.home.path().join("brood.toml");
    let apply = |trust: &str| {
        let pool = format!("[[pool]]\nname = \"p\"\ncheckpoint = \"{web}\"\nhot = 1\n{trust}");
        fs::write(&file, pool).unwrap();
        lab.brood(&["pool", "apply", "--config", file.to_str().unwrap()])
    };
    let _ = apply("").exits(1).says(&["not made here"]);
    assert!(lab.list().is_empty());
    let _ = apply("trust = true\n").ok();
    let _ = lab.brood(&["pool", "remove", "p", "--force"]).ok();
    lab.destroy_all();
}
