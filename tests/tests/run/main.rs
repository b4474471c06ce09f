//! Programs in guests that are real Linux: exec, run, cp, logs, console, and the API of these.

mod api;
mod copies;

use std::{
    fs::{self, File},
    io::{Read, Write},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use brood_tests::{Home, PATIENCE, Ran, Running, signal, text, until};
use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};

const MIB: usize = 1 << 20;

/// A command with its input and output; not as text.
fn output(mut command: Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            // A command that takes no input has closed it.
            let _ = stdin.write_all(input);
        });
        child.wait_with_output().unwrap()
    })
}

/// Runs a line of the shell in a guest.
fn sh(home: &Home, guest: &str, line: &str) -> Ran {
    home.brood(&["exec", guest, "--", "sh", "-c", line])
}

fn start_sh(home: &Home, guest: &str, line: &str) -> Running {
    home.start(&["exec", guest, "--", "sh", "-c", line])
}

/// Bytes that repeat late.
fn bytes(length: usize) -> Vec<u8> {
    let mut number = 1_u32;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.push((number >> 24) as u8);
    }
    bytes
}

fn digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a program with these words runs in a guest.
fn runs(home: &Home, guest: &str, words: &str) -> bool {
    // The brackets keep the search from finding itself.
    let (first, rest) = words.split_at(1);
    let line = format!("ps -o args | grep -c '^[{first}]{rest}'");
    sh(home, guest, &line).stdout.trim() != "0"
}

#[test]
fn a_program_has_its_own_streams_and_codes() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    // Streams apart, and the code.
    let ran = sh(&home, "a-1", "echo out; echo err >&2; exit 7");
    assert_eq!(
        (ran.code(), &*ran.stdout, &*ran.stderr),
        (Some(7), "out\n", "err\n")
    );
    assert_eq!(sh(&home, "a-1", "kill -9 $$").code(), Some(137));
    // What is refused by the guest, by brood, by the command line.
    let ran = home.brood(&["exec", "a-1", "--", "no-such-program"]);
    assert_eq!(ran.code(), Some(127), "{ran:?}");
    assert!(ran.stderr.contains("no-such-program"), "{ran:?}");
    let ran = home.brood(&["exec", "b-1", "--", "true"]);
    assert_eq!(ran.code(), Some(125), "{ran:?}");
    for bad in [
        &["exec", "a-1"][..],
        &["exec", "a-1", "--env", "novalue", "--", "true"],
        &["exec", "a-1", "--timeout", "0", "--", "true"],
        &["exec", "a-1", "true"],
        &["run", "--", "true"],
        &["cp", "a", "b"],
        &["cp", "a-1:/x", "a-1:/y"],
    ] {
        assert_eq!(home.brood(bad).code(), Some(2), "{bad:?}");
    }
    // Environment, folder, user.
    let ran = home.brood(&[
        "exec",
        "a-1",
        "--env",
        "A=b c",
        "--env",
        "D=",
        "--cwd",
        "/etc",
        "--",
        "sh",
        "-c",
        "echo \"$A$D\"; pwd; id -un",
    ]);
    assert_eq!(ran.stdout, "b c\n/etc\nroot\n", "{ran:?}");
    let ran = home.brood(&["exec", "a-1", "--user", "65534", "--", "id", "-u"]);
    assert_eq!(ran.stdout, "65534\n", "{ran:?}");
    let ran = home
        .brood(&[
            "exec",
            "a-1",
            "--json",
            "--",
            "sh",
            "-c",
            "echo o; echo e >&2; exit 3",
        ])
        .exits(3)
        .json();
    assert_eq!(ran["code"], 3);
    assert_eq!((text(&ran["output"]), text(&ran["error"])), ("o\n", "e\n"));
    // Without -i there is no input, with it there is all of it.
    assert_eq!(sh(&home, "a-1", "cat | wc -c").stdout, "0\n");
    let ran = output(
        home.command(&["exec", "a-1", "-i", "--", "wc", "-c"]),
        b"12345",
    );
    assert_eq!(ran.stdout, b"5\n");
    // A time limit kills the process group.
    let begin = Instant::now();
    let ran = home.brood(&[
        "exec",
        "a-1",
        "--timeout",
        "1s",
        "--",
        "sh",
        "-c",
        "sleep 4711 & sleep 4712",
    ]);
    assert_eq!(ran.code(), Some(124), "{ran:?}");
    assert!(begin.elapsed() < PATIENCE);
    until("both to be gone", || {
        (!runs(&home, "a-1", "sleep 471")).then_some(())
    });
    // A terminal.
    let ran = home.brood(&["exec", "a-1", "-t", "--", "sh", "-c", "tty; stty size"]);
    assert!(
        ran.stdout.contains("/dev/pts/") && ran.stdout.contains("24 80"),
        "{ran:?}"
    );
    // A guest that is paused is refused at once.
    let _ = home.brood(&["pause", "a-1"]).ok();
    let ran = home.brood(&["exec", "a-1", "--", "true"]);
    assert_eq!(ran.code(), Some(125));
    assert!(ran.stderr.contains("paused"), "{ran:?}");
    let _ = home.brood(&["resume", "a-1"]).ok();
    assert_eq!(sh(&home, "a-1", "exit 9").code(), Some(9));
}

