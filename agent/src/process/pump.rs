//! The pump of a program: moves its streams between the host and its pipes, until it has ended.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use brood_agent_protocol::{Ended, Failure, Reply, Stream};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{read, write},
};

use super::{Running, spawn::Streams};
use crate::{
    call::{Call, Interrupt},
    outbox::{PIECE, Sent},
    serve::Answer,
};

/// How long output is still waited for when a program has ended and others, which it left behind,
/// hold its pipes.
const LINGER: Duration = Duration::from_millis(100);
/// How long the pump waits for room in the outbox before it looks at its call again.
const ROOM_INTERVAL: Duration = Duration::from_millis(100);
/// What a terminal takes as the end of input.
const END_OF_TRANSMISSION: u8 = 4;

pub(super) struct Pump {
    running: Arc<Running>,
    streams: Streams,
    /// Readable when the program has ended, where there is such a descriptor.
    end: Option<OwnedFd>,
    deadline: Option<Instant>,
    /// The program goes on without a call.
    keep: bool,
    /// Input that the program has not taken yet.
    pending: Vec<u8>,
    buffer: Vec<u8>,
    /// When the program was seen to have ended.
    ended_at: Option<Instant>,
    timed_out: bool,
    cancelled: bool,
}

impl Pump {
    pub(super) fn new(
        running: Arc<Running>,
        streams: Streams,
        end: Option<OwnedFd>,
        deadline: Option<Instant>,
        keep: bool,
    ) -> Pump {
        Pump {
            running,
            streams,
            end,
            deadline,
            keep,
            pending: Vec::new(),
            buffer: vec![0; PIECE],
            ended_at: None,
            timed_out: false,
            cancelled: false,
        }
    }

    /// Moves until the program has ended and its output is sent.
    pub(super) fn run(mut self) -> Answer {
        let ended = loop {
            self.running.waker.clear();
            let call = self.call();
            self.keep_time();
            self.take_input(call.as_deref());
            let ended = self.running.lock().ended;
            if let Some(ended) = ended
                && self.drained(call.as_deref())
            {
                break ended;
            }
            self.step(call.as_deref());
        };
        if let Some(call) = self.call() {
            for (stream, open) in [
                (Stream::Output, &self.streams.output),
                (Stream::Error, &self.streams.error),
            ] {
                if open.is_some() {
                    call.end_stream(stream);
                }
            }
        }
        if self.timed_out {
            Ok(Reply::Ended(Ended::TimedOut))
        } else if self.cancelled {
            Err(Failure::from(Interrupt::Cancelled))
        } else {
            Ok(Reply::Ended(ended))
        }
    }

    /// Who has the streams, after what that call was told is done.
    fn call(&mut self) -> Option<Arc<Call>> {
        let call = self.running.lock().call.clone()?;
        match call.interrupted() {
            None => Some(call),
            Some(Interrupt::Cancelled) => {
                if !self.cancelled {
                    self.cancelled = true;
                    self.running.kill();
                }
                Some(call)
            }
            Some(Interrupt::Dropped) => {
                if !self.keep {
                    self.running.kill();
                }
                let mut state = self.running.lock();
                // Another may have taken it meanwhile.
                if state
                    .call
                    .as_ref()
                    .is_some_and(|now| Arc::ptr_eq(now, &call))
                {
                    state.call = None;
                }
                state.call.clone()
            }
        }
    }

    fn keep_time(&mut self) {
        if self.deadline.is_some_and(|at| at <= Instant::now()) {
            self.deadline = None;
            if self.running.lock().ended.is_none() {
                self.timed_out = true;
                self.running.kill();
            }
        }
    }

    /// Whether no more output is to be had of a program that has ended.
    fn drained(&mut self, call: Option<&Call>) -> bool {
        let ended_at = *self.ended_at.get_or_insert_with(Instant::now);
        let waits = |fd: &Option<OwnedFd>, stream| {
            fd.is_some() && call.is_some_and(|call| call.open(stream) == 0)
        };
        if waits(&self.streams.output, Stream::Output) || waits(&self.streams.error, Stream::Error)
        {
            return self.cancelled || self.timed_out;
        }
        let closed = self.streams.output.is_none() && self.streams.error.is_none();
        closed || ended_at.elapsed() >= LINGER
    }

