//! Restore: many running guests from one checkpoint. [`verify`] checks the checkpoint, and
//! [`restore`] carries out a [`RestoreSpec`] and returns a [`RestoreReport`].

pub mod cost;
mod disks;
mod error;
mod flow;
mod report;
mod reserve;
mod run;
mod session_cache;
mod spec;
mod verify;

pub use self::{
    error::Error,
    flow::{RestoreContext, restore},
    report::RestoreStep,
    report::{RestoreEnd, RestoreFailure, RestoreReport, RestoredGuest},
    session_cache::{SessionCache, Slot},
    spec::{PRIVATE_LIMIT, RestoreSpec, TIMEOUT, cores},
    verify::{read_bundle, verify},
};
