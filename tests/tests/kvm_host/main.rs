//! Guests on a KVM of real hardware's kind: on an emulated host (tools/kvm-host), since a software
//! KVM boots no ordinary kernel. Its answers count, its times do not.

mod commands;
mod devices;
mod later_kernel;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use brood_tests::{Ran, Running, array, brood, image_builder, text, whole};
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
    build(state, &["--minimal", "tiny"], agent, packages);
}

fn build(state: &Path, words: &[&str], agent: &Path, packages: &[PathBuf]) {
    let mut build = Command::new(brood());
    build.args(["image", "build"]).args(words);
    build.arg("--agent").arg(agent);
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
    let conformance = sibling("conformance");
    let (standin, brood) = (brood_tests::standin(), brood());
    let path = |path: &PathBuf| path.to_str().expect("plain letters").to_owned();
    // To the same places: the check looks for the binaries where it was built.
    let files = [&brood, &standin, &conformance].map(|file| (&**file, path(file)));
    let files: Vec<_> = files.iter().map(|(file, to)| (*file, &**to)).collect();
    let script = format!("{CONTRACT} {} --nocapture\n", path(&conformance));
    let Some(ran) = run_with(&["--memory", "3G"], &script, &TINY, &files) else {
        return;
    };
    let passed = |line: &&str| line.ends_with(" ... ok") || *line == "ok";
    let tests = ran.stdout.lines().filter(passed).count();
    assert!(tests >= 7, "{}", ran.stdout);
    assert!(!ran.stdout.contains("no KVM"), "{}", ran.stdout);
    // Each check has had the demo guest and an ordinary Linux.
    let on_linux = |line: &&str| line.ends_with("on a Linux of the KVM engine");
    let on_linux = ran.stderr.lines().filter(on_linux).count();
    assert_eq!(on_linux, tests, "{}", ran.stderr);
}

/// Makes the Linux that the contract is checked on.
const CONTRACT: &str = r"
/brood checkpoint make tiny /ckp/tiny --memory 96M >&2
unset BROOD_ENGINE BROOD_STATE_DIR
BROOD_KVM_LINUX=/ckp/tiny";

/// Words that build the image `tiny`.
const TINY: [&str; 2] = ["--minimal", "tiny"];

/// Runs a script in a host of so much memory, with brood and the image `tiny` there.
fn run_there(memory: &str, script: &str) -> Option<Ran> {
    run_with(&["--memory", memory], script, &TINY, &[])
}

/// The same in a host with these options, with the image that these words build, and with these
/// files.
fn run_with(
    options: &[&str],
    script: &str,
    image: &[&str],
    files: &[(&Path, &str)],
) -> Option<Ran> {
    let (_, packages) = image_builder()?;
    run_with_image(options, script, (image, &packages), files)
}

/// The same with an image of these packages.
fn run_with_image(
    options: &[&str],
    script: &str,
    (image, of): (&[&str], &[PathBuf]),
    files: &[(&Path, &str)],
) -> Option<Ran> {
    let (agent, packages) = image_builder()?;
    let dir = tempfile::tempdir().unwrap();
    let (state, empty) = (dir.path().join("state"), dir.path().join("empty"));
    fs::create_dir(&empty).unwrap();
    build(&state, image, &agent, of);
    let file = dir.path().join("script");
    fs::write(&file, format!("{PRELUDE}{script}")).unwrap();
    let mut host = host(&packages);
    let brood = brood();
    let all = [
        (&*brood, "/brood"),
        (&*state, "/state"),
        (&*file, "/script"),
    ];
    let none = [(&*empty, "/ckp")];
    let ckp = if files.iter().any(|(_, to)| *to == "/ckp") {
        &[][..]
    } else {
        &none
    };
    for (path, to) in all.iter().chain(ckp).chain(files) {
        let path = path.to_str().expect("plain letters");
        host.args(["--file", &format!("{path}:{to}")]);
    }
    host.args(options);
    host.args(["--", "/bin/busybox", "sh", "/script"]);
    Some(Running::start(host).wait_within(WHOLE).ok())
}

