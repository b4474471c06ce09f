//! A program that runs, and the threads that read from it and write to it. They end when it has, or
//! when its client has gone.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::body::Bytes;
use brood_core::agent::{AgentError, GuestProcess, Output, ProgramChoice, protocol};
use tokio::sync::{mpsc, oneshot};

use crate::api::{
    App,
    guests::TIMEOUT,
    permits::PermitKind,
    problem::Problem,
    programs::{GRACE, PATIENCE, session_problem},
    workers::CancelOnDrop,
};

/// Parts of a program's output, and of its input, that wait for the other end.
const OUTPUT_PARTS: usize = 4;
const INPUT_PARTS: usize = 1;

/// A part of a program's input.
pub(super) enum Input {
    Bytes(Bytes),
    End,
}

/// What comes of a program, from the thread that waits for it.
pub(super) type Said = Result<Output, AgentError>;

/// A program that runs, and the threads that read from it and write to it.
pub(super) struct Program {
    pub(super) guest: String,
    pub(super) pid: u32,
    /// The threads own it: it is killed when the last of them drops it, and that may take a moment.
    pub(super) process: Weak<GuestProcess>,
    pub(super) said: mpsc::Receiver<Said>,
    pub(super) input: Option<mpsc::Sender<Input>>,
    pub(super) has_terminal: bool,
    _hang_up: CancelOnDrop,
}

impl Program {
    pub(super) async fn start(
        app: &App,
        guest: &str,
        (choice, exec): (ProgramChoice, protocol::Exec),
    ) -> Result<Self, Problem> {
        let bounds = [PermitKind::programs(guest), app.permits.streams()];
        let permit = app.take(&bounds, TIMEOUT).await?;
        let found = guest.to_owned();
        let agent = app
            .on_guests(permit.clone(), move |guests| {
                Ok(guests.agent(&found, TIMEOUT)?)
            })
            .await?;
        let (has_terminal, takes_input) = (exec.terminal.is_some(), exec.input);
        let limit = exec.limit_ms.map(|ms| Duration::from_millis(ms.into()));
        let hung_up = Arc::<AtomicBool>::default();
        let hang_up = CancelOnDrop(Arc::clone(&hung_up));
        let (parts, said) = mpsc::channel(OUTPUT_PARTS);
        let (begun, begins) = oneshot::channel();
        let (input, inputs) = mpsc::channel(INPUT_PARTS);
        let reading = Arc::clone(&hung_up);
        tokio::task::spawn_blocking(move || {
            // Until the program has ended or was killed.
            let _permit = permit;
            match agent.start(choice, exec).map(Arc::new) {
                Ok(process) => {
                    let told = (Arc::downgrade(&process), process.pid());
                    if begun.send(Ok(told)).is_ok() {
                        read(&process, &parts, limit.map(|limit| limit + GRACE), &reading);
                    }
                }
                Err(e) => drop(begun.send(Err(e))),
            }
        });
        let begun = begins.await.map_err(|_| Problem::internal())?;
        let (process, pid) = match begun {
            Ok(begun) => begun,
            Err(e) => return Err(session_problem(app, guest, e).await),
        };
        let input = takes_input.then_some(input);
        if input.is_some() {
            let process = Weak::clone(&process);
            let writing = move || write(&process, inputs, &hung_up);
            let spawned = std::thread::Builder::new()
                .name("exec-input".to_owned())
                .spawn(writing);
            spawned.map_err(|e| {
                tracing::error!("cannot start a thread: {e}");
                Problem::internal()
            })?;
        }
        Ok(Self {
            guest: guest.to_owned(),
            pid,
            process,
            said,
            input,
            has_terminal,
            _hang_up: hang_up,
        })
    }
}

/// Hands on what a program does, until it has ended or its client has gone.
fn read(
    process: &GuestProcess,
    parts: &mpsc::Sender<Said>,
    limit: Option<Duration>,
    hung_up: &AtomicBool,
) {
    let begin = Instant::now();
    loop {
        let said = process.next(Some(PATIENCE));
        if let Err(AgentError::NoAnswer { .. }) = said {
            if hung_up.load(Ordering::Relaxed) {
                return;
            }
            if limit.is_none_or(|limit| begin.elapsed() < limit) {
                continue;
            }
        }
        let is_last = !matches!(said, Ok(Output::Data(..)));
        if parts.blocking_send(said).is_err() || is_last {
            return;
        }
    }
}

/// Writes a program's input, until it has ended or its client has gone.
fn write(process: &Weak<GuestProcess>, mut inputs: mpsc::Receiver<Input>, hung_up: &AtomicBool) {
    while let Some(input) = inputs.blocking_recv() {
        let Some(process) = process.upgrade() else {
            return;
        };
        match input {
            Input::End => drop(process.close_input()),
            Input::Bytes(mut bytes) => {
                while !bytes.is_empty() && !hung_up.load(Ordering::Relaxed) {
                    match process.write_part(&bytes, PATIENCE) {
                        Ok(Some(length)) => drop(bytes.split_to(length)),
                        Err(AgentError::NoAnswer { .. }) => {}
                        // It takes no more, or has gone: whoever reads its output says so.
                        Ok(None) | Err(_) => break,
                    }
                }
            }
        }
    }
}
