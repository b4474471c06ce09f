//! Real Linux guests on QEMU: clones that differ where they must, suspends, and what goes wrong.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use brood_core::agent::protocol::{
    Decoder, HostHello, Request, RequestId, SessionId, ToGuest, ToHost, encode, limits::VERSION,
};
use brood_tests::{Demo, Home, PATIENCE, image_builder, signal, text, until, whole};
use nix::sys::signal::Signal;
use serde_json::Value;

/// What a command in a guest wrote.
#[track_caller]
fn exec(home: &Home, guest: &str, command: &str) -> String {
    let asked = home.brood(&["ask", "--json", guest, "--", "exec", "sh", "-c", command]);
    let answer = asked.ok().json();
    assert_eq!(answer["code"], 0, "{answer}");
    text(&answer["output"]).trim().to_owned()
}

fn show(home: &Home, guest: &str) -> Value {
    home.json(&["show", guest])
}

/// The only folder of a guest in the run folder.
fn folder(home: &Home) -> PathBuf {
    let entries = fs::read_dir(home.run_dir()).unwrap();
    let mut folders = entries.map(|entry| entry.unwrap().path()).filter(|path| {
        path.extension()
            .is_some_and(|extension| extension == "qemu")
    });
    folders.next().unwrap()
}

#[test]
fn clones_of_a_linux_differ_where_they_must() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 3, "web");
    let names = ["web-1", "web-2", "web-3"];
    let distinct = |command: &str| {
        let said: HashSet<String> = names
            .iter()
            .map(|name| exec(&home, name, command))
            .collect();
        assert_eq!(said.len(), names.len(), "{command}: {said:?}");
    };
    distinct("cat /etc/machine-id");
    distinct("cat /run/brood/generation");
    distinct("head -c 16 /dev/urandom | od -x");
    for name in names {
        assert_eq!(exec(&home, name, "hostname"), name);
        // The clock is this host's: a command takes a while to be run there.
        let there: i64 = exec(&home, name, "date +%s").parse().unwrap();
        let here = jiff::Timestamp::now().as_second();
        assert!(
            (here - 20..=here + 1).contains(&there),
            "{there} and {here}"
        );
    }
    // One clone's file is not in another; a program of the checkpoint goes on in each.
    exec(&home, "web-1", "echo mine >/run/mine");
    assert_eq!(exec(&home, "web-2", "ls /run/mine || echo none"), "none");
    let count = || {
        exec(&home, "web-2", "cat /run/count")
            .parse::<u64>()
            .unwrap()
    };
    let before = count();
    until("the program to count on", || {
        (count() > before).then_some(())
    });
    let nonces: HashSet<String> = names
        .iter()
        .map(|name| home.json(&["ask", name, "ping"]).to_string())
        .map(|answer| answer[answer.find("nonce").unwrap()..][..26].to_owned())
        .collect();
    assert_eq!(nonces.len(), 1, "the same memory: {nonces:?}");
}

#[test]
fn a_linux_is_suspended_in_full_and_in_deltas() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    exec(&home, "a-1", "echo one >/run/one");
    let first = home.named("first");
    let _ = home.brood(&["suspend", "a-1", &first.path, "--delta"]).ok();
    home.restore(&first, 1, "b");
    exec(&home, "b-1", "echo two >/run/two");
    let second = home.named("second");
    let _ = home
        .brood(&["suspend", "b-1", &second.path, "--delta"])
        .ok();
    let inspected = home.json(&["checkpoint", "inspect", &second.path]);
    let pages = whole(&inspected["files"]["ckp"]["size"]) / 4096;
    assert!((1..8192).contains(&pages), "{pages} of 32768 pages");
    assert!(["kvm", "tcg"].contains(&text(&inspected["qemu"]["accelerator"])));
    home.restore(&second, 1, "c");
    assert_eq!(exec(&home, "c-1", "cat /run/one /run/two"), "one\ntwo");
    let full = home.named("full");
    let _ = home.brood(&["suspend", "c-1", &full.path]).ok();
    // It stands alone: its parents may go.
    let _ = home.brood(&["checkpoint", "remove", &second.path]).ok();
    let _ = home.brood(&["checkpoint", "verify", &full.path]).ok();
    home.restore(&full, 1, "d");
    assert_eq!(exec(&home, "d-1", "cat /run/one /run/two"), "one\ntwo");
    let _ = home.brood(&["destroy", "--all"]).ok();
    assert_eq!(
        fs::read_dir(home.run_dir()).unwrap().count(),
        0,
        "the memory image goes too"
    );
}