/// What the scripts of Linux guests of the KVM engine begin with.
const PRELUDE: &str = r#"
export BROOD_ENGINE=kvm BROOD_STATE_DIR=/state PATH=/bin:/usr/bin
say() { word=$1; shift; printf '%s ' "$word"; /brood "$@" --json || exit 1; }
in_guest() { guest=$1; shift; /brood ask --timeout 60s "$guest" -- exec sh -c "$*" || exit 1; }
value() { printf '%s "' "$1"; shift; in_guest "$@" | tr -d '\n'; echo '"'; }
# A guest that ends before it answers.
ends() { /brood ask --timeout 60s "$1" -- exec sh -c "$2" >&2 || true; }
private() { /brood show "$1" --json | sed 's/.*"private_bytes":\([0-9]*\).*/\1/'; }
set -e
"#;

/// How a guest ended, by a list of guests.
fn reason<'a>(list: &'a Value, name: &str) -> &'a str {
    let guests = list.as_array().unwrap();
    let guest = guests.iter().find(|guest| guest["name"] == name).unwrap();
    text(&guest["reason"])
}

#[test]
fn a_linux_lives_on_the_kvm_engine() {
    let Some(ran) = run_there("3G", LIFE) else {
        return;
    };
    let inspected = after(&ran, "checkpoint");
    assert_eq!(inspected["linux"]["virtualization"], "svm");
    assert_eq!(whole(&after(&ran, "restored")["restored"]), 3);
    let ids = ["id-1", "id-2", "id-3"].map(|word| after(&ran, word));
    for id in &ids {
        assert_eq!(text(id).len(), 32, "{id}");
    }
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    assert!(text(&after(&ran, "kernel")).ends_with("-cloud-amd64"));
    assert_eq!(after(&ran, "clock"), "kvm-clock");
    assert_eq!(after(&ran, "entropy"), "16");
    assert_eq!(after(&ran, "siblings-file"), "none");
    assert_eq!(after(&ran, "woken"), "woken");
    // Each clone goes on from where it was, with what it had.
    assert_eq!(after(&ran, "delta"), "mine 1");
    assert_eq!(after(&ran, "deltas-sibling"), "mine 2");
    assert_eq!(after(&ran, "full"), "theirs");
    // What the guest frees goes back to the host.
    let [before, with, after_it] =
        ["before", "with", "freed"].map(|word| whole(&after(&ran, word)) >> 20);
    assert!(with >= before + 40, "{before} {with} {after_it}");
    assert!(after_it <= before + 20, "{before} {with} {after_it}");
    let list = after(&ran, "list");
    assert!(reason(&list, "w-3").starts_with("the guest's kernel died: Kernel panic"));
    assert_eq!(reason(&list, "f-1"), "the guest has turned itself off");
    assert_eq!(reason(&list, "d-2"), "the guest restarted, which ends it");
    // Whatever id of the host's boot a command sees.
    let elsewhere = after(&ran, "elsewhere");
    let states = array(&elsewhere).iter();
    let running = states.filter(|guest| guest["state"] == "running");
    let running: Vec<&str> = running.map(|guest| text(&guest["name"])).collect();
    assert_eq!(running, ["d-1"]);
    assert_eq!(text(&after(&ran, "asked")["output"]).trim(), "there");
    assert!(ran.stdout.lines().any(|line| line == "gone 0"));
    assert!(
        ran.stdout.lines().any(|line| line == "left 0"),
        "{}",
        ran.stdout
    );
}

