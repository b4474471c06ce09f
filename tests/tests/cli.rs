//! Command line, as a person and as a script sees it.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use brood_tests::{Home, Running, keys, signal, text, until, with_a_daemon_and_without};
use insta::{assert_snapshot, with_settings};
use nix::sys::signal::Signal;

/// Takes out of a text what is new each time: folders, digests, ids, times, sizes of processes.
fn steady(home: &Home, text: &str) -> String {
    text.replace(home.path().to_str().unwrap(), "HOME")
}

macro_rules! shows {
    ($home:expr, $name:expr, $text:expr) => {
        with_settings!({
            omit_expression => true,
            filters => vec![
                (r"\b[0-9a-f]{64}\b", "SHA256"),
                (r"sha256 [0-9a-f]{16}", "sha256 DIGEST"),
                (r"\b[0-9a-f]{32}\b", "GENERATION"),
                (r"([0-9a-f]{2}:){5}[0-9a-f]{2}", "MAC"),
                (r"\b[0-9a-f]{16}\b", "ID"),
                (r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME"),
                (r"brood \d+\.\d+\.\d+, KVM API \d+, Linux \S+", "ENGINE"),
                (r"(\.ckp\.(kern|meta) +)[0-9.]+ \S+", "${1}SIZE"),
                (r"\(triple fault\) at 0x[0-9a-f]+", "(triple fault) at ADDRESS"),
                (r"(pid +)\d+", "${1}PID"),
                (r"(?m)^(jail +).*", "${1}JAIL"),
                (r"(running|paused|dead)( +)\d+s( +)(\d+|-)", "${1}${2}AGE${3}PID"),
                (r"(?m)^(\S+ +whole .*) \d+s$", "${1} AGE"),
                (r"suspended: [0-9.]+ \S+", "suspended: SIZE"),
                (r"(process +).*", "${1}SIZE and SIZE of page tables"),
                (r"(shared +)[0-9.]+ \S+", "${1}SIZE"),
                (r"(private +)[0-9.]+ \S+", "${1}SIZE"),
                (r"in [0-9.]+ s \(\d+ a second\)", "in TIME (RATE)"),
                // What was checked a moment ago is checked again, or not.
                (r"[0-9.]+ s in all, [0-9.]+ s of that to check .*\n", ""),
                (r"(p50|p90|p99|max) [0-9.]+ ms", "$1 TIME"),
                (r"[0-9.]+ [MGT]iB(  freed| freed)", "SIZE$1"),
                // Columns are as wide as process ids are.
                (" {2,}", "  "),
            ],
        }, { assert_snapshot!($name, steady($home, &$text)) })
    };
}

#[test]
fn an_empty_folder_leads_to_the_daemons_checkpoints() {
    let home = Home::bare();
    let folder = home.path().join("empty");
    std::fs::create_dir(&folder).unwrap();
    let list = || {
        let mut command = home.command(&["checkpoint", "list"]);
        command.current_dir(&folder);
        Running::start(command).wait().ok().stdout
    };
    assert_eq!(list(), "no checkpoints in .\n");
    let daemons = home.state().join("checkpoints");
    std::fs::create_dir_all(&daemons).unwrap();
    let expected = format!(
        "no checkpoints in .\nthe daemon's: brood checkpoint list {}\n",
        daemons.display()
    );
    assert_eq!(list(), expected);
}

#[test]
fn a_folder_in_the_place_of_a_checkpoint_leads_to_what_is_in_it() {
    let Some(home) = Home::with_kvm() else { return };
    let folder = home.checkpoints().display().to_string();
    let restore = |path: &str| home.brood(&["restore", path, "--guests", "1"]).exits(1);
    std::fs::create_dir_all(&folder).expect("it is ours");
    let _ = restore(&folder).says(&["is a folder, with no checkpoint in it"]);
    let demo = home.demo("demo", "4M");
    let _ = restore(&folder).says(&["is a folder; name a checkpoint in it: ", &demo.path]);
    let lost = format!("{folder}/nowhere");
    let _ = restore(&format!("{lost}/demo")).says(&[&format!("there is no folder {lost}")]);
    let _ = restore(&format!("{folder}/other")).says(&["brood checkpoint list "]);
}

#[test]
fn the_time_of_a_check_is_told_when_there_is_one() {
    with_a_daemon_and_without(|home| {
        let demo = home.demo("demo", "64M");
        // A file that was written just now is checked each time.
        let checks = |prefix: &str| {
            let restored = home.restore(&demo, 1, prefix);
            restored["verify_s"].as_f64().expect("a number")
        };
        let said = home.brood(&["restore", &demo.path, "--guests", "1", "--prefix", "a"]);
        assert!(
            said.ok()
                .stdout
                .contains(" s of that to check the checkpoint's memory")
        );
        until("a check that is not needed", || {
            (checks("b") == 0.0).then_some(())
        });
        let said = home.brood(&["restore", &demo.path, "--guests", "1", "--prefix", "c"]);
        assert!(!said.ok().stdout.contains("of that to check"));
    });
}

#[test]
fn every_command_has_examples() {
    fn look(command: &clap::Command, path: &str, lacking: &mut Vec<String>) {
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let path = format!("{path} {}", sub.get_name());
            let help = sub.get_after_help().map(ToString::to_string);
            if sub.get_name() != "help" && !help.is_some_and(|help| help.contains("Example")) {
                lacking.push(path.clone());
            }
            look(sub, &path, lacking);
        }
    }
    let mut lacking = Vec::new();
    look(&brood::cli::grammar(), "brood", &mut lacking);
    assert_eq!(lacking, [""; 0]);
}

