//! Input from outside: bundles made by other tools, names of folders, words of guests. An error
//! names the file and the field where the wrong value enters, and no terminal acts on it.

use std::{
    ffi::OsString,
    fs,
    os::unix::{ffi::OsStringExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use brood_core::checkpoint::{BhyveGuest, BundlePath, Readiness, unnoted, unwatched};
use brood_tests::{Daemon, Demo, Home, Lab, Ran, Running, skip, text, until};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Has `tests/cases/hostile/bundle.py` make another bundle of one: `change` is Python that has it
/// as `b`, and `path` to write it to. `None` where there is no Python.
fn resealed(home: &Home, from: &Demo, name: &str, change: &str) -> Option<Demo> {
    let hostile = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/hostile");
    let to = home.named(name);
    let script = format!(
        "import json, sys\nsys.dont_write_bytecode = True\nsys.path.insert(0, sys.argv[1])\n\
         from bundle import Bundle, put\nb = Bundle(sys.argv[2]); path = sys.argv[3]\n{change}"
    );
    let python = Command::new("python3")
        .args(["-c", &script])
        .arg(hostile)
        .args([&from.path, &to.path])
        .output();
    let Ok(output) = python else {
        skip("there is no python3");
        return None;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    Some(to)
}

#[test]
fn lists_that_kvm_does_not_take_are_told_with_file_and_field() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    for field in ["msrs", "cpuid"] {
        let change = format!(
            "k = json.loads(b.kern); k['{field}'] = (k['{field}'] * 300)[:300]\n\
             b.kern = json.dumps(k).encode(); b.write(path)"
        );
        let Some(hostile) = resealed(&home, &demo, field, &change) else {
            return;
        };
        let _ = home
            .brood(&["restore", &hostile.path, "-n", "1"])
            .exits(1)
            .says(&[&format!("{field}.ckp.kern"), field, "300"]);
    }
    assert!(home.nurseries().is_empty() && home.list().is_empty());
}

#[test]
fn what_kvm_refuses_is_told_once_with_file_and_field() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let changes = [
        (
            "unknown",
            "k['msrs'].insert(1, {'index': 0xdeadbeef, 'value': 5})",
            &["MSR 0xdeadbeef to 0x5", "msrs[1]"][..],
        ),
        // EFER with a bit that no processor has.
        (
            "value",
            "k['msrs'] = [{'index': 0xc0000080, 'value': 1 << 63}]",
            &["MSR 0xc0000080 to 0x8000000000000000", "msrs[0]"],
        ),
        // KVM's structures are lists of bytes. Of XCR0 here, which always has its lowest bit.
        ("xcrs", "k['xcrs'][16:24] = [0] * 8", &["field xcrs"]),
        // CR0 with paging and without protection (Intel SDM volume 3, 2.5).
        (
            "sregs",
            "k['sregs'][224:232] = [0, 0, 0, 128, 0, 0, 0, 0]",
            &["field sregs"],
        ),
        (
            "type",
            "k['msrs'][2]['index'] = 'x'",
            &["field msrs[2].index"],
        ),
        ("deep", "k['cpuid'][1][3] = -1", &["field cpuid[1]"]),
    ];
    for (name, change, words) in changes {
        let change = format!(
            "k = json.loads(b.kern); {change}\nb.kern = json.dumps(k).encode(); b.write(path)"
        );
        let Some(hostile) = resealed(&home, &demo, name, &change) else {
            return;
        };
        let file = format!("{name}.ckp.kern");
        let ran = home
            .brood(&["restore", &hostile.path, "-n", "8"])
            .exits(1)
            .says(&[&file])
            .says(words);
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert_eq!(said.matches(&file).count(), 1, "{said}");
    }
    assert!(home.nurseries().is_empty() && home.list().is_empty());
}

#[test]
fn a_disks_name_is_checked_wherever_a_bundle_is_looked_at() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    for (n, (provider, identity, name)) in [
        ("reflink", "0".repeat(64), "../../etc/passwd"),
        ("reflink", "0".repeat(64), "/etc/passwd"),
        ("zfs", "1".to_owned(), "tank/../other@now"),
        ("zfs", "1".to_owned(), "-r@now"),
    ]
    .into_iter()
    .enumerate()
    {
        let change = format!(
            "b.manifest['disks'] = [{{'device': None, 'provider': '{provider}', 'source': '/disk', \
             'snapshot': '{name}', 'identity': '{identity}'}}]\nb.write(path)"
        );
        let Some(hostile) = resealed(&home, &demo, &format!("disk{n}"), &change) else {
            return;
        };
        let file = format!("disk{n}.ckp.brood");
        for command in [
            &["checkpoint", "inspect", &hostile.path][..],
            &["restore", &hostile.path, "-n", "1"],
        ] {
            let _ = home
                .brood(command)
                .exits(1)
                .says(&[&file, "disks[0].snapshot"]);
        }
    }
}

