//! Density: measurements and the reports made of them.

pub mod noise;
pub mod report;
pub mod run;
pub mod settle;
pub mod snapshot;
pub mod step;
