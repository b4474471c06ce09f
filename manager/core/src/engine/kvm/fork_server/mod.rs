//! The nursery, a fork server: `client` is the manager's side of it, `server` the process that guests
//! are forked from.

pub(crate) mod client;
pub(crate) mod oom;
mod orphans;
pub mod server;
pub(crate) mod shared_orders;
