//! Guests on a KVM of real hardware's kind: on an emulated host (tools/kvm-host), since a software
//! KVM boots no ordinary kernel. Its answers count, its times do not.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use brood_tests::{Ran, Running, brood, image_builder, text, whole};
use serde_json::Value;

/// Longest that a host may run. It ends by itself then, and says so.
const LIMIT: Duration = Duration::from_secs(800);
/// Longest that the tool may take: its host, and what it is made of.
const WHOLE: Duration = Duration::from_secs(900);

/// A host whose kernel is one of these packages.
fn host(packages: &[PathBuf]) -> Command {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/kvm-host");
    let mut command = Command::new(tool);
    let kernel = packages.iter().find(|package| {
        let file = package.file_name().unwrap_or_default();
        file.to_string_lossy().starts_with("linux-image-")
    });
    // Guests stop now and then on an emulated host of several processors: docs/kvm.md.
    command.args(["--cpus", "1"]);
    command.args(["--timeout", &LIMIT.as_secs().to_string(), "--deb"]);
    command.arg(kernel.expect("a kernel"));
    command
}

/// Builds the minimal image `tiny`.
fn build_image(state: &Path, agent: &Path, packages: &[PathBuf]) {
    let mut build = Command::new(brood());
    build
        .args(["image", "build", "--minimal", "tiny", "--agent"])
        .arg(agent);
    for package in packages {
        build.arg("--deb").arg(package);
    }
    build
        .env("BROOD_STATE_DIR", state)
        .env("BROOD_CONFIG", "/dev/null");
    let _ = Running::start(build).wait().ok();
}

/// A program of this build, beside the one that runs.
fn sibling(name: &str) -> PathBuf {
    let folder = env::current_exe().unwrap().parent().unwrap().to_owned();
    let prefix = format!("{name}-");
    let built = |path: &PathBuf| {
        fs::metadata(path)
            .and_then(|facts| facts.modified())
            .unwrap()
    };
    let programs = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let programs = programs.filter(|path| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        file.starts_with(&prefix) && path.extension().is_none()
    });
    programs
        .max_by_key(built)
        .expect("tests are built together")
}

/// The last line of the output that is JSON and comes after this word.
fn after(ran: &Ran, word: &str) -> Value {
    let mark = format!("{word} ");
    let line = ran.stdout.lines().find_map(|line| line.strip_prefix(&mark));
    let line = line.unwrap_or_else(|| panic!("no {word} in {}\n{}", ran.stdout, ran.stderr));
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{word}: {e}: {line}"))
}

#[test]
fn qemu_runs_a_linux_by_hardware_virtualisation() {
    let Some((agent, packages)) = image_builder() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (state, empty) = (dir.path().join("state"), dir.path().join("ckp"));
    fs::create_dir(&empty).unwrap();
    build_image(&state, &agent, &packages);
    let script = dir.path().join("script");
    fs::write(&script, SCRIPT).unwrap();
    let with = |path: &Path, to: &str| format!("{}:{to}", path.to_str().expect("plain letters"));
    let mut host = host(&packages);
    host.arg("--qemu");
    for file in [
        with(&brood(), "/brood"),
        with(&state, "/state"),
        with(&empty, "/ckp"),
        with(&script, "/script"),
    ] {
        host.args(["--file", &file]);
    }
    host.args(["--", "/bin/busybox", "sh", "/script"]);
    let ran = Running::start(host).wait_within(WHOLE).ok();
    let inspected = after(&ran, "checkpoint");
    assert_eq!(inspected["qemu"]["accelerator"], "kvm");
    assert_eq!(whole(&after(&ran, "restore")["restored"]), 3);
    let ids: Vec<Value> = ["w-1", "w-2", "w-3"].map(|name| after(&ran, name)).into();
    for id in &ids {
        assert_eq!(text(&id["output"]).trim().len(), 32, "{id}");
    }
    assert!(
        ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2],
        "{ids:?}"
    );
    assert_eq!(text(&after(&ran, "delta")["output"]).trim(), "mine");
    assert_eq!(text(&after(&ran, "woken")["output"]).trim(), "woken");
    assert!(
        ran.stdout.lines().any(|line| line == "left 0"),
        "{}",
        ran.stdout
    );
}

