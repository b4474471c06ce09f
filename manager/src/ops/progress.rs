//! Progress of a restore by this process, told as the daemon tells that of its own.

use std::{
    ops::ControlFlow,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{api::events::RestoreEvent, client::Watch};
use brood_core::{checkpoint, restore::RestoreStep};

/// A restore by this process, and who watches it.
pub(super) struct LocalProgress<'a> {
    cancelled: &'a AtomicBool,
    watched: Mutex<WatchedEvent<'a>>,
}

struct WatchedEvent<'a> {
    event: RestoreEvent,
    watch: Watch<'a>,
}

impl<'a> LocalProgress<'a> {
    pub(super) fn new(watch: Watch<'a>, asked: u32) -> Self {
        let event = RestoreEvent {
            asked,
            ..RestoreEvent::default()
        };
        Self {
            cancelled: watch.cancelled,
            watched: Mutex::new(WatchedEvent { event, watch }),
        }
    }

    /// Set when no more guests are to be begun.
    pub(super) fn cancelled(&self) -> &'a AtomicBool {
        self.cancelled
    }

    fn watched(&self) -> MutexGuard<'_, WatchedEvent<'a>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is known now how many guests there are to be.
    pub(super) fn asks_for(&self, guests: u64) {
        let WatchedEvent { event, watch } = &mut *self.watched();
        event.asked = u32::try_from(guests).unwrap_or(u32::MAX);
        (watch.observe)(event);
    }

    /// The checkpoint is being verified. Says whether that is to go on.
    pub(super) fn verifying(&self, progress: checkpoint::Progress) -> ControlFlow<()> {
        let WatchedEvent { event, watch } = &mut *self.watched();
        (watch.observe)(&event.verifying(progress));
        match self.cancelled.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// Something happened in it.
    pub(super) fn note(&self, step: &RestoreStep<'_>) {
        let WatchedEvent { event, watch } = &mut *self.watched();
        event.count(step);
        (watch.observe)(event);
    }
}
