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
        ClockState, Event, Failure, FailureKind, HookEnd, HookResult, Ready, Reply, Request, Step,
        StepReply, StepResult, StepResults, ToGuest, ToHost,
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

/// A step as the request that does the same.
fn request(step: Step) -> Request {
    match step {
        Step::Thaw => Request::Thaw,
        Step::Reseed { entropy } => Request::Reseed { entropy },
        Step::Clock { set } => Request::Clock { set: Some(set) },
        Step::Identity(identity) => Request::Identity(identity),
        Step::Hooks(hooks) => Request::Hooks(hooks),
        Step::Freeze { paths, limit_ms } => Request::Freeze { paths, limit_ms },
        Step::Ready => Request::Ready,
    }
}

fn step_reply(reply: Reply) -> StepReply {
    match reply {
        Reply::Nothing => StepReply::Nothing,
        Reply::Clock(state) => StepReply::Clock(state),
        Reply::Hooks(results) => StepReply::Hooks(results),
        Reply::Ready(ready) => StepReply::Ready(ready),
        other => panic!("{other:?}"),
    }
}

/// What a good guest answers.
fn good(request: &Request) -> Reply {
    match request {
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
    }
}

/// Whether a guest's agent knows of steps in one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    New,
    Old,
}

/// A guest that does all it is asked, but for one that it answers in this way.
fn guest(age: Age, failing: &'static str, answer: Result<Reply, Failure>) -> (Agent, Log) {
    let log = Log::default();
    let seen = Arc::clone(&log);
    let agent = session_with(PATIENCE, move |mut guest| {
        guest.greet();
        let one = |request: Request| {
            let result = if name(&request) == failing {
                answer.clone()
            } else {
                Ok(good(&request))
            };
            seen.lock().unwrap().push(request);
            result
        };
        while let Some((id, message)) = guest.next() {
            let result = match message {
                ToGuest::Request(Request::Steps(_)) if age == Age::Old => {
                    Err(Failure::new(FailureKind::Unsupported, "what is that?"))
                }
                ToGuest::Request(Request::Steps(steps)) => {
                    let mut results = Vec::new();
                    for step in steps {
                        let result = one(request(step)).map(step_reply);
                        let failed = result.is_err();
                        results.push(StepResult { result, took_us: 1 });
                        if failed {
                            break;
                        }
                    }
                    Ok(Reply::Steps(StepResults {
                        results,
                        took_us: 10,
                    }))
                }
                ToGuest::Request(request) => one(request),
                _ => continue,
            };
            guest.answer(id, result);
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
    for age in [Age::New, Age::Old] {
        a_clone_is_made_its_own(age);
    }
}

fn a_clone_is_made_its_own(age: Age) {
    let (agent, log) = guest(age, "", Ok(Reply::Nothing));
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
    let (other, seen) = guest(age, "", Ok(Reply::Nothing));
    prepare_clone(&other, &identity(), None, StepLimits::default()).unwrap();
    assert_ne!(seen.lock().unwrap()[1], log.lock().unwrap()[1]);
}

#[test]
fn a_step_that_fails_is_named_and_is_the_last() {
    let both = CLONE.into_iter().enumerate();
    let both = both.flat_map(|(at, step)| [(at, step, Age::New), (at, step, Age::Old)]);
    for (at, step, age) in both {
        let (agent, log) = guest(age, step, Err(failure()));
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
    for age in [Age::New, Age::Old] {
        let (agent, _) = guest(age, "hooks", Ok(Reply::Hooks(results.clone())));
        let failed = prepare_clone(&agent, &identity(), None, StepLimits::default());
        let failed = failed.unwrap_err();
        assert_eq!(failed.step, GuestStep::Hooks);
        let text = failed.to_string();
        for words in ["20-bad", "ended with code 3", "cannot find the key"] {
            assert!(text.contains(words), "{text}");
        }
    }
}

#[test]
fn another_guest_than_that_of_the_checkpoint_is_not_ready() {
    let (agent, _) = guest(Age::New, "", Ok(Reply::Nothing));
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
            let (id, asked) = guest.request();
            // Between two moments so far apart no time is right to 50 ms.
            thread::sleep(Duration::from_millis(120));
            let reply = match asked {
                Request::Steps(steps) => {
                    let results = steps.into_iter().map(|step| StepResult {
                        result: Ok(step_reply(good(&request(step)))),
                        took_us: 1,
                    });
                    Reply::Steps(StepResults {
                        results: results.collect(),
                        took_us: 6,
                    })
                }
                other => good(&other),
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

/// A clock that was set by a request that was long on its way is set again.
#[test]
fn a_late_request_is_made_good_by_another() {
    let clocks = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&clocks);
    let agent = session_with(PATIENCE, move |mut guest| {
        guest.greet();
        let (id, asked) = guest.request();
        let Request::Steps(steps) = asked else {
            panic!("{asked:?}")
        };
        thread::sleep(Duration::from_millis(120));
        let results = steps.into_iter().map(|step| StepResult {
            result: Ok(step_reply(good(&request(step)))),
            took_us: 1,
        });
        let results = results.collect();
        let steps = StepResults {
            results,
            took_us: 6,
        };
        guest.answer(id, Ok(Reply::Steps(steps)));
        while let Some((id, message)) = guest.next() {
            if let ToGuest::Request(asked) = message {
                guest.answer(id, Ok(good(&asked)));
                seen.lock().unwrap().push(name(&asked));
            }
        }
    });
    wake_up(&agent.unwrap(), Some([7; 16])).unwrap();
    let clocks = clocks.lock().unwrap();
    assert!(!clocks.is_empty() && clocks.iter().all(|name| *name == "clock"));
}

/// A guest that answers nothing, after it has said of these steps that they begin.
fn silent_after(begun: &'static [u32]) -> Agent {
    let agent = session_with(PATIENCE, move |mut guest| {
        guest.greet();
        let (id, _) = guest.request();
        for step in begun {
            let event = Event::StepBegan { step: *step };
            guest.send(id, &ToHost::Event(event));
        }
        guest.wait();
    });
    agent.unwrap().with_limit(Duration::from_millis(300))
}

#[test]
fn a_guest_that_does_not_answer_is_told_with_the_step_that_it_began() {
    let limits = StepLimits {
        hook: Duration::ZERO,
        freeze: Duration::from_secs(1),
    };
    for (begun, told) in [
        (&[][..], "\"thaw\" or a later one"),
        (&[4], "\"hooks\" or a later one"),
    ] {
        let agent = silent_after(begun);
        let failed = prepare_clone(&agent, &identity(), None, limits).unwrap_err();
        assert!(matches!(failed.source, AgentError::NoAnswer { .. }));
        assert!(failed.to_string().contains(told), "{failed}");
    }
    // Steps that begin again and again, or that nobody asked for, hold nobody.
    for begun in [&[4, 4][..], &[4, 3], &[6, 7]] {
        let agent = silent_after(begun);
        let failed = prepare_clone(&agent, &identity(), None, limits).unwrap_err();
        assert!(matches!(failed.source, AgentError::Lost { .. }), "{failed}");
    }
}

#[test]
fn a_guest_that_leaves_steps_out_is_not_ready() {
    for (answered, missing) in CLONE.into_iter().enumerate() {
        let agent = session_with(PATIENCE, move |mut guest| {
            guest.greet();
            let (id, asked) = guest.request();
            let Request::Steps(steps) = asked else {
                panic!("{asked:?}")
            };
            let results = steps.into_iter().take(answered).map(|step| StepResult {
                result: Ok(step_reply(good(&request(step)))),
                took_us: 1,
            });
            let results = results.collect();
            let steps = StepResults {
                results,
                took_us: 6,
            };
            guest.answer(id, Ok(Reply::Steps(steps)));
            guest.wait();
        });
        let failed = prepare_clone(&agent.unwrap(), &identity(), None, StepLimits::default());
        assert_eq!(failed.unwrap_err().step.to_string(), missing);
    }
}

#[test]
fn a_suspend_runs_hooks_and_freezes_and_a_failed_freeze_is_thawed() {
    let (agent, log) = guest(Age::New, "", Ok(Reply::Nothing));
    prepare_suspend(&agent, StepLimits::default()).unwrap();
    assert_eq!(names(&log), ["hooks", "freeze"]);
    undo_suspend(&agent).unwrap();
    wake_up(&agent, Some([7; 16])).unwrap();
    assert_eq!(
        names(&log)[2..],
        ["thaw", "thaw", "reseed", "clock", "ready"]
    );

    for age in [Age::New, Age::Old] {
        let (agent, log) = guest(age, "freeze", Err(failure()));
        let failed = prepare_suspend(&agent, StepLimits::default()).unwrap_err();
        assert_eq!(failed.step, GuestStep::Freeze);
        assert_eq!(names(&log), ["hooks", "freeze", "thaw"]);
    }
}
