//! Guests that break the agent's protocol, and hosts that do: only they themselves suffer.

use std::{io::Write, net::Shutdown, time::Duration};

use brood_core::agent::{
    AgentError, GuestProcess, Loss,
    protocol::{
        Change, ChangeKind, Event, Exec, FailureKind, Received, Reply, Request, RequestId,
        SessionId, Stream, ToGuest, ToHost, WriteFile, encode,
        limits::{MAX_DATA, MAX_REQUESTS, WINDOW},
    },
};
use brood_tests::{
    PATIENCE,
    agent::{GuestAgent, over, program, run},
    scripted_guest::{ScriptedGuest, hello, session_with},
    until,
};

use crate::resident;

const SHORT: Duration = Duration::from_millis(300);

#[test]
fn a_guest_without_an_agent_is_told_by_what_it_lacks() {
    let silent = session_with(SHORT, ScriptedGuest::wait).unwrap_err();
    assert!(matches!(silent, AgentError::NoAnswer { .. }), "{silent}");
    assert!(silent.to_string().contains("within 300 ms"), "{silent}");

    let console = session_with(SHORT, |mut guest| {
        let _ = guest
            .stream
            .write_all(b"Debian GNU/Linux 12 clone ttyS1\n\nclone login: ");
        guest.wait();
    });
    assert!(matches!(console, Err(AgentError::NoAnswer { .. })));

    let closed = session_with(PATIENCE, drop).unwrap_err();
    assert!(
        matches!(
            closed,
            AgentError::Lost {
                loss: Loss::Closed,
                ..
            }
        ),
        "{closed}"
    );

    let other = session_with(PATIENCE, |mut guest| {
        guest.next();
        let refusal = ToHost::WrongVersion {
            oldest: 2,
            newest: 3,
        };
        guest.send(RequestId::NONE, &refusal);
        guest.wait();
    });
    assert!(matches!(
        other,
        Err(AgentError::Version {
            oldest: 2,
            newest: 3
        })
    ));

    let nobody = brood_core::agent::Agent::connect("/no/such/socket".as_ref(), SHORT).unwrap_err();
    assert!(nobody.to_string().contains("/no/such/socket"), "{nobody}");
}

#[test]
fn a_request_that_is_not_answered_has_its_time_and_the_session_goes_on() {
    let agent = session_with(SHORT, |mut guest| {
        guest.greet();
        let (first, _) = guest.request();
        // The host gives it up.
        loop {
            match guest.next() {
                Some((id, ToGuest::Cancel)) if id == first => break,
                Some(_) => {}
                None => return,
            }
        }
        // The answer comes after all, and is for nobody; so is that of another session.
        let (second, _) = guest.request();
        guest.answer(first, Ok(Reply::Nothing));
        let other = SessionId(guest.session.0 ^ 2);
        guest.send_in(
            other,
            second,
            &ToHost::Done(Ok(Reply::Processes(Vec::new()))),
        );
        guest.answer(second, Ok(Reply::Nothing));
        guest.wait();
    })
    .unwrap();
    let late = agent.sync().unwrap_err();
    assert!(
        matches!(late, AgentError::NoAnswer { limit: SHORT, .. }),
        "{late}"
    );
    agent.sync().unwrap();
}

/// The loss of a session in which the guest does this to a program that nobody reads.
fn loss_by(act: impl FnOnce(&mut ScriptedGuest, RequestId) + Send + 'static) -> Loss {
    let agent = session_with(PATIENCE, |mut guest| {
        guest.greet();
        let (id, _) = guest.request();
        guest.send(id, &ToHost::Event(Event::Started { pid: 7 }));
        act(&mut guest, id);
        guest.wait();
    });
    let agent = agent.unwrap();
    let _process: GuestProcess = agent.exec(program(&["x"])).unwrap();
    until("the session to end", || agent.loss())
}

fn violation(loss: &Loss) -> &str {
    match loss {
        Loss::Violation(text) => text,
        other => panic!("{other}"),
    }
}

