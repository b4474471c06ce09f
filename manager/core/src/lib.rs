//! The core of brood: restores hundreds to thousands of microVMs from one memory checkpoint.
//!
//! Each module is one idea, and imports run one way through them, from left to right:
//!
//! ```text
//! pool ──▶ restore ──▶ guests ──▶ state ──▶ engine ──▶ guest process
//!            │                                │
//!            │                                ├─▶ agent      (the program in a guest)
//!            │                                ├─▶ disk       (clones and snapshots)
//!            └─▶ host                         └─▶ checkpoint (what guests are restored from)
//!                (facts, limits, admission)
//! ```
//!
//! The crate knows no command line, no HTTP, no terminal and no asynchronous runtime: those are the
//! crate `brood`.

// Both panic when their output cannot be written, and the core has no business to print.
#![deny(clippy::print_stderr, clippy::print_stdout)]

pub mod agent;
pub mod checkpoint;
pub mod directory;
pub mod disk;
pub mod engine;
pub mod escaped;
pub mod faults;
pub mod full_disk;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod guest_id;
pub mod guests;
pub mod host;
pub mod other_writer;
pub mod owner_only;
pub mod percentiles;
pub mod pool;
pub mod rebuild;
pub mod restore;
mod shared_blocks;
pub mod state;
pub mod units;
pub mod zfs_name;
