//! Programs in the guest.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use brood_agent_protocol::{
    Ended, Event, Exec, FailureKind, ProcessInfo, Reply, Request, Stream, TerminalSize, ToGuest,
};

use super::{Agent, AgentError, asked::Asked, request::Incoming};

/// Which program is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramChoice {
    /// The arguments name it.
    Given,
    /// The one that the guest's image is for: the arguments stand behind its entry point, and none are
    /// its own. An image without one has the arguments run.
    OfImage,
}

/// Something of a program that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// It wrote this.
    Data(Stream, Vec<u8>),
    /// It has ended; nothing comes after this.
    Ended(Ended),
}

/// All of a program that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// How it ended.
    pub ended: Ended,
    /// What it wrote.
    pub output: Vec<u8>,
    /// What it wrote as errors.
    pub error: Vec<u8>,
}

/// A program in the guest. Its input may be written by another thread than reads its output. When
/// it is dropped before the program has ended, the program is killed.
#[derive(Debug)]
pub struct GuestProcess {
    asked: Asked,
    pid: u32,
    limit: Duration,
}

impl Agent {
    /// Runs a program of one kind or the other.
    ///
    /// # Errors
    /// As all calls.
    pub fn start(&self, choice: ProgramChoice, exec: Exec) -> Result<GuestProcess, AgentError> {
        match choice {
            ProgramChoice::Given => self.exec(exec),
            ProgramChoice::OfImage => self.run_image(exec),
        }
    }

    /// Runs a program.
    ///
    /// # Errors
    /// As all calls: [`FailureKind::NotFound`], for one, when there is no such program.
    pub fn exec(&self, exec: Exec) -> Result<GuestProcess, AgentError> {
        self.begin(self.connection.ask("run a program", Request::Exec(exec))?)
    }

    fn run_image(&self, exec: Exec) -> Result<GuestProcess, AgentError> {
        let what = "run the image's program";
        match self.begin(self.connection.ask(what, Request::RunImage(exec.clone()))?) {
            // An agent that does not know the request knows no entry point.
            Err(e) if e.failure() == Some(FailureKind::Unsupported) && !exec.argv.is_empty() => {
                self.exec(exec)
            }
            begun => begun,
        }
    }

    /// Takes over a program of an earlier session that goes on without one.
    ///
    /// # Errors
    /// As all calls.
    pub fn attach(&self, pid: u32) -> Result<GuestProcess, AgentError> {
        let request = Request::Attach { pid };
        self.begin(self.connection.ask("take over a program", request)?)
    }

    fn begin(&self, asked: Asked) -> Result<GuestProcess, AgentError> {
        match asked.next(Some(self.limit))? {
            Incoming::Event(Event::Started { pid }) => Ok(GuestProcess {
                asked,
                pid,
                limit: self.limit,
            }),
            Incoming::Done(Err(failure)) => Err(asked.refused(failure)),
            _ => Err(asked.unexpected()),
        }
    }

    /// Runs a program to its end without input, and keeps up to so many bytes of what it writes.
    ///
    /// # Errors
    /// As all calls; and when it writes more.
    pub fn run(&self, exec: Exec, most: usize) -> Result<Captured, AgentError> {
        self.exec(exec)?.capture(most)
    }

    /// Lists the programs that were started by the agent and have not ended.
    ///
    /// # Errors
    /// As all calls.
    pub fn processes(&self) -> Result<Vec<ProcessInfo>, AgentError> {
        self.call_for("list programs", Request::Processes, |reply| match reply {
            Reply::Processes(processes) => Some(processes),
            _ => None,
        })
    }
}

impl GuestProcess {
    /// Its process in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Leaves a program to itself that was started to be kept: it goes on when the session ends, and
    /// can be attached to after that. Until then it waits when it has written a window full.
    pub fn leave(self) {
        self.asked.leave();
    }

    /// Waits for what it does next; without an end when `limit` is none.
    ///
    /// # Errors
    /// As all calls. After [`AgentError::NoAnswer`] it can be asked again.
    pub fn next(&self, limit: Option<Duration>) -> Result<Output, AgentError> {
        loop {
            match self.asked.next(limit)? {
                // The end of a stream: its program's end comes later.
                Incoming::Data(_, bytes) if bytes.is_empty() => {}
                Incoming::Data(stream, bytes) => {
                    self.asked.consumed(stream, bytes.len())?;
                    return Ok(Output::Data(stream, bytes));
                }
                Incoming::Event(_) => {}
                Incoming::Done(Ok(Reply::Ended(ended))) => return Ok(Output::Ended(ended)),
                Incoming::Done(Ok(_)) => return Err(self.asked.unexpected()),
                Incoming::Done(Err(failure)) => return Err(self.asked.refused(failure)),
            }
        }
    }