/// What is run there.
const SCRIPT: &str = r#"
export BROOD_ENGINE=qemu BROOD_STATE_DIR=/state PATH=/bin:/usr/bin
say() { word=$1; shift; printf '%s ' "$word"; /brood "$@" --json || exit 1; }
exec_in() { printf '%s ' "$1"; shift; guest=$1; shift; /brood ask --json "$guest" -- exec "$@" || exit 1; }
set -e
/brood checkpoint make tiny /ckp/tiny --memory 128M >&2
say checkpoint checkpoint inspect /ckp/tiny
say restore restore /ckp/tiny -n 3 --prefix w
for name in w-1 w-2 w-3; do exec_in $name $name cat /etc/machine-id; done
/brood pause w-2 >&2
/brood resume w-2 >&2
exec_in woken w-2 echo woken
exec_in file w-1 sh -c 'echo mine >/run/mine'
/brood suspend w-1 /ckp/delta --delta >&2
/brood restore /ckp/delta -n 1 --prefix d >&2
exec_in delta d-1 cat /run/mine
/brood destroy --all >&2
printf 'left %s\n' "$(ls /state/run | wc -l)"
"#;

#[test]
fn the_kvm_engine_keeps_its_contract_on_hardware_virtualisation() {
    let Some((_, packages)) = image_builder() else {
        return;
    };
    let conformance = sibling("conformance");
    let mut host = host(&packages);
    for program in [brood(), brood_tests::standin(), conformance.clone()] {
        host.arg("--file").arg(program);
    }
    host.arg("--").arg(&conformance);
    let ran = Running::start(host).wait_within(WHOLE).ok();
    let passed = ran
        .stdout
        .lines()
        .filter(|line| line.ends_with(" ... ok"))
        .count();
    assert!(passed >= 7, "{}", ran.stdout);
    assert!(!ran.stdout.contains("no KVM"), "{}", ran.stdout);
}

#[test]
fn debians_kernel_boots_in_the_minimal_machine() {
    let Some((agent, packages)) = image_builder() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    build_image(&state, &agent, &packages);
    let image = state.join("images/tiny");
    let script = dir.path().join("script");
    fs::write(&script, MACHINES).unwrap();
    let mut host = host(&packages);
    for (file, to) in [
        (
            &PathBuf::from(env!("CARGO_BIN_EXE_linux_machine")),
            "/linux_machine",
        ),
        (&image.join("vmlinuz"), "/vmlinuz"),
        (&image.join("initramfs"), "/initramfs"),
        (&script, "/script"),
    ] {
        let file = file.to_str().expect("plain letters");
        host.args(["--file", &format!("{file}:{to}")]);
    }
    host.args(["--", "/bin/busybox", "sh", "/script"]);
    let ran = Running::start(host).wait_within(WHOLE).ok();
    // A small one; and one with memory above 4 GiB.
    for (size, least) in [("256", 200 << 10), ("3328", 3_200_000)] {
        let booted = after(&ran, &format!("{size} booted"));
        assert!(
            text(&booted["kernel"]).ends_with("-cloud-amd64"),
            "{booted}"
        );
        assert_eq!(booted["clock"], "kvm-clock");
        assert_eq!(
            (&booted["disk"], &booted["entropy"]),
            (&"same".into(), &"16".into())
        );
        assert_eq!(booted["processors"], "1");
        assert!(
            text(&booted["memory_kib"]).parse::<u64>().unwrap() > least,
            "{booted}"
        );
        let suspended = after(&ran, &format!("{size} suspended"));
        assert!(whole(&suspended["state_bytes"]) > 10_000, "{suspended}");
    }
}

/// Boots guests of two sizes, and writes a checkpoint of each.
const MACHINES: &str = r#"
set -e
for form in "256 1" "3328 1"; do
    size=${form% *}
    /linux_machine boot /vmlinuz /initramfs $form /ck >booted || { cat booted >&2; exit 1; }
    while read -r line; do echo "$size $line"; done <booted
    rm -r /ck booted
done
"#;
