//! Brokers: many sessions over one channel, by processes that may die at any time.

use std::{
    fs,
    io::Write,
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use brood_core::agent::{
    Access, Agent, AgentError, AgentPort, Channel, Loss, Output,
    protocol::{
        Ended, Event, Exec, FailureKind, Reply, Request, RequestId, SessionId, Stream, ToGuest,
        ToHost,
        limits::{MAX_DATA, WINDOW},
    },
};
use brood_core::engine::Process;
use brood_tests::{
    PATIENCE,
    agent::{GuestAgent, program, run, shell},
    scripted_guest::ScriptedGuest,
    until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{MIB, expect, is_alive, refused};

/// A guest's folder, and who opens its channel.
struct Port<'a> {
    folder: TempDir,
    open: Box<dyn Fn() -> OwnedFd + Sync + 'a>,
    /// What its broker is told of the guest.
    guest: Vec<String>,
}

impl<'a> Port<'a> {
    fn to(guest: &'a GuestAgent) -> Port<'a> {
        Port::by(move || guest.stream())
    }

    fn by(open: impl Fn() -> UnixStream + Sync + 'a) -> Port<'a> {
        Port {
            folder: tempfile::tempdir().unwrap(),
            open: Box::new(move || open().into()),
            guest: Vec::new(),
        }
    }

    fn try_session(&self, access: Access) -> Option<Result<Agent, AgentError>> {
        let port = AgentPort {
            folder: self.folder.path(),
            program: &brood_tests::brood(),
            guest: &self.guest,
            open: &|| Ok((self.open)()),
            channel: &Channel::of,
        };
        let way = port.way(access).unwrap()?;
        let agent = Agent::over(way.channel, PATIENCE);
        Some(agent.map(|agent| agent.with_limit(PATIENCE)))
    }

    /// A broker may end between the connection and the hello: then the next attempt counts.
    fn session(&self, access: Access) -> Agent {
        until("the channel", || match self.try_session(access)? {
            Err(AgentError::Lost { .. }) => None,
            session => Some(session.unwrap()),
        })
    }

    /// The broker's process.
    fn broker(&self) -> Option<i32> {
        let folder = self.folder.path().to_str().unwrap();
        let mut processes = fs::read_dir("/proc").unwrap().flatten();
        processes.find_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let line = fs::read_to_string(process.path().join("cmdline")).ok()?;
            (line.contains("agent-broker") && line.contains(folder)).then_some(pid)
        })
    }
}

impl Drop for Port<'_> {
    fn drop(&mut self) {
        if let Some(broker) = self.broker() {
            let _ = kill(Pid::from_raw(broker), Signal::SIGKILL);
        }
    }
}

fn ended(agent: &Agent, line: &str) -> Ended {
    run(agent, line).ended
}

#[test]
fn sessions_stand_beside_each_other() {
    let guest = GuestAgent::start();
    let port = Port::to(&guest);
    let first = port.session(Access::Shared);
    let cat = Exec {
        input: true,
        ..program(&["cat"])
    };
    let cat = first.exec(cat).unwrap();
    // It fills its window, and waits for somebody who reads.
    let loud = first.exec(program(&["yes"])).unwrap();
    thread::scope(|scope| {
        for number in 0..50 {
            let port = &port;
            scope.spawn(move || {
                let access = [Access::Shared, Access::Short][number % 2];
                let agent = port.session(access);
                let said = run(&agent, &format!("echo {number}; exit {}", number % 7));
                assert_eq!(said.output, format!("{number}\n").into_bytes());
                assert_eq!(said.ended, Ended::Code(i32::try_from(number % 7).unwrap()));
            });
        }
    });
    cat.write(b"still here\n").unwrap();
    expect(&cat, &mut String::new(), "still here");
    // The number of a request is the client's own.
    let second = port.session(Access::Short);
    let sleeper = second.exec(program(&["sleep", "1000"])).unwrap();
    sleeper.signal(Signal::SIGTERM as i32).unwrap();
    assert_eq!(
        sleeper.next(Some(PATIENCE)).unwrap(),
        Output::Ended(Ended::Signal(Signal::SIGTERM as i32))
    );
    assert_eq!(
        refused(sleeper.signal(Signal::SIGTERM as i32)),
        FailureKind::NotFound
    );
    cat.close_input().unwrap();
    assert_eq!(
        cat.next(Some(PATIENCE)).unwrap(),
        Output::Ended(Ended::Code(0))
    );
    drop(loud);
    assert_eq!(ended(&first, "exit 3"), Ended::Code(3));
}