    fn take_input(&mut self, call: Option<&Call>) {
        let Some(call) = call else { return };
        if !self.pending.is_empty() {
            return;
        }
        match call.take_input() {
            (Some(piece), _) if self.streams.input.is_some() => self.pending = piece,
            (Some(piece), _) => call.consumed_input(piece.len()),
            (None, true) if self.streams.input.is_some() => {
                if self.running.terminal.is_some() {
                    self.pending = vec![END_OF_TRANSMISSION];
                    self.write_input(Some(call));
                }
                self.streams.input = None;
                self.pending.clear();
            }
            (None, _) => {}
        }
    }

    /// Waits until something can be moved or has happened, and moves it.
    fn step(&mut self, call: Option<&Call>) {
        let [output, error, input, ended] = self.wait(call);
        if output {
            self.read(call, Stream::Output);
        }
        if error {
            self.read(call, Stream::Error);
        }
        if input {
            self.write_input(call);
        }
        if ended {
            self.end = None;
            self.running.wait();
        }
    }

    /// Waits; whether output, error output and input can be moved, and whether the program has ended.
    fn wait(&self, call: Option<&Call>) -> [bool; 4] {
        let open = |stream| call.is_none_or(|call| call.open(stream) > 0);
        let streams = [
            (
                &self.streams.output,
                open(Stream::Output),
                PollFlags::POLLIN,
            ),
            (&self.streams.error, open(Stream::Error), PollFlags::POLLIN),
            (
                &self.streams.input,
                !self.pending.is_empty(),
                PollFlags::POLLOUT,
            ),
            (&self.end, true, PollFlags::POLLIN),
        ];
        let mut fds = vec![PollFd::new(self.running.waker.fd(), PollFlags::POLLIN)];
        let mut places = [None; 4];
        for ((fd, wanted, flags), place) in streams.into_iter().zip(&mut places) {
            if let (Some(fd), true) = (fd, wanted) {
                *place = Some(fds.len());
                fds.push(PollFd::new(fd.as_fd(), flags));
            }
        }
        if let Some(call) = call {
            call.push();
        }
        if poll(&mut fds, self.timeout()).is_err() {
            // Nothing is known then: the next round looks again.
            return [false; 4];
        }
        places.map(|place| place.is_some_and(|at: usize| fds[at].any().unwrap_or(true)))
    }

    fn timeout(&self) -> PollTimeout {
        let now = Instant::now();
        // After that, only what the host lets be sent is waited for.
        let linger = self.ended_at.map(|at| at + LINGER).filter(|at| *at > now);
        let until = [self.deadline, linger].into_iter().flatten().min();
        let Some(until) = until else {
            return PollTimeout::NONE;
        };
        let left = until.saturating_duration_since(now);
        // Rounded up, so that the time is over when the poll is.
        PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
    }

    fn read(&mut self, call: Option<&Call>, stream: Stream) {
        let room = call.map_or(PIECE, |call| call.open(stream).min(PIECE));
        let fd = match stream {
            Stream::Error => &mut self.streams.error,
            Stream::Input | Stream::Output => &mut self.streams.output,
        };
        let Some(open) = fd else { return };
        match read(open.as_fd(), &mut self.buffer[..room]) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // A terminal that nobody has open any more reads as EIO.
            Ok(0) | Err(_) => {
                *fd = None;
                if let Some(call) = call {
                    call.end_stream(stream);
                }
            }
            Ok(length) => {
                if let Some(call) = call {
                    self.send(call, stream, length);
                }
            }
        }
    }

    fn send(&mut self, call: &Call, stream: Stream, length: usize) {
        loop {
            let until = Some(Instant::now() + ROOM_INTERVAL);
            let sent = call.send_piece(stream, &self.buffer[..length], until);
            self.keep_time();
            let waits = sent == Sent::NoRoom && !self.timed_out && call.interrupted().is_none();
            if !waits {
                return;
            }
        }
    }

    fn write_input(&mut self, call: Option<&Call>) {
        let Some(input) = &self.streams.input else {
            return;
        };
        let written = match write(input.as_fd(), &self.pending) {
            Ok(written) => written,
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            // The program has closed its input: the rest is for nobody.
            Err(_) => {
                self.streams.input = None;
                self.pending.len()
            }
        };
        self.pending.drain(..written);
        if let Some(call) = call {
            call.consumed_input(written);
        }
    }
}
