//! Mass restore: from one checkpoint to many running guests.

pub mod admission;
pub mod cost;
mod disks;
pub mod job;
pub mod mass;
mod standing;

pub use standing::{Slot, Slots};