#[test]
fn a_paused_linux_stands_still_and_goes_on() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    let _ = home.brood(&["pause", "a-1"]).ok();
    assert_eq!(show(&home, "a-1")["state"], "paused");
    let _ = home.brood(&["resume", "a-1"]).ok();
    assert_eq!(exec(&home, "a-1", "echo there"), "there");
}

#[test]
fn a_guest_whose_hook_fails_is_not_handed_out() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    exec(
        &home,
        "a-1",
        "printf '#!/bin/sh\\necho no key; exit 3\\n' >/etc/brood/restored.d/50-key; \
         chmod +x /etc/brood/restored.d/50-key",
    );
    let with_hook = home.named("with-hook");
    let _ = home.brood(&["suspend", "a-1", &with_hook.path]).ok();
    let failed = home.brood(&["restore", &with_hook.path, "--guests", "1", "--prefix", "b"]);
    assert_eq!(failed.code(), Some(1), "{failed:?}");
    let told = format!("{}{}", failed.stdout, failed.stderr);
    for word in ["hooks", "50-key", "no key"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    home.nobody_is_left();
}

#[test]
fn how_a_linux_ended_is_told() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 2, "a");
    let died = home.brood(&[
        "ask",
        "a-1",
        "--",
        "exec",
        "sh",
        "-c",
        "echo c >/proc/sysrq-trigger",
    ]);
    assert!(died.stderr.contains("Kernel panic"), "{died:?}");
    assert!(text(&show(&home, "a-1")["reason"]).contains("sysrq triggered crash"));
    let pid = i32::try_from(whole(&show(&home, "a-2")["pid"])).unwrap();
    signal(pid, Signal::SIGTERM);
    until("its end", || {
        (show(&home, "a-2")["state"] == "dead").then_some(())
    });
    let reason = show(&home, "a-2");
    assert!(
        text(&reason["reason"]).contains("terminating on signal 15"),
        "{reason}"
    );
}

/// What a command that is killed while it suspends leaves: a guest that stands still, and the mark.
#[test]
fn a_guest_whose_suspend_was_killed_runs_on() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    let folder = folder(&home);
    fs::write(folder.join("suspending"), "").unwrap();
    monitor(&folder, "stop");
    assert_eq!(exec(&home, "a-1", "echo there"), "there");
    assert!(!folder.join("suspending").exists());
}

/// Gives QEMU a command.
fn monitor(folder: &Path, command: &str) {
    let mut stream = UnixStream::connect(folder.join("qmp")).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    lines.next().unwrap().unwrap();
    for command in ["qmp_capabilities", command] {
        writeln!(stream, "{{\"execute\": \"{command}\"}}").unwrap();
        let answer = lines.find(|line| line.as_ref().unwrap().contains("return"));
        answer.unwrap().unwrap();
    }
}

#[test]
fn what_cannot_be_restored_is_refused_by_name() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    let mut command = home.command(&["restore", &linux.path, "--guests", "1"]);
    command.env("BROOD_ENGINE", "kvm");
    let refused = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(refused.contains("it was made by qemu"), "{refused}");
}

/// A state of devices that is not the bundle's own: it must never come to a guest.
#[test]
fn a_damaged_state_of_devices_is_refused_by_name() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    let other = home.named("other");
    let _ = home.brood(&["suspend", "a-1", &other.path]).ok();
    let state = fs::read(format!("{}.ckp.kern", linux.path)).unwrap();
    let of_other = fs::read(format!("{}.ckp.kern", other.path)).unwrap();
    let flipped = |at: usize| {
        let mut bytes = state.clone();
        bytes[at] ^= 1;
        bytes
    };
    let mut longer = state.clone();
    longer.push(0);
    let damages = [
        ("first", flipped(0)),
        ("middle", flipped(state.len() / 2)),
        ("last", flipped(state.len() - 1)),
        ("half", state[..state.len() / 2].to_vec()),
        ("shorter", state[..state.len() - 1].to_vec()),
        ("longer", longer),
        ("empty", Vec::new()),
        ("of-other", of_other),
    ];
    for (name, bytes) in damages {
        let damaged = home.named(name);
        copy(&linux, &damaged);
        let kern = format!("{}.ckp.kern", damaged.path);
        fs::remove_file(&kern).unwrap();
        fs::write(&kern, bytes).unwrap();
        let refused = home.brood(&["restore", &damaged.path, "--guests", "1"]);
        assert_eq!(refused.code(), Some(1), "{name}: {refused:?}");
        let file = format!("{name}.ckp.kern");
        assert!(refused.stderr.contains(&file), "{name}: {refused:?}");
        home.nobody_is_left();
    }
}