#[test]
fn a_client_that_hangs_up_takes_its_programs_along() {
    let guest = GuestAgent::start();
    let port = Port::to(&guest);
    let stays = port.session(Access::Shared);
    let goes = port.session(Access::Shared);
    let mine = stays.exec(program(&["sleep", "1000"])).unwrap();
    let theirs = goes.exec(shell("sleep 1000 & yes")).unwrap();
    let (mine_pid, theirs_pid) = (mine.pid().to_string(), theirs.pid().to_string());
    theirs.leave();
    drop(goes);
    until("its end", || (!is_alive(&theirs_pid)).then_some(()));
    assert!(is_alive(&mine_pid));

    // One that is to be kept goes on, and nobody has to read what it writes.
    let goes = port.session(Access::Shared);
    let kept = Exec {
        keep: true,
        ..shell("head -c 2000000 /dev/zero; exec sleep 1000")
    };
    let kept = goes.exec(kept).unwrap();
    let pid = kept.pid();
    kept.leave();
    drop(goes);
    let line = format!("/proc/{pid}/cmdline");
    until("it to write all", || {
        fs::read_to_string(&line)
            .unwrap()
            .starts_with("sleep")
            .then_some(())
    });
    // After the broker anybody can take it over.
    drop(mine);
    drop(stays);
    until("the broker's end", || port.broker().is_none().then_some(()));
    let agent = port.session(Access::Short);
    let kept = agent.attach(pid).unwrap();
    kept.signal(Signal::SIGKILL as i32).unwrap();
    assert_eq!(
        kept.next(Some(PATIENCE)).unwrap(),
        Output::Ended(Ended::Signal(9))
    );
}

#[test]
fn a_broker_that_is_killed_leaves_nothing_in_the_way() {
    let guest = GuestAgent::start();
    let port = Port::to(&guest);
    for access in [Access::Shared, Access::Short] {
        let agent = port.session(Access::Shared);
        let process = agent.exec(program(&["sleep", "1000"])).unwrap();
        let pid = process.pid().to_string();
        let broker = Pid::from_raw(port.broker().unwrap());
        kill(broker, Signal::SIGKILL).unwrap();
        let lost = process.next(Some(PATIENCE)).unwrap_err();
        assert!(
            matches!(&lost, AgentError::Lost { loss, .. } if *loss == Loss::Closed),
            "{lost}"
        );
        until("its end", || (!is_alive(&pid)).then_some(()));
        let next = port.session(access);
        assert_eq!(ended(&next, "exit 5"), Ended::Code(5));
    }
}

#[test]
fn the_channel_has_one_owner() {
    let guest = GuestAgent::start();
    let port = Port::to(&guest);
    let short = port.session(Access::Short);
    assert_eq!(ended(&short, "exit 1"), Ended::Code(1));
    assert!(port.try_session(Access::Short).is_none());
    assert!(port.try_session(Access::Shared).is_none());
    assert!(port.broker().is_none());
    drop(short);
    let shared = port.session(Access::Shared);
    let broker = port.broker();
    assert!(broker.is_some());
    // A kept connection is fast: nothing is started for a request.
    for _ in 0..100 {
        shared.ready().unwrap();
    }
    assert_eq!(port.broker(), broker);
    // One who comes again within a moment finds it.
    drop(shared);
    let again = port.session(Access::Shared);
    assert_eq!(port.broker(), broker);
    drop(again);
    until("its end", || port.broker().is_none().then_some(()));
    assert_eq!(
        ended(&port.session(Access::Short), "exit 2"),
        Ended::Code(2)
    );
}

#[test]
fn ten_megabytes_go_both_ways_through_a_broker() {
    let guest = GuestAgent::start();
    let port = Port::to(&guest);
    let agent = port.session(Access::Shared);
    let cat = Exec {
        input: true,
        ..program(&["cat"])
    };
    let cat = agent.exec(cat).unwrap();
    let sent: Vec<u8> = (0..10 * MIB).map(|n| (n * 31 % 251) as u8).collect();
    let mut came = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            cat.write(&sent).unwrap();
            cat.close_input().unwrap();
        });
        let end = cat.copy_output(&mut came, &mut std::io::sink()).unwrap();
        assert_eq!(end, Ended::Code(0));
    });
    assert!(came == sent);
}

