//! Routes of messages between clients and the agent, without I/O.

use std::collections::{BTreeMap, HashMap};

use brood_agent_protocol::{
    AgentHello, Decoder, Failure, FailureKind, HostHello, Received, Request, RequestId, SendWindow,
    SessionId, Stream, ToGuest, ToHost, encode, limits::VERSION,
};

use crate::agent::{Loss, link::Useless};

/// Most that waits for a client that reads nothing. Honest streams stay far below: they wait for
/// the client's credit.
const CLIENT_MAX: usize = 64 << 20;

/// Number of a client.
pub(super) type ClientId = u64;

/// A client broke the rules of the protocol, or does not take what it is sent: it is dropped.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// Bytes that wait to be written.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    written: usize,
}

impl Outbox {
    pub(super) fn waiting(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    /// So many more were written.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.written += bytes;
        if self.written == self.bytes.len() {
            self.bytes.clear();
            self.written = 0;
            // One that was full once need not stay as large.
            self.bytes.shrink_to(256 * 1024);
        } else if self.written > 1 << 20 {
            drop(self.bytes.drain(..self.written));
            self.written = 0;
        }
    }

    fn put<M: brood_agent_protocol::Message>(
        &mut self,
        session: SessionId,
        id: RequestId,
        message: &M,
    ) {
        // It was decoded from a frame, or is short: it fits.
        let _ = encode(session, id, message, &mut self.bytes);
    }
}

/// A client.
#[derive(Debug, Default)]
struct Client {
    decoder: Decoder<ToGuest>,
    out: Outbox,
    /// Its session, once it has said hello.
    session: Option<SessionId>,
    /// Its requests that are not answered yet: its own number, and ours.
    requests: HashMap<RequestId, RequestId>,
}

/// A request that was put to the agent.
#[derive(Debug)]
struct Route {
    /// Whose it is, under which number; none when the client has gone.
    client: Option<(ClientId, RequestId)>,
    /// A program that is to outlive its session.
    kept: bool,
    /// What either end may send, as the other has granted it.
    input: SendWindow,
    output: SendWindow,
    error: SendWindow,
}

/// Clients, requests, and the session with the agent.
pub(super) struct Routes {
    session: SessionId,
    agent: Option<Result<AgentHello, (u16, u16)>>,
    decoder: Decoder<ToHost>,
    useless: Useless,
    to_guest: Outbox,
    last_client: ClientId,
    last_request: u32,
    clients: BTreeMap<ClientId, Client>,
    requests: HashMap<RequestId, Route>,
}

impl Routes {
    pub(super) fn new(session: SessionId) -> Routes {
        Routes {
            session,
            agent: None,
            decoder: Decoder::default(),
            useless: Useless::default(),
            to_guest: Outbox::default(),
            last_client: 0,
            last_request: 0,
            clients: BTreeMap::new(),
            requests: HashMap::new(),
        }
    }

    pub(super) fn guest_outbox(&mut self) -> &mut Outbox {
        &mut self.to_guest
    }

    /// What waits for a client.
    pub(super) fn client_outbox(&mut self, client: ClientId) -> Option<&mut Outbox> {
        Some(&mut self.clients.get_mut(&client)?.out)
    }

    /// Whether the agent has answered the hello.
    pub(super) fn is_greeted(&self) -> bool {
        self.agent.is_some()
    }

    /// Says hello to the agent.
    pub(super) fn greet(&mut self) {
        let hello = ToGuest::Hello(HostHello {
            oldest: VERSION,
            newest: VERSION,
        });
        self.to_guest.put(self.session, RequestId::NONE, &hello);
    }

    /// A client has come.
    pub(super) fn join(&mut self) -> ClientId {
        self.last_client += 1;
        self.clients.insert(self.last_client, Client::default());
        self.last_client
    }

    /// A client has gone: its requests are cancelled.
    pub(super) fn leave(&mut self, client: ClientId) {
        let Some(client) = self.clients.remove(&client) else {
            return;
        };
        for id in client.requests.into_values() {
            let Some(route) = self.requests.get_mut(&id) else {
                continue;
            };
            route.client = None;
            if !route.kept {
                self.to_guest.put(self.session, id, &ToGuest::Cancel);
            }
        }
    }

