//! Sessions with the guest's agent: readiness, channels that are cut, agents that begin again.

use std::{fs, io::Write, net::Shutdown, path::Path, sync::Arc, thread, time::Duration};

use brood_core::agent::{
    Agent, AgentError, Channel, Loss,
    protocol::{Ended, Exec, FailureKind, Request, RequestId, SessionId, ToGuest, encode},
};
use brood_tests::{
    PATIENCE,
    agent::{GuestAgent, agent_at, over, program, run, shell},
    until,
};
use nix::{
    pty::openpty,
    sys::signal::{Signal, kill},
    unistd::{Pid, ttyname},
};

use crate::{MIB, expect, is_alive, refused};

#[test]
fn readiness_has_a_nonce_of_memory_and_a_counter() {
    let mut guest = GuestAgent::start();
    let agent = guest.session();
    let instance = agent.hello().instance;
    let first = agent.ready().unwrap();
    let second = agent.ready().unwrap();
    assert_eq!(second.nonce, first.nonce);
    assert_eq!(second.counter, first.counter + 1);
    drop(agent);

    // Another session with the same agent.
    let agent = guest.session();
    assert_eq!(agent.hello().instance, instance);
    let third = agent.ready().unwrap();
    assert_eq!(
        (third.nonce, third.counter),
        (first.nonce, first.counter + 2)
    );

    // The agent is killed: whoever waits is told, and another agent is told apart.
    let process = agent.exec(program(&["sleep", "1000"])).unwrap();
    let sleeper = process.pid().to_string();
    guest.kill();
    let lost = process.next(Some(PATIENCE)).unwrap_err();
    assert!(
        matches!(
            lost,
            AgentError::Lost {
                loss: Loss::Closed,
                ..
            }
        ),
        "{lost}"
    );
    assert_eq!(agent.loss(), Some(Loss::Closed));
    assert!(matches!(agent.ready(), Err(AgentError::Lost { .. })));
    guest.restart();
    let agent = guest.session();
    assert_ne!(agent.hello().instance, instance);
    let other = agent.ready().unwrap();
    assert_ne!(other.nonce, first.nonce);
    assert_eq!(other.counter, 1);
    // Nobody is left to end what the old agent ran.
    let _ = run(&agent, &format!("kill -9 {sleeper}"));
}