#[test]
fn words_of_other_tools_lead_to_the_commands() {
    let home = Home::bare();
    for (word, command) in [
        ("stop", "brood pause"),
        ("kill", "brood destroy"),
        ("start", "brood restore"),
        ("status", "brood list"),
        ("snapshot", "brood suspend"),
    ] {
        let _ = home.brood(&[word]).exits(2).says(&[command]);
    }
    for alias in [&["ls"][..], &["ps"]] {
        let _ = home.brood(alias).ok();
    }
}

#[test]
fn pools_that_can_never_be_are_refused_before_they_are_made() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M").path;
    for (args, why) in [
        (
            &["web", &demo, "--hot", "3", "--max", "2"][..],
            "may have 2 guests",
        ),
        (
            &["web", &demo, "--hot", "1", "--hot-min", "2"],
            "never has 2 hot",
        ),
        (
            &["web", &demo, "--hot", "1", "--max-memory", "1M"],
            "1 MiB together",
        ),
        (&["we b", &demo, "--hot", "1"], "cannot be a pool's name"),
    ] {
        let ran = home.brood(&[&["pool", "create"], args].concat());
        let _ = ran.exits(1).says(&[why]);
    }
    // The checkpoint before the name.
    let _ = home
        .brood(&["pool", "create", "ckp/demo", "ckp/demo", "--hot", "1"])
        .exits(1)
        .says(&["the name comes first"]);
    assert_eq!(home.json(&["pool", "list"]), serde_json::json!([]));
    let _ = home
        .brood(&["pool", "create", "web", &demo, "--hot", "1", "--max", "2"])
        .ok();
    let _ = home.brood(&["pool", "set", "web", "--hot", "3"]).exits(1);
    assert_eq!(home.json(&["pool", "show", "web"])["hot"], 1);
    let shown = home.brood(&["pool", "show", "web"]).ok().stdout;
    assert!(shown.contains("no daemon keeps this pool"), "{shown}");
}

