//! Connections of clients: how many are open at once, how long one may be idle, and which one the
//! daemon closes to make room.
//!
//! The socket and the port have budgets of their own: any user of this machine can open the port,
//! and must not keep the socket's owner out. When all connections of a budget are taken, the one
//! that has been idle for longest makes room, and clients that have shown the token come last. The
//! daemon closes no connection with an open request to make room, unless its client does not read a
//! large answer.

mod bodies;
mod budget;
mod connection;
mod room;
mod stalls;
mod upgrade;

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{http::StatusCode, serve::Listener};
use tokio::sync::{Notify, watch};

pub(super) use budget::Budget;
use connection::ConnectionGuard;
pub(super) use room::body_length;
pub(super) use upgrade::Upgraded;

use super::{
    door::Site,
    metrics::{DoorMetrics, Metrics},
    problem::Problem,
};

/// How long a client may take to send the head of a request, from the last answer on: over the
/// port, which strangers may open, and over the socket.
const IDLE_ON_PORT: Duration = Duration::from_secs(30);
const IDLE_ON_SOCKET: Duration = Duration::from_secs(120);

/// The way in which clients come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entrance {
    /// The socket, or a guest's own one.
    Socket,
    /// The port.
    Port,
}

impl Entrance {
    /// In words.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Port => "port",
        }
    }
}

/// Clients that came the same way, and how many there may be.
#[derive(Debug)]
pub(super) struct Clients {
    by: Entrance,
    connections_max: usize,
    /// How long each may be idle.
    idle: Duration,
    all: Mutex<Vec<Arc<Client>>>,
    /// Told when a connection has ended.
    left: Notify,
    streams: AtomicUsize,
    websockets: AtomicUsize,
    room: room::Room,
    metrics: DoorMetrics,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Client {
    of: Arc<Clients>,
    /// Requests being answered, their bodies included.
    answering: AtomicUsize,
    /// Whether a part of the body of its request is still to come.
    sending: AtomicBool,
    /// Whether it is the owner's, or has shown the token.
    known: AtomicBool,
    idle_since: Mutex<Instant>,
    /// Large answers that it has not read to their ends.
    large_answers: AtomicUsize,
    /// Since when it has read nothing of what is there for it.
    stalled_since: Mutex<Option<Instant>>,
    /// Told when it is to make room.
    make_room: Notify,
    /// What goes on over it in another protocol.
    upgrades: upgrade::Upgrades,
}

impl Clients {
    /// Those of the socket.
    pub(super) fn of_socket(budget: &Budget, metrics: &Metrics) -> Arc<Self> {
        let metrics = metrics.of_door(Entrance::Socket.name(), budget.socket);
        Self::new(Entrance::Socket, budget.socket, IDLE_ON_SOCKET, metrics)
    }

    /// Those of the port.
    pub(super) fn of_port(budget: &Budget, metrics: &Metrics) -> Arc<Self> {
        let metrics = metrics.of_door(Entrance::Port.name(), budget.port);
        Self::new(Entrance::Port, budget.port, IDLE_ON_PORT, metrics)
    }

    fn new(
        by: Entrance,
        connections_max: usize,
        idle: Duration,
        metrics: DoorMetrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            by,
            connections_max,
            idle,
            all: Mutex::default(),
            left: Notify::new(),
            streams: AtomicUsize::new(0),
            websockets: AtomicUsize::new(0),
            room: room::Room::new(connections_max),
            metrics,
        })
    }

    fn all(&self) -> MutexGuard<'_, Vec<Arc<Client>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a connection if there is room; else asks the one that can best be spared to close.
    pub(super) fn try_enter(self: &Arc<Self>) -> Option<ConnectionGuard> {
        let mut all = self.all();
        if all.len() < self.connections_max {
            let client = Arc::new(Client {
                of: Arc::clone(self),
                answering: AtomicUsize::new(0),
                sending: AtomicBool::new(false),
                // Who comes over the port must show the token first.
                known: AtomicBool::new(self.by == Entrance::Socket),
                idle_since: Mutex::new(Instant::now()),
                large_answers: AtomicUsize::new(0),
                stalled_since: Mutex::default(),
                make_room: Notify::new(),
                upgrades: upgrade::Upgrades::default(),
            });
            all.push(Arc::clone(&client));
            self.metrics.connections.inc();
            return Some(ConnectionGuard(client));
        }
        let idle = all.iter().filter(|client| client.can_be_spared());
        if let Some(spared) =
            idle.min_by_key(|client| (client.known.load(Ordering::Relaxed), client.idle_since()))
        {
            spared.make_room.notify_one();
        }
        None
    }

    /// Admits a connection as soon as there is room.
    async fn enter(self: &Arc<Self>) -> ConnectionGuard {
        loop {
            let left = self.left.notified();
            if let Some(entered) = self.try_enter() {
                return entered;
            }
            left.await;
        }
    }

    /// Serves all clients until `stop`; then it still accepts those who came before.
    pub(super) async fn serve<L>(
        self: Arc<Self>,
        mut listener: L,
        site: Site,
        draining: watch::Receiver<bool>,
        stop: impl Future<Output = ()> + Send,
    ) where
        L: Listener,
    {
        // Once for all connections: it is the size of all routes.
        let site = Site {
            router: site.router.with_state(()),
            ..site
        };
        let mut stop = pin!(stop);
        let mut served = tokio::task::JoinSet::new();
        loop {
            let stream = tokio::select! {
                biased;
                (stream, _) = listener.accept() => stream,
                () = &mut stop => break,
            };
            let entered = tokio::select! {
                entered = self.enter() => entered,
                () = &mut stop => break,
            };
            served.spawn(entered.serve(stream, site.clone(), draining.clone()));
            while served.try_join_next().is_some() {}
        }
        drop(listener);
        while served.join_next().await.is_some() {}
    }
}