fn copy(from: &Demo, to: &Demo) {
    for part in ["ckp", "ckp.kern", "ckp.meta", "ckp.brood"] {
        let file = format!("{}.{part}", to.path);
        fs::copy(format!("{}.{part}", from.path), file).unwrap();
    }
}

#[test]
fn images_are_the_same_when_they_are_built_again() {
    let Some((agent, packages)) = image_builder() else {
        return;
    };
    let home = Home::bare();
    let build = |name: &str| {
        let mut words = vec![
            "image",
            "build",
            "--minimal",
            name,
            "--agent",
            agent.to_str().unwrap(),
        ];
        for package in &packages {
            words.extend(["--deb", package.to_str().unwrap()]);
        }
        home.json(&words)
    };
    let (one, two) = (build("one"), build("two"));
    assert_eq!(one["digest"], two["digest"]);
    assert_eq!(one["sources"], two["sources"]);
    let listed = home.brood(&["image", "list"]).ok().stdout;
    assert!(
        listed.contains("one ") && listed.contains("two "),
        "{listed}"
    );
    let again = home.brood(&["image", "build", "--minimal", "one"]);
    assert_eq!(again.code(), Some(1), "{again:?}");
    let _ = home.brood(&["image", "inspect", "one"]).ok();
    fs::write(home.state().join("images/one/initramfs"), "").unwrap();
    let damaged = home.brood(&["image", "inspect", "one"]);
    assert!(damaged.stderr.contains("initramfs"), "{damaged:?}");
    let _ = home.brood(&["image", "remove", "one"]).ok();
    assert_eq!(
        home.json(&["image", "list"])["images"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

/// What happens to some of many guests that are restored at once: the guest learns that its host is
/// gone and back again when it has read the host's hello already.
#[test]
fn a_session_outlives_a_host_that_only_seems_to_be_gone() {
    let Some((home, linux)) = Home::with_qemu() else {
        return;
    };
    home.restore(&linux, 1, "a");
    let port = folder(&home).join("agent");
    let hello = ToGuest::Hello(HostHello {
        oldest: VERSION,
        newest: VERSION,
    });
    let mut number = 0;
    // A busy machine may take longer for it than the agent waits: then once more.
    until("an answer in the session of before", || {
        number += 1;
        let session = SessionId(number);
        let stream = UnixStream::connect(&port).unwrap();
        say(&stream, session, RequestId::NONE, &hello, PATIENCE)?;
        drop(stream);
        // The guest sees it gone.
        thread::sleep(Duration::from_millis(100));
        let stream = UnixStream::connect(&port).unwrap();
        let ready = ToGuest::Request(Request::Ready);
        say(
            &stream,
            session,
            RequestId(1),
            &ready,
            Duration::from_secs(1),
        )
    });
}

/// Sends a message, and waits so long for any answer in its session.
fn say(
    mut stream: &UnixStream,
    session: SessionId,
    request: RequestId,
    message: &ToGuest,
    limit: Duration,
) -> Option<()> {
    let mut frame = Vec::new();
    encode(session, request, message, &mut frame).unwrap();
    stream.write_all(&frame).unwrap();
    stream.set_read_timeout(Some(limit)).unwrap();
    let mut decoder = Decoder::<ToHost>::default();
    let mut bytes = [0; 4096];
    loop {
        let length = stream.read(&mut bytes).ok().filter(|length| *length > 0)?;
        let mut rest = &bytes[..length];
        while let Some(received) = decoder.next(&mut rest) {
            if (received.session, received.request) == (session, request) {
                return Some(());
            }
        }
    }
}
