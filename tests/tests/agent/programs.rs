//! Programs in the guest by its agent: streams, ends, signals, time limits, terminals.

use std::{sync::Arc, thread, time::Instant};

use brood_core::agent::{
    AgentError, Output,
    protocol::{Ended, Exec, FailureKind, Stream, TerminalSize},
};
use brood_tests::{
    PATIENCE,
    agent::{GuestAgent, program, run, shell},
    until,
};

use crate::{MIB, expect, is_alive, refused, resident};

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
    // The kernel may kill it when memory is full, whatever it may do with the agent.
    assert_eq!(text(shell("cat /proc/self/oom_score_adj")), "0\n");
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