    /// Takes what a client has sent.
    pub(super) fn take_from_client(
        &mut self,
        id: ClientId,
        mut bytes: &[u8],
    ) -> Result<(), Broken> {
        loop {
            let client = self.clients.get_mut(&id).ok_or(Broken)?;
            let Some(received) = client.decoder.next(&mut bytes) else {
                return Ok(());
            };
            self.client_says(id, received)?;
        }
    }

    fn client_says(&mut self, id: ClientId, received: Received<ToGuest>) -> Result<(), Broken> {
        let client = self.clients.get_mut(&id).ok_or(Broken)?;
        let Received {
            session,
            request,
            message,
        } = received;
        if let Ok(ToGuest::Hello(hello)) = &message {
            if !(hello.oldest..=hello.newest).contains(&VERSION) {
                let refusal = ToHost::WrongVersion {
                    oldest: VERSION,
                    newest: VERSION,
                };
                client.out.put(session, RequestId::NONE, &refusal);
                return Ok(());
            }
            if *client.session.get_or_insert(session) != session {
                return Err(Broken);
            }
            self.answer_hello(id);
            return Ok(());
        }
        if client.session != Some(session) {
            return Err(Broken);
        }
        let Ok(message) = message else {
            let text = "the broker of the guest's channel is of an older brood; try again later";
            let failed = Err(Failure::new(FailureKind::Unsupported, text));
            client.out.put(session, request, &ToHost::Done(failed));
            return Ok(());
        };
        if let ToGuest::Request(asked) = message {
            return self.client_asks(id, request, asked);
        }
        // One that the agent has answered meanwhile.
        let Some(&ours) = client.requests.get(&request) else {
            return Ok(());
        };
        let route = self.requests.get_mut(&ours).ok_or(Broken)?;
        match &message {
            ToGuest::Data(bytes) if route.input.take(bytes.len()) < bytes.len() => {
                return Err(Broken);
            }
            ToGuest::Credit(Stream::Input, _) => return Err(Broken),
            ToGuest::Credit(Stream::Output, more) => {
                route.output.grant(*more).map_err(|_| Broken)?;
            }
            ToGuest::Credit(Stream::Error, more) => {
                route.error.grant(*more).map_err(|_| Broken)?;
            }
            _ => {}
        }
        self.to_guest.put(self.session, ours, &message);
        Ok(())
    }

    /// Passes a client's request on, under a number of the broker's own.
    fn client_asks(
        &mut self,
        id: ClientId,
        request: RequestId,
        mut asked: Request,
    ) -> Result<(), Broken> {
        let ours = self.number();
        let client = self.clients.get_mut(&id).ok_or(Broken)?;
        if client.requests.contains_key(&request) {
            return Err(Broken);
        }
        if let Request::Signal { exec, .. } | Request::Resize { exec, .. } = &mut asked {
            // The agent knows no request 0, and says so.
            let signalled = client.requests.get(&RequestId(*exec));
            *exec = signalled.map_or(0, |ours| ours.0);
        }
        let kept = matches!(
            &asked,
            Request::Exec(exec) | Request::RunImage(exec) if exec.keep
        );
        client.requests.insert(request, ours);
        let route = Route {
            client: Some((id, request)),
            kept,
            input: SendWindow::default(),
            output: SendWindow::default(),
            error: SendWindow::default(),
        };
        self.requests.insert(ours, route);
        self.to_guest
            .put(self.session, ours, &ToGuest::Request(asked));
        Ok(())
    }

    /// A number that no request has.
    fn number(&mut self) -> RequestId {
        loop {
            self.last_request = self.last_request.checked_add(1).unwrap_or(1);
            let id = RequestId(self.last_request);
            if !self.requests.contains_key(&id) {
                return id;
            }
        }
    }

    /// Answers a client's hello, when the agent has answered ours.
    fn answer_hello(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let (Some(session), Some(agent)) = (client.session, &self.agent) else {
            return;
        };
        let answer = match agent.clone() {
            Ok(hello) => ToHost::Hello(hello),
            Err((oldest, newest)) => ToHost::WrongVersion { oldest, newest },
        };
        client.out.put(session, RequestId::NONE, &answer);
    }