    /// Writes to its input. Waits while it takes nothing; what it does not take as it has ended, or
    /// has closed its input, is for nobody.
    ///
    /// # Errors
    /// As all calls.
    pub fn write(&self, mut bytes: &[u8]) -> Result<(), AgentError> {
        while !bytes.is_empty() {
            match self.asked.send_input(bytes, None)? {
                Some(length) => bytes = &bytes[length..],
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Writes a part of these bytes to its input, as soon as it takes any; how many. None when it
    /// takes no more.
    ///
    /// # Errors
    /// As all calls. After [`AgentError::NoAnswer`] it can be asked again.
    pub fn write_part(&self, bytes: &[u8], limit: Duration) -> Result<Option<usize>, AgentError> {
        self.asked.send_input(bytes, Some(limit))
    }

    /// Ends its input.
    ///
    /// # Errors
    /// As all calls.
    pub fn close_input(&self) -> Result<(), AgentError> {
        self.asked.send(&ToGuest::Data(Vec::new()))
    }

    /// Sends a signal to its process group.
    ///
    /// # Errors
    /// As all calls; the program has ended, for one.
    pub fn signal(&self, signal: i32) -> Result<(), AgentError> {
        let exec = self.asked.id().0;
        self.control("send a signal", Request::Signal { exec, signal })
    }

    /// Changes the size of its terminal.
    ///
    /// # Errors
    /// As all calls.
    pub fn resize(&self, size: TerminalSize) -> Result<(), AgentError> {
        let exec = self.asked.id().0;
        self.control("change a terminal's size", Request::Resize { exec, size })
    }

    fn control(&self, what: &'static str, request: Request) -> Result<(), AgentError> {
        let asked = self.asked.connection().ask(what, request)?;
        asked.answer(self.limit).map(drop)
    }

    /// Waits for its end, and hands on what it writes.
    ///
    /// # Errors
    /// As all calls; and when a writer fails, which kills the program.
    pub fn copy_output(
        &self,
        output: &mut dyn Write,
        error: &mut dyn Write,
    ) -> Result<Ended, AgentError> {
        self.copy_until(output, error, None)
    }

    fn copy_until(
        &self,
        output: &mut dyn Write,
        error: &mut dyn Write,
        until: Option<Instant>,
    ) -> Result<Ended, AgentError> {
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let written = match self.next(left)? {
                Output::Data(Stream::Error, bytes) => error.write_all(&bytes),
                Output::Data(_, bytes) => output.write_all(&bytes),
                Output::Ended(ended) => return Ok(ended),
            };
            written.map_err(|source| AgentError::Local {
                what: "write the program's output",
                source,
            })?;
        }
    }

    /// Waits for its end, and keeps what it writes: up to so many bytes.
    ///
    /// # Errors
    /// As all calls; and when it writes more.
    pub fn capture(self, most: usize) -> Result<Captured, AgentError> {
        self.captured(most, None)
    }

    /// The same, and the guest has to say for so long at most that the program has ended.
    ///
    /// # Errors
    /// As [`Self::capture`]; and when the time is over, which kills the program.
    pub fn capture_within(self, most: usize, limit: Duration) -> Result<Captured, AgentError> {
        self.captured(most, Some(Instant::now() + limit))
    }

    fn captured(self, most: usize, until: Option<Instant>) -> Result<Captured, AgentError> {
        let mut output = Bounded::new(most);
        let mut error = Bounded::new(most);
        match self.copy_until(&mut output, &mut error, until) {
            Ok(ended) => Ok(Captured {
                ended,
                output: output.bytes,
                error: error.bytes,
            }),
            Err(AgentError::Local { .. }) => Err(AgentError::TooMuchOutput { limit: most }),
            Err(e) => Err(e),
        }
    }
}

struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl Bounded {
    fn new(most: usize) -> Bounded {
        Bounded {
            bytes: Vec::new(),
            most,
        }
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
