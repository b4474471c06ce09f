//! Port of the demo guest: a data page that identity, requests and answers lie in, and an I/O port, its
//! doorbell, that the guest rings when it has answered.

use std::{
    mem::offset_of,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use zerocopy::transmute;

use super::{
    layout as l,
    mailbox::{DemoAnswer, IdentityBlock, Request},
};
use crate::engine::{
    Identity,
    kvm::{
        guest::port::{GuestPort, Proof},
        vm::{
            devices::{Devices, Flow},
            ram::Ram,
        },
        wire::{AnswerBytes, IdentityBytes, RequestBytes},
    },
};

/// The port to one demo guest.
#[derive(Debug, Default)]
pub(in crate::engine::kvm) struct DemoPort {
    /// Number of the request that was put last.
    seq: u64,
}

impl Devices for DemoPort {
    fn write_port(&mut self, port: u16, _: &[u8]) -> Option<Flow> {
        (port == l::DOORBELL).then_some(Flow::Wait)
    }
}

impl GuestPort for DemoPort {
    const FIRST_REQUEST: RequestBytes = transmute!(Request::bare(l::OP_PING));

    fn identity_bytes(identity: &Identity) -> IdentityBytes {
        transmute!(IdentityBlock::from(identity))
    }

    fn lay_down_identity(&mut self, ram: &Ram, identity: &IdentityBytes, tsc_khz: u32) -> bool {
        let clock = Clock::now(tsc_khz);
        put(ram, l::ID_GENERATION, identity)
            && put(ram, l::ID_WALL_NS, &clock.wall_ns().to_le_bytes())
            && put(ram, l::ID_TSC_TO_NS, &clock.tsc_to_ns().to_le_bytes())
            && put(ram, l::ID_MEMORY_SIZE, &ram.size().to_le_bytes())
    }

    fn put_request(&mut self, ram: &Ram, request: &RequestBytes) -> bool {
        self.seq += 1;
        let (head, payload) = request.split_at(offset_of!(Request, payload));
        // The payload matters to `ping` alone.
        let is_ping = head.starts_with(&l::OP_PING.to_le_bytes());
        put(ram, l::REQUEST_SEQ, &self.seq.to_le_bytes())
            && put(ram, l::REQUEST_OP, head)
            && (!is_ping || put(ram, l::REQUEST_PAYLOAD, payload))
    }

    fn take_answer(&mut self, ram: &Ram, answer: &mut AnswerBytes) -> bool {
        ram.read(l::DATA + l::RESPONSE_SEQ as u64, answer)
            && answer.starts_with(&self.seq.to_le_bytes())
    }

    fn proof(answer: &AnswerBytes) -> Proof {
        let DemoAnswer { nonce, counter, .. } = DemoAnswer::of_wire(*answer);
        Proof { nonce, counter }
    }
}

// The head of a request lies as one piece.
const _: () = assert!(l::REQUEST_ARGS - l::REQUEST_OP == offset_of!(Request, args));

/// Writes to the guest's data page.
fn put(ram: &Ram, offset: usize, bytes: &[u8]) -> bool {
    ram.write(l::DATA + offset as u64, bytes)
}

/// What the guest's clock is reckoned from: the time now, and the rate of its counter.
#[derive(Clone, Copy, Debug)]
struct Clock {
    wall: Duration,
    tsc_khz: u32,
}

impl Clock {
    /// The clock of a guest that is about to run.
    fn now(tsc_khz: u32) -> Self {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self { wall, tsc_khz }
    }

    /// Nanoseconds since 1970.
    fn wall_ns(self) -> u64 {
        u64::try_from(self.wall.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Nanoseconds per tick, 32.32 fixed point.
    fn tsc_to_ns(self) -> u64 {
        (1_000_000 << 32) / u64::from(self.tsc_khz.max(1))
    }
}
