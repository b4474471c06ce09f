//! Requests of a session: what a thread waits for, and what the reader puts there.
//!
//! `tests/tests/interleavings.rs` tries all orders in which threads can come, with other types in
//! the place of `super::sync`.

use std::{collections::VecDeque, time::Instant};

use brood_agent_protocol::{CreditError, Event, Failure, ReceiveWindow, Reply, SendWindow, Stream};

use super::{
    Loss,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

/// How many events of a request wait for somebody who takes them.
const MAX_EVENTS: usize = 4096;

/// Something that the guest said about a request.
#[derive(Debug)]
pub(super) enum Incoming {
    Event(Event),
    Data(Stream, Vec<u8>),
    Done(Result<Reply, Failure>),
}

/// Why there is nothing.
#[derive(Debug)]
pub(super) enum Missing {
    Late,
    Lost(Loss),
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Incoming>,
    events: usize,
    input: SendWindow,
    output: Receiving,
    error: Receiving,
    done: bool,
    loss: Option<Loss>,
}

#[derive(Debug, Default)]
struct Receiving {
    window: ReceiveWindow,
    ended: bool,
}

impl State {
    fn receiving(&mut self, stream: Stream) -> Option<&mut Receiving> {
        match stream {
            Stream::Input => None,
            Stream::Output => Some(&mut self.output),
            Stream::Error => Some(&mut self.error),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Pending {
    state: Mutex<State>,
    changed: Condvar,
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // What the reader does. The text of an error says how the guest broke the rules.

    pub(super) fn event(&self, event: Event) -> Result<(), String> {
        let mut state = self.lock();
        if state.events == MAX_EVENTS {
            return Err(format!("more than {MAX_EVENTS} events that nobody took"));
        }
        state.events += 1;
        self.push(state, Incoming::Event(event))
    }

    pub(super) fn data(&self, stream: Stream, bytes: Vec<u8>) -> Result<(), String> {
        let mut state = self.lock();
        let receiving = state.receiving(stream);
        let receiving = receiving.ok_or_else(|| "data of the host's own stream".to_owned())?;
        if receiving.ended {
            return Err("data of a stream that it has ended".to_owned());
        }
        let received = receiving.window.receive(bytes.len());
        received.map_err(|e| e.to_string())?;
        receiving.ended = bytes.is_empty();
        self.push(state, Incoming::Data(stream, bytes))
    }

    pub(super) fn done(&self, result: Result<Reply, Failure>) -> Result<(), String> {
        self.push(self.lock(), Incoming::Done(result))
    }

    fn push(&self, mut state: MutexGuard<'_, State>, incoming: Incoming) -> Result<(), String> {
        if state.done {
            return Err("more of a request that it has answered".to_owned());
        }
        state.done = matches!(incoming, Incoming::Done(_));
        state.queue.push_back(incoming);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    pub(super) fn grant(&self, bytes: u32) -> Result<(), CreditError> {
        self.lock().input.grant(bytes)?;
        self.changed.notify_all();
        Ok(())
    }

    pub(super) fn lose(&self, loss: Loss) {
        self.lock().loss.get_or_insert(loss);
        self.changed.notify_all();
    }

    // What the thread does that made the request.

    /// The next that the guest said, until then at the latest. What it said before the session ended
    /// comes first.
    pub(super) fn next(&self, until: Option<Instant>) -> Result<Incoming, Missing> {
        let mut state = self.lock();
        loop {
            if let Some(incoming) = state.queue.pop_front() {
                if matches!(incoming, Incoming::Event(_)) {
                    state.events -= 1;
                }
                return Ok(incoming);
            }
            if let Some(loss) = &state.loss {
                return Err(Missing::Lost(loss.clone()));
            }
            state = self.wait(state, until)?;
        }
    }

    /// Waits for credit, and takes up to so many bytes of it; none when the guest has answered, and
    /// takes no more.
    pub(super) fn credit(
        &self,
        wanted: usize,
        until: Option<Instant>,
    ) -> Result<Option<usize>, Missing> {
        let mut state = self.lock();
        loop {
            if state.done {
                return Ok(None);
            }
            if let Some(loss) = &state.loss {
                return Err(Missing::Lost(loss.clone()));
            }
            let taken = state.input.take(wanted);
            if taken > 0 {
                return Ok(Some(taken));
            }
            state = self.wait(state, until)?;
        }
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        until: Option<Instant>,
    ) -> Result<MutexGuard<'a, State>, Missing> {
        let Some(until) = until else {
            return Ok(self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner));
        };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Missing::Late);
        }
        let waited = self.changed.wait_timeout(state, left);
        Ok(waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Bytes of a stream were used: what to grant the guest, if it is time for that.
    pub(super) fn consumed(&self, stream: Stream, bytes: usize) -> Option<u32> {
        let mut state = self.lock();
        let receiving = state.receiving(stream)?;
        receiving.window.consume(bytes)
    }

    pub(super) fn is_done(&self) -> bool {
        self.lock().done
    }
}