#[test]
fn help_says_what_each_command_does() {
    let home = Home::bare();
    let commands = [
        "",
        "checkpoint",
        "checkpoint demo",
        "checkpoint import",
        "checkpoint inspect",
        "checkpoint verify",
        "checkpoint list",
        "checkpoint remove",
        "restore",
        "list",
        "show",
        "ask",
        "pause",
        "resume",
        "destroy",
        "suspend",
        "pool",
        "pool create",
        "pool set",
        "pool apply",
        "pool list",
        "pool show",
        "pool fill",
        "pool claim",
        "pool renew",
        "pool release",
        "pool evict",
        "pool remove",
        "density",
        "plan",
        "doctor",
        "top",
        "config",
        "config example",
        "config check",
        "completions",
        "serve",
    ];
    let mut all = String::new();
    for command in commands {
        let mut words: Vec<&str> = command.split_whitespace().collect();
        words.push("--help");
        let ran = home.brood(&words).ok();
        all += &format!("$ brood {}\n{}\n", words.join(" "), ran.stdout);
    }
    shows!(&home, "help_says_what_each_command_does", all);
    let with_examples = [
        "restore",
        "ask",
        "suspend",
        "density",
        "plan",
        "pool create",
        "pool fill",
        "pool claim",
    ];
    for command in with_examples {
        let mut words: Vec<&str> = command.split_whitespace().collect();
        words.push("--help");
        let help = home.brood(&words).stdout;
        assert!(help.contains("Example"), "{command} has no example");
    }
    assert!(!home.state().exists(), "help made a state folder");
}

#[test]
fn a_day_with_guests_reads_well() {
    with_a_daemon_and_without(|home| {
        let mut day = String::new();
        let mut say = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let ran = home.brood(&words);
            day += &format!("$ brood {line}\n{}{}", ran.stdout, ran.stderr);
            if ran.code() != Some(0) {
                day += &format!("exit code {}\n", ran.code().unwrap());
            }
            day += "\n";
        };
        say("list");
        say("checkpoint demo ckp/demo --memory 4M");
        say("checkpoint demo ckp/demo --memory 4M");
        say("checkpoint list ckp");
        say("checkpoint inspect ckp/demo");
        say("checkpoint verify ckp/demo");
        say("restore ckp/demo --guests 2");
        say("restore ckp/demo -n 1 --prefix web --paused");
        say("list");
        say("show demo-1");
        say("ask demo-1 ping hello");
        say("ask demo-1 identity");
        say("ask demo-1 poke 0x200000 255");
        say("ask demo-1 peek 0x200000");
        say("ask demo-1 dirty 3");
        say("ask web-1 ping");
        say("pause demo-2");
        say("resume demo-2 web-1");
        say("ask demo-2 crash");
        say("list");
        say("show demo-2");
        say("checkpoint remove ckp/demo");
        say("suspend demo-1 ckp/warm");
        say("destroy --all");
        say("checkpoint remove ckp/demo");
        say("checkpoint list ckp");
        shows!(home, "a_day_with_guests_reads_well", day);
    });
}

#[test]
fn mistakes_are_told_with_a_way_out() {
    with_a_daemon_and_without(|home| {
        let demo = home.demo("demo", "4M");
        home.restore(&demo, 1, "g");
        let mut told = String::new();
        let mut wrong = |code: i32, line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let ran = home.brood(&words).exits(code);
            assert_eq!(ran.stdout, "", "an error is no output");
            told += &format!("$ brood {line}\n{}exit code {code}\n\n", ran.stderr);
        };
        wrong(1, "show nobody");
        wrong(1, "ask nobody ping");
        wrong(1, "ask g-1 fly");
        wrong(1, "ask g-1 peek");
        wrong(1, "ask g-1 peek x");
        wrong(1, "ask g-1 peek 1G");
        wrong(1, "ask g-1 poke 0 1");
        wrong(1, "ask g-1 random 33");
        wrong(1, "restore ckp/none --guests 1");
        wrong(1, "restore none/none --guests 1");
        wrong(1, "restore ckp/demo --guests 1 --prefix a/b");
        wrong(1, "checkpoint inspect ckp/none");
        wrong(1, "checkpoint remove ckp/none");
        wrong(1, "checkpoint demo ckp/small --memory 1M");
        wrong(1, "suspend g-1 ckp/demo");
        wrong(2, "restore ckp/demo --guests 0");
        wrong(2, "restore ckp/demo --guests -1");
        wrong(2, "restore ckp/demo");
        wrong(2, "restore ckp/demo --guests many");
        wrong(2, "destroy");
        wrong(2, "fly");
        shows!(home, "mistakes_are_told_with_a_way_out", told);
    });
}