/// Bytes that a process has read, by its calls, until now (proc_pid_io(5)).
fn bytes_read(pid: i32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    read.unwrap().parse().unwrap()
}

/// Waits for brood's end; with what it has read.
fn reading(running: Running) -> (Ran, u64) {
    let stat = format!("/proc/{}/stat", running.pid());
    until("brood to end", || {
        fs::read_to_string(&stat)
            .unwrap()
            .contains(") Z ")
            .then_some(())
    });
    let read = bytes_read(running.pid());
    (running.wait(), read)
}

/// More than a command reads of files that are no guest's memory.
const FEW: u64 = 64 << 20;

#[test]
fn what_no_engine_here_can_hold_is_refused_before_it_is_read() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    // Four TiB of holes, which take half an hour to read.
    let huge = "import os\nn = 4 << 40\n\
        b.manifest['memory'] = {'size': n, 'segments': [{'guest_address': 0, 'size': n, 'file_offset': 0}]}\n\
        b.meta['basic metadata']['memsize'] = n\n\
        man, meta = b.texts()\n\
        m = json.loads(man); m['files']['ckp'] = {'size': n, 'sha256': '0' * 64}\n\
        put(path + '.ckp', b''); os.chmod(path + '.ckp', 0o600); os.truncate(path + '.ckp', n)\n\
        put(path + '.ckp.kern', b.kern); put(path + '.ckp.meta', meta)\n\
        put(path + '.ckp.brood', json.dumps(m).encode())";
    // And half a GiB of them, of guests that have what no engine here has.
    let of = |change: &str| {
        let smaller = huge.replace("4 << 40", "512 << 20");
        smaller.replace("man, meta", &format!("{change}\nman, meta"))
    };
    let vcpus = of("b.manifest['vcpus'] = 2; b.meta['basic metadata']['ncpus'] = 2");
    let devices = of("b.manifest['devices'] = [{'name': 'disk', 'model': 'virtio-blk'}]");
    let cpuid =
        of("k = json.loads(b.kern); k['cpuid'] = k['cpuid'] * 99; b.kern = json.dumps(k).encode()");
    let mut all = Vec::new();
    for (name, change, says) in [
        ("huge", huge, "3 GiB"),
        ("vcpus", &vcpus, "2 virtual CPUs"),
        (
            "devices",
            &devices,
            "devices that this engine does not have",
        ),
        ("cpuid", &cpuid, "cpuid"),
    ] {
        let Some(bundle) = resealed(&home, &demo, name, change) else {
            return;
        };
        for command in [
            &["restore", &bundle.path, "-n", "1"][..],
            &["pool", "create", "p", &bundle.path, "--hot", "1"],
            &["density", &bundle.path, "--guests", "1"],
        ] {
            let (ran, read) = reading(home.start(command));
            let _ = ran.exits(1).says(&[says]);
            assert!(read < FEW, "{command:?} has read {read} bytes");
        }
        all.push((bundle, says));
    }
    let daemon = Daemon::start(&home);
    let before = bytes_read(daemon.pid());
    for (bundle, says) in &all {
        for (path, body) in [
            ("/guests", json!({ "checkpoint": bundle.path, "guests": 1 })),
            (
                "/pools",
                json!({ "name": "p", "checkpoint": bundle.path, "hot": 1 }),
            ),
        ] {
            let problem = daemon.post(&format!("/api/v1{path}"), &body, 422);
            assert!(text(&problem["detail"]).contains(says), "{problem}");
        }
    }
    let read = bytes_read(daemon.pid()) - before;
    assert!(read < 2 * FEW, "the daemon has read {read} bytes");
    assert!(home.list().is_empty() && home.nurseries().is_empty());
}

