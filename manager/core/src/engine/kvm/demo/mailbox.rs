//! Mailbox of the demo guest: requests and answers as they lie in its data page.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::layout as l;
use crate::engine::{Identity, kvm::vm::ram::Ram};

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
        let mut request = Self {
            op,
            args: [0; 4],
            payload: [0; l::PAYLOAD_SIZE],
        };
        request.args[..args.len()].copy_from_slice(args);
        request
    }
}

/// The guest's answer to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Answer {
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

const _: () =
    assert!(l::RESPONSE_PAYLOAD - l::RESPONSE_SEQ == std::mem::offset_of!(Answer, payload));
const _: () = assert!(l::RESPONSE_NONCE - l::RESPONSE_SEQ == std::mem::offset_of!(Answer, nonce));
const _: () = assert!(l::RESPONSE_VALUES - l::RESPONSE_SEQ == std::mem::offset_of!(Answer, values));

/// Writes a request where the guest reads it. The guest must be waiting at its doorbell.
pub(crate) fn put_request(ram: &Ram, seq: u64, request: &Request) -> bool {
    // The payload matters to `ping` alone.
    let head = ram.write(l::DATA + l::REQUEST_SEQ as u64, &seq.to_le_bytes())
        && ram.write(l::DATA + l::REQUEST_OP as u64, &request.op.to_le_bytes())
        && ram.write(l::DATA + l::REQUEST_ARGS as u64, request.args.as_bytes());
    head && (request.op != l::OP_PING
        || ram.write(l::DATA + l::REQUEST_PAYLOAD as u64, &request.payload))
}

/// Reads the answer that the guest left when it rang.
pub(crate) fn take_response(ram: &Ram) -> Option<Answer> {
    let mut answer = Answer {
        seq: 0,
        status: 0,
        nonce: 0,
        counter: 0,
        values: [0; 4],
        payload: [0; l::PAYLOAD_SIZE],
    };
    ram.read(l::DATA + l::RESPONSE_SEQ as u64, answer.as_mut_bytes())
        .then_some(answer)
}

/// What the guest's clock is reckoned from: the time now, and the rate of its counter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    wall: Duration,
    tsc_khz: u32,
}

impl Clock {
    /// The clock of a guest that is about to run.
    pub(crate) fn now(tsc_khz: u32) -> Self {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self { wall, tsc_khz }
    }

    /// Nanoseconds per tick, 32.32 fixed point.
    fn tsc_to_ns(self) -> u64 {
        (1_000_000 << 32) / u64::from(self.tsc_khz.max(1))
    }
}

/// An identity as it lies in the guest's data page, from `layout::ID_GENERATION` on.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct IdentityBlock {
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

impl IdentityBlock {
    /// The name, NUL-padded.
    pub(crate) fn name(&self) -> &[u8] {
        &self.name
    }
}

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

/// Writes identity, entropy and clock where the guest looks for a new generation.
pub(crate) fn lay_down_identity(ram: &Ram, identity: &IdentityBlock, clock: Clock) -> bool {
    let wall_ns = u64::try_from(clock.wall.as_nanos()).unwrap_or(u64::MAX);
    let put = |offset: usize, bytes: &[u8]| ram.write(l::DATA + offset as u64, bytes);
    put(l::ID_GENERATION, identity.as_bytes())
        && put(l::ID_WALL_NS, &wall_ns.to_le_bytes())
        && put(l::ID_TSC_TO_NS, &clock.tsc_to_ns().to_le_bytes())
        && put(l::ID_MEMORY_SIZE, &ram.size().to_le_bytes())
}
