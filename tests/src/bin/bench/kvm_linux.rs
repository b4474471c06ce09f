//! Linux guests of the KVM engine, in an emulated host: its times say nothing by themselves, so a
//! restore is held against the demo guest's in the same host.

use std::{
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use brood_tests::image_builder;

use super::{
    Measurement,
    brood::{Brood, Restored},
    error::Error,
    floor::Measured,
    goal::{Goal, Row},
    workplace::Workplace,
};

/// Guests at once.
const GUESTS: u32 = 200;
/// Memory of the emulated host besides its guests' share, and that share, in MiB.
const HOST_MIB: u32 = 2560;
const GUEST_MIB: u32 = 4;
/// Longest that the host may run besides its guests' share, and that share, in seconds.
const HOST_S: u32 = 400;
const GUEST_S: u32 = 8;
/// What brood takes for a guest, its own pages apart.
const COST: Goal = Goal::AtMost(1.6);
/// Restore of a Linux by that of the demo guest.
const RESTORE: Goal = Goal::AtMost(1.5);

/// What is run in the host.
const SCRIPT: &str = r#"
export BROOD_ENGINE=kvm BROOD_STATE_DIR=/state PATH=/bin:/usr/bin
set -e
used() { echo "$1 $(awk '/^MemTotal/{t=$2} /^MemAvailable/{a=$2} END{print t-a}' /proc/meminfo)"; }
mkdir -p /ckp
/brood checkpoint make bench /ckp/linux --memory 256M >&2
/brood checkpoint demo /ckp/demo --memory 256M >&2
/brood restore /ckp/linux -n 1 --prefix warm >&2
printf 'demo '; /brood restore /ckp/demo -n 20 -c 1 --prefix demo --json
/brood destroy --all >&2
printf 'floor '; /floor --linux /ckp/linux --guests GUESTS --json
sleep 5
used before
printf 'linux '; /brood restore /ckp/linux -n GUESTS -c 1 --prefix linux --private-limit 1M --json
sleep 10
used after
echo "own $(cat /proc/[0-9]*/smaps 2>/dev/null |
    awk '/^[0-9a-f]+-/{g=($6 ~ /[.]ckp$/)} /^Anonymous:/{if (g) s+=$2} END{print s}')"
for n in 1 GUESTS; do /brood ask linux-$n -- exec true >&2; done
/brood destroy --all >&2
sleep 5
used awake
/brood restore /ckp/linux -n GUESTS -c 1 --prefix parked --park-after 1 --private-limit 1M >&2
sleep 20
used parked
for n in 1 GUESTS; do /brood ask parked-$n -- exec true >&2; done
/brood destroy --all >&2
"#;

/// Memory of each of many guests, and time of a restore.
pub(crate) fn kvm_linux(workplace: &Workplace) -> Result<Vec<Row>, Error> {
    let guests = workplace.guests.unwrap_or(GUESTS);
    let said = in_host(workplace, guests)?;
    let restored = |word| -> Result<Restored, Error> {
        serde_json::from_str(line(&said, word)?).map_err(|source| Error::Answer {
            command: "brood restore".to_owned(),
            source,
        })
    };
    let kib = |word| number::<f64>(&said, word);
    let (demo, linux) = (restored("demo")?, restored("linux")?);
    let floor: Measured =
        serde_json::from_str(line(&said, "floor")?).map_err(|source| Error::Answer {
            command: "floor".to_owned(),
            source,
        })?;
    let each = |kib: f64| kib / 1024.0 / f64::from(guests);
    let (all, own) = (each(kib("after")? - kib("before")?), each(kib("own")?));
    let parked = each(kib("parked")? - kib("awake")?);
    let row = |figure: String, unit, value: f64, goal| {
        Row::alone(Measurement::KvmLinux, figure, unit, &[value], goal)
    };
    let (of_linux, of_demo) = (linux.restore_ms.p50, demo.restore_ms.p50);
    Ok(vec![
        row(
            format!("Linux on KVM, {guests} at once: host memory each"),
            "MiB",
            all,
            None,
        ),
        row(
            "Linux on KVM: of it pages that the guest wrote".to_owned(),
            "MiB",
            own,
            None,
        ),
        row(
            "Linux on KVM: of it all else".to_owned(),
            "MiB",
            all - own,
            Some(COST),
        ),
        row(
            "Linux on KVM: host memory each when parked".to_owned(),
            "MiB",
            parked,
            None,
        ),
        row(
            "Linux on KVM: host memory each, of a C program that restores it (floor)".to_owned(),
            "MiB",
            floor.per_guest_mib,
            None,
        ),
        row(
            "Linux on KVM: restore p50 in the emulated host".to_owned(),
            "ms",
            of_linux,
            None,
        ),
        row(
            "Linux on KVM: the floor's there, until its guest begins to run".to_owned(),
            "ms",
            floor.restore_ms.p50,
            None,
        ),
        row(
            "Linux on KVM: restore p50 by the demo guest's there".to_owned(),
            "",
            of_linux / of_demo,
            Some(RESTORE),
        ),
    ])
}

