//! Steps: what the host asks for in one request, carried out one after the other.
//!
//! Those that need no wait are carried out by the thread that reads the port: a clone that has just
//! been restored pays for each piece of code that it runs first, and a change of threads is one. The
//! first that may wait, and all behind it, are a worker's.

use std::{
    mem::{Discriminant, discriminant},
    sync::Arc,
    time::{Duration, Instant},
};

use brood_agent_protocol::{
    Event, Failure, HookEnd, HookResult, OsBytes, Ready, Reply, Step, StepReply, StepResult,
    StepResults,
};

use crate::{
    call::Call,
    failure::invalid,
    serve::Answer,
    sessions::Sessions,
    system::{self, HookPrograms},
};

/// How a step ends.
type StepAnswer = Result<StepReply, Failure>;

/// Steps that were begun.
pub(crate) enum Begun {
    Done(Reply),
    /// The next may take its time.
    Waits(Steps),
}

/// Steps of a request that are not all done.
pub(crate) struct Steps {
    steps: std::vec::IntoIter<Step>,
    /// The next.
    waits: Option<Waiting>,
    results: Vec<StepResult>,
    received: Instant,
}

/// A step that may take its time.
enum Waiting {
    Hooks(HookPrograms),
    Freeze(Vec<OsBytes>, Duration),
}

impl Steps {
    /// Carries out steps that the host has just asked for, up to the first that may wait.
    pub(crate) fn begin(sessions: &Sessions, steps: Vec<Step>) -> Result<Begun, Failure> {
        let received = Instant::now();
        let kinds: Vec<Discriminant<Step>> = steps.iter().map(discriminant).collect();
        let twice = |(at, kind): (usize, _)| kinds[..at].contains(kind);
        if kinds.iter().enumerate().any(twice) {
            return Err(invalid("a step is there twice"));
        }
        let mut begun = Steps {
            results: Vec::with_capacity(steps.len()),
            steps: steps.into_iter(),
            waits: None,
            received,
        };
        begun.advance(sessions);
        Ok(match begun.waits {
            Some(_) => Begun::Waits(begun),
            None => Begun::Done(begun.reply()),
        })
    }

    /// Carries out steps up to the first that may wait, or that fails.
    fn advance(&mut self, sessions: &Sessions) {
        while let Some(step) = self.steps.next() {
            let began = Instant::now();
            match self.quick(sessions, step) {
                Ok(result) => self.push(began, result),
                Err(waiting) => {
                    self.waits = Some(waiting);
                    return;
                }
            }
        }
    }

    /// Carries out the rest, however long that takes.
    pub(crate) fn go_on(mut self, sessions: &Sessions, call: &Arc<Call>) -> Reply {
        while let Some(waiting) = self.waits.take() {
            let step = u32::try_from(self.results.len()).unwrap_or(u32::MAX);
            call.event(Event::StepBegan { step });
            let began = Instant::now();
            let answer = match waiting {
                Waiting::Hooks(hooks) => {
                    let results = sessions.system.run_hooks(call, &hooks);
                    results.map(StepReply::Hooks)
                }
                Waiting::Freeze(paths, limit) => {
                    let frozen = sessions.system.freeze(&paths, limit);
                    frozen.map(|_| StepReply::Nothing)
                }
            };
            self.push(began, answer);
            self.advance(sessions);
        }
        self.reply()
    }

    fn reply(self) -> Reply {
        let took = self.received.elapsed().as_micros();
        Reply::Steps(StepResults {
            results: self.results,
            took_us: u64::try_from(took).unwrap_or(u64::MAX),
        })
    }

    /// A step that needs no wait; else what is to be waited for.
    fn quick(&self, sessions: &Sessions, step: Step) -> Result<StepAnswer, Waiting> {
        let nothing = |answer: Answer| answer.map(|_| StepReply::Nothing);
        Ok(match step {
            Step::Thaw => nothing(sessions.system.thaw()),
            Step::Reseed { entropy } => nothing(system::reseed(&entropy)),
            Step::Clock { set } => {
                let late = u64::try_from(self.received.elapsed().as_nanos()).unwrap_or(0);
                system::set_clock(set.saturating_add(late)).map(StepReply::Clock)
            }
            Step::Identity(identity) => nothing(sessions.system.identify(identity)),
            Step::Ready => Ok(StepReply::Ready(Ready {
                nonce: sessions.nonce,
                counter: sessions.count_ready(),
            })),
            Step::Hooks(hooks) => match HookPrograms::of(hooks) {
                Ok(programs) if programs.is_empty() => Ok(StepReply::Hooks(Vec::new())),
                Ok(programs) => return Err(Waiting::Hooks(programs)),
                Err(failure) => Err(failure),
            },
            Step::Freeze { paths, limit_ms } => {
                let limit = Duration::from_millis(limit_ms.into());
                return Err(Waiting::Freeze(paths, limit));
            }
        })
    }

    /// Notes a result; one that failed is the last.
    fn push(&mut self, began: Instant, result: StepAnswer) {
        let failed = match &result {
            Ok(StepReply::Hooks(results)) => results.last().is_some_and(has_failed),
            Ok(_) => false,
            Err(_) => true,
        };
        let took_us = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
        self.results.push(StepResult { result, took_us });
        if failed {
            self.steps = Vec::new().into_iter();
        }
    }
}

fn has_failed(hook: &HookResult) -> bool {
    hook.end != HookEnd::Code(0)
}