#[test]
fn a_day_with_a_pool_reads_well() {
    with_a_daemon_and_without(|home| {
        let _ = home.demo("demo", "4M");
        let (mut day, mut token) = (String::new(), String::new());
        let mut say = |line: &str| {
            let line = line.replace("TOKEN", &token);
            let words: Vec<&str> = line.split_whitespace().collect();
            let ran = home.brood(&words);
            let said = format!("$ brood {line}\n{}{}", ran.stdout, ran.stderr);
            if words.get(1) == Some(&"claim") && ran.code() == Some(0) {
                token = match ran.stdout.strip_prefix('{') {
                    Some(_) => text(&ran.json()["token"]).to_owned(),
                    None => {
                        let line = ran.stdout.lines().nth(1).expect("a line with the token");
                        line.trim_start_matches("token: ").to_owned()
                    }
                };
            }
            // How long it took is new each time, and a daemon may have filled the pool before, or
            // evicted what is too much.
            let by_daemon = |line: &&str| !line.ends_with(" evicted: more than there should be");
            for line in said.lines().filter(by_daemon) {
                day += match line.split_once("; it answered after ") {
                    Some((before, _)) => before,
                    None => match line.split_once(" guests are hot; ") {
                        Some((before, _)) => before,
                        None => line,
                    },
                };
                day.push('\n');
            }
            if ran.code() != Some(0) {
                day += &format!("exit code {}\n", ran.code().unwrap());
            }
            day.push('\n');
        };
        say("pool create p ckp/demo --hot 3 --max 4 --lease 600");
        say("pool create p ckp/demo --hot 3");
        say("pool create q ckp/none --hot 3");
        say("pool create a/b ckp/demo --hot 3");
        say("pool claim q");
        say("pool claim p");
        say("pool fill p");
        say("pool list");
        say("pool renew TOKEN --lease 500");
        say("pool suspend TOKEN");
        say("pool suspend TOKEN");
        say("pool list");
        say("pool resume TOKEN");
        say("pool suspend nonsense");
        say("pool resume nonsense");
        say("pool remove p");
        say("pool release TOKEN");
        say("pool release TOKEN nonsense");
        say("pool renew TOKEN --lease 500");
        say("pool fill --all");
        say("pool set p --hot 1");
        say("pool set q --hot 1");
        say("pool set p --max 1");
        say("pool claim p");
        say("pool claim p");
        say("pool claim p --wait 1");
        say("pool release TOKEN");
        say("pool set p --max 5");
        say("pool evict p --entries 1");
        say("pool evict q --entries 1");
        say("pool fill q");
        say("pool remove q");
        say("pool remove p --force");
        say("pool list");
        say("list");
        shows!(home, "a_day_with_a_pool_reads_well", day);

        let demo = home.named("demo");
        let filled = ["pool", "create", "p", &demo.path, "--hot", "2"];
        let filled = home.json(&filled);
        let expected = [
            "checkpoint",
            "created_at",
            "enforce_private_limit",
            "entries",
            "errors",
            "hot",
            "hot_min",
            "lease_s",
            "max",
            "max_age_s",
            "max_memory",
            "missing",
            "name",
            "network",
            "no_room",
            "private_limit",
            "publish",
            "reconciled",
            "refill_rate",
            "restored",
            "sha256",
            "wall_s",
        ];
        assert_eq!(keys(&filled), expected);
        // The daemon fills a pool by itself, too.
        assert_eq!(
            (&filled["entries"]["hot"], &filled["missing"]),
            (&2.into(), &0.into())
        );
        assert_eq!(
            keys(&home.json(&["pool", "set", "p", "--hot", "1"])),
            expected
        );
        assert_eq!(keys(&home.json(&["pool", "fill", "p"])), expected);
        let claimed = home.json(&["pool", "claim", "p"]);
        assert_eq!(
            keys(&claimed),
            ["claim_ms", "guest", "id", "lease_s", "pid", "tier", "token"]
        );
        let token = text(&claimed["token"]);
        let renewed = home.json(&["pool", "renew", token, "--lease", "9"]);
        assert_eq!(renewed, serde_json::json!({ "lease_s": 9 }));
        let released = home.json(&["pool", "release", token]);
        assert_eq!(keys(&released), ["errors", "released"]);
        let evicted = home.json(&["pool", "evict", "p", "--entries", "0"]);
        assert_eq!(evicted, serde_json::json!({ "evicted": 0 }));
        let removed = home.json(&["pool", "remove", "p"]);
        assert_eq!(removed, serde_json::json!({ "removed": "p" }));
    });
}