/// The life of Linux guests of the KVM engine.
const LIFE: &str = r#"
/brood checkpoint make tiny /ckp/tiny --memory 192M >&2
say checkpoint checkpoint inspect /ckp/tiny
say restored restore /ckp/tiny -n 3 --prefix w
for n in 1 2 3; do value id-$n w-$n cat /etc/machine-id; done
value kernel w-1 uname -r
value clock w-1 cat /sys/devices/system/clocksource/clocksource0/current_clocksource
value entropy w-1 'head -c 16 /dev/hwrng | wc -c'
in_guest w-1 'echo mine >/run/mine; echo 0 >/run/count'
value siblings-file w-2 'cat /run/mine 2>/dev/null || echo none'
/brood pause w-2 >&2
/brood resume w-2 >&2
value woken w-2 echo woken
/brood suspend w-1 /ckp/delta --delta >&2
/brood restore /ckp/delta -n 2 --prefix d >&2
next='n=$(($(cat /run/count) + 1)); echo $n >/run/count'
in_guest d-2 "$next"
value delta d-1 "$next; echo \$(cat /run/mine) \$n"
value deltas-sibling d-2 "$next; echo \$(cat /run/mine) \$n"
in_guest w-2 'echo theirs >/run/theirs'
/brood suspend w-2 /ckp/full >&2
/brood restore /ckp/full -n 1 --prefix f >&2
value full f-1 cat /run/theirs
before=$(private d-1)
in_guest d-1 'dd if=/dev/zero of=/run/big bs=1M count=48 2>/dev/null'
with=$(private d-1)
in_guest d-1 'rm /run/big'
n=0
while after=$(private d-1); [ $after -gt $((before + (16 << 20))) ] && [ $n -lt 180 ]; do
    sleep 1
    n=$((n + 1))
done
echo before $before
echo with $with
echo freed $after
ends w-3 'echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger'
ends f-1 'poweroff -f'
ends d-2 'reboot -f'
say list list
cat /proc/sys/kernel/random/uuid >/id
elsewhere() {
    unshare -m sh -c 'mount --bind /id /proc/sys/kernel/random/boot_id && exec /brood "$@"' sh "$@"
}
printf 'elsewhere '
elsewhere list --json
printf 'asked '
elsewhere ask --json --timeout 60s d-1 -- exec echo there
pid=$(/brood show d-1 --json | sed 's/.*"pid":\([0-9]*\).*/\1/')
elsewhere destroy d-1 >&2
echo gone $(ls -d /proc/$pid 2>/dev/null | wc -l)
/brood destroy --all >&2
printf 'left %s\n' "$(ls /state/run | wc -l)"
"#;

#[test]
fn a_linux_has_much_memory_or_many_processors_on_the_kvm_engine() {
    let Some(ran) = run_there("8G", SIZES) else {
        return;
    };
    // Memory above 4 GiB, for what is behind the hole below it.
    let memory = after(&ran, "memory").as_u64().unwrap();
    assert!(memory > 3_200_000, "{memory}");
    assert_eq!(after(&ran, "sum"), after(&ran, "sum-of-clone"));
    assert_eq!(after(&ran, "processors"), "4");
    assert_eq!(whole(&after(&ran, "restored")["restored"]), 2);
    for guest in ["smp-1", "smp-2"] {
        assert_eq!(after(&ran, guest), "0 1 2 3");
    }
}

