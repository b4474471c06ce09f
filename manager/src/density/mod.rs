//! Density: measurements of what guests cost, and the reports made of them.

pub mod noise;
#[cfg(feature = "plots")]
pub mod report;
pub mod run;
pub mod snapshot;
pub mod steady_state;
pub mod step;