#[test]
fn ten_megabytes_go_in_and_out() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    let sent = bytes(10 * MIB);
    let ran = output(
        home.command(&["exec", "a-1", "-i", "--", "sha256sum"]),
        &sent,
    );
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(said.starts_with(&digest(&sent)), "{said}");
    let ran = output(home.command(&["exec", "a-1", "-i", "--", "cat"]), &sent);
    assert!(ran.stdout == sent, "{} bytes", ran.stdout.len());
    // Output that nobody reads ends the program.
    let mut command = home.command(&["exec", "a-1", "--", "yes", "4711"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut some = [0; 1000];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(141));
    until("its end", || {
        (!runs(&home, "a-1", "yes 4711")).then_some(())
    });
}

#[test]
fn a_hundred_programs_at_once_in_ten_guests() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 10, "a");
    thread::scope(|scope| {
        for number in 0..100_usize {
            let home = &home;
            scope.spawn(move || {
                let guest = format!("a-{}", number % 10 + 1);
                let line = format!("hostname; echo {number}; exit {}", number % 5);
                let ran = sh(home, &guest, &line);
                assert_eq!(ran.stdout, format!("{guest}\n{number}\n"), "{ran:?}");
                assert_eq!(ran.code(), i32::try_from(number % 5).ok(), "{ran:?}");
            });
        }
    });
}

#[test]
fn signals_and_kills_reach_the_program() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    // Ctrl-C is the program's to deal with.
    let traps = start_sh(
        &home,
        "a-1",
        "trap 'echo caught; exit 5' INT; echo on; while :; do sleep 0.1; done",
    );
    until("it to run", || traps.printed().contains("on").then_some(()));
    traps.signal(Signal::SIGINT);
    let ran = traps.wait();
    assert_eq!(
        (ran.code(), &*ran.stdout),
        (Some(5), "on\ncaught\n"),
        "{ran:?}"
    );
    // One that does not care: the third insists.
    let deaf = start_sh(
        &home,
        "a-1",
        "trap '' INT TERM; echo on; while :; do sleep 0.1; done",
    );
    until("it to run", || deaf.printed().contains("on").then_some(()));
    for _ in 0..3 {
        deaf.signal(Signal::SIGINT);
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(deaf.wait().code(), Some(130));
    // The command is killed: its program goes, others stay.
    let stays = start_sh(&home, "a-1", "exec sleep 4711");
    let goes = start_sh(&home, "a-1", "sleep 4712 & exec sleep 4713");
    for words in ["sleep 4711", "sleep 4712", "sleep 4713"] {
        until("it to run", || runs(&home, "a-1", words).then_some(()));
    }
    goes.signal(Signal::SIGKILL);
    let _ = goes.wait();
    until("its end", || {
        let left = ["sleep 4712", "sleep 4713"].into_iter();
        left.map(|words| runs(&home, "a-1", words))
            .all(|runs| !runs)
            .then_some(())
    });
    assert!(runs(&home, "a-1", "sleep 4711"));
    // The broker is killed: its programs end, and the next command is served.
    let broker = until("the broker", || broker_of(&home));
    signal(broker, Signal::SIGKILL);
    let lost = stays.wait();
    assert_eq!(lost.code(), Some(125), "{lost:?}");
    assert_eq!(sh(&home, "a-1", "exit 6").code(), Some(6));
    // The guest dies: that is told.
    let died = sh(&home, "a-1", "echo c >/proc/sysrq-trigger; sleep 100");
    assert_eq!(died.code(), Some(125), "{died:?}");
    assert!(died.stderr.contains("Kernel panic"), "{died:?}");
}

/// The broker of the only guest.
fn broker_of(home: &Home) -> Option<i32> {
    let folder = home.run_dir();
    let mut processes = fs::read_dir("/proc").unwrap().flatten();
    processes.find_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let line = fs::read_to_string(process.path().join("cmdline")).ok()?;
        (line.contains("agent-broker") && line.contains(folder.to_str()?)).then_some(pid)
    })
}

#[test]
fn a_program_runs_beside_a_suspend_and_a_pause() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    let counts = start_sh(
        &home,
        "a-1",
        "n=0; while [ $n -lt 20 ]; do n=$((n+1)); echo $n; sleep 0.1; done",
    );
    until("it to run", || counts.printed().contains('1').then_some(()));
    let _ = home.brood(&["pause", "a-1"]).ok();
    let _ = home.brood(&["resume", "a-1"]).ok();
    let ran = counts.wait();
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    assert_eq!(ran.stdout.lines().count(), 20);
    // A suspend that ends the guest is not held up by a shell that somebody has.
    let shell = start_sh(&home, "a-1", "echo on; exec sleep 4711");
    until("it to run", || shell.printed().contains("on").then_some(()));
    let warm = home.named("warm");
    let _ = home.brood(&["suspend", "a-1", &warm.path]).ok();
    let ended = shell.wait();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    let told = [
        "was suspended to",
        "there is no guest",
        "is being suspended",
    ];
    let known = told.iter().any(|told| ended.stderr.contains(told));
    assert!(known, "{ended:?}");
    // What ran for a session that is gone has no place in a clone.
    home.restore(&warm, 1, "b");
    until("its end", || {
        (!runs(&home, "b-1", "sleep 4711")).then_some(())
    });
    assert_eq!(sh(&home, "b-1", "exit 4").code(), Some(4));
}