#[test]
fn some_done_and_some_not_has_an_exit_code_of_its_own() {
    with_a_daemon_and_without(|home| {
        let demo = home.demo("demo", "4M");
        home.restore(&demo, 3, "g");
        signal(home.pid("g-2"), Signal::SIGKILL);
        until("its end", || (home.names("dead").len() == 1).then_some(()));
        let ran = home
            .brood(&["pause", "g-1", "g-2", "g-3", "--json"])
            .exits(3);
        assert_eq!(
            (&ran.json()["paused"], &ran.json()["errors"][0]["name"]),
            (&2.into(), &"g-2".into())
        );
        let _ = home.brood(&["pause", "g-2"]).exits(1);
        let _ = home
            .brood(&["resume", "g-1", "nobody"])
            .exits(1)
            .says(&["nobody"]);
        assert_eq!(
            home.names("paused"),
            ["g-1", "g-3"],
            "a name that is wrong is found before anything is done"
        );
    });
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    home.restore(&demo, 60, "a-rather-long-prefix");
    for args in [
        &["list"][..],
        &["list", "--json"],
        &["ask", "a-rather-long-prefix-1", "ping"],
        &["restore", "--help"],
    ] {
        let mut child = home
            .command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut reader = BufReader::new(child.stdout.take().unwrap());
        if args.len() == 1 {
            let mut first = String::new();
            reader.read_line(&mut first).unwrap();
            assert!(first.starts_with("NAME"), "{first}");
        }
        drop(reader);
        let ran = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&ran.stderr);
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
        assert!(
            ran.status.code().is_some() || args.contains(&"--help"),
            "{args:?}: {:?}",
            ran.status
        );
    }
}

#[test]
fn a_state_folder_that_cannot_be_used_is_named() {
    let home = Home::bare();
    let file = home.path().join("file");
    std::fs::write(&file, "").unwrap();
    let mut command = home.command(&["list"]);
    command.env("BROOD_STATE_DIR", file.join("state"));
    let _ = brood_tests::Running::start(command)
        .wait()
        .exits(1)
        .says(&["file/state", "BROOD_STATE_DIR"]);
    // A relative folder is one below the current folder, and long paths are no obstacle.
    let long = "a-folder-with-a-long-name/".repeat(8);
    let mut command = home.command(&["list"]);
    command.env("BROOD_STATE_DIR", &long);
    let _ = brood_tests::Running::start(command).wait().ok();
    assert!(home.path().join(&long).join("brood.sqlite").exists());
    // One that holds something else in the database's place.
    std::fs::create_dir_all(home.path().join("odd")).unwrap();
    std::fs::write(
        home.path().join("odd/brood.sqlite"),
        "not a database, and long enough to tell",
    )
    .unwrap();
    let mut command = home.command(&["list"]);
    command.env("BROOD_STATE_DIR", "odd");
    let _ = brood_tests::Running::start(command)
        .wait()
        .exits(1)
        .says(&["brood.sqlite", "hint"]);
}
