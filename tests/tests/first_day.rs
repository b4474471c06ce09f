//! tools/freebsd/first-day on a fake FreeBSD machine: `brood` is the real one, bhyve and the
//! commands of FreeBSD are stand-ins, and the kernel's tools only report that they were called.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use brood_tests::{Lab, brood};

/// Seconds that the guest runs before it is suspended.
const BOOT: &str = "2";

struct FirstDay {
    lab: Lab,
    bin: PathBuf,
    tools: PathBuf,
    out: PathBuf,
    config: PathBuf,
}

fn program(path: &Path, body: &str) {
    fs::write(path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

impl FirstDay {
    fn new() -> Self {
        let lab = Lab::new();
        let at = |name: &str| lab.home.path().join(name);
        let (bin, tools) = (at("bin"), at("tools"));
        fs::create_dir(&bin).unwrap();
        fs::create_dir(&tools).unwrap();
        // What the machine has no stand-in of.
        program(
            &bin.join("uname"),
            "case $1 in -s) echo FreeBSD ;; *) echo FreeBSD made-up ;; esac",
        );
        program(&bin.join("id"), "echo 0");
        program(&bin.join("freebsd-version"), "echo 15.0-RELEASE");
        program(&bin.join("kldload"), "echo kldload $*");
        program(&bin.join("kldunload"), "echo kldunload $*");
        for tool in ["kernel", "verify"] {
            program(&tools.join(tool), "echo called: ${0##*/} $*");
        }
        let config = at("guest.conf");
        fs::write(&config, lab.machine.config()).unwrap();
        let out = at("first-day");
        Self {
            lab,
            bin,
            tools,
            out,
            config,
        }
    }

    fn run(&self, more: &[&str]) -> Output {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/freebsd/first-day");
        let mut command = Command::new(script);
        command.envs(self.lab.machine.environment());
        let path = self.lab.machine.environment();
        let path = &path.iter().find(|(name, _)| name == "PATH").unwrap().1;
        let brood = brood();
        let with_brood = brood.parent().unwrap();
        let path = format!("{}:{}:{path}", self.bin.display(), with_brood.display());
        command
            .env("PATH", path)
            .env("BROOD_CONFIG", "/dev/null")
            .arg("--out")
            .arg(&self.out)
            .arg("--tools")
            .arg(&self.tools)
            .arg("--config")
            .arg(&self.config)
            .args(["--boot-seconds", BOOT, "--import", "--agent 1"])
            .args(more);
        command.output().unwrap()
    }

    fn logs(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.out.join("logs"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.out.join("logs").join(name)).unwrap()
    }

    /// All that is in the archive, as text, and the names.
    fn archive(&self) -> (String, String) {
        let unpacked = self.out.join("unpacked");
        fs::create_dir_all(&unpacked).unwrap();
        let tar = |options: &str| {
            let mut tar = Command::new("tar");
            tar.arg(options)
                .arg(self.out.join("first-day.tar.gz"))
                .arg("-C")
                .arg(&unpacked);
            let output = tar.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        (tar("-xzOf"), tar("-tzf"))
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn a_day_without_failure_runs_every_step_and_packs_what_happened() {
    let day = FirstDay::new();
    let output = day.run(&["--guests", "1,3"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    for (n, step) in [
        "facts",
        "apply",
        "build",
        "install",
        "load",
        "verify",
        "doctor",
        "checkpoint",
        "restore",
        "pool",
        "density",
        "suspend",
        "destroy",
    ]
    .iter()
    .enumerate()
    {
        assert!(said.contains(&format!("[{}/13] {step}", n + 1)), "{said}");
    }
    assert!(said.contains("All steps passed"), "{said}");
    assert!(
        day.log("03-build.log")
            .contains("called: kernel --src /usr/src --modules build")
    );
    assert!(
        day.log("05-load.log")
            .contains("kldload /boot/vmmvnode/vmm_vnode.ko")
    );
    assert!(day.log("09-restore.log").contains("--guests 3 --prefix fd"));
    let (contents, names) = day.archive();
    for name in [
        "logs/01-facts.log",
        "logs/13-destroy.log",
        "density/index.html",
    ] {
        assert!(names.lines().any(|line| line == name), "{names}");
    }
    // The token of a claim is nobody's business.
    assert!(contents.contains("brood pool release TOKEN"), "{names}");
    assert!(!day.out.join("claim.json").exists());
    assert!(day.lab.machine.processes().is_empty(), "a guest is left");
}

#[test]
fn the_first_failure_stops_it_and_says_what_to_send() {
    let day = FirstDay::new();
    program(
        &day.tools.join("verify"),
        "echo 'FAIL tests/kernel'; exit 1",
    );
    let config = day.lab.machine.config() + "pci.0.9.0.password=hunter2\n";
    fs::write(&day.config, config).unwrap();
    let output = day.run(&["--guests", "1"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for words in [
        "[6/13] verify     FAILED",
        "    FAIL tests/kernel",
        "first-day.tar.gz to the authors",
        "--from verify",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains("doctor"), "{said}");
    assert!(!day.logs().iter().any(|name| name.starts_with("07")));
    let (contents, names) = day.archive();
    assert!(names.contains("logs/06-verify.log") && names.contains("logs/after.log"));
    assert!(contents.contains("lpc.com1.path") && !contents.contains("hunter2"));

    // Mended: it goes on there, and does nothing twice.
    program(&day.tools.join("verify"), "echo PASS");
    fs::write(&day.config, day.lab.machine.config()).unwrap();
    fs::write(day.out.join("logs/03-build.log"), "not again").unwrap();
    let output = day.run(&["--guests", "1", "--from", "verify"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        !said.contains("build") && said.contains("[13/13] destroy"),
        "{said}"
    );
    assert_eq!(day.log("03-build.log"), "not again");
}

#[test]
fn a_dry_run_does_nothing_and_a_wrong_command_line_says_so() {
    let day = FirstDay::new();
    let output = day.run(&["--dry-run"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("+ brood density"), "{said}");
    assert!(!day.out.exists());
    for wrong in [
        ["--from", "nowhere"].as_slice(),
        &["--frobnicate"],
        &["--from"],
    ] {
        let output = day.run(wrong);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains("usage: tools/freebsd/first-day"));
    }
    let help = day.run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help).contains("--dry-run"));
}