#[test]
fn a_huge_guest_that_bhyve_cannot_restore_is_refused_before_it_is_read() {
    let (lab, web) = Lab::with_checkpoint();
    let change = "import os\nn = 512 << 20\n\
        b.manifest['memory'] = {'size': n, 'segments': [{'guest_address': 0, 'size': n, 'file_offset': 0}]}\n\
        b.meta['basic metadata']['memsize'] = n\n\
        b.manifest['bhyve']['agent'] = 9\n\
        man, meta = b.texts(structs=False)\n\
        m = json.loads(man); m['files']['ckp'] = {'size': n, 'sha256': '0' * 64}\n\
        put(path + '.ckp', b''); os.chmod(path + '.ckp', 0o600); os.truncate(path + '.ckp', n)\n\
        put(path + '.ckp.kern', b.kern); put(path + '.ckp.meta', meta)\n\
        put(path + '.ckp.brood', json.dumps(m).encode())";
    let from = Demo {
        path: web.to_string(),
    };
    let Some(huge) = resealed(&lab.home, &from, "huge", change) else {
        return;
    };
    for command in [
        &["restore", &huge.path, "-n", "1", "--trust"][..],
        &["pool", "create", "p", &huge.path, "--hot", "1", "--trust"],
    ] {
        let (ran, read) = reading(Running::start(lab.command(command)));
        let _ = ran.exits(1).says(&["com9"]);
        assert!(read < FEW, "{command:?} has read {read} bytes");
    }
    assert!(lab.list().is_empty());
    // What bhyve can restore is read, and found not to be what was sealed.
    let good = change.replace("b.manifest['bhyve']['agent'] = 9\n", "");
    let good = resealed(&lab.home, &from, "good", &good).unwrap();
    let restore = ["restore", &good.path, "-n", "1", "--trust"];
    let (ran, read) = reading(Running::start(lab.command(&restore)));
    let _ = ran.exits(1).says(&["good.ckp"]);
    assert!(read >= 512 << 20, "it has read {read} bytes");
}

#[test]
fn a_sealed_disk_that_others_may_change_is_exposed_like_the_bundle() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let change = "import hashlib\n\
        b.manifest['disks'] = [{'device': None, 'provider': 'reflink', 'source': '/disk', \
        'snapshot': 'sealed.img', 'identity': hashlib.sha256(b'disk').hexdigest()}]\nb.write(path)";
    let Some(bundle) = resealed(&home, &demo, "disk", change) else {
        return;
    };
    let disk = home.checkpoints().join("sealed.img");
    fs::write(&disk, "disk").unwrap();
    let set = |mode| fs::set_permissions(&disk, fs::Permissions::from_mode(mode)).unwrap();
    let inspect = || {
        home.brood(&["checkpoint", "inspect", &bundle.path])
            .ok()
            .stdout
    };
    set(0o444);
    assert!(!inspect().contains("may change"));
    set(0o646);
    let told = inspect();
    let words = format!("everybody may change {}", disk.display());
    assert!(told.contains(&words), "{told}");
    let restore = ["restore", &bundle.path, "-n", "1", "--trust"];
    let _ = home.brood(&restore).exits(1).says(&["sealed.img"]);
    assert!(home.list().is_empty());
}

