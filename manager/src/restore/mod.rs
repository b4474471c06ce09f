//! Mass restore: from one checkpoint to many running guests.

pub mod admission;
pub mod cost;
mod disks;
pub mod job;
pub mod mass;
mod park;
mod reserve;
mod run;
mod standing;

pub use park::{ParkAfter, ParseParkAfterError};
pub use standing::{Slot, Slots};