/// A program that counts in a file, so that others see whether it goes on.
fn counter(path: &Path, keep: bool) -> Exec {
    let path = path.display();
    Exec {
        input: true,
        keep,
        ..shell(&format!(
            "while :; do echo tick; echo x >> {path}; sleep 0.02; [ -e {path}.stop ] && exit 9; done"
        ))
    }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

#[test]
fn a_kept_program_outlives_its_session_and_can_be_taken_over() {
    let guest = GuestAgent::start();
    let stream = guest.stream();
    let agent = over(&stream);
    let (kept, killed) = (guest.path("kept"), guest.path("killed"));
    let keeper = agent.exec(counter(&kept, true)).unwrap();
    let mortal = agent.exec(counter(&killed, false)).unwrap();
    let (pid, mortal_pid) = (keeper.pid(), mortal.pid().to_string());
    until("both to count", || {
        (length(&kept) > 4 && length(&killed) > 4).then_some(())
    });
    // The channel is cut, as when a manager is killed: nothing is said to the guest.
    stream.shutdown(Shutdown::Both).unwrap();
    until("the session to be lost", || agent.loss());

    let agent = guest.session();
    until("the other to be killed", || {
        (!is_alive(&mortal_pid)).then_some(())
    });
    // It writes more than a pipe holds while nobody has it.
    let before = length(&kept);
    until("it to go on", || {
        (length(&kept) > before + 20).then_some(())
    });
    let listed = agent.processes().unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!((listed[0].pid, listed[0].attached), (pid, false));
    assert_eq!(listed[0].argv[0], "sh".into());

    let process = agent.attach(pid).unwrap();
    assert!(agent.processes().unwrap()[0].attached);
    assert_eq!(refused(agent.attach(pid)), FailureKind::Busy);
    let mut output = String::new();
    expect(&process, &mut output, "tick\n");
    fs::write(guest.path("kept.stop"), "").unwrap();
    assert_eq!(process.capture(MIB).unwrap().ended, Ended::Code(9));
    assert_eq!(refused(agent.attach(pid)), FailureKind::NotFound);
}

fn frame(session: u64, message: &ToGuest) -> Vec<u8> {
    let mut out = Vec::new();
    encode(SessionId(session), RequestId(1), message, &mut out).unwrap();
    out
}

/// The host goes away in the middle of a frame, sends garbage, and comes again.
#[test]
fn a_channel_that_was_cut_in_a_frame_is_opened_again() {
    let guest = GuestAgent::start();
    let nonce = guest.session().ready().unwrap().nonce;
    let data = frame(7, &ToGuest::Data(vec![b'x'; 20_000]));
    let cancel = frame(7, &ToGuest::Cancel);
    for rest in [
        &data[..1],
        &data[..9000],
        &cancel[..cancel.len() - 1],
        &[1, 2, 3],
        &[0; 99],
    ] {
        let mut stream = guest.stream();
        stream.write_all(rest).unwrap();
        drop(stream);
    }
    // The same where no end-of-file tells it, as on a serial line.
    for rest in [
        &data[..1],
        &data[..9000],
        &cancel[..cancel.len() - 1],
        &[0xff; 300_000],
    ] {
        let mut stream = guest.stream();
        stream.write_all(rest).unwrap();
        let agent = over(&stream);
        assert_eq!(agent.ready().unwrap().nonce, nonce);
        assert_eq!(run(&agent, "echo whole").output, b"whole\n");
    }
}

/// A clone's memory has the session of its checkpoint's host: the clone's own host begins another.
#[test]
fn a_new_session_on_the_same_stream_drops_the_old_one() {
    let guest = GuestAgent::start();
    let stream = guest.stream();
    let session = || {
        let half = || stream.try_clone().unwrap();
        Agent::over(Channel::new(half(), half(), || {}), PATIENCE).unwrap()
    };
    let old = session();
    let process = old.exec(program(&["sleep", "1000"])).unwrap();
    let pid = process.pid().to_string();
    stream
        .set_read_timeout(Some(Duration::from_millis(1)))
        .unwrap();
    // Its reader ends, as that of a host that is gone: the new one's reads the stream alone.
    until("the old reader to end", || {
        let _ = old.ready();
        old.loss()
    });
    stream.set_read_timeout(None).unwrap();

    let new = session();
    until("the program to be killed", || {
        (!is_alive(&pid)).then_some(())
    });
    let ready = new.ready().unwrap();
    assert!(ready.counter >= 1);
    // Words of the old session are heard by nobody.
    let asked = frame(1, &ToGuest::Request(Request::Ready));
    (&stream).write_all(&asked).unwrap();
    assert_eq!(new.ready().unwrap().counter, ready.counter + 1);
    assert_eq!(new.ready().unwrap().counter, ready.counter + 2);
}

/// A serial line: a terminal of this machine, which echoes until the agent has set it to raw bytes.
#[test]
fn a_serial_line_carries_all_bytes_and_tells_that_the_agent_is_another() {
    let pty = openpty(None, None).unwrap();
    let path = ttyname(&pty.slave).unwrap();
    let master = || fs::File::from(pty.master.try_clone().unwrap());
    // The host comes first, and reads its own words until the agent is there.
    let host = thread::spawn({
        let channel = Channel::new(master(), master(), || {});
        move || Agent::over(channel, PATIENCE).unwrap()
    });
    thread::sleep(Duration::from_millis(250));
    let mut process = agent_at("--serial", &path);
    let agent = host.join().unwrap();
    let bytes: Vec<u8> = (0..MIB).map(|at| (at % 256) as u8).collect();
    let exec = Exec {
        input: true,
        ..program(&["cat"])
    };
    let echo = Arc::new(agent.exec(exec).unwrap());
    let writer = thread::spawn({
        let (echo, bytes) = (Arc::clone(&echo), bytes.clone());
        move || {
            echo.write(&bytes).unwrap();
            echo.close_input().unwrap();
        }
    });
    let mut back = Vec::new();
    echo.copy_output(&mut back, &mut std::io::sink()).unwrap();
    writer.join().unwrap();
    assert!(back == bytes, "{} bytes", back.len());

    // The line stays when the agent is killed; another tells the host by itself.
    let sleep = agent.exec(program(&["sleep", "1000"])).unwrap();
    let pid = sleep.pid().to_string();
    process.kill().unwrap();
    process.wait().unwrap();
    let mut process = agent_at("--serial", &path);
    let lost = sleep.next(Some(PATIENCE)).unwrap_err();
    assert!(
        matches!(
            lost,
            AgentError::Lost {
                loss: Loss::Restarted,
                ..
            }
        ),
        "{lost}"
    );
    process.kill().unwrap();
    process.wait().unwrap();
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
}
