//! Guests of bhyve with `brood-agent` at their second serial port, on stand-ins: steps before a guest
//! is handed out, at a suspend, and at a resume.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    thread,
};

use brood_core::{
    checkpoint::{AgentProtocol, BundlePath, manifest::EngineKind},
    engine::{Engine, GuestRef, Limit},
    guest_id::GuestId,
};
use brood_tests::{
    Daemon, Home, Lab, Machine, PATIENCE, Running, array, signal, text, until, whole,
};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

/// A lab with a checkpoint of a guest that has its agent at com2.
fn lab() -> (Lab, BundlePath) {
    let lab = Lab::new();
    let path = lab.bundle("web");
    checkpoint(&lab.machine, &path);
    (lab, path)
}

fn checkpoint(machine: &Machine, path: &BundlePath) {
    let config = machine.config() + "lpc.com2.path=/dev/nmdm1A\n";
    let mut guest = Machine::guest_of(&config);
    guest.agent = Some(2);
    guest.agent_protocol = AgentProtocol::Frames;
    machine.checkpoint_as(&config, path, guest);
}

/// What a program in a guest wrote.
#[track_caller]
fn exec(lab: &Lab, guest: &str, program: &str) -> String {
    let asked = lab.brood(&["ask", "--json", guest, "--", "exec", program]);
    let answer = asked.ok().json();
    assert_eq!(answer["code"], 0, "{answer}");
    text(&answer["output"]).trim().to_owned()
}

/// Whether a checkpoint's guest had frozen its file systems (framed.rs of the stand-in).
fn is_frozen(path: &BundlePath) -> bool {
    let mut flags = [0; 8];
    let memory = File::open(path.ckp()).unwrap();
    memory.read_exact_at(&mut flags, 40).unwrap();
    u64::from_le_bytes(flags) & 1 == 1
}

#[test]
fn a_clone_is_prepared_before_it_is_handed_out() {
    let (lab, path) = lab();
    lab.restore(&path, 2);
    let said: Vec<String> = ["g-1", "g-2"].map(|name| exec(&lab, name, "ping")).into();
    for (said, name) in said.iter().zip(["g-1", "g-2"]) {
        assert!(said.contains(&format!("name={name} ")), "{said}");
    }
    let nonces: Vec<Value> = ["g-1", "g-2"]
        .map(|name| lab.json(&["ask", name, "ping"])["nonce"].clone())
        .into();
    assert_eq!(nonces[0], nonces[1], "they have the same memory");
    assert!(whole(&lab.json(&["ask", "g-1", "ping"])["counter"]) >= 3);
    let _ = lab.brood(&["pause", "g-1"]).ok();
    let _ = lab.brood(&["resume", "g-1"]).ok();
    assert_eq!(exec(&lab, "g-1", "frozen"), "no");
    let refused = lab.brood(&["ask", "g-1", "--", "nonsense"]);
    let _ = refused.exits(1).says(&["exec PROGRAM"]);
    lab.destroy_all();
    lab.nothing_is_left();
}

#[test]
fn its_file_systems_are_frozen_in_the_bundle_and_nowhere_else() {
    let (lab, path) = lab();
    lab.restore(&path, 1);
    let warm = lab.bundle("warm");
    let failed = lab.failing(
        "suspend.connect:1:error",
        &["suspend", "g-1", &warm.to_string()],
    );
    let _ = failed.wait().exits(1);
    assert_eq!(exec(&lab, "g-1", "frozen"), "no", "it goes on");
    let _ = lab.brood(&["suspend", "g-1", &warm.to_string()]).ok();
    assert!(is_frozen(&warm) && !is_frozen(&path));
    lab.restore(&warm, 1);
    assert_eq!(exec(&lab, "g-1", "frozen"), "no");
    lab.destroy_all();
}

#[test]
fn a_guest_whose_hook_fails_is_not_handed_out() {
    let (lab, path) = lab();
    lab.restore(&path, 1);
    let _ = exec(&lab, "g-1", "hook-fails");
    let spoilt = lab.bundle("spoilt");
    let _ = lab.brood(&["suspend", "g-1", &spoilt.to_string()]).ok();
    let restore = lab.brood(&["restore", &spoilt.to_string(), "-n", "1"]);
    let _ = restore.exits(1).says(&["hooks", "50-key", "no key"]);
    lab.nothing_is_left();
}