#[test]
fn a_run_has_a_guest_of_its_own_that_ends_with_it() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    let none = || {
        until("no guest to be left", || {
            home.names("running").is_empty().then_some(())
        });
    };
    // A checkpoint.
    let script = home.path().join("job.sh");
    fs::write(&script, "echo $0 $1 $X; hostname; exit 3").unwrap();
    let file = format!("{}:/root/job.sh", script.display());
    let ran = home.brood(&[
        "run",
        &linux.path,
        "--file",
        &file,
        "--env",
        "X=y",
        "--",
        "sh",
        "/root/job.sh",
        "arg",
    ]);
    assert_eq!(ran.code(), Some(3), "{ran:?}");
    assert!(
        ran.stdout.starts_with("/root/job.sh arg y\nrun-"),
        "{ran:?}"
    );
    assert_eq!(home.list().len(), 0);
    // What brood could not do has a code of its own.
    let missing = home.brood(&["run", "no-such-pool", "--", "true"]);
    assert_eq!(missing.code(), Some(125), "{missing:?}");
    let missing = home.brood(&["run", "/no/such/ckp", "--", "true"]);
    assert_eq!(missing.code(), Some(125), "{missing:?}");
    let missing = home.brood(&["run", &linux.path, "--file", "/no/such:/x", "--", "true"]);
    assert_eq!(missing.code(), Some(125), "{missing:?}");
    assert_eq!(home.list().len(), 0);
    // Ctrl-C ends the program, and with it the guest; a kill of the command does the same.
    for which in [Signal::SIGINT, Signal::SIGKILL] {
        let running = home.start(&[
            "run",
            &linux.path,
            "--",
            "sh",
            "-c",
            "echo on; exec sleep 1000",
        ]);
        until("it to run", || {
            running.printed().contains("on").then_some(())
        });
        running.signal(which);
        let ran = running.wait();
        if which == Signal::SIGINT {
            assert_eq!(ran.code(), Some(130), "{ran:?}");
        }
        none();
    }
    // A pool.
    let _ = home
        .brood(&[
            "pool",
            "create",
            "web",
            &linux.path,
            "--hot",
            "0",
            "--max",
            "2",
        ])
        .ok();
    let ran = home.brood(&["run", "web", "--timeout", "1s", "--", "sleep", "100"]);
    assert_eq!(ran.code(), Some(124), "{ran:?}");
    none();
    let running = home.start(&["run", "web", "--", "sh", "-c", "echo on; exec sleep 1000"]);
    until("it to run", || {
        running.printed().contains("on").then_some(())
    });
    running.signal(Signal::SIGKILL);
    let _ = running.wait();
    none();
}

#[test]
fn a_console_is_read_followed_and_typed_on() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    let _ = sh(
        &home,
        "a-1",
        "echo first >/dev/ttyS0; printf 'x\\033[2Jy\\n' >/dev/ttyS0",
    )
    .ok();
    until("it to be logged", || {
        home.brood(&["logs", "a-1"])
            .ok()
            .stdout
            .contains("y")
            .then_some(())
    });
    let logged = home.json(&["logs", "a-1"]);
    assert!(text(&logged["log"]).contains("first"), "{logged}");
    let follows = home.start(&["logs", "a-1", "-f"]);
    until("what was said", || {
        follows.printed().contains("first").then_some(())
    });
    let _ = sh(&home, "a-1", "echo second >/dev/ttyS0").ok();
    until("what is said", || {
        follows.printed().contains("second").then_some(())
    });
    // Somebody types; a second one is told that the console is taken.
    let mut typing = home.command(&["console", "a-1"]);
    let mut typing = typing
        .stdin(Stdio::piped())
        .stdout(File::create(home.path().join("typed")).unwrap())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = typing.stdin.take().unwrap();
    let said = || fs::read_to_string(home.path().join("typed")).unwrap();
    // A shell waits there for Enter.
    keys.write_all(b"\n").unwrap();
    until("the shell", || said().contains('#').then_some(()));
    keys.write_all(b"echo $((40+2))\n").unwrap();
    until("its answer", || said().contains("42").then_some(()));
    let busy = home.brood(&["console", "a-1"]);
    assert_eq!(busy.code(), Some(1), "{busy:?}");
    drop(keys);
    assert!(typing.wait().unwrap().success());
    // It was let go, and the log has what was said there.
    assert!(home.brood(&["logs", "a-1"]).ok().stdout.contains("42"));
    let again = output(home.command(&["console", "a-1"]), b"");
    assert!(again.status.success());
    // A guest that ends ends what follows it.
    let _ = home.brood(&["destroy", "a-1"]).ok();
    assert_eq!(follows.wait().code(), Some(0));
}
