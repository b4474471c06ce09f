//! brood: restores hundreds to thousands of microVMs from one memory checkpoint.
//!
//! Each module is one idea, and data moves one way through them:
//!
//! ```text
//! cli ──▶ pool ──▶ restore ──▶ engine ──▶ guest process
//!            │           │
//!            ├─▶ checkpoint (what to restore from)
//!            ├─▶ state      (what must survive a crash: SQLite)
//!            └─▶ host       (what this machine can hold: facts, limits, admission)
//! config ──▶ cli: what is used where the command line says nothing
//! density ◀── reads engine usage and host facts; writes reports
//! ```

pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod density;
pub mod engine;
pub mod guests;
pub mod host;
pub mod pool;
pub mod restore;
pub mod state;
pub mod units;