#[test]
fn many_ask_at_once_and_a_silent_agent_holds_nobody_else() {
    let (lab, path) = lab();
    lab.restore(&path, 2);
    let asks: Vec<Running> = (0..12)
        .map(|_| Running::start(lab.command(&["ask", "g-1", "--", "exec", "ping"])))
        .collect();
    for ask in asks {
        let _ = ask.wait().ok();
    }
    let _ = exec(&lab, "g-2", "silent");
    let silent = lab.brood(&["ask", "--timeout", "2", "g-2", "ping"]);
    let _ = silent.exits(1).says(&["within 2 s"]);
    assert!(exec(&lab, "g-1", "ping").contains("pong"));
    // One that does not get ready for it is not suspended, and runs on.
    let _ = lab
        .brood(&["suspend", "g-2", &lab.bundle("silent").to_string()])
        .exits(1);
    let listed = lab.json(&["show", "g-2"]);
    assert_eq!(listed["state"], "running", "{listed}");
    lab.destroy_all();
}

#[test]
fn the_agent_is_anybodys_through_the_engine() {
    let (lab, path) = lab();
    lab.restore(&path, 1);
    let engine = lab.machine.engine(&[]);
    let id: GuestId = text(&lab.json(&["show", "g-1"])["id"]).parse().unwrap();
    let run_dir = lab.home.run_dir();
    let guest = GuestRef::new(&run_dir, &id);
    let agent = engine.agent(guest, Limit::of(PATIENCE)).unwrap();
    assert_eq!(agent.hello().system, "standin");
    // It is another's at the same time.
    let other = engine.agent(guest, Limit::of(PATIENCE)).unwrap();
    let counter = agent.ready().unwrap().counter;
    assert!(other.ready().unwrap().counter > counter);
    // A few requests have the line to themselves again when the broker has gone.
    drop((agent, other));
    until("the broker's end", || broker(&id).is_none().then_some(()));
    let ping = lab.brood(&["ask", "g-1", "ping"]).ok();
    assert!(ping.stdout.contains("pong"), "{ping:?}");
    assert_eq!(broker(&id), None);
    lab.destroy_all();
}

/// The process of a guest's broker.
fn broker(id: &GuestId) -> Option<i32> {
    let folder = format!("{id}.bhyve");
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .find_map(|process| {
            let line = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            let is_it = line.contains("agent-broker") && line.contains(&folder);
            is_it.then(|| process.file_name().to_str()?.parse().ok())?
        })
}

/// Starts a program in a guest that waits until it runs a second time.
fn meet(lab: &Lab, guest: &str) -> Running {
    let meets = Running::start(lab.command(&["exec", guest, "--", "meet"]));
    until("the program", || {
        (exec(lab, guest, "waits") == "yes").then_some(())
    });
    meets
}

#[test]
fn two_programs_run_in_a_guest_at_once() {
    let (lab, path) = lab();
    lab.restore(&path, 1);
    let first = meet(&lab, "g-1");
    let second = lab.brood(&["exec", "g-1", "--", "meet"]).ok();
    assert_eq!(second.stdout, "met\n");
    assert_eq!(first.wait().ok().stdout, "met\n");
    // A client that is killed takes its program with it, and nobody else's session.
    let mut killed = meet(&lab, "g-1");
    killed.signal(Signal::SIGKILL);
    until("its end", || killed.ended().then_some(()));
    until("the program's end", || {
        (exec(&lab, "g-1", "waits") == "no").then_some(())
    });
    // The end of the guest is the end of what runs in it.
    let last = meet(&lab, "g-1");
    let pid = whole(&lab.json(&["show", "g-1"])["pid"]);
    signal(i32::try_from(pid).unwrap(), Signal::SIGKILL);
    let last = last.wait();
    assert_ne!(last.code(), Some(0), "{last:?}");
    lab.destroy_all();
}

