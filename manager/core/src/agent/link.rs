//! Links: a session over a channel, its reader, and its requests.

use std::{
    collections::HashMap,
    fmt,
    io::{ErrorKind, Read, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use brood_agent_protocol::{
    AgentHello, Decoder, Dropped, HostHello, Received, Request, RequestId, SessionId, ToGuest,
    ToHost, encode, limits::VERSION,
};

use super::{AgentError, Channel, Loss, asked::Asked, channel::WRITE_LIMIT, request::Pending};

/// When a hello is sent again that nobody has answered yet: after this time, and then after twice
/// the time each, up to the longest.
pub(super) const HELLO_INTERVAL: Duration = Duration::from_millis(10);
pub(super) const LONGEST_HELLO_INTERVAL: Duration = Duration::from_millis(160);

#[derive(Default)]
struct State {
    last: u32,
    pending: HashMap<RequestId, Arc<Pending>>,
    hello: Option<Result<AgentHello, (u16, u16)>>,
    loss: Option<Loss>,
}

/// What the reader and the users of a session share.
struct Link {
    session: SessionId,
    writer: Mutex<Box<dyn Write + Send>>,
    state: Mutex<State>,
    changed: Condvar,
    close: Box<dyn Fn() + Send + Sync>,
}

/// A session; it ends when this is dropped.
pub(super) struct Connection(Arc<Link>);

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connection").field(&self.0.session).finish()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The reader ends by that.
        (self.0.close)();
    }
}

impl Connection {
    /// Begins a session, and waits for the agent to answer, as long as that is `wanted`.
    pub(super) fn begin(
        channel: Channel,
        limit: Duration,
        wanted: &dyn Fn() -> bool,
    ) -> Result<(Connection, AgentHello), AgentError> {
        let local = |what| move |source| AgentError::Local { what, source };
        let mut number = [0; 8];
        let drawn = getrandom::fill(&mut number).map_err(std::io::Error::other);
        drawn.map_err(local("draw a random number"))?;
        let Channel {
            mut reader,
            writer,
            close,
            lossless,
        } = channel;
        let interval = match lossless {
            true => LONGEST_HELLO_INTERVAL,
            false => HELLO_INTERVAL,
        };
        let link = Arc::new(Link {
            // 0 is no session.
            session: SessionId(u64::from_le_bytes(number) | 1),
            writer: Mutex::new(writer),
            state: Mutex::default(),
            changed: Condvar::new(),
            close,
        });
        let connection = Connection(Arc::clone(&link));
        let thread = thread::Builder::new().name("agent".into());
        let started = thread.stack_size(256 * 1024).spawn(move || {
            let loss = link.read(&mut *reader);
            link.lose(&loss);
        });
        started.map_err(local("start a thread"))?;
        let hello = connection.0.hello(limit, interval, wanted)?;
        Ok((connection, hello))
    }

    pub(super) fn send(&self, id: RequestId, message: &ToGuest) -> Result<(), SendError> {
        self.0.send(id, message)
    }

    /// What comes for this request from now on is for nobody.
    pub(super) fn forget(&self, id: RequestId) {
        self.0.lock().pending.remove(&id);
    }

    pub(super) fn loss(&self) -> Option<Loss> {
        self.0.lock().loss.clone()
    }

