//! VM generation id: 16 bytes that are others in each clone, and an interrupt that says so. The
//! guest's kernel reseeds its random generator by them, before a program of the guest could.
//!
//! The bytes are registers of a device and no memory, so they take no page of the guest's: see
//! Microsoft's "Virtual Machine Generation ID", which allows both. And a guest that has never read
//! them has no driver, so it is not interrupted.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::irq::Irq;

/// A generation.
pub type GenerationId = [u8; 16];

/// The device.
pub(crate) struct Generation {
    id: GenerationId,
    state: GenerationState,
    irq: Arc<dyn Irq>,
}

/// What a checkpoint has of it: each clone has another id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GenerationState {
    /// The guest has read the id.
    was_read: bool,
}

impl GenerationState {
    /// Whether nobody has used the device.
    pub(crate) fn is_new(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Generation");
        shown.field("state", &self.state).finish_non_exhaustive()
    }
}

impl Generation {
    pub(crate) fn new(irq: Arc<dyn Irq>) -> Self {
        Self {
            id: [0; 16],
            state: GenerationState::default(),
            irq,
        }
    }

    pub(crate) fn state(&self) -> GenerationState {
        self.state
    }

    pub(crate) fn set_state(&mut self, state: GenerationState) {
        self.state = state;
    }

    /// From here on the guest is this one.
    pub(crate) fn set(&mut self, id: GenerationId) {
        self.id = id;
        if self.state.was_read {
            self.irq.raise();
        }
    }

    pub(crate) fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.state.was_read = true;
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let id = self.id.get(from..).unwrap_or_default();
        data.fill(0);
        for (to, from) in data.iter_mut().zip(id) {
            *to = *from;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct Raised(AtomicU32);

    impl Irq for Raised {
        fn raise(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn only_a_guest_that_has_looked_is_told_of_a_new_id() {
        let raised = Arc::new(Raised::default());
        let count = || raised.0.load(Ordering::Relaxed);
        let mut device = Generation::new(raised.clone());
        device.set([1; 16]);
        assert!(count() == 0 && device.state().is_new());
        let mut half = [0; 8];
        device.read(8, &mut half);
        assert_eq!(half, [1; 8]);
        // Its clone.
        let mut clone = Generation::new(raised.clone());
        clone.set_state(device.state());
        assert_eq!(count(), 0);
        clone.set([2; 16]);
        assert_eq!(count(), 1);
        clone.read(0, &mut half);
        assert_eq!(half, [2; 8]);
    }

    #[test]
    fn behind_the_id_there_are_zeros() {
        let mut device = Generation::new(Arc::new(Raised::default()));
        device.set([7; 16]);
        for (offset, expected) in [(12, [7, 7, 7, 7, 0, 0, 0, 0]), (16, [0; 8]), (4088, [0; 8])] {
            let mut data = [9; 8];
            device.read(offset, &mut data);
            assert_eq!(data, expected, "{offset}");
        }
    }
}
