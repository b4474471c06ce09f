//! Limits that are too low: the command refuses before it starts anything, and names the limit.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use brood_tests::{Demo, Home, Ran, Running, crowd, skip};

/// A restore inside what `prepare`, a piece of shell, sets up.
fn restore_after(home: &Home, prepare: &str, demo: &Demo, args: &[&str]) -> Ran {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("{prepare} && exec \"$0\" restore \"$@\""))
        .arg(brood_tests::brood())
        .arg(&demo.path)
        .args(args)
        .env("BROOD_STATE_DIR", home.state());
    Running::start(command).wait()
}

/// A refusal before anything was started.
#[track_caller]
fn refused(home: &Home, ran: Ran, words: &[&str]) {
    let _ = ran.exits(4).says(words).says(&["cannot restore", "needed"]);
    assert!(
        home.list().is_empty(),
        "guests are recorded after a refusal"
    );
    assert!(home.guests().is_empty() && home.nurseries().is_empty());
    assert_eq!(home.run_dir().read_dir().unwrap().count(), 0);
}

#[test]
fn too_few_open_files() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    for limit in [24, 40] {
        let prepare = format!("ulimit -n {limit}");
        refused(
            &home,
            restore_after(&home, &prepare, &demo, &["-n", "5"]),
            &["RLIMIT_NOFILE", "raise it", "nofile=1024"],
        );
    }
    // However many guests: a few files are enough.
    let _ = restore_after(
        &home,
        "ulimit -n 128",
        &demo,
        &["-n", "150", "--prefix", "g"],
    )
    .ok();
    assert_eq!(home.converges().len(), 150);
}

/// A control group of one controller for this test, wherever the machine has it mounted.
struct Group(PathBuf);

impl Group {
    fn new(controller: &str) -> Option<Self> {
        let v1 = Path::new("/sys/fs/cgroup").join(controller);
        let roots = [v1, "/sys/fs/cgroup".into(), "/sys/fs/cgroup/unified".into()];
        for root in roots {
            let group = root.join(format!("brood-tests-{}-{controller}", std::process::id()));
            if fs::create_dir(&group).is_err() {
                continue;
            }
            let files = [
                format!("{controller}.max"),
                format!("{controller}.limit_in_bytes"),
            ];
            let group = Self(group);
            if files.iter().any(|file| group.0.join(file).exists()) {
                return Some(group);
            }
        }
        skip(&format!("no control group for {controller} can be made"));
        None
    }

    /// Sets the limit; returns its file's path.
    fn limit(&self, controller: &str, value: u64) -> String {
        let names =
            ["max", "limit_in_bytes"].map(|name| self.0.join(format!("{controller}.{name}")));
        let file = names
            .iter()
            .find(|file| file.exists())
            .expect("looked for before");
        fs::write(file, value.to_string()).unwrap();
        file.to_str().unwrap().to_owned()
    }

    /// Shell that enters it.
    fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs", self.0.display())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Not before its last process is gone.
        for _ in 0..500 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

#[test]
fn too_few_pids_in_the_control_group() {
    if brood_tests::without_kvm() {
        return;
    }
    let Some(group) = Group::new("pids") else {
        return;
    };
    let home = Home::bare();
    let demo = home.demo("demo", "4M");
    let file = group.limit("pids", 60);
    refused(
        &home,
        restore_after(&home, &group.enter(), &demo, &["-n", "100"]),
        &[&file, "at most"],
    );
    // Memory may be overcommitted, pids never.
    refused(
        &home,
        restore_after(&home, &group.enter(), &demo, &["-n", "100", "--overcommit"]),
        &[&file],
    );
    let _ = restore_after(&home, &group.enter(), &demo, &["-n", "10", "--prefix", "g"]).ok();
    // What is taken counts.
    let more = restore_after(&home, &group.enter(), &demo, &["-n", "20"]).exits(4);
    let _ = more.says(&[&file]);
    assert_eq!(home.converges().len(), 10);
    home.destroy_all();
}

#[test]
fn too_little_memory_in_the_control_group() {
    if brood_tests::without_kvm() {
        return;
    }
    let Some(group) = Group::new("memory") else {
        return;
    };
    let home = Home::bare();
    let demo = home.demo("demo", "16M");
    let file = group.limit("memory", 512 << 20);
    let args = ["-n", "50", "--private-limit", "16M"];
    refused(
        &home,
        restore_after(&home, &group.enter(), &demo, &args),
        &[&file, "at most"],
    );
    let warned = restore_after(
        &home,
        &group.enter(),
        &demo,
        &[
            "-n",
            "50",
            "--private-limit",
            "16M",
            "--overcommit",
            "--prefix",
            "g",
        ],
    );
    let _ = warned.ok().says(&["warning: overcommitted", &file]);
    assert_eq!(home.converges().len(), 50);
    home.destroy_all();
}

#[test]
fn more_guests_than_the_host_has_pids() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let pid_max: u64 = fs::read_to_string("/proc/sys/kernel/pid_max")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    for guests in [pid_max / 2, pid_max, 4_000_000_000] {
        let count = guests.to_string();
        for more in [&["--private-limit", "4K"][..], &["--overcommit"][..]] {
            let args = [&["restore", &demo.path, "-n", &count][..], more].concat();
            let ran = home.brood(&args);
            refused(&home, ran, &["kernel."]);
        }
    }
}

/// So many guests of 256 MiB that their worst case is about so much of the memory that this host
/// has available.
fn guests_for(percent: u64) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    (kib >> 10) * percent / 100 / 257
}

#[test]
fn a_crowd_of_two_restores_is_not_given_the_same_memory_twice() {
    let Some(home) = Home::with_kvm() else { return };
    let _turn = crowd();
    let guests = guests_for(60);
    if guests > 250 {
        skip("so much memory that too many guests fit");
        return;
    }
    let demo = home.demo("demo", "256M");
    let count = guests.to_string();
    let start = |prefix| {
        home.start(&[
            "restore",
            &demo.path,
            "-n",
            &count,
            "--private-limit",
            "256M",
            "--prefix",
            prefix,
        ])
    };
    let mut codes = [start("a"), start("b")].map(|running| {
        let ran = running.wait();
        if ran.code() == Some(4) {
            assert!(ran.stderr.contains("MemAvailable"), "{}", ran.stderr);
        }
        ran.code()
    });
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(4)], "both were admitted, or none");
    assert_eq!(home.converges().len() as u64, guests);
    // Nor one after the other: what was promised stays promised, used or not.
    let _ = home
        .brood(&[
            "restore",
            &demo.path,
            "-n",
            &count,
            "--private-limit",
            "256M",
        ])
        .exits(4)
        .says(&["MemAvailable", "--overcommit"]);
    let warned = home
        .brood(&[
            "restore",
            &demo.path,
            "-n",
            &count,
            "--private-limit",
            "256M",
            "--overcommit",
        ])
        .ok();
    let _ = warned.says(&["warning: overcommitted", "the kernel kills"]);
    assert_eq!(home.names("running").len() as u64, 2 * guests);
    // Destroyed guests need nothing any more.
    home.destroy_all();
    let _ = home
        .brood(&[
            "restore",
            &demo.path,
            "-n",
            &count,
            "--private-limit",
            "256M",
        ])
        .ok();
}
