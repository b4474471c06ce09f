//! Cloud Hypervisor's API on the sockets of guests: its client library lives a whole life with a
//! guest, and what it must not do is refused as Cloud Hypervisor refuses it.

mod vm;

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
};

use brood_core::checkpoint::manifest::EngineKind;
use brood_tests::{Daemon, Home, PATIENCE, array, until};
use cloud_hypervisor_client::{apis::DefaultApi, models::VmState, socket_based_api_client};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use vm::{Vm, refused};

#[test]
fn its_client_lives_a_whole_life_with_a_guest() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    let _ = home.restore(&demo, 1, "vm");
    let vm = Vm::of(&daemon, "vm-1");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&vm.socket), 0o600);
    assert_eq!(vm.socket, home.state().join("ch/vm-1.sock"));
    assert_eq!(mode(vm.socket.parent().unwrap()), 0o700);
    // Who asks again gets the same.
    assert_eq!(Vm::of(&daemon, "vm-1").socket, vm.socket);

    assert_eq!(vm.pid(), Some(daemon.pid().into()));
    let info = vm.info();
    assert_eq!(info.state, VmState::Running);
    assert_eq!(info.memory_actual_size, Some(4 << 20));
    assert_eq!(info.config.memory.unwrap().size, 4 << 20);
    assert_eq!(info.config.cpus.unwrap().boot_vcpus, 1);

    let _ = home.ask("vm-1", "poke 0x200000 9");
    let counters = vm.runtime.block_on(vm.client.vm_counters_get()).unwrap();
    assert!(counters["memory"]["private_bytes"] > 0, "{counters:?}");
    assert!(counters["process"]["page_table_bytes"] > 0, "{counters:?}");

    vm.pause().unwrap();
    assert_eq!(vm.info().state, VmState::Paused);
    let (first, second) = (Vm::folder(&home, "first"), Vm::folder(&home, "second"));
    vm.snapshot(&first).unwrap();
    assert_eq!(vm.info().state, VmState::Paused);
    assert_eq!(home.names("paused"), ["vm-1"]);
    vm.resume().unwrap();
    assert_eq!(vm.info().state, VmState::Running);
    assert_eq!(home.peek("vm-1", 0x20_0000), 9);
    // What it does from here on is in the second snapshot, and not in the first.
    let _ = home.ask("vm-1", "poke 0x200000 10");
    vm.pause().unwrap();
    vm.snapshot(&second).unwrap();
    for (folder, word) in [(&first, 9), (&second, 10)] {
        let bundle = folder.join("vm-1");
        let (prefix, path) = (folder.file_name().unwrap(), bundle.to_str().unwrap());
        let prefix = prefix.to_str().unwrap();
        let _ = home.json(&["restore", path, "-n", "1", "--prefix", prefix]);
        assert_eq!(home.peek(&format!("{prefix}-1"), 0x20_0000), word);
    }
    vm.resume().unwrap();

    vm.runtime.block_on(vm.client.shutdown_vmm()).unwrap();
    assert!(!vm.socket.exists());
    assert_eq!(home.names("running"), ["first-1", "second-1"]);
}

#[test]
fn a_busy_guest_is_snapshotted_in_the_middle_and_ends_what_it_does_in_both_lives() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    let _ = home.restore(&demo, 1, "vm");
    let vm = Vm::of(&daemon, "vm-1");
    let asked = home.busy("vm-1", 1_000_000);
    vm.pause().unwrap();
    let folder = Vm::folder(&home, "busy");
    vm.snapshot(&folder).unwrap();
    assert_eq!(vm.info().state, VmState::Paused);
    // It does nothing while it is paused.
    let ticks = || {
        let guests = home.guests();
        guests.iter().map(|guest| guest.ticks).sum::<u64>()
    };
    let before = ticks();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(ticks(), before, "a paused guest computes");
    vm.resume().unwrap();
    let _ = asked.wait().ok();
    assert_eq!(vm.info().state, VmState::Running);
    let path = folder.join("vm-1");
    let _ = home.json(&[
        "restore",
        path.to_str().unwrap(),
        "-n",
        "1",
        "--prefix",
        "again",
    ]);
    let _ = home.ask("again-1", "ping hello");
    let _ = home.ask("vm-1", "ping hello");
}

#[test]
fn a_guest_stays_paused_when_the_daemon_is_killed_in_the_middle_of_its_snapshot() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "64M");
    let mut daemon = Daemon::start(&home);
    let _ = home.restore(&demo, 1, "vm");
    for at in 0..3 {
        let vm = Vm::of(&daemon, "vm-1");
        let folder = Vm::folder(&home, &format!("snapshots-{at}"));
        if at == 0 {
            vm.pause().unwrap();
        }
        let mut stream = UnixStream::connect(&vm.socket).unwrap();
        let body = json!({ "destination_url": format!("file://{}", folder.display()) }).to_string();
        let length = body.len();
        write!(
            stream,
            "PUT /api/v1/vm.snapshot HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n\
             {body}"
        )
        .unwrap();
        until("the snapshot to begin", || {
            (fs::read_dir(&folder).unwrap().count() > 0).then_some(())
        });
        daemon.signal(Signal::SIGKILL);
        drop(daemon);
        until("the guest to be paused", || {
            (home.names("paused") == ["vm-1"]).then_some(())
        });
        daemon = Daemon::start(&home);
    }
    let vm = Vm::of(&daemon, "vm-1");
    until("the guest to run on", || vm.resume().ok());
    let _ = home.ask("vm-1", "ping hello");
}

