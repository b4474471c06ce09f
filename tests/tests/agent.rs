//! The guest's agent: readiness, programs and their streams, sessions that begin and end.

use std::{
    fs,
    io::Write,
    net::Shutdown,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use brood_core::agent::{
    Agent, AgentError, Channel, Loss, Output, Process,
    protocol::{
        Ended, Exec, FailureKind, Request, RequestId, SessionId, Stream, TerminalSize, ToGuest,
        encode,
    },
};
use brood_tests::{
    PATIENCE,
    agent::{GuestAgent, over, program, run, shell},
    until,
};

const MIB: usize = 1 << 20;

fn refused<T: std::fmt::Debug>(result: Result<T, AgentError>) -> FailureKind {
    let error = result.expect_err("it cannot be done");
    error.failure().unwrap_or_else(|| panic!("{error}"))
}

fn is_alive(pid: &str) -> bool {
    // A process that nobody reaps yet is dead.
    let status = fs::read_to_string(format!("/proc/{pid}/stat"));
    status.is_ok_and(|text| {
        !text
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .starts_with(" Z")
    })
}

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

#[test]
fn a_program_ends_with_a_code_or_a_signal() {
    let guest = GuestAgent::start();
    let agent = guest.session();
    for code in [0, 1, 77, 255] {
        assert_eq!(
            run(&agent, &format!("exit {code}")).ended,
            Ended::Code(code)
        );
    }
    assert_eq!(run(&agent, "kill -9 $$").ended, Ended::Signal(9));
    assert_eq!(run(&agent, "kill -TERM $$").ended, Ended::Signal(15));

    let both = run(&agent, "echo to-output; echo to-error >&2");
    assert_eq!(both.output, b"to-output\n");
    assert_eq!(both.error, b"to-error\n");

    let absent = agent.exec(program(&["/no/such/program"]));
    assert_eq!(refused(absent), FailureKind::NotFound);
    let folder = agent.exec(program(&["/etc"]));
    assert_eq!(refused(folder), FailureKind::Denied);
    assert_eq!(refused(agent.exec(program(&[]))), FailureKind::Invalid);
    let cwd = Exec {
        cwd: Some("/no/such/folder".into()),
        ..shell("true")
    };
    assert_eq!(refused(agent.exec(cwd)), FailureKind::NotFound);
    let user = Exec {
        user: Some("no-such-user".to_owned()),
        ..shell("true")
    };
    assert_eq!(refused(agent.exec(user)), FailureKind::NotFound);
}

#[test]
fn a_program_gets_variables_a_folder_and_a_user() {
    let guest = GuestAgent::start();
    let agent = guest.session();
    let text = |exec: Exec| {
        let ran = agent.run(exec, MIB).unwrap();
        assert_eq!(
            ran.ended,
            Ended::Code(0),
            "{}",
            String::from_utf8_lossy(&ran.error)
        );
        String::from_utf8(ran.output).unwrap()
    };
    let exec = Exec {
        env: vec![
            ("A".into(), "1 2".into()),
            ("PATH".into(), "/bin:/usr/bin".into()),
        ],
        cwd: Some("/usr".into()),
        ..shell("echo $A; echo $PATH; pwd; test -n \"$HOME\" && test -n \"$USER\" && echo both")
    };
    assert_eq!(text(exec), "1 2\n/bin:/usr/bin\n/usr\nboth\n");
    // Nothing of the agent's own environment.
    assert!(!text(program(&["env"])).contains("CARGO"));

    if nix::unistd::geteuid().is_root() {
        let exec = Exec {
            user: Some("65534".to_owned()),
            ..shell("id -u; id -g; ls /root >/dev/null 2>&1 || echo kept out")
        };
        let told = text(exec);
        assert!(
            told.starts_with("65534\n") && told.ends_with("kept out\n"),
            "{told}"
        );
    }
    // Its input is empty, and not the agent's.
    assert_eq!(text(shell("cat; echo end")), "end\n");
}

#[test]
fn ten_mebibytes_out_and_in() {
    let guest = GuestAgent::start();
    let agent = guest.session();
    let line = "head -c 10485760 /dev/zero; head -c 10485760 /dev/zero | tr '\\0' e >&2";
    let ran = agent.run(shell(line), 11 * MIB).unwrap();
    assert_eq!(ran.ended, Ended::Code(0));
    assert!(
        ran.output == vec![0; 10 * MIB],
        "{} bytes",
        ran.output.len()
    );
    assert!(
        ran.error == vec![b'e'; 10 * MIB],
        "{} bytes",
        ran.error.len()
    );

    let input: Vec<u8> = (0..10 * MIB).map(|at| (at * 31 % 251) as u8).collect();
    let exec = Exec {
        input: true,
        ..program(&["cat"])
    };
    let process = Arc::new(agent.exec(exec).unwrap());
    let writer = thread::spawn({
        let (process, input) = (Arc::clone(&process), input.clone());
        move || {
            process.write(&input).unwrap();
            process.close_input().unwrap();
        }
    });
    let mut output = Vec::new();
    let ended = process
        .copy_output(&mut output, &mut std::io::sink())
        .unwrap();
    writer.join().unwrap();
    assert_eq!(ended, Ended::Code(0));
    assert!(output == input, "{} bytes", output.len());

    // More than the caller wants kills the program.
    let much = agent.run(program(&["yes"]), MIB);
    assert!(matches!(
        much,
        Err(AgentError::TooMuchOutput { limit: MIB })
    ));
    until("yes to be killed", || {
        agent.processes().unwrap().is_empty().then_some(())
    });
}

#[test]
fn a_program_that_takes_no_input_ends_all_the_same() {
    let guest = GuestAgent::start();
    let agent = guest.session();
    for line in ["exit 3", "exec <&-; sleep 0.2; exit 3"] {
        let exec = Exec {
            input: true,
            ..shell(line)
        };
        let process = agent.exec(exec).unwrap();
        process.write(&vec![b'x'; 2 * MIB]).unwrap();
        assert_eq!(process.capture(10).unwrap().ended, Ended::Code(3), "{line}");
    }
}

#[test]
fn a_hundred_programs_at_once() {
    let guest = GuestAgent::start();
    let agent = Arc::new(guest.session());
    let threads: Vec<_> = (0..100)
        .map(|number| {
            let agent = Arc::clone(&agent);
            thread::spawn(move || {
                let exec = Exec {
                    input: true,
                    ..shell(&format!("cat; echo error {number} >&2; exit {number}"))
                };
                let process = agent.exec(exec).unwrap();
                let input = format!("{number}\n").repeat(5000);
                process.write(input.as_bytes()).unwrap();
                process.close_input().unwrap();
                let ran = process.capture(MIB).unwrap();
                assert_eq!(ran.ended, Ended::Code(number));
                assert_eq!(String::from_utf8(ran.output).unwrap(), input);
                assert_eq!(ran.error, format!("error {number}\n").as_bytes());
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(agent.processes().unwrap(), []);
}

/// The resident memory of a process, in bytes.
fn resident(pid: u32) -> usize {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

#[test]
fn loud_programs_starve_nobody_and_fill_no_memory() {
    let guest = GuestAgent::start();
    let agent = guest.session();
    // Nobody reads what these write.
    let loud: Vec<_> = (0..20)
        .map(|_| agent.exec(program(&["yes"])).unwrap())
        .collect();
    for _ in 0..20 {
        assert_eq!(run(&agent, "echo heard").output, b"heard\n");
    }
    let memory = resident(guest.pid());
    assert!(memory < 48 * MIB, "{memory} bytes");

    // And what is read of one of them comes, while others wait.
    let mut read = 0;
    while read < 4 * MIB {
        match loud[7].next(Some(PATIENCE)).unwrap() {
            Output::Data(Stream::Output, bytes) => read += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    // Each is killed when nobody wants it any more.
    drop(loud);
    until("all to be killed", || {
        agent.processes().unwrap().is_empty().then_some(())
    });
}

#[test]
fn a_program_that_is_too_slow_is_killed_with_its_group() {
    let guest = GuestAgent::start();
    let agent = guest.session();
    let exec = Exec {
        limit_ms: Some(300),
        ..shell("sleep 1000 & echo $!; wait")
    };
    let ran = agent.run(exec, MIB).unwrap();
    assert_eq!(ran.ended, Ended::TimedOut);
    let child = String::from_utf8(ran.output).unwrap();
    until("the child to be killed", || {
        (!is_alive(child.trim())).then_some(())
    });

    // A program that writes all the time has no more time than others.
    let exec = Exec {
        limit_ms: Some(300),
        ..program(&["yes"])
    };
    let process = agent.exec(exec).unwrap();
    let began = Instant::now();
    let ended = process.copy_output(&mut std::io::sink(), &mut std::io::sink());
    assert_eq!(ended.unwrap(), Ended::TimedOut);
    assert!(began.elapsed() < PATIENCE);
    // Nor one that nobody listens to.
    let exec = Exec {
        limit_ms: Some(300),
        ..program(&["yes"])
    };
    let process = agent.exec(exec).unwrap();
    let pid = process.pid().to_string();
    until("it to be killed", || (!is_alive(&pid)).then_some(()));
    drop(process);

    // One that ends in time is not killed.
    let exec = Exec {
        limit_ms: Some(60_000),
        ..shell("exit 4")
    };
    assert_eq!(agent.run(exec, 0).unwrap().ended, Ended::Code(4));
}

#[test]
fn signals_reach_the_group() {
    let guest = GuestAgent::start();
    let agent = guest.session();
    let line = "trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.05; done";
    let process = agent.exec(shell(line)).unwrap();
    assert_eq!(
        process.next(Some(PATIENCE)).unwrap(),
        Output::Data(Stream::Output, b"ready\n".into())
    );
    process.signal(10).unwrap();
    let mut output = Vec::new();
    let ended = process
        .copy_output(&mut output, &mut std::io::sink())
        .unwrap();
    // The shell's child is of its group, and ends by the same signal; some shells say so.
    assert!(
        String::from_utf8_lossy(&output).contains("caught"),
        "{output:?}"
    );
    assert_eq!(ended, Ended::Code(5));
    let late = process.signal(10);
    assert_eq!(refused(late), FailureKind::NotFound);

    let process = agent.exec(program(&["sleep", "1000"])).unwrap();
    assert_eq!(refused(process.signal(12345)), FailureKind::Invalid);
    process.signal(15).unwrap();
    assert_eq!(process.capture(0).unwrap().ended, Ended::Signal(15));
}

/// Reads the output of a program until it has these words.
fn expect(process: &Process, output: &mut String, words: &str) {
    while !output.contains(words) {
        match process.next(Some(PATIENCE)).unwrap() {
            Output::Data(_, bytes) => output.push_str(&String::from_utf8_lossy(&bytes)),
            Output::Ended(ended) => panic!("{ended:?} after {output:?}, without {words:?}"),
        }
    }
}

#[test]
fn a_terminal_has_a_size_that_changes() {
    let guest = GuestAgent::start();
    let agent = guest.session();
    let exec = Exec {
        input: true,
        terminal: Some(TerminalSize {
            rows: 24,
            columns: 80,
        }),
        ..shell(
            "test -t 0 && test -t 1 && test -t 2 && echo terminal $TERM; stty size; read word; stty size; echo word=$word; cat",
        )
    };
    let process = agent.exec(exec).unwrap();
    let mut output = String::new();
    expect(
        &process,
        &mut output,
        "terminal xterm-256color\r\n24 80\r\n",
    );
    process
        .resize(TerminalSize {
            rows: 50,
            columns: 132,
        })
        .unwrap();
    process.write(b"hello\n").unwrap();
    expect(&process, &mut output, "50 132\r\nword=hello\r\n");
    process.write(b"line\n").unwrap();
    expect(&process, &mut output, "line\r\nline\r\n");
    // The end of input is that of the terminal.
    process.close_input().unwrap();
    assert_eq!(process.capture(MIB).unwrap().ended, Ended::Code(0));

    // Control-C is a signal to what runs in the terminal.
    let exec = Exec {
        input: true,
        terminal: Some(TerminalSize {
            rows: 24,
            columns: 80,
        }),
        ..shell("trap 'echo interrupted; exit 6' INT; echo ready; while :; do sleep 0.05; done")
    };
    let process = agent.exec(exec).unwrap();
    let mut output = String::new();
    expect(&process, &mut output, "ready\r\n");
    process.write(b"\x03").unwrap();
    expect(&process, &mut output, "interrupted\r\n");
    assert_eq!(process.capture(MIB).unwrap().ended, Ended::Code(6));

    let process = agent.exec(program(&["sleep", "1000"])).unwrap();
    let size = TerminalSize {
        rows: 1,
        columns: 1,
    };
    assert_eq!(refused(process.resize(size)), FailureKind::Invalid);
}

#[test]
fn what_a_program_leaves_behind_holds_nobody_up() {
    let guest = GuestAgent::start();
    let agent = guest.session();
    let ran = run(&agent, "sleep 1000 & echo $!");
    assert_eq!(ran.ended, Ended::Code(0));
    let child = String::from_utf8(ran.output).unwrap();
    assert!(is_alive(child.trim()), "it was not of use to kill it");
    assert_eq!(
        run(&agent, &format!("kill -9 {child}")).ended,
        Ended::Code(0)
    );
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
