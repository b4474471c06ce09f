//! Input from outside: bundles made by other tools, names of folders, words of guests. An error
//! names the file and the field where the wrong value enters, and no terminal acts on it.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use brood_tests::{Daemon, Demo, Home, Lab, Ran, Running, acts_on_terminal, skip, text, until};
use proptest::prelude::*;
use serde_json::json;

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
            prop_assert!(!acts_on_terminal(&ran.stdout) && !acts_on_terminal(&ran.stderr), "{ran:?}");
        }
    }
}