#[test]
fn a_guest_that_breaks_the_rules_loses_its_session() {
    let full = || ToHost::Data(Stream::Output, vec![1; MAX_DATA]);
    let loss = loss_by(move |guest, id| {
        for _ in 0..=WINDOW as usize / MAX_DATA {
            guest.send(id, &full());
        }
    });
    assert!(violation(&loss).contains("may send 0"), "{loss}");

    let loss = loss_by(|guest, id| {
        guest.send(id, &ToHost::Data(Stream::Error, Vec::new()));
        guest.send(id, &ToHost::Data(Stream::Error, vec![1]));
    });
    assert!(violation(&loss).contains("it has ended"), "{loss}");

    let loss = loss_by(|guest, id| guest.send(id, &ToHost::Data(Stream::Input, vec![1])));
    assert!(violation(&loss).contains("own stream"), "{loss}");

    let loss = loss_by(|guest, id| guest.send(id, &ToHost::Credit(1)));
    assert!(violation(&loss).contains("granted more"), "{loss}");

    let loss = loss_by(|guest, id| {
        let change = Change {
            path: "/x".into(),
            kind: ChangeKind::Written,
            directory: false,
        };
        let event = Event::Changes {
            changes: vec![change],
            lost: false,
        };
        for _ in 0..5000 {
            guest.send(id, &ToHost::Event(event.clone()));
        }
    });
    assert!(
        violation(&loss).contains("events that nobody took"),
        "{loss}"
    );

    let loss = loss_by(|guest, id| {
        guest.answer(id, Ok(Reply::Nothing));
        guest.answer(id, Ok(Reply::Nothing));
    });
    assert!(violation(&loss).contains("it has answered"), "{loss}");

    // Garbage without end, and messages without sense.
    let loss = loss_by(
        |guest, _| {
            while guest.stream.write_all(&[0x5a; 1 << 16]).is_ok() {}
        },
    );
    assert!(violation(&loss).contains("nothing of use"), "{loss}");
    let loss = loss_by(|guest, _| {
        let mut frame = Vec::new();
        encode(guest.session, RequestId(99), &ToHost::Credit(1), &mut frame).unwrap();
        while guest.stream.write_all(&frame).is_ok() {}
    });
    assert!(violation(&loss).contains("nothing of use"), "{loss}");
}

#[test]
fn an_agent_that_was_started_again_is_told() {
    let loss = loss_by(|guest, _| {
        let started = ToHost::Started { instance: [2; 16] };
        guest.send_in(SessionId::NONE, RequestId::NONE, &started);
    });
    assert_eq!(loss, Loss::Restarted);
    let loss = loss_by(|guest, _| guest.send(RequestId::NONE, &ToHost::Hello(hello(2))));
    assert_eq!(loss, Loss::Restarted);
}

#[test]
fn a_guest_that_takes_nothing_is_told() {
    let agent = session_with(PATIENCE, |mut guest| {
        guest.greet();
        std::thread::sleep(PATIENCE);
    })
    .unwrap();
    let agent = agent.with_limit(Duration::from_millis(20));
    let large = program(&["x", &"y".repeat(100_000)]);
    let stuck = until("the socket to be full", || {
        match agent.exec(large.clone()) {
            Err(AgentError::NoAnswer { .. }) => None,
            other => Some(other.unwrap_err()),
        }
    });
    assert!(
        matches!(
            stuck,
            AgentError::Lost {
                loss: Loss::Stuck(_),
                ..
            }
        ),
        "{stuck}"
    );
}

/// A hostile guest beside a good one.
#[test]
fn only_the_hostile_guest_suffers() {
    let good = GuestAgent::start();
    let agent = good.session();
    let hostile: Vec<_> = (0..4)
        .map(|_| {
            session_with(PATIENCE, |mut guest| {
                guest.greet();
                while guest.stream.write_all(&[0x33; 4096]).is_ok() {}
            })
        })
        .collect();
    for number in 0..30 {
        let ran = run(&agent, &format!("echo {number}"));
        assert_eq!(ran.output, format!("{number}\n").as_bytes());
    }
    for hostile in hostile.into_iter().flatten() {
        until("the hostile guest to be cut off", || hostile.loss());
    }
    assert_eq!(agent.loss(), None);
}

