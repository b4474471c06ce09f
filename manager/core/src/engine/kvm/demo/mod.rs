//! Demo guest of the KVM engine: its code, its memory layout, and the requests that it answers.

mod boot;
mod code;
pub mod layout;
mod mailbox;
pub mod words;

pub(super) use boot::boot;
pub use mailbox::{Answer, Request};
pub(super) use mailbox::{Clock, IdentityBlock, lay_down_identity, put_request, take_response};
