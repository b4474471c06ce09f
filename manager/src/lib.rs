//! brood: restores hundreds to thousands of microVMs from one memory checkpoint.
//!
//! Each module is one idea, and data moves one way through them:
//!
//! ```text
//! cli, api ──▶ pool ──▶ restore ──▶ engine ──▶ guest process
//!                 │           │
//!                 ├─▶ checkpoint (what to restore from)
//!                 ├─▶ disk       (what each guest has its root on: clones, snapshots)
//!                 ├─▶ state      (what must survive a crash: SQLite)
//!                 └─▶ host       (what this machine can hold: facts, limits, admission)
//! density ◀── reads engine usage and host facts; writes reports
//! ```

// Both panic where what they print cannot be written; `cli::output` prints.
#![deny(clippy::print_stderr, clippy::print_stdout)]

pub mod api;
pub mod checkpoint;
pub mod cli;
mod client;
pub mod config;
pub mod density;
pub mod disk;
pub mod engine;
mod escaped;
mod failure;
pub mod guest_id;
pub mod guests;
pub mod host;
mod other_writer;
mod owner_only;
pub mod percentiles;
pub mod pool;
pub mod rebuild;
pub mod restore;
pub mod state;
pub mod units;
pub mod zfs_name;
