//! Memory layout of the demo guest, and its numbers: the one source for the guest's assembly and
//! for the host.
//!
//! | guest-physical | what |
//! |---|---|
//! | `0x1000` | code |
//! | `0x3000`–`0x7fff` | page tables: PML4, PDPT, three page directories |
//! | `0x8000` | data page: request, response, identity, the guest's own state |
//! | `0x10000` | first address that a request may write |
//! | `0x100000` | heap, to the end of memory |

use std::ops::RangeInclusive;

use crate::units::Bytes;

/// Memory sizes that the demo guest can have: its page tables reach to 3 GiB.
pub const MEMORY: RangeInclusive<Bytes> = Bytes::mib(4)..=Bytes::gib(3);

pub(super) const CODE: u64 = 0x1000;
pub(super) const PML4: u64 = 0x3000;
pub(super) const PDPT: u64 = 0x4000;
pub(super) const PD: u64 = 0x5000;
/// The data page.
pub(crate) const DATA: u64 = 0x8000;
/// First address that `poke` may write.
pub const USER: u64 = 0x1_0000;
/// First address that `dirty` writes.
pub const HEAP: u64 = 0x10_0000;
/// Pages that the guest needs to run at all: everything from its code to its data page.
pub(crate) const WORKING_SET: std::ops::Range<u64> = CODE / 4096..DATA / 4096 + 1;

/// Port of the doorbell.
pub(crate) const DOORBELL: u16 = 0xb0;

/// Bytes of payload in a request and in a response.
pub(crate) const PAYLOAD_SIZE: usize = 256;

// Offsets in the data page.
pub(crate) const REQUEST_SEQ: usize = 0x000;
pub(crate) const REQUEST_OP: usize = 0x008;
pub(crate) const REQUEST_ARGS: usize = 0x010;
pub(crate) const REQUEST_PAYLOAD: usize = 0x040;
pub(crate) const RESPONSE_SEQ: usize = 0x140;
pub(crate) const RESPONSE_STATUS: usize = 0x148;
pub(crate) const RESPONSE_NONCE: usize = 0x150;
pub(crate) const RESPONSE_COUNTER: usize = 0x158;
pub(crate) const RESPONSE_VALUES: usize = 0x160;
pub(crate) const RESPONSE_PAYLOAD: usize = 0x180;
pub(crate) const ID_GENERATION: usize = 0x300;
/// Name (32 bytes, NUL-padded), MAC address (6 bytes and two zeros), seed (8 bytes).
pub(crate) const ID_NAME: usize = 0x310;
pub(crate) const ID_MAC: usize = 0x330;
pub(crate) const ID_SEED: usize = 0x338;
pub(crate) const ID_NAMED_SIZE: usize = 0x30;
pub(crate) const ID_ENTROPY: usize = 0x340;
pub(crate) const ID_WALL_NS: usize = 0x368;
/// Nanoseconds per tick of the time stamp counter, as a 32.32 fixed-point number.
pub(crate) const ID_TSC_TO_NS: usize = 0x370;
pub(crate) const ID_MEMORY_SIZE: usize = 0x378;
pub(super) const STATE_NONCE: usize = 0x400;
pub(super) const STATE_COUNTER: usize = 0x408;
pub(super) const STATE_GENERATION: usize = 0x410;
pub(super) const STATE_NAME: usize = 0x420;
pub(super) const STATE_RNG: usize = 0x450;
pub(super) const STATE_DIRTY_NEXT: usize = 0x470;
pub(super) const STATE_BOOT_TSC: usize = 0x478;
pub(super) const STATE_TSC_BASE: usize = 0x480;
pub(super) const STATE_LAST_TSC: usize = 0x488;

/// Longest guest name, in bytes.
pub(crate) const NAME_SIZE: usize = ID_MAC - ID_NAME;

// Operations and status.
pub(crate) const OP_PING: u64 = 1;
pub(crate) const OP_SUM: u64 = 2;
pub(crate) const OP_DIRTY: u64 = 3;
pub(crate) const OP_PEEK: u64 = 4;
pub(crate) const OP_POKE: u64 = 5;
pub(crate) const OP_IDENTITY: u64 = 6;
pub(crate) const OP_RANDOM: u64 = 7;
pub(crate) const OP_TIME: u64 = 8;
pub(crate) const OP_SPIN: u64 = 9;
pub(crate) const OP_CRASH: u64 = 10;
pub(crate) const STATUS_OK: u64 = 0;
pub(crate) const STATUS_RANGE: u64 = 1;
pub(crate) const STATUS_UNKNOWN: u64 = 2;
