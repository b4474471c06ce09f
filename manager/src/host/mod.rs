//! What this machine can hold: facts read once and passed down as values.
//!
//! [`facts::HostFacts::read`] is the only place that looks at the machine. Everything else here
//! takes `&HostFacts`, so that a test makes a host up.

pub mod cgroup;
pub mod facts;
pub mod folder;
pub mod kvm;
pub mod proc;
