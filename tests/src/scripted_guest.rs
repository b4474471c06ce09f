//! A guest by script: what a test lets it say, a hostile guest may say.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use brood_core::agent::{
    Agent, AgentError, Channel,
    protocol::{
        AgentHello, Decoder, Failure, Reply, Request, RequestId, SessionId, ToGuest, ToHost, encode,
    },
};

/// The guest's end of a channel.
#[derive(Debug)]
pub struct ScriptedGuest {
    /// Its bytes, for what is no message.
    pub stream: UnixStream,
    decoder: Decoder<ToGuest>,
    bytes: Vec<u8>,
    /// The session of the last message.
    pub session: SessionId,
}

/// The messages of the host, until that has gone.
impl Iterator for ScriptedGuest {
    type Item = (RequestId, ToGuest);

    fn next(&mut self) -> Option<(RequestId, ToGuest)> {
        loop {
            let mut rest = self.bytes.as_slice();
            let received = self.decoder.next(&mut rest);
            self.bytes = rest.to_vec();
            if let Some(received) = received {
                self.session = received.session;
                let message = received.message.expect("the host sends what it knows");
                return Some((received.request, message));
            }
            let mut piece = [0; 4096];
            let length = self.stream.read(&mut piece).unwrap_or(0);
            if length == 0 {
                return None;
            }
            self.bytes.extend_from_slice(&piece[..length]);
        }
    }
}

impl ScriptedGuest {
    /// A guest at the other end of this connection.
    #[must_use]
    pub fn over(stream: UnixStream) -> ScriptedGuest {
        ScriptedGuest {
            stream,
            decoder: Decoder::default(),
            bytes: Vec::new(),
            session: SessionId::NONE,
        }
    }

    /// The next request.
    ///
    /// # Panics
    /// When the host goes before.
    pub fn request(&mut self) -> (RequestId, Request) {
        loop {
            match self.next() {
                Some((id, ToGuest::Request(request))) => return (id, request),
                Some(_) => {}
                None => panic!("the host has gone"),
            }
        }
    }

    /// Waits until the host has gone.
    pub fn wait(self) {
        self.for_each(drop);
    }

    /// Says something in the session of the last message. The host may be gone.
    pub fn send(&mut self, request: RequestId, message: &ToHost) {
        self.send_in(self.session, request, message);
    }

    /// Says something in another session.
    ///
    /// # Panics
    /// When the message is too long.
    pub fn send_in(&mut self, session: SessionId, request: RequestId, message: &ToHost) {
        let mut frame = Vec::new();
        encode(session, request, message, &mut frame).unwrap();
        let _ = self.stream.write_all(&frame);
    }

    /// Answers a request.
    pub fn answer(&mut self, request: RequestId, answer: Result<Reply, Failure>) {
        self.send(request, &ToHost::Done(answer));
    }

    /// Waits for the host's hello, and answers it.
    pub fn greet(&mut self) {
        if self.any(|(_, message)| matches!(message, ToGuest::Hello(_))) {
            self.send(RequestId::NONE, &ToHost::Hello(hello(1)));
        }
    }
}

/// What an agent of this instance says of itself.
#[must_use]
pub fn hello(instance: u8) -> AgentHello {
    AgentHello {
        version: 1,
        instance: [instance; 16],
        agent: "scripted".to_owned(),
        system: "linux".to_owned(),
    }
}

/// A session with a guest that runs this script from the host's hello on.
///
/// # Errors
/// As [`Agent::over`].
///
/// # Panics
/// When this machine has no sockets.
pub fn session_with(
    limit: Duration,
    script: impl FnOnce(ScriptedGuest) + Send + 'static,
) -> Result<Agent, AgentError> {
    let (host, guest) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        script(ScriptedGuest::over(guest));
    });
    // A guest that takes nothing is told soon.
    host.set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let half = || host.try_clone().unwrap();
    let closer = half();
    let channel = Channel::new(half(), half(), move || {
        let _ = closer.shutdown(std::net::Shutdown::Both);
    });
    Ok(Agent::over(channel, limit)?.with_limit(limit))
}