/// Guests of other sizes.
const SIZES: &str = r#"
/brood checkpoint make tiny /ckp/large --memory 3328M >&2
/brood restore /ckp/large -n 1 --prefix l >&2
printf 'memory '; in_guest l-1 "awk '/MemTotal/{print \$2}' /proc/meminfo"
# A kernel takes memory above 4 GiB first.
in_guest l-1 'head -c 20000000 /dev/urandom >/run/x'
value sum l-1 'md5sum </run/x | cut -c 1-32'
/brood suspend l-1 /ckp/more --delta >&2
/brood restore /ckp/more -n 1 --prefix m >&2
value sum-of-clone m-1 'md5sum </run/x | cut -c 1-32'
/brood destroy --all >&2
rm -r /ckp/*
/brood checkpoint make tiny /ckp/smp --memory 128M --cpus 4 >&2
say restored restore /ckp/smp -n 2 --prefix s
value processors s-1 nproc
on_each='for n in 0 1 2 3; do taskset $((1 << n)) sh -c "cut -d \" \" -f 39 /proc/self/stat"; done'
for n in 1 2; do value smp-$n s-$n "echo \$($on_each)"; done
/brood destroy --all >&2
"#;

/// A host's processor without what came after x86-64-v2.
const LESSER: &str = "EPYC-Rome,svm=on,npt=on,-xsave,-avx,-avx2,-fma,-f16c,-bmi1,-bmi2,-movbe,-abm,\
     -rdrand,-smep,-smap,-fsgsbase";

#[test]
fn a_checkpoint_of_a_cpu_template_is_restored_on_a_lesser_host() {
    let dir = tempfile::tempdir().unwrap();
    let Some(ran) = run_with(&[], TEMPLATE, &TINY, &[]) else {
        return;
    };
    let inspected = after(&ran, "checkpoint");
    assert_eq!(inspected["linux"]["cpu_template"], "v2");
    // This host has more than the template, and its guest does not see it.
    assert_eq!(after(&ran, "of-host"), "avx2");
    assert_eq!(after(&ran, "of-guest"), "none");
    let file = dir.path().join("bundle");
    let (_, bundle) = ran.stdout.split_once("BUNDLE\n").expect("a bundle");
    fs::write(&file, bundle).unwrap();
    let checkpoints = dir.path().join("ckp");
    fs::create_dir(&checkpoints).unwrap();
    let mut unpack = Command::new("sh");
    unpack
        .args(["-c", r#"base64 -d <"$1" | tar -xz -C "$2""#, "sh"])
        .args([&file, &checkpoints]);
    let _ = Running::start(unpack).wait().ok();
    let there = run_with(
        &["--cpu", LESSER],
        LESSER_HOST,
        &TINY,
        &[(&checkpoints, "/ckp")],
    );
    let there = there.unwrap();
    assert_eq!(after(&there, "of-host"), "none");
    assert_eq!(whole(&after(&there, "restored")["restored"]), 1);
    assert_eq!(after(&there, "moved"), "it runs on");
    let refused = there
        .stderr
        .lines()
        .find(|line| line.contains("CPU template v3"));
    let refused = refused.unwrap_or_else(|| panic!("{}", there.stderr));
    assert!(
        refused.contains("it has no CPUID leaf 0x1, ecx bit 12"),
        "{refused}"
    );
    // A kernel that does not fit is refused, and does not run into the end of memory.
    let small = "the kernel and its initial file system need 7";
    assert!(there.stderr.contains(small), "{}", there.stderr);
}

/// Makes a checkpoint of a template, looks at a clone, and writes the bundle out.
const TEMPLATE: &str = r#"
avx2='grep -qw avx2 /proc/cpuinfo && echo avx2 || echo none'
/brood checkpoint make tiny /ckp/v2 --memory 96M --cpu-template v2 >&2
say checkpoint checkpoint inspect /ckp/v2
/brood restore /ckp/v2 -n 1 --prefix w >&2
printf 'of-host "%s"\n' "$(eval "$avx2")"
value of-guest w-1 "$avx2"
/brood destroy --all >&2
echo BUNDLE
cd /ckp && tar -c v2.* | gzip -1 | base64
"#;

/// Restores it where the processor is another.
const LESSER_HOST: &str = r#"
printf 'of-host "%s"\n' "$(grep -qw avx2 /proc/cpuinfo && echo avx2 || echo none)"
say restored restore /ckp/v2 -n 1 --prefix moved
value moved moved-1 echo it runs on
/brood destroy --all >&2
! /brood checkpoint make tiny /ckp/v3 --memory 96M --cpu-template v3
! /brood checkpoint make tiny /ckp/small --memory 64M
"#;

#[test]
fn fifty_linuxes_live_beside_each_other_within_their_limits() {
    let Some(ran) = run_there("3G", FIFTY) else {
        return;
    };
    assert_eq!(whole(&after(&ran, "restored")["restored"]), 50);
    assert_eq!(after(&ran, "ids"), 50);
    // A guest that takes more than its control group allows ends; its neighbours do not.
    let list = after(&ran, "list");
    let why = reason(&list, "c-7");
    assert!(why.contains("its control group allows"), "{why}");
    let alive = array(&list).iter().filter(|g| g["state"] == "running");
    assert_eq!(alive.count(), 49);
    // Nothing is left, also of control groups.
    for left in ["left 0", "groups 0"] {
        assert!(ran.stdout.lines().any(|l| l == left), "{}", ran.stdout);
    }
}

/// Fifty clones, whose kernel enforces their private limits.
const FIFTY: &str = r#"
/brood checkpoint make tiny /ckp/tiny --memory 128M >&2
say restored restore /ckp/tiny -n 50 --prefix c --private-limit 24M --enforce-private-limit
n=0
while [ $n -lt 50 ]; do
    n=$((n + 1))
    in_guest c-$n cat /etc/machine-id
done | sort -u >/tmp/ids
echo ids $(wc -l </tmp/ids)
ends c-7 'dd if=/dev/zero of=/run/big bs=1M count=60'
say list list
/brood destroy --all --force >&2
printf 'left %s\n' "$(ls /state/run | wc -l)"
printf 'groups %s\n' "$(ls -d /sys/fs/cgroup/brood/brood-* 2>/dev/null | wc -l)"
"#;

#[test]
fn a_linux_is_parked_and_goes_on_when_it_has_something_to_do() {
    let Some(ran) = run_there("3G", PARKED) else {
        return;
    };
    let number = |word| whole(&after(&ran, word));
    // Its timer woke it while nobody asked for it.
    let (began, slept) = (number("began"), number("slept"));
    assert!((5..25).contains(&(slept - began)), "{began} {slept}");
    // Its clock went on all the time, of which it was parked for more than 20 seconds.
    let [before, now, then] = ["before", "now", "then"].map(number);
    assert!(
        before <= now + 10 && now <= then + 10,
        "{before} {now} {then}"
    );
    assert_eq!(after(&ran, "delta"), "slept");
    assert_eq!(after(&ran, "smp"), "0 1");
    let parked = ran.stdout.lines().filter(|line| line.starts_with("parked"));
    assert_eq!(parked.count(), 4, "{}", ran.stdout);
    assert!(ran.stdout.lines().any(|line| line == "left 0"));
}

/// Guests that give their virtual machine back.
const PARKED: &str = r#"
until_parked() {
    pid=$(/brood show "$1" --json | sed 's/.*"pid":\([0-9]*\).*/\1/')
    n=0
    while ls -l "/proc/$pid/fd" | grep -q kvm-vm; do
        n=$((n + 1))
        [ $n -lt 600 ] || exit 1
        sleep 0.5
    done
    echo "parked $1"
}
/brood checkpoint make tiny /ckp/tiny --memory 128M >&2
/brood restore /ckp/tiny -n 1 --prefix p --park-after 0.5 >&2
time='cut -d. -f1 /proc/uptime'
in_guest p-1 "($time >/run/began; sleep 5; $time >/run/slept) >/dev/null 2>&1 &"
until_parked p-1
sleep 30
value began p-1 cat /run/began | tr -d '"'
value slept p-1 cat /run/slept | tr -d '"'
until_parked p-1
echo before $(date +%s)
value now p-1 date +%s | tr -d '"'
echo then $(date +%s)
until_parked p-1
/brood suspend p-1 /ckp/delta --delta >&2
/brood restore /ckp/delta -n 1 --prefix d >&2
value delta d-1 '[ -s /run/slept ] && echo slept'
/brood destroy --all >&2
/brood checkpoint make tiny /ckp/smp --memory 128M --cpus 2 >&2
/brood restore /ckp/smp -n 1 --prefix s --park-after 0.5 >&2
until_parked s-1
on_each='for n in 0 1; do taskset $((1 << n)) sh -c "cut -d \" \" -f 39 /proc/self/stat"; done'
value smp s-1 "echo \$($on_each)"
/brood destroy --all >&2
printf 'left %s\n' "$(ls /state/run | wc -l)"
"#;