impl Client {
    fn is_idle(&self) -> bool {
        self.answering.load(Ordering::Relaxed) == 0
    }

    /// Whether it may be closed for another: it asks for nothing, or does not read its answer.
    fn can_be_spared(&self) -> bool {
        self.is_idle() || self.stalled_since().is_some()
    }

    fn is_sending(&self) -> bool {
        self.sending.load(Ordering::Relaxed)
    }

    fn idle_since(&self) -> Instant {
        *self
            .idle_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// It has shown the token.
    pub(super) fn is_known(&self) {
        self.known.store(true, Ordering::Relaxed);
    }

    /// Counts the client as a listener of the event stream until the result is dropped. Half of the
    /// connections are reserved for other requests.
    pub(super) fn listens(&self) -> Result<Listens, Problem> {
        let most = self.of.connections_max.div_ceil(2);
        if self.of.streams.fetch_add(1, Ordering::Relaxed) < most {
            self.of.metrics.event_streams.inc();
            return Ok(Listens(Arc::clone(&self.of)));
        }
        self.of.streams.fetch_sub(1, Ordering::Relaxed);
        self.of.metrics.event_streams_refused.inc();
        let detail = format!(
            "{most} event streams are open over the {}",
            self.of.by.name()
        );
        let problem = Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too-many-listeners",
            detail,
        );
        Err(problem.with_hint(
            "close some, or start the daemon with a higher limit of open files: ulimit -n",
        ))
    }
}

/// An event stream that is open.
#[derive(Debug)]
pub(super) struct Listens(Arc<Clients>);

impl Drop for Listens {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.event_streams.dec();
    }
}

/// A request that is being answered until this is dropped.
struct RequestGuard(Arc<Client>);

impl RequestGuard {
    fn begin(client: &Arc<Client>) -> Self {
        client.answering.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(client))
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let mut since = self
            .0
            .idle_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *since = Instant::now();
        self.0.answering.fetch_sub(1, Ordering::Relaxed);
        // A new client may be waiting for a connection that can be spared.
        self.0.of.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stranger_who_was_idle_longest_makes_room() {
        let clients = Clients::new(Entrance::Port, 3, IDLE_ON_PORT, DoorMetrics::default());
        let known = clients.try_enter().unwrap();
        known.0.is_known();
        let first = clients.try_enter().unwrap();
        let second = clients.try_enter().unwrap();
        let told = |client: &ConnectionGuard| {
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            pin!(client.0.make_room.notified())
                .poll(&mut context)
                .is_ready()
        };
        assert!(clients.try_enter().is_none());
        assert!(told(&first) && !told(&second) && !told(&known));
        // One that is answered is spared.
        let answering = RequestGuard::begin(&first.0);
        assert!(clients.try_enter().is_none());
        assert!(told(&second) && !told(&first) && !told(&known));
        drop(second);
        let third = clients.try_enter().unwrap();
        let busy = RequestGuard::begin(&third.0);
        // Only now one who has shown the token.
        assert!(clients.try_enter().is_none());
        assert!(told(&known));
        drop((answering, busy));
        assert_eq!(clients.all().len(), 3);
        assert_eq!(clients.metrics.connections.get(), 3);
        drop((known, first, third));
        assert_eq!(clients.metrics.connections.get(), 0);
    }

    #[test]
    fn event_streams_leave_room_for_requests() {
        let clients = Clients::new(Entrance::Socket, 4, IDLE_ON_SOCKET, DoorMetrics::default());
        let client = clients.try_enter().unwrap();
        let first = client.0.listens().unwrap();
        let second = client.0.listens().unwrap();
        let refused = client.0.listens().unwrap_err();
        assert_eq!(refused.status, 503);
        let metrics = &clients.metrics;
        assert_eq!(metrics.event_streams.get(), 2);
        assert_eq!(metrics.event_streams_refused.get(), 1);
        drop(first);
        drop((client.0.listens().unwrap(), second));
        assert_eq!(metrics.event_streams.get(), 0);
    }
}
