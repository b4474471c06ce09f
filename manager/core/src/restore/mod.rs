//! Mass restore: many running guests from one checkpoint.

pub mod cost;
mod disks;
pub mod job;
pub mod mass;
mod reserve;
mod run;
mod session_cache;

pub use session_cache::{SessionCache, Slot};
