//! Streams of a program in a guest, joined to those of this process; signals go to the program.

use std::{
    io::{self, ErrorKind, Read, Write},
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use brood_core::agent::{
    Agent, AgentError, GuestProcess, Output, ProgramChoice,
    protocol::{self, Ended, Stream},
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH},
    iterator::Signals,
};

use super::terminal::{self, RawMode};

/// This many signals to end are handed on to the program; the next ends the command.
const HANDED_ON: u32 = 2;
/// How long the agent may take to end a program whose time is over.
const GRACE: Duration = Duration::from_secs(10);

/// How a program came to its end.
pub(super) enum End {
    /// By itself.
    Ended(Ended),
    /// Nobody reads its output any more: it was killed.
    NoReader,
    /// The user has insisted: it was killed.
    Insisted,
}

/// Runs a program to its end, with the streams of this process.
pub(super) fn run(
    agent: &Agent,
    choice: ProgramChoice,
    exec: protocol::Exec,
) -> Result<End, AgentError> {
    let signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH]).map_err(local)?;
    let _closes = Closes(signals.handle());
    let (takes_input, has_terminal) = (exec.input, exec.terminal.is_some());
    let limit = exec.limit_ms.map(|ms| Duration::from_millis(ms.into()));
    let until = limit.map(|limit| Instant::now() + limit + GRACE);
    let process = Arc::new(agent.start(choice, exec)?);
    let _raw = match has_terminal && takes_input {
        true => RawMode::set().map_err(local)?,
        false => None,
    };
    hand_on_signals(signals, &process, has_terminal)?;
    if takes_input {
        hand_on_input(&process)?;
    }
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let written = match process.next(left)? {
            Output::Data(_, bytes) if INSISTED.is_set() => {
                drop(bytes);
                return Ok(End::Insisted);
            }
            Output::Data(Stream::Error, bytes) => write(&mut io::stderr().lock(), &bytes),
            Output::Data(_, bytes) => write(&mut io::stdout().lock(), &bytes),
            Output::Ended(_) if INSISTED.is_set() => return Ok(End::Insisted),
            Output::Ended(ended) => return Ok(End::Ended(ended)),
        };
        match written {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(End::NoReader),
            written => written.map_err(local)?,
        }
    }
}

/// Set when the user wants the command to end, whatever the program does.
static INSISTED: Flag = Flag(std::sync::atomic::AtomicBool::new(false));

struct Flag(std::sync::atomic::AtomicBool);

impl Flag {
    fn is_set(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn set(&self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Ends the thread that takes signals, when this is dropped.
struct Closes(signal_hook::iterator::Handle);

impl Drop for Closes {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn write(to: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

fn local(source: io::Error) -> AgentError {
    AgentError::Local {
        what: "join the program's streams to those of this command",
        source,
    }
}

/// Hands signals of this process on to the program's process group, and the terminal's size. A
/// program that will not end is killed when the user insists.
fn hand_on_signals(
    mut signals: Signals,
    process: &Arc<GuestProcess>,
    has_terminal: bool,
) -> Result<(), AgentError> {
    // Weak: the program is killed when its last owner drops it, and that is not this thread.
    let process = Arc::downgrade(process);
    let handed = move || {
        let mut to_end = 0;
        for signal in signals.forever() {
            let Some(process) = Weak::upgrade(&process) else {
                return;
            };
            if signal == SIGWINCH {
                if has_terminal {
                    let _ = process.resize(terminal::size());
                }
                continue;
            }
            to_end += 1;
            if to_end <= HANDED_ON {
                // One that has just ended needs none.
                let _ = process.signal(signal);
            } else {
                INSISTED.set();
                if process.signal(nix::libc::SIGKILL).is_err() {
                    // The guest does not answer: the end of this process is the end of the session.
                    terminal::restore();
                    std::process::exit(crate::failure::INTERRUPTED.into());
                }
            }
        }
    };
    spawn("signals", handed)
}

/// Hands standard input on to the program.
fn hand_on_input(process: &Arc<GuestProcess>) -> Result<(), AgentError> {
    let process = Arc::downgrade(process);
    let handed = move || {
        let mut input = io::stdin().lock();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = match input.read(&mut buffer) {
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                // What cannot be read any more has ended.
                read => read.unwrap_or(0),
            };
            let Some(process) = Weak::upgrade(&process) else {
                return;
            };
            let sent = match read {
                0 => process.close_input(),
                length => process.write(&buffer[..length]),
            };
            if read == 0 || sent.is_err() {
                return;
            }
        }
    };
    spawn("input", handed)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), AgentError> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread.spawn(work).map(drop).map_err(local)
}
