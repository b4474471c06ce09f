//! Guests of bhyve with `brood-agent` at their second serial port, on stand-ins: steps before a guest
//! is handed out, at a suspend, and at a resume.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

use brood_core::{
    checkpoint::{AgentProtocol, BundlePath},
    engine::{Engine, GuestRef, Limit},
    guest_id::GuestId,
};
use brood_tests::{Lab, Machine, PATIENCE, Running, signal, text, until, whole};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A lab with a checkpoint of a guest that has its agent at com2.
fn lab() -> (Lab, BundlePath) {
    let lab = Lab::new();
    let path = lab.bundle("web");
    let config = lab.machine.config() + "lpc.com2.path=/dev/nmdm1A\n";
    let mut guest = Machine::guest_of(&config);
    guest.agent = Some(2);
    guest.agent_protocol = AgentProtocol::Frames;
    lab.machine.checkpoint_as(&config, &path, guest);
    (lab, path)
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
    until("the broker's end", || (!has_broker(&id)).then_some(()));
    let ping = lab.brood(&["ask", "g-1", "ping"]).ok();
    assert!(ping.stdout.contains("pong"), "{ping:?}");
    assert!(!has_broker(&id));
    lab.destroy_all();
}

/// Whether a guest has a broker.
fn has_broker(id: &GuestId) -> bool {
    let folder = format!("{id}.bhyve");
    fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let line = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        line.contains("agent-broker") && line.contains(&folder)
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
