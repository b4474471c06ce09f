//! Demo guest of the KVM engine: its code, its memory layout, and the requests that it answers.

mod boot;
mod checkpoint;
mod code;
pub mod layout;
mod mailbox;
mod port;
pub mod words;

pub(crate) use checkpoint::make_demo_checkpoint;
pub use mailbox::{DemoAnswer, Request};
pub(super) use port::DemoPort;

/// The kind of guest that it is.
pub(super) type Demo = super::guest::plan::PortGuest<DemoPort>;
