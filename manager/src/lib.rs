//! brood: restores hundreds to thousands of microVMs from one memory checkpoint.
//!
//! This crate is what people and programs meet: the command line, the daemon with its API, the
//! configuration and the density report. They stand on the crate `brood_core`.
//!
//! ```text
//! cli ──▶ client ──▶ api ──▶ ops ──▶ types ──▶ brood_core
//!  │                                             ▲
//!  └─▶ config, density ──────────────────────────┘
//! ```

// Both panic where what they print cannot be written; `cli::output` prints.
#![deny(clippy::print_stderr, clippy::print_stdout)]
// A build without some features has code that only those use.
#![cfg_attr(
    not(all(feature = "page", feature = "plots", feature = "top")),
    allow(dead_code)
)]

pub mod api;
pub mod cli;
mod client;
mod config;
pub mod density;
mod failure;
#[cfg(fuzzing)]
pub mod fuzzing;
mod image;
mod ops;
pub mod types;