/// A broker with a guest by script.
fn scripted(script: impl Fn(ScriptedGuest) + Send + Sync + Clone + 'static) -> Port<'static> {
    Port::by(move || {
        let (host, guest) = UnixStream::pair().unwrap();
        let script = script.clone();
        thread::spawn(move || script(ScriptedGuest::over(guest)));
        host
    })
}

#[test]
fn a_hostile_guest_harms_nobody_but_its_own_sessions() {
    let lost = |script: fn(&mut ScriptedGuest, RequestId)| {
        let port = scripted(move |mut guest| {
            guest.greet();
            let (id, _) = guest.request();
            guest.send(id, &ToHost::Event(Event::Started { pid: 7 }));
            script(&mut guest, id);
            guest.wait();
        });
        let agent = port.session(Access::Shared);
        let process = agent.exec(program(&["any"])).unwrap();
        // Nobody reads: the broker itself has to see it.
        until("the loss", || agent.loss());
        drop(process);
        until("the broker's end", || port.broker().is_none().then_some(()));
    };
    // More than a window.
    lost(|guest, id| {
        let data = ToHost::Data(Stream::Output, vec![7; MAX_DATA]);
        for _ in 0..=WINDOW / u32::try_from(MAX_DATA).unwrap() {
            guest.send(id, &data);
        }
    });
    // More credit than a window.
    lost(|guest, id| guest.send(id, &ToHost::Credit(1)));
    // Garbage without end.
    lost(|guest, _| {
        let garbage = vec![b'x'; MIB];
        while guest.stream.write_all(&garbage).is_ok() {}
    });
    // Another agent, after all.
    lost(|guest, _| {
        let started = ToHost::Started { instance: [9; 16] };
        guest.send_in(SessionId::NONE, RequestId::NONE, &started);
    });
}

#[test]
fn a_guest_that_says_nothing_costs_each_client_its_own_time() {
    let port = scripted(ScriptedGuest::wait);
    let port_of = |limit: Duration| {
        let port = AgentPort {
            folder: port.folder.path(),
            program: &brood_tests::brood(),
            guest: &[],
            open: &|| Ok((port.open)()),
            channel: &Channel::of,
        };
        let way = port.way(Access::Shared).unwrap().unwrap();
        Agent::over(way.channel, limit).unwrap_err()
    };
    let limit = Duration::from_millis(200);
    assert!(matches!(port_of(limit), AgentError::NoAnswer { .. }));
    assert!(matches!(port_of(limit), AgentError::NoAnswer { .. }));
}

/// A null modem does not tell that nobody will ever be at its other side again.
#[test]
fn a_broker_ends_with_a_guest_whose_channel_stays() {
    let mut guest = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let process = Process::with_pid(guest.id().cast_signed());
    let process = process.unwrap().unwrap();
    let mut port = scripted(|mut guest| {
        guest.greet();
        guest.wait();
    });
    port.guest = vec![process.pid.to_string(), process.start_time.to_string()];
    let agent = port.session(Access::Shared);
    // It looks at a guest that lives, and stays.
    thread::sleep(Duration::from_millis(1200));
    assert_eq!(agent.loss(), None);
    guest.kill().unwrap();
    guest.wait().unwrap();
    assert_eq!(until("the loss", || agent.loss()), Loss::Closed);
    until("the broker's end", || port.broker().is_none().then_some(()));
}

#[test]
fn an_answer_to_a_client_that_has_gone_is_dropped() {
    let port = scripted(|mut guest| {
        guest.greet();
        let (first, _) = guest.request();
        let cancelled = guest.any(|(id, message)| id == first && message == ToGuest::Cancel);
        assert!(cancelled);
        guest.send(first, &ToHost::Data(Stream::Output, vec![1]));
        guest.answer(first, Ok(Reply::Ended(Ended::Signal(9))));
        let (second, request) = guest.request();
        assert!(matches!(request, Request::Sync));
        assert_ne!(first, second);
        guest.answer(second, Ok(Reply::Nothing));
        guest.wait();
    });
    let first = port.session(Access::Shared);
    let second = port.session(Access::Shared);
    // The guest has not said that it began.
    let waits = thread::spawn(move || {
        first
            .with_limit(Duration::from_millis(100))
            .exec(program(&["any"]))
    });
    assert!(waits.join().unwrap().is_err());
    second.sync().unwrap();
}

#[test]
fn a_folder_with_a_long_path_is_no_obstacle() {
    let guest = GuestAgent::start();
    let top = tempfile::tempdir().unwrap();
    let long = top.path().join("x".repeat(120));
    fs::create_dir(&long).unwrap();
    let mut port = Port::to(&guest);
    port.folder = TempDir::with_prefix_in("guest", long).unwrap();
    let agent = port.session(Access::Shared);
    assert_eq!(ended(&agent, "exit 4"), Ended::Code(4));
}
