//! Overhead of guests: what each costs besides its private memory.

use std::collections::HashMap;

use crate::{
    checkpoint::manifest::EngineKind, host::plan::CostModel, state::GuestRow, units::Bytes,
};

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
    engine: EngineKind,
}

impl Overheads {
    pub(super) fn new(measured: HashMap<String, Bytes>, engine: EngineKind) -> Self {
        Self { measured, engine }
    }

    /// That of a guest.
    #[must_use]
    pub fn of(&self, guest: &GuestRow) -> Overhead {
        match self.measured.get(&guest.sha256) {
            Some(&bytes) => Overhead {
                bytes,
                measured: true,
            },
            None => Overhead {
                bytes: CostModel::built_in(guest.engine.unwrap_or(self.engine)).overhead,
                measured: false,
            },
        }
    }
}
