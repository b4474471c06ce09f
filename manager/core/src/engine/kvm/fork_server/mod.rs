//! Fork server (the *nursery*): `client` is the manager's side of one, `nurseries` are those of a
//! session, `server` is the process that guests are forked from.

mod children;
pub(crate) mod client;
pub(crate) mod descriptors;
pub(crate) mod inheritance;
pub(crate) mod messages;
pub(crate) mod nurseries;
pub(crate) mod oom;
mod orphans;
mod program;
pub(crate) mod server;
pub(crate) mod shared_orders;
mod writers;
