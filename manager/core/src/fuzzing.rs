//! What fuzz targets call, in builds with `--cfg fuzzing` alone: parsers that no other crate sees, each
//! with what must hold for all that it takes.
//!
//! A function returns whether its input was taken, and panics where it was taken wrongly.

use std::path::Path;

pub use crate::agent::fuzzing::{BrokerStep, broker};
use crate::{
    checkpoint::{PageList, fuzzing as checkpoint, meta::Meta},
    units::Bytes,
};

#[cfg(target_os = "linux")]
pub use crate::engine::{kvm::fuzzing::vcpu_state, qemu::fuzzing::qmp};

/// A manifest: what is read can be written, and is then read as the same.
pub fn manifest(text: &[u8]) -> bool {
    checkpoint::manifest(text)
}

/// A `.meta` beside a `.kern` of so many bytes: its parts lie within, and what is written of it is read
/// as the same.
pub fn meta(text: &[u8], kern: u64) -> bool {
    let file = Path::new("fuzz.ckp.meta");
    let Ok(meta) = Meta::parse(file, text, Bytes(kern)) else {
        return false;
    };
    for part in meta.structs.iter().chain(&meta.devices) {
        assert!(part.file_offset.checked_add(part.size.0).unwrap() <= kern);
    }
    checkpoint::meta_again(&meta, kern);
    true
}

/// Lists of pages, the oldest delta's first: a chain of them composes to what their pages say one by
/// one.
pub fn deltas(lists: &[PageList]) {
    checkpoint::compose(lists);
}