#[test]
fn a_program_goes_on_while_its_guest_is_resumed_and_suspended() {
    let (lab, path) = lab();
    lab.restore(&path, 1);
    let program = meet(&lab, "g-1");
    let _ = lab.brood(&["pause", "g-1"]).ok();
    let _ = lab.brood(&["resume", "g-1"]).ok();
    let warm = lab.bundle("warm").to_string();
    let failed = lab.failing("suspend.connect:1:error", &["suspend", "g-1", &warm]);
    let _ = failed.wait().exits(1);
    assert_eq!(exec(&lab, "g-1", "frozen"), "no");
    let _ = lab.brood(&["exec", "g-1", "--", "meet"]).ok();
    assert_eq!(program.wait().ok().stdout, "met\n");
    // A suspend that succeeds ends the program with its guest; a clone has another broker.
    let program = meet(&lab, "g-1");
    let _ = lab.brood(&["suspend", "g-1", &warm]).ok();
    let program = program.wait();
    assert_ne!(program.code(), Some(0), "{program:?}");
    lab.restore(&lab.bundle("warm"), 1);
    assert_eq!(exec(&lab, "g-1", "waits"), "no");
    assert_eq!(exec(&lab, "g-1", "frozen"), "no");
    lab.destroy_all();
}

#[test]
fn programs_run_in_a_claimed_guest_while_its_pool_asks() {
    let (lab, path) = lab();
    let _ = lab
        .brood(&["pool", "create", "p", &path.to_string(), "--hot", "2"])
        .ok();
    let claims = ["first", "second"].map(|_| {
        let claim = lab.json(&["pool", "claim", "p"]);
        let [token, guest] = ["token", "guest"].map(|key| text(&claim[key]).to_owned());
        (token, guest)
    });
    let [(token, guest), (_, other)] = &claims;
    let [goes_on, ends] = [other, guest].map(|guest| meet(&lab, guest));
    let _ = lab.json(&["pool", "suspend", token]);
    let ends = ends.wait();
    assert_ne!(ends.code(), Some(0), "{ends:?}");
    let resumed = lab.json(&["pool", "resume", token]);
    assert_eq!(exec(&lab, text(&resumed["guest"]), "waits"), "no");
    let _ = lab.brood(&["exec", other, "--", "meet"]).ok();
    assert_eq!(goes_on.wait().ok().stdout, "met\n");
    let _ = lab.brood(&["pool", "remove", "p", "--force"]).ok();
    lab.destroy_all();
}

#[test]
fn whoever_asks_next_notices_nothing_of_a_broker_that_was_killed() {
    let (lab, path) = lab();
    lab.restore(&path, 1);
    let id: GuestId = text(&lab.json(&["show", "g-1"])["id"]).parse().unwrap();
    for round in 0..5 {
        // Its program keeps the broker.
        let program = meet(&lab, "g-1");
        signal(broker(&id).expect("a broker"), Signal::SIGKILL);
        if round % 2 == 0 {
            assert_eq!(
                exec(&lab, "g-1", "waits"),
                "no",
                "it ended with the session"
            );
        } else {
            let _ = lab.brood(&["pause", "g-1"]).ok();
            let _ = lab.brood(&["resume", "g-1"]).ok();
        }
        let program = program.wait();
        assert_ne!(program.code(), Some(0), "{program:?}");
    }
    // Between two commands, where the broker has nobody.
    for _ in 0..5 {
        assert!(exec(&lab, "g-1", "ping").contains("pong"));
        // It may be gone by itself on a busy machine.
        if let Some(broker) = broker(&id) {
            signal(broker, Signal::SIGKILL);
        }
    }
    assert!(exec(&lab, "g-1", "ping").contains("pong"));
    lab.destroy_all();
}

/// All bytes that there are: a line is a terminal, which must pass each as it is.
fn all_bytes() -> Vec<u8> {
    (0..3000_u32).map(|n| n.to_le_bytes()[0]).collect()
}

#[test]
fn files_are_copied_both_ways_while_a_program_runs() {
    let (lab, path) = lab();
    lab.restore(&path, 1);
    let program = meet(&lab, "g-1");
    let [file, back] = ["file", "back"].map(|name| lab.home.path().join(name));
    fs::write(&file, all_bytes()).unwrap();
    let [there, here] = [&file, &back].map(|path| path.to_str().unwrap());
    let copied = lab.json(&["cp", there, "g-1:/root/new"]);
    assert_eq!(whole(&copied["files"]), 1, "{copied}");
    let _ = lab.brood(&["cp", "g-1:/root/new", here]).ok();
    assert_eq!(fs::read(&back).unwrap(), all_bytes());
    let missing = lab.brood(&["cp", "g-1:/root/none", here]);
    assert_ne!(missing.code(), Some(0), "{missing:?}");
    let _ = missing.says(&["there is no such file"]);
    assert_eq!(fs::read(&back).unwrap(), all_bytes());
    let _ = lab.brood(&["exec", "g-1", "--", "meet"]).ok();
    assert_eq!(program.wait().ok().stdout, "met\n");
    lab.destroy_all();
}

