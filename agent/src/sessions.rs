//! The session of the host that is connected, with its requests.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use brood_agent_protocol::{
    AgentHello, Failure, FailureKind, HostHello, Received, RequestId, SessionId, ToGuest, ToHost,
    limits::{MAX_REQUESTS, VERSION},
};

use crate::{
    call::{Call, Interrupt},
    outbox::Outbox,
    process::Processes,
    serve,
    system::System,
    workers::Workers,
};

/// All that the agent knows.
pub(crate) struct Sessions {
    /// See [`AgentHello::instance`].
    pub(crate) instance: [u8; 16],
    /// See [`brood_agent_protocol::Ready`].
    pub(crate) nonce: [u8; 16],
    asked: AtomicU64,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) processes: Processes,
    pub(crate) system: System,
    pub(crate) workers: Arc<Workers>,
    session: Mutex<Session>,
}

#[derive(Debug, Default)]
struct Session {
    id: Option<SessionId>,
    calls: HashMap<RequestId, Arc<Call>>,
}

impl Sessions {
    pub(crate) fn new(random: [u8; 32]) -> Sessions {
        let (instance, nonce) = random.split_at(16);
        Sessions {
            instance: instance.try_into().expect("it is 16 bytes"),
            nonce: nonce.try_into().expect("it is 16 bytes"),
            asked: AtomicU64::new(0),
            outbox: Arc::default(),
            processes: Processes::default(),
            system: System::default(),
            workers: Arc::default(),
            session: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often readiness was asked for, with this time.
    pub(crate) fn count_ready(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Tells the host that this agent has just begun.
    pub(crate) fn announce(&self) {
        let started = ToHost::Started {
            instance: self.instance,
        };
        self.outbox.send(SessionId::NONE, RequestId::NONE, &started);
    }

    /// The host has gone.
    pub(crate) fn end(&self) {
        self.change(None);
    }

    fn change(&self, id: Option<SessionId>) {
        let calls = {
            let mut session = self.lock();
            session.id = id;
            std::mem::take(&mut session.calls)
        };
        self.outbox.set_session(id);
        for call in calls.into_values() {
            call.interrupt(Interrupt::Dropped);
        }
    }

    pub(crate) fn receive(self: &Arc<Sessions>, received: Received<ToGuest>) {
        let Received {
            session,
            request,
            message,
        } = received;
        if let Ok(ToGuest::Hello(hello)) = message {
            return self.hello(session, &hello);
        }
        if self.lock().id != Some(session) {
            return;
        }
        match message {
            Ok(ToGuest::Request(asked)) => {
                if let Some(call) = self.begin(session, request) {
                    serve::begin(self, &call, asked);
                }
            }
            Ok(ToGuest::Data(bytes)) => {
                if let Some(call) = self.call(request)
                    && call.push_input(bytes).is_err()
                {
                    call.interrupt(Interrupt::Cancelled);
                }
            }
            Ok(ToGuest::Credit(stream, bytes)) => {
                if let Some(call) = self.call(request)
                    && call.grant(stream, bytes).is_err()
                {
                    call.interrupt(Interrupt::Cancelled);
                }
            }
            Ok(ToGuest::Cancel) => {
                if let Some(call) = self.call(request) {
                    call.interrupt(Interrupt::Cancelled);
                }
            }
            Ok(ToGuest::Hello(_)) => unreachable!("it was taken above"),
            Err(unknown) => {
                // A number that is in use has a message that nobody knows: it is passed over.
                if let Some(call) = self.begin(session, request) {
                    let text = format!("the agent {}: {unknown}", env!("CARGO_PKG_VERSION"));
                    self.finish(&call, Err(Failure::new(FailureKind::Unsupported, text)));
                }
            }
        }
    }

    fn hello(&self, id: SessionId, hello: &HostHello) {
        if id == SessionId::NONE {
            return;
        }
        if !(hello.oldest..=hello.newest).contains(&VERSION) {
            self.outbox.set_session(Some(id));
            let refusal = ToHost::WrongVersion {
                oldest: VERSION,
                newest: VERSION,
            };
            self.outbox.send(id, RequestId::NONE, &refusal);
            return;
        }
        if self.lock().id != Some(id) {
            self.change(Some(id));
        }
        let answer = AgentHello {
            version: VERSION,
            instance: self.instance,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            system: std::env::consts::OS.to_owned(),
        };
        self.outbox
            .send(id, RequestId::NONE, &ToHost::Hello(answer));
    }

    fn call(&self, request: RequestId) -> Option<Arc<Call>> {
        self.lock().calls.get(&request).cloned()
    }

    /// Makes a call under this number; none where that is in use.
    fn begin(&self, id: SessionId, request: RequestId) -> Option<Arc<Call>> {
        let mut session = self.lock();
        if session.calls.contains_key(&request) || request == RequestId::NONE {
            return None;
        }
        let call = Arc::new(Call::new(id, request, Arc::clone(&self.outbox)));
        if session.calls.len() >= MAX_REQUESTS {
            drop(session);
            let text = format!("{MAX_REQUESTS} requests run already; wait for some to end");
            call.done(Err(Failure::new(FailureKind::Busy, text)));
            return None;
        }
        session.calls.insert(request, Arc::clone(&call));
        Some(call)
    }

    /// Answers a call and forgets it.
    pub(crate) fn finish(&self, call: &Arc<Call>, result: serve::Answer) {
        {
            let mut session = self.lock();
            if session.id == Some(call.session) {
                session.calls.remove(&call.request);
            }
        }
        call.done(result);
    }
}
