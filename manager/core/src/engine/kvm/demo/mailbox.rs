//! Mailbox of the demo guest: requests and answers as they lie in its data page.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute};

use super::layout as l;
use crate::engine::{
    Identity,
    kvm::wire::{AnswerBytes, RequestBytes},
};

/// One request to the guest.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Request {
    /// Operation, one of `layout::OP_*`.
    pub(crate) op: u64,
    /// Arguments; what they mean depends on the operation.
    pub(crate) args: [u64; 4],
    /// Bytes that go along.
    pub(crate) payload: [u8; l::PAYLOAD_SIZE],
}

impl Request {
    pub(crate) fn new(op: u64, args: &[u64]) -> Self {
        let mut request = Self::bare(op);
        request.args[..args.len()].copy_from_slice(args);
        request
    }

    /// The request without arguments.
    pub(super) const fn bare(op: u64) -> Self {
        Self {
            op,
            args: [0; 4],
            payload: [0; l::PAYLOAD_SIZE],
        }
    }

    /// As it goes to the guest's process.
    pub(crate) fn to_wire(self) -> RequestBytes {
        transmute!(self)
    }
}

/// The guest's answer to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DemoAnswer {
    /// Sequence number of the request that is answered.
    pub(crate) seq: u64,
    /// One of `layout::STATUS_*`.
    pub(crate) status: u64,
    /// Number made at boot and held in guest memory only.
    pub nonce: u64,
    /// Requests answered since boot, with this one.
    pub counter: u64,
    /// Values of the answer; what they mean depends on the operation.
    pub(crate) values: [u64; 4],
    /// Bytes of the answer.
    pub(crate) payload: [u8; l::PAYLOAD_SIZE],
}

impl DemoAnswer {
    /// As it came from the guest's process.
    pub(crate) fn of_wire(bytes: AnswerBytes) -> Self {
        transmute!(bytes)
    }
}

const _: () =
    assert!(l::RESPONSE_PAYLOAD - l::RESPONSE_SEQ == std::mem::offset_of!(DemoAnswer, payload));
const _: () =
    assert!(l::RESPONSE_NONCE - l::RESPONSE_SEQ == std::mem::offset_of!(DemoAnswer, nonce));
const _: () =
    assert!(l::RESPONSE_VALUES - l::RESPONSE_SEQ == std::mem::offset_of!(DemoAnswer, values));

/// An identity as it lies in the guest's data page, from `layout::ID_GENERATION` on.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct IdentityBlock {
    generation: [u8; 16],
    name: [u8; l::NAME_SIZE],
    mac: [u8; 6],
    padding: [u8; 2],
    seed: [u8; 8],
    entropy: [u8; 32],
}

const _: () = assert!(l::ID_NAME - l::ID_GENERATION == std::mem::offset_of!(IdentityBlock, name));
const _: () = assert!(l::ID_MAC - l::ID_GENERATION == std::mem::offset_of!(IdentityBlock, mac));
const _: () = assert!(l::ID_SEED - l::ID_GENERATION == std::mem::offset_of!(IdentityBlock, seed));
const _: () =
    assert!(l::ID_ENTROPY - l::ID_GENERATION == std::mem::offset_of!(IdentityBlock, entropy));

impl From<&Identity> for IdentityBlock {
    fn from(identity: &Identity) -> Self {
        let Identity {
            name,
            generation,
            mac,
            seed,
            entropy,
        } = identity;
        let mut block = Self {
            generation: *generation,
            name: [0; l::NAME_SIZE],
            mac: *mac,
            padding: [0; 2],
            seed: *seed,
            entropy: *entropy,
        };
        let length = name.len().min(l::NAME_SIZE);
        block.name[..length].copy_from_slice(&name.as_bytes()[..length]);
        block
    }
}
