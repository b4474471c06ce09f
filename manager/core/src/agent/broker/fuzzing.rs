//! What fuzz targets need of this module's own functions.

use brood_agent_protocol::{RequestId, SessionId, ToGuest, ToHost, encode};

use super::routes::{ClientId, Routes};

/// What happens to a broker.
#[derive(Debug)]
pub enum BrokerStep<'a> {
    /// A client comes.
    Join,
    /// A client goes.
    Leave(u8),
    /// A client sends bytes.
    Client(u8, &'a [u8]),
    /// A client sends a message in its session.
    ClientSays(u8, u32, ToGuest),
    /// The guest sends bytes.
    Guest(&'a [u8]),
    /// The guest sends a message, in the session or in none.
    GuestSays(bool, u32, ToHost),
    /// All that waits is written, in parts.
    Write,
}

/// Number of the broker's session.
const SESSION: SessionId = SessionId(7);

/// Has a broker live through this. What it holds may not be more than what it was sent allows.
pub fn broker(steps: Vec<BrokerStep<'_>>) {
    let mut routes = Routes::new(SESSION);
    let mut clients: Vec<ClientId> = Vec::new();
    routes.greet();
    for step in steps {
        let chosen = |n: u8| clients.get(usize::from(n) % clients.len().max(1)).copied();
        match step {
            BrokerStep::Join => clients.push(routes.join()),
            BrokerStep::Leave(n) => {
                if let Some(id) = chosen(n) {
                    routes.leave(id);
                }
            }
            BrokerStep::Client(n, bytes) => {
                if let Some(id) = chosen(n)
                    && routes.take_from_client(id, bytes).is_err()
                {
                    routes.leave(id);
                }
            }
            BrokerStep::ClientSays(n, request, message) => {
                let mut frame = Vec::new();
                if let Some(id) = chosen(n)
                    && encode(SessionId(id), RequestId(request), &message, &mut frame).is_ok()
                    && routes.take_from_client(id, &frame).is_err()
                {
                    routes.leave(id);
                }
            }
            BrokerStep::Guest(bytes) => {
                if !heard(&mut routes, bytes) {
                    return;
                }
            }
            BrokerStep::GuestSays(known, request, message) => {
                let mut frame = Vec::new();
                let session = if known { SESSION } else { SessionId::NONE };
                if encode(session, RequestId(request), &message, &mut frame).is_ok()
                    && !heard(&mut routes, &frame)
                {
                    return;
                }
            }
            BrokerStep::Write => write(&mut routes, &clients),
        }
    }
}

/// Whether the session goes on after this.
fn heard(routes: &mut Routes, bytes: &[u8]) -> bool {
    let Ok(slow) = routes.take_from_guest(bytes) else {
        return false;
    };
    for client in slow {
        routes.leave(client);
    }
    true
}

fn write(routes: &mut Routes, clients: &[ClientId]) {
    let half = |waiting: usize| waiting.div_ceil(2);
    let out = routes.guest_outbox();
    out.advance(half(out.waiting().len()));
    for client in clients {
        if let Some(out) = routes.client_outbox(*client) {
            out.advance(half(out.waiting().len()));
        }
    }
}