/// Runs the script in an emulated host; what it said.
fn in_host(workplace: &Workplace, guests: u32) -> Result<String, Error> {
    let (agent, packages) = image_builder().ok_or_else(|| {
        Error::Guest("a Linux guest needs tools/agent and Debian's packages".to_owned())
    })?;
    let folder = tempfile::Builder::new()
        .prefix("brood-bench.")
        .tempdir_in(&workplace.floor.dir)
        .map_err(Error::io("make a folder"))?;
    let state = folder.path().join("state");
    let brood = Brood {
        binary: workplace.brood.binary.clone(),
        state: state.clone(),
        checkpoint: PathBuf::new(),
        engine: Some("kvm"),
        interrupt: workplace.brood.interrupt.clone(),
    };
    eprintln!("kvm-linux: builds an image, and boots it in an emulated host");
    let mut words = vec![
        "image",
        "build",
        "--minimal",
        "bench",
        "--agent",
        text(&agent),
    ];
    for package in &packages {
        words.extend(["--deb", text(package)]);
    }
    let _ = brood.run(&words)?;
    let script = folder.path().join("script");
    std::fs::write(&script, SCRIPT.replace("GUESTS", &guests.to_string()))
        .map_err(Error::io("write a script"))?;
    let kernel = packages
        .iter()
        .find(|package| text(package).contains("linux-image-"));
    let kernel = kernel.ok_or_else(|| Error::Guest("there is no kernel's package".to_owned()))?;
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/kvm-host");
    let mut host = Command::new(tool);
    let memory = format!("{}M", HOST_MIB + GUEST_MIB * guests);
    let limit = (HOST_S + GUEST_S * guests).to_string();
    // Guests stop now and then on an emulated host of several processors: docs/kvm.md.
    host.args(["--cpus", "1", "--memory", &memory, "--timeout", &limit]);
    host.arg("--deb").arg(kernel);
    for (file, to) in [
        (&workplace.brood.binary, "/brood"),
        (&workplace.floor.binary, "/floor"),
        (&state, "/state"),
        (&script, "/script"),
    ] {
        host.args(["--file", &format!("{}:{to}", text(file))]);
    }
    host.args(["--", "/bin/busybox", "sh", "/script"]);
    let ran = host.output().map_err(Error::io("start an emulated host"))?;
    if !ran.status.success() {
        return Err(Error::Failed {
            command: "tools/kvm-host".to_owned(),
            status: ran.status.to_string(),
            stderr: String::from_utf8_lossy(&ran.stderr).into_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// The rest of the line that begins with a word.
fn line<'a>(said: &'a str, word: &str) -> Result<&'a str, Error> {
    let mut lines = said.lines();
    let found = lines.find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
    found.ok_or_else(|| Error::Guest(format!("the emulated host did not say {word:?}: {said}")))
}

fn number<T: FromStr>(said: &str, word: &str) -> Result<T, Error> {
    let text = line(said, word)?;
    text.parse()
        .map_err(|_| Error::Guest(format!("the emulated host said no number: {word} {text}")))
}