#[test]
fn what_does_not_suit_is_refused_and_changes_nothing() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    let _ = home.restore(&demo, 1, "vm");
    let vm = Vm::of(&daemon, "vm-1");
    let folder = Vm::folder(&home, "snapshots");
    let (status, messages) = refused(vm.snapshot(&folder));
    assert_eq!(status, 500);
    assert!(messages[0].contains("is not paused"), "{messages:?}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    assert_eq!(refused(vm.resume()).0, 500);
    vm.pause().unwrap();
    assert_eq!(refused(vm.pause()).0, 500);

    assert_eq!(refused(vm.snapshot(&home.path().join("missing"))).0, 500);
    vm.snapshot(&folder).unwrap();
    let (status, messages) = refused(vm.snapshot(&folder));
    assert_eq!(status, 500);
    assert!(messages[0].contains("vm-1"), "{messages:?}");
    let (get, put) = (|| Method::GET, || Method::PUT);
    for (method, verb, body, status) in [
        (put(), "vm.snapshot", "{", 400),
        (put(), "vm.snapshot", "{}", 400),
        (put(), "vm.snapshot", r#"{"destination_url":"/tmp"}"#, 400),
        (put(), "vm.restore", "{}", 500),
        (get(), "vm.pause", "", 400),
        (put(), "vm.info", "", 400),
        (put(), "vm.resize", "{}", 404),
        (get(), "vm.nothing", "", 404),
    ] {
        let (answered, body) = vm.send(method, verb, body);
        assert_eq!(answered, status, "{verb}: {body}");
        let messages = array(&body);
        assert!(messages.iter().all(Value::is_string), "{verb}: {body}");
        assert!(!messages.is_empty(), "{verb}");
    }
    assert_eq!(vm.info().state, VmState::Paused);
    vm.resume().unwrap();
    let _ = home.ask("vm-1", "ping hello");

    // Only a guest that lives has a socket.
    let _ = daemon.send(Method::POST, "/api/v1/guests/nobody/ch-socket", 404);
    let _ = home
        .brood(&[
            "checkpoint",
            "verify",
            folder.join("vm-1").to_str().unwrap(),
        ])
        .ok();
}

#[test]
fn ch_remote_is_understood_and_understands() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    let _ = home.restore(&demo, 1, "vm");
    let vm = Vm::of(&daemon, "vm-1");
    // It says of no body what it is, looks for names of headers in this very case, and takes a status
    // for the rest of the line.
    let answer = |method: &str, verb: &str, body: &str| {
        let mut stream = UnixStream::connect(&vm.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = match body.len() {
            0 => String::new(),
            length => format!("Content-Length: {length}\r\n"),
        };
        write!(
            stream,
            "{method} /api/v1/{verb} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n{length}\r\n{body}"
        )
        .unwrap();
        let (mut text, mut byte) = (Vec::new(), [0]);
        while !text.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
        String::from_utf8(text).unwrap()
    };
    let told = answer("GET", "vm.info", "");
    assert!(told.starts_with("HTTP/1.1 200 \r\n"), "{told}");
    assert!(told.contains("\r\nContent-Length: "), "{told}");
    let folder = Vm::folder(&home, "snapshots");
    let body = json!({ "destination_url": format!("file://{}", folder.display()) }).to_string();
    let told = answer("PUT", "vm.snapshot", &body);
    assert!(told.starts_with("HTTP/1.1 500 \r\n"), "{told}");
    assert!(told.contains("\r\nContent-Length: "), "{told}");
    assert!(answer("PUT", "vm.pause", "").starts_with("HTTP/1.1 204 \r\n"));
    assert!(answer("PUT", "vm.snapshot", &body).starts_with("HTTP/1.1 204 \r\n"));
    // A verb that is not served is answered all the same when its body comes late.
    let mut late = UnixStream::connect(&vm.socket).unwrap();
    late.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        late,
        "PUT /api/v1/vm.resize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"
    )
    .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    write!(late, "{{}}").unwrap();
    let mut told = [0; 15];
    late.read_exact(&mut told).unwrap();
    assert_eq!(&told, b"HTTP/1.1 404 \r\n");
    // One command is one connection, also when the guest is gone.
    for verb in ["vm.shutdown", "vm.delete", "vm.delete", "vmm.shutdown"] {
        assert!(
            answer("PUT", verb, "").starts_with("HTTP/1.1 204 \r\n"),
            "{verb}"
        );
        assert!(home.list().is_empty());
    }
    assert!(!vm.socket.exists());
    // The daemon's own socket is as it was.
    assert_eq!(daemon.get("/api/v1/guests"), json!([]));
}