/// A host that is broken takes no agent down.
#[test]
fn a_hostile_host_leaves_the_agent_whole() {
    let guest = GuestAgent::start();
    let nonce = guest.session().ready().unwrap().nonce;
    let mut stream = guest.stream();
    let mut bytes = Vec::new();
    let mut say = |request: u32, message: &ToGuest| {
        encode(SessionId(9), RequestId(request), message, &mut bytes).unwrap();
    };
    let hello =
        |oldest, newest| ToGuest::Hello(brood_core::agent::protocol::HostHello { oldest, newest });
    say(1, &ToGuest::Request(Request::Ready));
    say(0, &hello(7, 9));
    say(0, &hello(1, 1));
    say(0, &ToGuest::Request(Request::Ready));
    say(77, &ToGuest::Data(vec![1; 100]));
    say(77, &ToGuest::Credit(Stream::Output, u32::MAX));
    say(77, &ToGuest::Cancel);
    // A window that is overrun, a grant that is too large, and a number that is used twice.
    let write = ToGuest::Request(Request::WriteFile(WriteFile {
        path: guest.path("file").as_path().into(),
        mode: 0o644,
        user: None,
        parents: false,
        sync: false,
        digest: false,
    }));
    let sleep = ToGuest::Request(Request::Exec(Exec {
        input: true,
        ..program(&["sleep", "1000"])
    }));
    say(1, &sleep);
    say(1, &sleep);
    for _ in 0..100 {
        say(1, &ToGuest::Data(vec![0; MAX_DATA]));
    }
    say(2, &ToGuest::Request(Request::Exec(program(&["yes"]))));
    say(2, &ToGuest::Credit(Stream::Output, u32::MAX));
    // More requests than may run at once.
    for request in 100..500 {
        say(request, &write);
    }
    stream.write_all(&bytes).unwrap();
    // A message that nobody knows, behind a right checksum, and 4 MiB without an end.
    stream.write_all(&[0; 3]).unwrap();
    stream.write_all(&[0x77; 4 << 20]).unwrap();

    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut decoder = brood_core::agent::protocol::Decoder::<ToHost>::default();
    let (mut busy, mut cancelled) = (0, Vec::new());
    let mut piece = [0; 1 << 16];
    let used = 400 - (MAX_REQUESTS - 2);
    until("all answers", || {
        let length = std::io::Read::read(&mut stream, &mut piece)
            .unwrap_or_else(|e| panic!("{e}: {busy} busy, {cancelled:?} cancelled"));
        let mut rest = &piece[..length];
        while let Some(Received {
            request, message, ..
        }) = decoder.next(&mut rest)
        {
            match message.unwrap() {
                ToHost::Done(Err(failure)) if failure.kind == FailureKind::Busy => busy += 1,
                ToHost::Done(Err(failure)) if failure.kind == FailureKind::Cancelled => {
                    cancelled.push(request.0);
                }
                ToHost::Done(other) => panic!("{other:?}"),
                _ => {}
            }
        }
        // Those two may have made room before the last request came.
        (busy + 2 >= used && cancelled.len() == 2).then_some(())
    });
    cancelled.sort_unstable();
    assert_eq!(cancelled, [1, 2]);
    let memory = resident(guest.pid());
    assert!(memory < 64 << 20, "{memory} bytes");
    stream.shutdown(Shutdown::Both).unwrap();

    let stream = guest.stream();
    let agent = over(&stream);
    assert_eq!(agent.ready().unwrap().nonce, nonce);
    assert_eq!(run(&agent, "echo whole").output, b"whole\n");
    until("what it began to be gone", || {
        let names = std::fs::read_dir(guest.path("")).unwrap();
        (names.count() == 1 && agent.processes().unwrap().is_empty()).then_some(())
    });
}
