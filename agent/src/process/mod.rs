//! Programs that the host runs in the guest.

mod image;
pub(crate) mod oom;
mod pump;
mod spawn;
mod user;

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use brood_agent_protocol::{
    Ended, Event, Exec, Failure, FailureKind, OsBytes, ProcessInfo, Reply, TerminalSize,
};
use nix::{
    errno::Errno,
    sys::{
        signal::Signal,
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::Pid,
};

pub(crate) use image::Which;
pub(crate) use user::Account;

use crate::{
    call::{Call, Interrupt},
    failure::{Context, invalid, not_found},
    serve::Answer,
    sessions::Sessions,
    wake::Waker,
};

/// How many bytes of a program's arguments are listed.
const LISTED_ARGUMENTS: usize = 256;

/// The programs that have not ended, by their processes.
#[derive(Debug, Default)]
pub(crate) struct Processes(Mutex<HashMap<u32, Arc<Running>>>);

/// A program that runs.
#[derive(Debug)]
pub(crate) struct Running {
    pid: u32,
    argv: Vec<OsBytes>,
    terminal: Option<OwnedFd>,
    /// Ends the `poll(2)` of the thread that moves its streams.
    waker: Arc<Waker>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Who has its streams.
    call: Option<Arc<Call>>,
    ended: Option<Ended>,
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a signal to its process group. Its number cannot be another's: it is reaped under the
    /// same lock.
    fn signal(&self, signal: i32) -> Result<(), Errno> {
        let state = self.lock();
        if state.ended.is_some() {
            return Err(Errno::ESRCH);
        }
        let group = i32::try_from(self.pid).map_err(|_| Errno::ESRCH)?;
        // SAFETY: kill(2) takes numbers only.
        let result = unsafe { libc::kill(-group, signal) };
        Errno::result(result).map(drop)
    }

    fn kill(&self) {
        let _ = self.signal(Signal::SIGKILL as i32);
    }

    /// A descriptor that is readable when it has ended. Without one, where the system has none, a
    /// thread waits for its end.
    fn watch_end(self: &Arc<Running>) -> io::Result<Option<OwnedFd>> {
        if let Some(fd) = pidfd(self.pid) {
            return Ok(Some(fd));
        }
        let running = Arc::clone(self);
        let waiter = thread::Builder::new().name("waiter".into());
        waiter.stack_size(64 * 1024).spawn(move || running.wait())?;
        Ok(None)
    }

    fn wait(&self) {
        let Ok(pid) = i32::try_from(self.pid) else {
            return;
        };
        let pid = Pid::from_raw(pid);
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(pid), flags) == Err(Errno::EINTR) {}
        let mut state = self.lock();
        state.ended = Some(match waitpid(pid, None) {
            Ok(WaitStatus::Exited(_, code)) => Ended::Code(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ended::Signal(signal as i32),
            // Somebody else reaped it.
            _ => Ended::Code(255),
        });
        self.waker.wake();
    }
}

/// See pidfd_open(2).
#[cfg(target_os = "linux")]
fn pidfd(pid: u32) -> Option<OwnedFd> {
    use std::os::fd::FromRawFd;

    // SAFETY: pidfd_open(2) takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the descriptor is new, and nobody else's.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(not(target_os = "linux"))]
fn pidfd(_: u32) -> Option<OwnedFd> {
    None
}

impl Processes {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<Running>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The program that the call `exec` of the same session started or took over.
    fn of(&self, call: &Call, exec: u32) -> Result<Arc<Running>, Failure> {
        let table = self.lock();
        let mut found = table.values().filter(|running| {
            let state = running.lock();
            let owner = state.call.as_ref();
            owner.is_some_and(|owner| owner.session == call.session && owner.request.0 == exec)
        });
        let found = found.next().cloned();
        found.ok_or_else(|| not_found(format!("no program of request {exec} runs")))
    }

    pub(crate) fn signal(&self, call: &Call, exec: u32, signal: i32) -> Answer {
        let sent = self.of(call, exec)?.signal(signal);
        sent.context(format!("cannot send signal {signal}"))?;
        Ok(Reply::Nothing)
    }

    pub(crate) fn resize(&self, call: &Call, exec: u32, size: TerminalSize) -> Answer {
        let running = self.of(call, exec)?;
        let Some(terminal) = &running.terminal else {
            return Err(invalid("the program has no terminal"));
        };
        spawn::set_window(terminal, size).context("cannot change the size of the terminal")?;
        Ok(Reply::Nothing)
    }

    pub(crate) fn list(&self, call: &Call) -> Answer {
        let table = self.lock();
        let processes = table.values().map(|running| {
            let state = running.lock();
            let owner = state.call.as_ref();
            let mut room = LISTED_ARGUMENTS;
            let argv = running.argv.iter().take_while(|word| {
                let fits = word.as_bytes().len() < room;
                room = room.saturating_sub(word.as_bytes().len() + 1);
                fits
            });
            ProcessInfo {
                pid: running.pid,
                argv: argv.cloned().collect(),
                terminal: running.terminal.is_some(),
                attached: owner.is_some_and(|owner| owner.session == call.session),
            }
        });
        let mut processes: Vec<_> = processes.take(256).collect();
        processes.sort_by_key(|process| process.pid);
        Ok(Reply::Processes(processes))
    }

    /// Gives a program that nobody has to this call.
    pub(crate) fn attach(&self, call: &Arc<Call>, pid: u32) -> Result<(), Failure> {
        let running = self.lock().get(&pid).cloned();
        let Some(running) = running else {
            return Err(not_found(format!("the agent runs no process {pid}")));
        };
        let mut state = running.lock();
        let owner = state.call.as_ref();
        if owner.is_some_and(|owner| owner.interrupted() != Some(Interrupt::Dropped)) {
            let text = format!("another request has the streams of process {pid}");
            return Err(Failure::new(FailureKind::Busy, text));
        }
        call.event(Event::Started { pid });
        state.call = Some(Arc::clone(call));
        call.set_waker(Arc::clone(&running.waker));
        Ok(())
    }
}

/// Runs a program to its end. Who is to be answered, and with what.
pub(crate) fn exec(
    sessions: &Sessions,
    call: Arc<Call>,
    exec: Exec,
    which: Which,
) -> Option<(Arc<Call>, Answer)> {
    let (running, pump) = match begin(sessions, &call, exec, which) {
        Ok(begun) => begun,
        Err(failure) => return Some((call, Err(failure))),
    };
    let answer = pump.run();
    sessions.processes.lock().remove(&running.pid);
    let call = running.lock().call.take()?;
    Some((call, answer))
}

fn begin(
    sessions: &Sessions,
    call: &Arc<Call>,
    exec: Exec,
    which: Which,
) -> Result<(Arc<Running>, pump::Pump), Failure> {
    let waker = Waker::new().context("cannot make a pipe for the program")?;
    let waker = Arc::new(waker);
    let exec = image::complete(exec, which, image::of_this_guest())?;
    let started = spawn::spawn(&exec)?;
    let limit = exec.limit_ms.map(|ms| Duration::from_millis(ms.into()));
    let deadline = limit.map(|limit| Instant::now() + limit);
    let running = Arc::new(Running {
        pid: started.pid,
        argv: exec.argv,
        terminal: started.terminal,
        waker: Arc::clone(&waker),
        state: Mutex::new(State {
            call: Some(Arc::clone(call)),
            ended: None,
        }),
    });
    sessions
        .processes
        .lock()
        .insert(running.pid, Arc::clone(&running));
    call.set_waker(waker);
    call.started(running.pid);
    let end = match running.watch_end() {
        Ok(end) => end,
        Err(e) => {
            running.kill();
            running.wait();
            sessions.processes.lock().remove(&running.pid);
            return Err(e).context("cannot start a thread for the program");
        }
    };
    let streams = started.streams;
    let pump = pump::Pump::new(Arc::clone(&running), streams, end, deadline, exec.keep);
    Ok((running, pump))
}