#[test]
fn a_run_has_a_guest_of_its_own_that_ends_with_it() {
    let (lab, path) = lab();
    let path = path.to_string();
    let file = lab.home.path().join("file");
    fs::write(&file, all_bytes()).unwrap();
    let file = format!("{}:/root/file", file.display());
    let ran = lab.brood(&["run", &path, "--file", &file, "--", "ping"]);
    assert!(ran.ok().stdout.contains("pong name=run-"));
    assert!(lab.list().is_empty());
    let ran = lab.brood(&["run", &path, "--", "nonsense"]);
    assert_eq!(ran.code(), Some(1), "the program's own: {ran:?}");
    // A kill of the command ends its program and its guest.
    let mut running = Running::start(lab.command(&["run", &path, "--", "meet"]));
    let guest = until("its guest", || {
        let guests = lab.list();
        let guest = guests.iter().find(|guest| guest["state"] == "running")?;
        Some(text(&guest["name"]).to_owned())
    });
    until("its program", || {
        (exec(&lab, &guest, "waits") == "yes").then_some(())
    });
    running.signal(Signal::SIGKILL);
    until("the command's end", || running.ended().then_some(()));
    until("its guest's end", || lab.list().is_empty().then_some(()));
    let _ = lab
        .brood(&["pool", "create", "p", &path, "--hot", "1"])
        .ok();
    assert!(
        lab.brood(&["run", "p", "--", "ping"])
            .ok()
            .stdout
            .contains("pong")
    );
    let shown = lab.json(&["pool", "show", "p"]);
    assert_eq!(array(&shown["claims"]), &[] as &[Value]);
    let _ = lab.brood(&["pool", "remove", "p", "--force"]).ok();
    lab.destroy_all();
}

#[test]
fn the_api_runs_programs_at_once_and_carries_files() {
    let home = Home::on(EngineKind::Bhyve).unwrap();
    let web = home.named("web");
    checkpoint(home.machine().unwrap(), &web.path.parse().unwrap());
    home.restore(&web, 1, "g");
    let daemon = Daemon::start(&home);
    let exec = |program: &str| {
        let body = json!({ "command": [program] });
        daemon.post("/api/v1/guests/g-1/exec", &body, 200)
    };
    let met = json!({ "code": 0, "output": "met\n", "error": "" });
    thread::scope(|scope| {
        let first = scope.spawn(|| exec("meet"));
        until("the first program", || {
            (exec("waits")["output"] == "yes\n").then_some(())
        });
        assert_eq!(exec("meet"), met);
        assert_eq!(first.join().unwrap(), met);
    });
    let file = "/api/v1/guests/g-1/files?path=/root/file&mode=640";
    let put = daemon.request(Method::PUT, file).body(all_bytes());
    assert_eq!(put.send().unwrap().status(), 204);
    let got = daemon.request(Method::GET, file).send().unwrap();
    assert_eq!(got.bytes().unwrap(), all_bytes());
    let none = "/api/v1/guests/g-1/files?path=/root/none";
    let none = daemon.send(Method::GET, none, 404);
    assert!(text(&none["type"]).ends_with("not-in-guest"), "{none}");
}

/// What bhyve's serial ports say is kept nowhere: the command and the API say so, and what to do.
#[test]
fn a_guest_without_a_console_log_is_told_so() {
    let home = Home::on(EngineKind::Bhyve).expect("it needs nothing");
    let checkpoint = home.demo("demo", "4M");
    home.restore(&checkpoint, 1, "g");
    for word in ["logs", "console"] {
        let ran = home.brood(&[word, "g-1"]);
        assert_ne!(ran.code(), Some(0), "{ran:?}");
        assert!(
            ran.stderr.contains("guests of bhyve have no console"),
            "{ran:?}"
        );
        assert!(ran.stderr.contains("brood exec GUEST --"), "{ran:?}");
    }
    let daemon = Daemon::start(&home);
    let problem = daemon.send(Method::GET, "/api/v1/guests/g-1/logs", 422);
    assert_eq!(problem["type"], "urn:brood:error:no-console");
    assert!(text(&problem["hint"]).contains("exec GUEST"), "{problem}");
}