/// Whether a terminal would act on it.
fn acts(text: &str) -> bool {
    text.chars()
        .any(|c| (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}'))
}

/// What terminals act on: a title, colours by C0 and by C1, and a turn of the writing direction.
const HOSTILE: &str = "a\u{1b}]0;x\u{7}\u{9b}31m\u{202e}z";

#[test]
fn names_of_folders_reach_a_terminal_escaped() {
    let Some(home) = Home::with_kvm() else { return };
    let folder = home.path().join(HOSTILE);
    fs::create_dir(&folder).unwrap();
    let made = format!("{}/demo", folder.display());
    let _ = home
        .brood(&["checkpoint", "demo", &made, "--memory", "4M"])
        .ok();
    let missing = format!("{}/none", folder.display());
    let there = folder.display().to_string();
    let _ = home
        .brood(&["restore", &made, "-n", "1", "--prefix", "g"])
        .ok();
    let _ = home
        .brood(&["pool", "create", "p", &made, "--hot", "1"])
        .ok();
    for command in [
        &["list"][..],
        &["show", "g-1"],
        &["pool", "list"],
        &["pool", "show", "p"],
        &["checkpoint", "list", &there],
        &["checkpoint", "inspect", &made],
        &["checkpoint", "inspect", &missing],
        &["checkpoint", "verify", &made],
        &["restore", &missing, "-n", "1"],
        &["doctor", "--checkpoint-dir", &there, "--guests", "1"],
        &["top", "--once"],
        &["disk", "list"],
        &["restore", "--bogus", HOSTILE],
        &[HOSTILE],
        &["list", "--json"],
        &["show", "g-1", "--json"],
        &["checkpoint", "list", &there, "--json"],
    ] {
        let ran = home.brood(command);
        assert!(!acts(&ran.stdout), "{command:?}: {:?}", ran.stdout);
        assert!(!acts(&ran.stderr), "{command:?}: {:?}", ran.stderr);
    }
    // JSON says the same all the same.
    let shown = home.json(&["show", "g-1"]);
    assert!(text(&shown["checkpoint"]).contains(HOSTILE), "{shown}");
}

#[test]
fn words_of_guests_reach_a_terminal_escaped() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 1, "g");
    let ran = home.brood(&["ask", "g-1", "ping", HOSTILE]).ok();
    assert!(
        !acts(&ran.stdout) && ran.stdout.contains(r"\u{1b}"),
        "{:?}",
        ran.stdout
    );
    let ran = home.brood(&["ask", "--json", "g-1", "ping", HOSTILE]).ok();
    assert!(!acts(&ran.stdout), "{:?}", ran.stdout);
    assert_eq!(ran.json()["text"], HOSTILE);
}

#[test]
fn a_guests_name_begins_with_a_letter_or_digit() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    for prefix in [".", "..", "-", "_", ".hidden", ""] {
        let ran = home.brood(&[
            "restore",
            &demo.path,
            "-n",
            "1",
            &format!("--prefix={prefix}"),
        ]);
        assert!(matches!(ran.code(), Some(1 | 2)), "{prefix}: {ran:?}");
    }
    assert!(home.list().is_empty());
}

#[test]
fn a_state_folder_may_have_any_name() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let state = home
        .path()
        .join(OsString::from_vec(b"st\xff\xfeate".to_vec()));
    let run = |args: &[&str]| {
        let mut command = home.command(args);
        command.env("BROOD_STATE_DIR", &state);
        Running::start(command).wait()
    };
    let _ = run(&["restore", &demo.path, "-n", "1", "--prefix", "g"]).ok();
    let _ = run(&["ask", "g-1", "ping"]).ok();
    let _ = run(&["destroy", "--all"]).ok();
    // No file has got a name of something else.
    let mut names: Vec<PathBuf> = fs::read_dir(home.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    names.retain(|name| *name != state && !name.ends_with("ckp") && !name.ends_with("state"));
    assert_eq!(names, [] as [PathBuf; 0]);
}

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

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// A bundle with any one field changed is restored or refused with a message; no process is
    /// left and nothing panics.
    #[test]
    fn a_bundle_with_a_changed_field_is_restored_or_refused(
        field in prop::sample::select(vec![
            "guest", "created_at", "engine", "engine_version", "memory", "vcpus", "devices",
            "disks", "working_set", "parent", "bhyve",
        ]),
        value in prop::sample::select(vec![
            "None", "0", "-1", "2**63", "''", "'\\x1b[2J'", "[]", "{}", "[{}]", "'x' * 5000",
            "[[0] * 9] * 9", "True",
        ]),
    ) {
        let Some(home) = Home::with_kvm() else { return Ok(()) };
        let demo = home.demo("demo", "4M");
        let change = format!("b.manifest['{field}'] = {value}\nb.write(path)");
        let Some(hostile) = resealed(&home, &demo, "hostile", &change) else { return Ok(()) };
        for command in [
            &["checkpoint", "inspect", &hostile.path][..],
            &["restore", &hostile.path, "-n", "1"],
        ] {
            let ran = home.brood(command);
            prop_assert!(matches!(ran.code(), Some(0 | 1)), "{ran:?}");
            prop_assert!(!ran.stderr.contains("panicked"), "{ran:?}");
            prop_assert!(!acts(&ran.stdout) && !acts(&ran.stderr), "{ran:?}");
        }
    }
}
