//! Pause and resume: stops guests (SIGSTOP), and lets them run on.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{Error, Guest, GuestState, Guests, alive};
use crate::{
    engine::{self, NEVER, Process, ProcessState},
    faults::{self, Point},
    guest_id::GuestId,
    state::GuestRow,
};

/// How long a guest may take to be stopped. One that is parking waits in the kernel for its virtual
/// machine's end, and that for other threads of the kernel: under load for many seconds.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// The longest pause between two looks at a guest that is to stop.
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

impl Guests<'_> {
    /// Stops a guest. It keeps its memory and uses no processor time.
    ///
    /// # Errors
    /// When it cannot be stopped.
    pub fn pause(&mut self, guest: &Guest) -> Result<(), Error> {
        let process = alive(guest)?;
        if guest.state == GuestState::Paused {
            return Ok(());
        }
        self.stop(guest, process)?;
        self.until_stopped(guest, process)
    }

    /// Waits until a guest has stopped that was told to.
    pub(super) fn until_stopped(&self, guest: &Guest, process: Process) -> Result<(), Error> {
        let look = |source| Error::look(&guest.row.name, source);
        let until = Instant::now() + STOP_PATIENCE;
        if stopped(process, until, self.cancelled).map_err(look)? {
            return Ok(());
        }
        let source = match process.state().map_err(look)? {
            ProcessState::Gone => engine::Error::Gone,
            _ if self.cancelled.load(Ordering::Relaxed) => engine::Error::Interrupted,
            ProcessState::Running | ProcessState::Stopped => engine::Error::Timeout(STOP_PATIENCE),
        };
        Err(Error::engine("stop", &guest.row.name, source))
    }

    /// Stops many guests; returns those that are stopped, without those that died meanwhile or
    /// cannot be stopped.
    pub(crate) fn pause_all(&mut self, guests: &[Guest]) -> Vec<GuestId> {
        let mut stopping = Vec::with_capacity(guests.len());
        for guest in guests {
            let Some(process) = guest.process() else {
                continue;
            };
            if self.stop(guest, process).is_ok() {
                stopping.push((guest.row.id, process));
            }
        }
        // Time is one for all: one that does not stop holds the others up no longer.
        let until = Instant::now() + STOP_PATIENCE;
        stopping.retain(|(_, process)| matches!(stopped(*process, until, &NEVER), Ok(true)));
        stopping.into_iter().map(|(id, _)| id).collect()
    }

    /// Lets a stopped guest of a pool run on for its claimer, until it has answered. This is the
    /// short way: only this guest's record is looked at.
    ///
    /// # Errors
    /// When it is gone, or does not answer within `timeout`.
    pub fn wake(&mut self, id: &GuestId, timeout: Duration) -> Result<(GuestRow, Process), Error> {
        let gone = || Error::NoSuchGuest(id.to_string());
        let row = self.state.guest(&id.to_string())?.ok_or_else(gone)?;
        let state = GuestState::Paused;
        let guest = Guest { row, state };
        let process = alive(&guest)?;
        self.run_on("wake", &guest, process, timeout)?;
        Ok((guest.row, process))
    }

    /// Lets a stopped guest run on; returns how long it took from the signal to its answer.
    ///
    /// # Errors
    /// When it cannot be continued, or does not answer within `timeout`.
    pub fn resume(&mut self, guest: &Guest, timeout: Duration) -> Result<Duration, Error> {
        let process = alive(guest)?;
        self.free(guest, "resume")?;
        let begin = Instant::now();
        self.run_on("hear from", guest, process, timeout)?;
        Ok(begin.elapsed())
    }

    fn run_on(
        &self,
        action: &'static str,
        guest: &Guest,
        process: Process,
        timeout: Duration,
    ) -> Result<(), Error> {
        let run_dir = self.state.run_dir();
        let guest_ref = guest.row.in_folder(&run_dir);
        let resumed = faults::at(Point::GuestWake)
            .map_err(|source| engine::Error::Io {
                action: "ask it",
                source,
            })
            .and_then(|()| self.engine.resume(guest_ref, process, self.limit(timeout)));
        resumed.map_err(|source| {
            let error = Error::engine(action, &guest.row.name, source);
            self.unreachable(action, guest, process, error)
        })
    }

    /// The error for a guest that the engine did not find: its process may live, and only its
    /// socket be gone.
    pub(super) fn unreachable(
        &self,
        action: &'static str,
        guest: &Guest,
        process: Process,
        error: Error,
    ) -> Error {
        let gone = matches!(
            error,
            Error::Engine {
                source: engine::Error::Gone,
                ..
            }
        );
        let ended = || {
            self.engine
                .ended(guest.row.in_folder(&self.state.run_dir()))
                .is_ok_and(|how| how.is_some())
        };
        match process.state() {
            Ok(ProcessState::Gone) => error,
            _ if !gone || ended() => error,
            Ok(_) => Error::Unreachable {
                action,
                guest: guest.row.name.clone(),
                pid: process.pid,
                run_dir: self.state.run_dir(),
            },
            Err(source) => Error::look(&guest.row.name, source),
        }
    }

    pub(super) fn stop(&self, guest: &Guest, process: Process) -> Result<(), Error> {
        let run_dir = self.state.run_dir();
        let guest_ref = guest.row.in_folder(&run_dir);
        let stop = |()| self.engine.stop(guest_ref, process);
        Self::signalled(guest, faults::at(Point::GuestStop).and_then(stop))
    }

    /// Lets a guest run on that may be stopped, and waits for nothing.
    pub(super) fn unfreeze(&self, guest: &Guest, process: Process) -> Result<(), Error> {
        let run_dir = self.state.run_dir();
        let guest_ref = guest.row.in_folder(&run_dir);
        Self::signalled(guest, self.engine.unfreeze(guest_ref, process))
    }

    fn signalled(guest: &Guest, sent: io::Result<bool>) -> Result<(), Error> {
        match sent {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::engine(
                "signal",
                &guest.row.name,
                engine::Error::Gone,
            )),
            Err(source) => {
                let source = engine::Error::Io {
                    action: "signal its process",
                    source,
                };
                Err(Error::engine("signal", &guest.row.name, source))
            }
        }
    }
}

/// Waits until a guest has stopped, its time is up, or `cancelled` is set.
fn stopped(process: Process, until: Instant, cancelled: &AtomicBool) -> io::Result<bool> {
    let mut pause = Duration::from_micros(200);
    loop {
        // One look decides: that of a traced process changes back and forth.
        match process.state()? {
            ProcessState::Stopped => return Ok(true),
            ProcessState::Gone => return Ok(false),
            _ if cancelled.load(Ordering::Relaxed) => return Ok(false),
            ProcessState::Running if Instant::now() > until => return Ok(false),
            ProcessState::Running => {
                thread::sleep(pause);
                pause = LONGEST_PAUSE.min(pause * 3 / 2);
            }
        }
    }
}
