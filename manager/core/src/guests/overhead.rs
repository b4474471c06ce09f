//! Overhead of guests: what each costs besides its private memory.

use std::collections::HashMap;

use crate::{checkpoint::manifest::EngineKind, host::plan::CostModel, units::Bytes};

/// What a guest costs besides its private memory: its process and the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overhead {
    /// How much.
    pub bytes: Bytes,
    /// Whether a density run found it; else it is what guests cost in general.
    pub measured: bool,
}

/// The overhead of guests, by their checkpoint.
#[derive(Clone, Debug)]
pub struct Overheads {
    measured: HashMap<String, Bytes>,
    general: Bytes,
}

impl Overheads {
    pub(super) fn new(measured: HashMap<String, Bytes>, engine: EngineKind) -> Self {
        Self {
            measured,
            general: CostModel::built_in(engine).overhead,
        }
    }

    /// That of guests of the checkpoint with this digest.
    #[must_use]
    pub fn of(&self, sha256: &str) -> Overhead {
        match self.measured.get(sha256) {
            Some(&bytes) => Overhead {
                bytes,
                measured: true,
            },
            None => Overhead {
                bytes: self.general,
                measured: false,
            },
        }
    }
}
