//! The production engine: FreeBSD's bhyve.

pub mod config;