    /// Begins a request. `what` is for errors: a verb and its object.
    pub(super) fn ask(
        self: &Arc<Connection>,
        what: &'static str,
        request: Request,
    ) -> Result<Asked, AgentError> {
        let pending = Arc::new(Pending::default());
        let id = {
            let mut state = self.0.lock();
            if let Some(loss) = state.loss.clone() {
                return Err(AgentError::Lost { what, loss });
            }
            // After four thousand million requests of one session the numbers begin again.
            state.last = state.last.checked_add(1).unwrap_or(1);
            let id = RequestId(state.last);
            state.pending.insert(id, Arc::clone(&pending));
            id
        };
        let asked = Asked::new(self, id, what, pending);
        asked.send(&ToGuest::Request(request))?;
        Ok(asked)
    }
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, loss: &Loss) {
        let pending = {
            let mut state = self.lock();
            state.loss.get_or_insert(loss.clone());
            std::mem::take(&mut state.pending)
        };
        for pending in pending.into_values() {
            pending.lose(loss.clone());
        }
        self.changed.notify_all();
        (self.close)();
    }

    /// Sends a message whole, or the session is over: half a frame would be taken for garbage.
    fn send(&self, id: RequestId, message: &ToGuest) -> Result<(), SendError> {
        let mut frame = Vec::new();
        let encoded = encode(self.session, id, message, &mut frame);
        encoded.map_err(|e| SendError::Unsendable(e.to_string()))?;
        let written = {
            let writer = self.writer.lock();
            let mut writer = writer.unwrap_or_else(PoisonError::into_inner);
            writer.write_all(&frame).and_then(|()| writer.flush())
        };
        written.map_err(|e| {
            let loss = match e.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Loss::Stuck(WRITE_LIMIT),
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Loss::Closed,
                _ => Loss::Io(e.to_string()),
            };
            self.lose(&loss);
            // What was found first counts.
            SendError::Lost(self.lock().loss.clone().unwrap_or(Loss::Closed))
        })
    }

    fn hello(
        &self,
        limit: Duration,
        first: Duration,
        wanted: &dyn Fn() -> bool,
    ) -> Result<AgentHello, AgentError> {
        let what = "say hello";
        let until = Instant::now() + limit;
        let hello = ToGuest::Hello(HostHello {
            oldest: VERSION,
            newest: VERSION,
        });
        let mut interval = first;
        loop {
            match self.send(RequestId::NONE, &hello) {
                Ok(()) => {}
                Err(SendError::Lost(loss)) => return Err(AgentError::Lost { what, loss }),
                Err(SendError::Unsendable(reason)) => {
                    return Err(AgentError::Unsendable { what, reason });
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            let waits = |state: &mut State| state.hello.is_none() && state.loss.is_none();
            let waited = self
                .changed
                .wait_timeout_while(self.lock(), left.min(interval), waits);
            let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            match state.hello.clone() {
                Some(Ok(hello)) => return Ok(hello),
                Some(Err((oldest, newest))) => return Err(AgentError::Version { oldest, newest }),
                None => {}
            }
            if let Some(loss) = state.loss.clone() {
                return Err(AgentError::Lost { what, loss });
            }
            if left.is_zero() || !wanted() {
                return Err(AgentError::NoAnswer { what, limit });
            }
            interval = (interval * 2).min(LONGEST_HELLO_INTERVAL);
        }
    }

    /// Reads until the session is over; why it is.
    fn read(&self, reader: &mut dyn Read) -> Loss {
        let mut decoder = Decoder::<ToHost>::default();
        let mut useless = Useless::default();
        let mut bytes = vec![0; 64 * 1024];
        loop {
            let length = match reader.read(&mut bytes) {
                Ok(0) => return Loss::Closed,
                Ok(length) => length,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Loss::Closed,
                Err(e) => return Loss::Io(e.to_string()),
            };
            let mut rest = &bytes[..length];
            while let Some(received) = decoder.next(&mut rest) {
                match self.receive(received) {
                    Ok(true) => useless = Useless::after(&decoder),
                    Ok(false) => useless.count(),
                    Err(loss) => return loss,
                }
            }
            if useless.is_too_much(&decoder) {
                return Useless::loss();
            }
        }
    }

    /// Whether the message was about a request.
    fn receive(&self, received: Received<ToHost>) -> Result<bool, Loss> {
        // A message that this version does not know is passed over.
        let Ok(message) = received.message else {
            return Ok(false);
        };
        if let (SessionId::NONE, ToHost::Started { instance }) = (received.session, &message) {
            let state = self.lock();
            let known = state.hello.as_ref().and_then(|hello| hello.as_ref().ok());
            return match known {
                Some(known) if known.instance != *instance => Err(Loss::Restarted),
                _ => Ok(false),
            };
        }
        if received.session != self.session {
            return Ok(false);
        }
        match message {
            ToHost::Hello(hello) => {
                self.answered(Ok(hello))?;
                return Ok(false);
            }
            ToHost::WrongVersion { oldest, newest } => {
                self.answered(Err((oldest, newest)))?;
                return Ok(false);
            }
            _ => {}
        }
        // Answers to a request that was given up are passed over.
        let pending = self.lock().pending.get(&received.request).cloned();
        let Some(pending) = pending else {
            return Ok(false);
        };
        let kept = match message {
            ToHost::Event(event) => pending.event(event),
            ToHost::Data(stream, bytes) => pending.data(stream, bytes),
            ToHost::Credit(bytes) => pending.grant(bytes).map_err(|e| e.to_string()),
            ToHost::Done(result) => pending.done(result),
            ToHost::Hello(_) | ToHost::WrongVersion { .. } | ToHost::Started { .. } => Ok(()),
        };
        kept.map(|()| true).map_err(Loss::Violation)
    }

    fn answered(&self, answer: Result<AgentHello, (u16, u16)>) -> Result<(), Loss> {
        let mut state = self.lock();
        let known = state.hello.as_ref().and_then(|hello| hello.as_ref().ok());
        if let (Some(known), Ok(new)) = (known, &answer)
            && known.instance != new.instance
        {
            return Err(Loss::Restarted);
        }
        state.hello.get_or_insert(answer);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }
}

/// What came since the last message about a request.
#[derive(Default)]
pub(super) struct Useless {
    frames: u64,
    /// What the decoder had dropped at that time.
    before: Dropped,
}

impl Useless {
    /// More than what a guest can have had in its buffers when the session began.
    const MAX_FRAMES: u64 = 16 * 1024;
    const MAX_GARBAGE: u64 = 16 << 20;

    pub(super) fn after(decoder: &Decoder<ToHost>) -> Useless {
        let before = decoder.dropped();
        Useless { frames: 0, before }
    }

    /// A frame came that is about no request.
    pub(super) fn count(&mut self) {
        self.frames += 1;
    }

    pub(super) fn loss() -> Loss {
        Loss::Violation("it sends nothing of use, without end".to_owned())
    }

    pub(super) fn is_too_much(&self, decoder: &Decoder<ToHost>) -> bool {
        let now = decoder.dropped();
        let frames = self.frames + now.echoes - self.before.echoes;
        frames > Self::MAX_FRAMES || now.garbage - self.before.garbage > Self::MAX_GARBAGE
    }
}

pub(super) enum SendError {
    Lost(Loss),
    Unsendable(String),
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_hello_is_not_repeated_where_nothing_is_lost() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let channel = Channel::over(ours).unwrap().lossless();
        // Shorter than the longest interval.
        let refused = Connection::begin(channel, Duration::from_millis(100), &|| true);
        assert!(matches!(refused, Err(AgentError::NoAnswer { .. })));
        let mut said = Vec::new();
        guest.read_to_end(&mut said).unwrap();
        let mut decoder = Decoder::<ToGuest>::default();
        let mut rest = &said[..];
        let hellos = std::iter::from_fn(|| decoder.next(&mut rest));
        // One at the beginning, and a last one.
        assert_eq!(hellos.count(), 2);
    }
}
