//! Steps that make a guest safe to hand out, to suspend and to wake up: their order, and what is
//! said when one fails. The guest is a script, as a real agent would change this machine.

use std::{
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use brood_core::agent::{
    Agent, AgentError, CloneIdentity, GuestStep, StepLimits, prepare_clone, prepare_suspend,
    protocol::{
        ClockState, Failure, FailureKind, HookEnd, HookResult, Ready, Reply, Request, ToGuest,
        ToHost,
    },
    undo_suspend, wake_up,
};
use brood_tests::{PATIENCE, scripted_guest::session_with};

type Log = Arc<Mutex<Vec<Request>>>;

fn name(request: &Request) -> &'static str {
    match request {
        Request::Thaw => "thaw",
        Request::Reseed { .. } => "reseed",
        Request::Clock { .. } => "clock",
        Request::Identity(_) => "identity",
        Request::Hooks(_) => "hooks",
        Request::Freeze { .. } => "freeze",
        Request::Ready => "ready",
        other => panic!("{other:?}"),
    }
}

fn names(log: &Log) -> Vec<&'static str> {
    log.lock().unwrap().iter().map(name).collect()
}

/// A guest that does all it is asked, but for one that it answers in this way.
fn guest(failing: &'static str, answer: Result<Reply, Failure>) -> (Agent, Log) {
    let log = Log::default();
    let seen = Arc::clone(&log);
    let agent = session_with(PATIENCE, move |mut guest| {
        guest.greet();
        while let Some((id, message)) = guest.next() {
            let ToGuest::Request(request) = message else {
                continue;
            };
            let result = if name(&request) == failing {
                answer.clone()
            } else {
                Ok(match &request {
                    Request::Clock { .. } => Reply::Clock(ClockState {
                        before_ns: 1,
                        after_ns: 2,
                    }),
                    Request::Hooks(_) => Reply::Hooks(Vec::new()),
                    Request::Ready => Reply::Ready(Ready {
                        nonce: [7; 16],
                        counter: 1,
                    }),
                    _ => Reply::Nothing,
                })
            };
            seen.lock().unwrap().push(request);
            guest.send(id, &ToHost::Done(result));
        }
    });
    (agent.unwrap(), log)
}

fn identity() -> CloneIdentity {
    CloneIdentity {
        hostname: "clone-7".to_owned(),
        mac: Some([2, 0, 0, 0, 0, 7]),
        machine_id: [3; 16],
        generation: [4; 16],
    }
}

fn failure() -> Failure {
    Failure::new(FailureKind::Denied, "it may not\u{1b}[2J")
}

const CLONE: [&str; 6] = ["thaw", "reseed", "clock", "identity", "hooks", "ready"];

#[test]
fn a_clone_is_made_its_own_before_it_is_ready() {
    let (agent, log) = guest("", Ok(Reply::Nothing));
    let report = prepare_clone(&agent, &identity(), Some([7; 16]), StepLimits::default()).unwrap();
    assert_eq!(names(&log), CLONE);
    let steps: Vec<_> = report
        .took
        .iter()
        .map(|(step, _)| step.to_string())
        .collect();
    assert_eq!(steps, CLONE);
    assert_eq!(report.ready.unwrap().counter, 1);

    let asked = log.lock().unwrap();
    let Request::Reseed { entropy } = &asked[1] else {
        panic!("{asked:?}")
    };
    assert_eq!(entropy.len(), 64);
    let Request::Identity(given) = &asked[3] else {
        panic!("{asked:?}")
    };
    assert_eq!(given.hostname.as_deref(), Some("clone-7"));
    assert_eq!(given.machine_id, Some([3; 16]));
    assert_eq!(given.generation, Some([4; 16]));
    assert_eq!(given.interface.as_ref().unwrap().mac, [2, 0, 0, 0, 0, 7]);
    drop(asked);

    // Two clones do not get the same entropy.
    let (other, seen) = guest("", Ok(Reply::Nothing));
    prepare_clone(&other, &identity(), None, StepLimits::default()).unwrap();
    assert_ne!(seen.lock().unwrap()[1], log.lock().unwrap()[1]);
}

#[test]
fn a_step_that_fails_is_named_and_is_the_last() {
    for (at, step) in CLONE.into_iter().enumerate() {
        let (agent, log) = guest(step, Err(failure()));
        let failed = prepare_clone(&agent, &identity(), None, StepLimits::default()).unwrap_err();
        assert_eq!(failed.step.to_string(), step);
        assert_eq!(names(&log), CLONE[..=at]);
        let text = failed.to_string();
        assert!(text.contains(step) && text.contains("it may not"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
}

#[test]
fn a_hook_that_fails_is_named_with_its_last_words() {
    let result = |name: &str, end| HookResult {
        name: name.into(),
        end,
        output: b"first\ncannot find the key\n".to_vec(),
        took_ms: 1,
    };
    let results = vec![
        result("10-good", HookEnd::Code(0)),
        result("20-bad", HookEnd::Code(3)),
    ];
    let (agent, log) = guest("hooks", Ok(Reply::Hooks(results)));
    let failed = prepare_clone(&agent, &identity(), None, StepLimits::default()).unwrap_err();
    assert_eq!(failed.step, GuestStep::Hooks);
    let text = failed.to_string();
    for words in ["20-bad", "ended with code 3", "cannot find the key"] {
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(names(&log).last(), Some(&"hooks"));
}

#[test]
fn another_guest_than_that_of_the_checkpoint_is_not_ready() {
    let (agent, _) = guest("", Ok(Reply::Nothing));
    let failed = prepare_clone(&agent, &identity(), Some([8; 16]), StepLimits::default());
    let failed = failed.unwrap_err();
    assert_eq!(failed.step, GuestStep::Ready);
    assert!(matches!(failed.source, AgentError::OtherGuest));
}

#[test]
fn a_clock_that_nobody_knows_is_not_right() {
    let agent = session_with(PATIENCE, |mut guest| {
        guest.greet();
        loop {
            let (id, request) = guest.request();
            let reply = match request {
                Request::Clock { .. } => {
                    // Between two moments so far apart no time is right to 50 ms.
                    thread::sleep(Duration::from_millis(120));
                    Reply::Clock(ClockState {
                        before_ns: 1,
                        after_ns: 2,
                    })
                }
                _ => Reply::Nothing,
            };
            guest.answer(id, Ok(reply));
        }
    });
    let failed = wake_up(&agent.unwrap(), None).unwrap_err();
    assert_eq!(failed.step, GuestStep::Clock);
    let AgentError::Clock { uncertainty } = failed.source else {
        panic!("{failed}")
    };
    assert!(uncertainty > Duration::from_millis(50));
}

#[test]
fn a_suspend_runs_hooks_and_freezes_and_a_failed_freeze_is_thawed() {
    let (agent, log) = guest("", Ok(Reply::Nothing));
    prepare_suspend(&agent, StepLimits::default()).unwrap();
    assert_eq!(names(&log), ["hooks", "freeze"]);
    undo_suspend(&agent).unwrap();
    wake_up(&agent, Some([7; 16])).unwrap();
    assert_eq!(
        names(&log)[2..],
        ["thaw", "thaw", "reseed", "clock", "ready"]
    );

    let (agent, log) = guest("freeze", Err(failure()));
    let failed = prepare_suspend(&agent, StepLimits::default()).unwrap_err();
    assert_eq!(failed.step, GuestStep::Freeze);
    assert_eq!(names(&log), ["hooks", "freeze", "thaw"]);
}
