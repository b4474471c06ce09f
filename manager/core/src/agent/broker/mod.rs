//! Broker of a guest's channel: many sessions over the one channel that an agent has.
//!
//! QEMU's socket and a serial line serve one host at a time. Whoever wants a session that lasts
//! starts a broker, which is a process of its own, unless the guest has one. Each client speaks the
//! agent's protocol with the broker as if it were the agent; the broker has one session with the
//! agent, and gives each request a number of its own in it.
//!
//! ```text
//! client ──┐
//! client ──┼─ socket ─▶ broker ── channel ─▶ agent in the guest
//! client ──┘
//! ```
//!
//! Windows of flow control are kept from end to end: what is granted by a client is granted to the
//! agent. The broker holds both to them, so that what it stores of a request is a window at most for
//! each stream. When a client hangs up, its requests are cancelled.

#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod port;
mod routes;
mod serve;

#[cfg(target_os = "linux")]
pub(crate) use port::Place;
pub use port::{Access, AgentPort};
pub use serve::BROKER_COMMAND;
pub(crate) use serve::{WORDS_BEFORE_GUEST, broker};
