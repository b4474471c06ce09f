//! Host: this machine and its capacity, as facts that are read once and passed down as values.
//!
//! [`HostSource`] alone looks at the machine. Everything else here takes `&HostFacts`, so a test can
//! pass a host of its own.

pub mod admission;
pub mod boot;
pub mod cgroup;
pub mod doctor;
pub mod doctor_text;
#[cfg(test)]
pub(crate) mod examples;
pub mod facts;
pub mod folder;
pub mod freebsd;
pub mod jail;
pub mod kvm;
pub mod linux;
#[cfg(test)]
mod linux_tests;
pub mod plan;
pub mod plan_text;
pub mod proc;
pub mod sharing;
mod source;
#[cfg(test)]
mod tests;

pub use source::HostSource;