#[test]
fn a_socket_goes_with_its_guest_however_that_ends() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    let _ = home.restore(&demo, 4, "vm");
    let all: Vec<Vm> = (1..=4)
        .map(|n| Vm::of(&daemon, &format!("vm-{n}")))
        .collect();
    let gone = |vm: &Vm| until("the socket to go", || (!vm.socket.exists()).then_some(()));
    let _ = home.brood(&["destroy", "vm-1"]).ok();
    gone(&all[0]);
    let _ = home.brood(&["--no-daemon", "destroy", "vm-2"]).ok();
    gone(&all[1]);
    brood_tests::signal(home.pid("vm-3"), Signal::SIGKILL);
    gone(&all[2]);
    let _ = daemon.send(Method::POST, "/api/v1/guests/vm-3/ch-socket", 409);
    all[3].runtime.block_on(all[3].client.delete_vm()).unwrap();
    assert_eq!(all[3].send(Method::GET, "vm.info", "").0, 404);
    gone(&all[3]);
}

#[test]
fn sockets_live_on_when_the_daemon_is_replaced_or_killed() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let first = Daemon::start(&home);
    let _ = home.restore(&demo, 2, "vm");
    let vms = [Vm::of(&first, "vm-1"), Vm::of(&first, "vm-2")];
    let answers = |daemon: &Daemon, vm: &Vm| {
        let pid = i64::from(daemon.pid());
        until("the new daemon to answer", || {
            let client = socket_based_api_client(&vm.socket);
            let ping = vm.runtime.block_on(client.vmm_ping_get()).ok()?;
            (ping.pid == Some(pid)).then_some(())
        });
    };
    let second = Daemon::start(&home);
    let _ = first.wait().ok();
    for vm in &vms {
        answers(&second, vm);
    }
    second.signal(Signal::SIGKILL);
    drop(second);
    assert!(vms[0].pid().is_none());
    // One guest ends while there is no daemon.
    let _ = home.brood(&["destroy", "vm-2"]).ok();
    let third = Daemon::start(&home);
    answers(&third, &vms[0]);
    until("the socket to go", || {
        (!vms[1].socket.exists()).then_some(())
    });
    // A name that was removed is made again for who asks.
    fs::remove_file(&vms[0].socket).unwrap();
    let again = Vm::of(&third, "vm-1");
    answers(&third, &again);
}

#[test]
fn many_guests_have_sockets_and_each_answers_for_its_own() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    let _ = home.restore(&demo, 60, "vm");
    let vms: Vec<Vm> = (1..=60)
        .map(|n| Vm::of(&daemon, &format!("vm-{n}")))
        .collect();
    for vm in vms.iter().step_by(2) {
        vm.pause().unwrap();
    }
    for (n, vm) in vms.iter().enumerate() {
        let expected = [VmState::Paused, VmState::Running][n % 2];
        assert_eq!(vm.info().state, expected, "guest {n}");
    }
    let _ = home.brood(&["destroy", "--all"]).ok();
    let folder = home.state().join("ch");
    until("all sockets to go", || {
        (fs::read_dir(&folder).unwrap().count() == 0).then_some(())
    });
}

#[test]
fn there_are_only_so_many_sockets_as_there_are_descriptors_for() {
    let Some(home) = Home::with_kvm() else { return };
    let demo = home.demo("demo", "4M");
    let daemon = Daemon::with_descriptors(&home, 80);
    let _ = home.restore(&demo, 6, "vm");
    let ask = |n: usize, status| {
        let path = format!("/api/v1/guests/vm-{n}/ch-socket");
        daemon.send(Method::POST, &path, status)
    };
    for n in 1..=5 {
        let _ = ask(n, 200);
    }
    assert_eq!(
        ask(6, 503)["type"],
        "urn:brood:error:too-many-guest-sockets"
    );
    let _ = home.brood(&["destroy", "vm-1"]).ok();
    until("room for another", || {
        let path = "/api/v1/guests/vm-6/ch-socket";
        let answer = daemon.request(Method::POST, path).send().ok()?;
        answer.status().is_success().then_some(())
    });
}

#[test]
fn bhyve_which_ends_a_guest_that_it_writes_refuses_a_snapshot() {
    let Some(home) = Home::on(EngineKind::Bhyve) else {
        return;
    };
    let demo = home.demo("demo", "4M");
    let daemon = Daemon::start(&home);
    let _ = home.restore(&demo, 1, "vm");
    let vm = Vm::of(&daemon, "vm-1");
    assert_eq!(vm.info().state, VmState::Running);
    vm.pause().unwrap();
    let folder = Vm::folder(&home, "snapshots");
    let (status, messages) = refused(vm.snapshot(&folder));
    assert_eq!(status, 500);
    assert!(messages[0].contains("bhyve"), "{messages:?}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    assert_eq!(vm.info().state, VmState::Paused);
    vm.runtime.block_on(vm.client.delete_vm()).unwrap();
    assert!(home.list().is_empty());
}