    /// Takes what the guest has sent. Returns clients that take too little of it.
    ///
    /// # Errors
    /// The session with the agent is over.
    pub(super) fn take_from_guest(&mut self, mut bytes: &[u8]) -> Result<Vec<ClientId>, Loss> {
        let mut slow = Vec::new();
        while let Some(received) = self.decoder.next(&mut bytes) {
            match self.guest_says(received)? {
                Said::Useful(client) => {
                    self.useless = Useless::after(&self.decoder);
                    slow.extend(client);
                }
                Said::Useless => self.useless.count(),
            }
        }
        if self.useless.is_too_much(&self.decoder) {
            return Err(Useless::loss());
        }
        Ok(slow)
    }

    fn guest_says(&mut self, received: Received<ToHost>) -> Result<Said, Loss> {
        let Ok(message) = received.message else {
            return Ok(Said::Useless);
        };
        if let (SessionId::NONE, ToHost::Started { instance }) = (received.session, &message) {
            return match &self.agent {
                Some(Ok(known)) if known.instance != *instance => {
                    // All that they have asked is lost.
                    for client in self.clients.values_mut() {
                        client.out.put(SessionId::NONE, RequestId::NONE, &message);
                    }
                    Err(Loss::Restarted)
                }
                _ => Ok(Said::Useless),
            };
        }
        if received.session != self.session {
            return Ok(Said::Useless);
        }
        let answered = match message {
            ToHost::Hello(hello) => Ok(hello),
            ToHost::WrongVersion { oldest, newest } => Err((oldest, newest)),
            message => return self.answers(received.request, &message),
        };
        if self.agent.is_some() {
            return Ok(Said::Useless);
        }
        self.agent = Some(answered);
        let clients: Vec<_> = self.clients.keys().copied().collect();
        for client in clients {
            self.answer_hello(client);
        }
        Ok(Said::Useful(None))
    }

    /// The guest says something about a request.
    fn answers(&mut self, id: RequestId, message: &ToHost) -> Result<Said, Loss> {
        let Some(route) = self.requests.get_mut(&id) else {
            return Ok(Said::Useless);
        };
        let violation = |text: &str| Err(Loss::Violation(text.to_owned()));
        match message {
            ToHost::Data(stream, bytes) => {
                let window = match stream {
                    Stream::Input => return violation("data of the host's own stream"),
                    Stream::Output => &mut route.output,
                    Stream::Error => &mut route.error,
                };
                if window.take(bytes.len()) < bytes.len() {
                    return violation("more of a stream than it was granted");
                }
                if route.client.is_none() && route.kept {
                    // Nobody reads it: it is thrown away, and the program goes on.
                    let more = u32::try_from(bytes.len()).unwrap_or(0);
                    let granted = window.grant(more);
                    granted.map_err(|e| Loss::Violation(e.to_string()))?;
                    let credit = ToGuest::Credit(*stream, more);
                    self.to_guest.put(self.session, id, &credit);
                }
            }
            ToHost::Credit(bytes) => {
                let granted = route.input.grant(*bytes);
                granted.map_err(|e| Loss::Violation(e.to_string()))?;
            }
            _ => {}
        }
        let owner = route.client;
        let is_done = matches!(message, ToHost::Done(_));
        if is_done {
            self.requests.remove(&id);
        }
        let Some((owner, theirs)) = owner else {
            return Ok(Said::Useful(None));
        };
        let Some(client) = self.clients.get_mut(&owner) else {
            return Ok(Said::Useful(None));
        };
        if is_done {
            client.requests.remove(&theirs);
        }
        if let Some(session) = client.session {
            client.out.put(session, theirs, message);
        }
        let slow = client.out.waiting().len() > CLIENT_MAX;
        Ok(Said::Useful(slow.then_some(owner)))
    }
}

/// What a message of the guest was.
enum Said {
    /// About a request; and the client that has taken too little of what it was sent, if it has.
    Useful(Option<ClientId>),
    Useless,
}
