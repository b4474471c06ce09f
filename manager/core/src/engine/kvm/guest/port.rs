//! Port of a guest: what its process must know of the kind of guest that it runs.
//!
//! The process restores, asks, parks and suspends a guest of any kind. How such a guest takes its
//! identity and its requests is the port's, and what these mean nobody else knows.

use crate::engine::{
    Identity,
    kvm::{
        vm::{devices::Devices, ram::Ram},
        wire::{AnswerBytes, IdentityBytes, RequestBytes},
    },
};

/// A port to one guest.
///
/// What is written to the guest's memory is written before the guest runs, or while it waits.
pub(crate) trait GuestPort: Devices + Default {
    /// The request that a restored guest must answer before anybody is told of it.
    const FIRST_REQUEST: RequestBytes;

    /// What makes a clone this clone, as guests of this kind take it.
    fn identity_bytes(identity: &Identity) -> IdentityBytes;

    /// Lays down what makes this clone this clone, and the time, where the guest looks for them.
    /// `tsc_khz` is the rate of its counter. `false` when the guest has no place for them.
    fn lay_down_identity(&mut self, ram: &Ram, identity: &IdentityBytes, tsc_khz: u32) -> bool;

    /// Puts a request where the guest reads it. `false` when the guest has no place for it.
    fn put_request(&mut self, ram: &Ram, request: &RequestBytes) -> bool;

    /// Reads the guest's answer to the request that was put last. `false` when there is none.
    fn take_answer(&mut self, ram: &Ram, answer: &mut AnswerBytes) -> bool;

    /// What an answer proves of the guest.
    fn proof(answer: &AnswerBytes) -> Proof;
}

/// What an answer proves: which boot the guest goes back to, and how far it has come since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proof {
    /// The nonce it holds in memory since it was booted.
    pub(crate) nonce: u64,
    /// Requests it has answered since then.
    pub(crate) counter: u64,
}
