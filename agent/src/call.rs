//! Calls: one request each that runs, as its thread sees it.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use brood_agent_protocol::{
    CreditError, Event, Failure, FailureKind, ReceiveWindow, Reply, RequestId, SendWindow,
    SessionId, Stream, ToHost,
};

use crate::{
    outbox::{Outbox, Sent},
    wake::Waker,
};

/// Why a call shall end before its work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// The host cancelled it.
    Cancelled,
    /// Its session is over: nobody waits for it.
    Dropped,
}

impl From<Interrupt> for Failure {
    fn from(interrupt: Interrupt) -> Failure {
        let text = match interrupt {
            Interrupt::Cancelled => "the host cancelled it",
            Interrupt::Dropped => "the host has gone",
        };
        Failure::new(FailureKind::Cancelled, text)
    }
}

#[derive(Debug, Default)]
struct State {
    input: VecDeque<Vec<u8>>,
    input_ended: bool,
    received: ReceiveWindow,
    output: SendWindow,
    error: SendWindow,
    interrupt: Option<Interrupt>,
    /// Ends a `poll(2)` of the call's thread, where it has one.
    waker: Option<Arc<Waker>>,
}

impl State {
    fn window(&mut self, stream: Stream) -> &mut SendWindow {
        match stream {
            Stream::Error => &mut self.error,
            Stream::Input | Stream::Output => &mut self.output,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) session: SessionId,
    pub(crate) request: RequestId,
    outbox: Arc<Outbox>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Call {
    pub(crate) fn new(session: SessionId, request: RequestId, outbox: Arc<Outbox>) -> Call {
        Call {
            session,
            request,
            outbox,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, state: &State) {
        self.changed.notify_all();
        if let Some(waker) = &state.waker {
            waker.wake();
        }
    }

    // What the thread that reads the port does.

    /// Takes input; an empty piece ends it.
    pub(crate) fn push_input(&self, bytes: Vec<u8>) -> Result<(), CreditError> {
        let mut state = self.lock();
        state.received.receive(bytes.len())?;
        if bytes.is_empty() {
            state.input_ended = true;
        } else if !state.input_ended {
            state.input.push_back(bytes);
        }
        self.changed(&state);
        Ok(())
    }

    pub(crate) fn grant(&self, stream: Stream, bytes: u32) -> Result<(), CreditError> {
        let mut state = self.lock();
        state.window(stream).grant(bytes)?;
        self.changed(&state);
        Ok(())
    }

    pub(crate) fn interrupt(&self, interrupt: Interrupt) {
        let mut state = self.lock();
        state.interrupt = Some(interrupt);
        self.changed(&state);
    }

    // What the call's own thread does.

    pub(crate) fn set_waker(&self, waker: Arc<Waker>) {
        let mut state = self.lock();
        waker.wake();
        state.waker = Some(waker);
    }

    pub(crate) fn interrupted(&self) -> Option<Interrupt> {
        self.lock().interrupt
    }

    /// How much of a stream may be sent now.
    pub(crate) fn open(&self, stream: Stream) -> usize {
        self.lock().window(stream).open()
    }

    /// The next piece of input, if there is one; and whether no more comes after it.
    pub(crate) fn take_input(&self) -> (Option<Vec<u8>>, bool) {
        let mut state = self.lock();
        let piece = state.input.pop_front();
        (piece, state.input_ended && state.input.is_empty())
    }

    /// Waits for the next piece of input; none is its end.
    pub(crate) fn next_input(&self) -> Result<Option<Vec<u8>>, Interrupt> {
        let mut state = self.lock();
        loop {
            if let Some(interrupt) = state.interrupt {
                return Err(interrupt);
            }
            if let Some(piece) = state.input.pop_front() {
                return Ok(Some(piece));
            }
            if state.input_ended {
                return Ok(None);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Input has been used: lets the host send more.
    pub(crate) fn consumed_input(&self, bytes: usize) {
        let grant = self.lock().received.consume(bytes);
        if let Some(grant) = grant {
            self.send(&ToHost::Credit(grant));
        }
    }

    /// Sends all of this, and waits for the host to let it.
    pub(crate) fn send_all(&self, stream: Stream, mut bytes: &[u8]) -> Result<(), Interrupt> {
        while !bytes.is_empty() {
            let mut state = self.lock();
            let length = loop {
                if let Some(interrupt) = state.interrupt {
                    return Err(interrupt);
                }
                let length = state.window(stream).take(bytes.len());
                if length > 0 {
                    break length;
                }
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            let (piece, rest) = bytes.split_at(length);
            let message = ToHost::Data(stream, piece.to_vec());
            let sent = self
                .outbox
                .send_data(self.session, self.request, &message, None);
            if sent == Sent::Gone {
                return Err(Interrupt::Dropped);
            }
            bytes = rest;
        }
        Ok(())
    }

    /// Sends a piece that fits the window, where there is room until then.
    pub(crate) fn send_piece(&self, stream: Stream, bytes: &[u8], until: Option<Instant>) -> Sent {
        // Before it is sent: the host may grant it again at once.
        self.lock().window(stream).take(bytes.len());
        let message = ToHost::Data(stream, bytes.to_vec());
        let sent = self
            .outbox
            .send_data(self.session, self.request, &message, until);
        if sent != Sent::Yes {
            let unused = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let returned = self.lock().window(stream).grant(unused);
            debug_assert_eq!(returned, Ok(()), "it was taken above");
        }
        sent
    }

    /// Ends a stream. The host is told with the next that it is told, or by [`Call::push`].
    pub(crate) fn end_stream(&self, stream: Stream) {
        self.send_soon(&ToHost::Data(stream, Vec::new()));
    }

    /// Says that the request's program runs. The host is told as of the end of a stream.
    pub(crate) fn started(&self, pid: u32) {
        self.send_soon(&ToHost::Event(Event::Started { pid }));
    }

    /// Tells the host what it was to be told soon.
    pub(crate) fn push(&self) {
        self.outbox.push();
    }

    pub(crate) fn event(&self, event: Event) {
        self.send(&ToHost::Event(event));
    }

    /// Sends an event where there is room for it now.
    #[cfg(target_os = "linux")]
    pub(crate) fn try_event(&self, event: Event) -> Sent {
        let (message, now) = (ToHost::Event(event), Some(Instant::now()));
        self.outbox
            .send_data(self.session, self.request, &message, now)
    }

    pub(crate) fn done(&self, result: Result<Reply, Failure>) {
        self.send(&ToHost::Done(result));
    }

    fn send_soon(&self, message: &ToHost) {
        self.outbox.send_soon(self.session, self.request, message);
    }

    fn send(&self, message: &ToHost) {
        self.outbox.send(self.session, self.request, message);
    }
}
