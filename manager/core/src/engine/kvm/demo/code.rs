//! Machine code of the demo guest, assembled into the binary's read-only data.

use std::slice;

use super::layout as l;

std::arch::global_asm!(
    include_str!("guest.S"),
    CODE = const l::CODE,
    PML4 = const l::PML4,
    PDPT = const l::PDPT,
    PD = const l::PD,
    DATA = const l::DATA,
    USER = const l::USER,
    HEAP = const l::HEAP,
    DOORBELL = const l::DOORBELL,
    PAYLOAD_SIZE = const l::PAYLOAD_SIZE,
    REQUEST_SEQ = const l::REQUEST_SEQ,
    REQUEST_OP = const l::REQUEST_OP,
    REQUEST_ARGS = const l::REQUEST_ARGS,
    REQUEST_PAYLOAD = const l::REQUEST_PAYLOAD,
    RESPONSE_SEQ = const l::RESPONSE_SEQ,
    RESPONSE_STATUS = const l::RESPONSE_STATUS,
    RESPONSE_NONCE = const l::RESPONSE_NONCE,
    RESPONSE_COUNTER = const l::RESPONSE_COUNTER,
    RESPONSE_VALUES = const l::RESPONSE_VALUES,
    RESPONSE_PAYLOAD = const l::RESPONSE_PAYLOAD,
    ID_GENERATION = const l::ID_GENERATION,
    ID_NAME = const l::ID_NAME,
    ID_NAMED_SIZE = const l::ID_NAMED_SIZE,
    ID_ENTROPY = const l::ID_ENTROPY,
    ID_WALL_NS = const l::ID_WALL_NS,
    ID_TSC_TO_NS = const l::ID_TSC_TO_NS,
    ID_MEMORY_SIZE = const l::ID_MEMORY_SIZE,
    STATE_NONCE = const l::STATE_NONCE,
    STATE_COUNTER = const l::STATE_COUNTER,
    STATE_GENERATION = const l::STATE_GENERATION,
    STATE_NAME = const l::STATE_NAME,
    STATE_RNG = const l::STATE_RNG,
    STATE_DIRTY_NEXT = const l::STATE_DIRTY_NEXT,
    STATE_BOOT_TSC = const l::STATE_BOOT_TSC,
    STATE_TSC_BASE = const l::STATE_TSC_BASE,
    STATE_LAST_TSC = const l::STATE_LAST_TSC,
    OP_PING = const l::OP_PING,
    OP_SUM = const l::OP_SUM,
    OP_DIRTY = const l::OP_DIRTY,
    OP_PEEK = const l::OP_PEEK,
    OP_POKE = const l::OP_POKE,
    OP_IDENTITY = const l::OP_IDENTITY,
    OP_RANDOM = const l::OP_RANDOM,
    OP_TIME = const l::OP_TIME,
    OP_SPIN = const l::OP_SPIN,
    OP_CRASH = const l::OP_CRASH,
    STATUS_OK = const l::STATUS_OK,
    STATUS_RANGE = const l::STATUS_RANGE,
    STATUS_UNKNOWN = const l::STATUS_UNKNOWN,
);

unsafe extern "C" {
    static brood_demo_guest_start: u8;
    static brood_demo_guest_end: u8;
    static brood_demo_reset_start: u8;
    static brood_demo_reset_end: u8;
}

/// The guest's code, to be placed at [`l::CODE`].
pub(super) fn guest() -> &'static [u8] {
    between(
        &raw const brood_demo_guest_start,
        &raw const brood_demo_guest_end,
    )
}

/// The 16 bytes at the reset vector.
pub(super) fn reset_vector() -> &'static [u8] {
    between(
        &raw const brood_demo_reset_start,
        &raw const brood_demo_reset_end,
    )
}

fn between(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: both labels stand in one section of read-only data, start before end, and the
    // linker keeps a section's content together.
    unsafe { slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_fits_where_it_is_placed() {
        assert_eq!(reset_vector().len(), 16);
        let code = guest().len() as u64;
        assert!(code > 0x100 && l::CODE + code <= l::PML4, "{code}");
    }
}
