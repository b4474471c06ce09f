//! Progress of a restore, by this process or by the daemon, and its cancellation.

use std::{
    ops::ControlFlow,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::types::RestoreEvent;
use brood_core::{checkpoint, pool::Pool, restore::RestoreStep};

/// Observer of a restore, who can end it.
pub(crate) trait RestoreObserver: Sync {
    /// Set when no more guests are to be begun.
    fn cancelled(&self) -> &AtomicBool;

    /// It fills this pool.
    fn fills(&self, pool: &Pool);

    /// The checkpoint is being verified. Says whether that is to go on.
    fn verifying(&self, progress: checkpoint::Progress) -> ControlFlow<()>;

    /// Something happened in it.
    fn note(&self, step: &RestoreStep<'_>);

    /// The daemon, which does it, tells how far it is.
    fn told(&self, _: &RestoreEvent) {}
}

/// Whether a restore is to go on that ends when this is set.
pub(crate) fn unless(cancelled: &AtomicBool) -> ControlFlow<()> {
    match cancelled.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// Observer who sees the same of a restore by this process as of one by the daemon.
pub(crate) struct Watch<'a> {
    cancelled: &'a AtomicBool,
    watched: Mutex<WatchedEvent<'a>>,
}

struct WatchedEvent<'a> {
    event: RestoreEvent,
    observe: &'a mut (dyn FnMut(&RestoreEvent) + Send),
}

impl<'a> Watch<'a> {
    /// Of a restore of so many guests, which begins no more of them when `cancelled` is set.
    pub(crate) fn new(
        cancelled: &'a AtomicBool,
        asked: u32,
        observe: &'a mut (dyn FnMut(&RestoreEvent) + Send),
    ) -> Self {
        let event = RestoreEvent {
            asked,
            ..RestoreEvent::default()
        };
        Self {
            cancelled,
            watched: Mutex::new(WatchedEvent { event, observe }),
        }
    }

    fn watched(&self) -> MutexGuard<'_, WatchedEvent<'a>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RestoreObserver for Watch<'_> {
    fn cancelled(&self) -> &AtomicBool {
        self.cancelled
    }

    fn fills(&self, pool: &Pool) {
        let WatchedEvent { event, observe } = &mut *self.watched();
        event.asked = u32::try_from(pool.missing()).unwrap_or(u32::MAX);
        observe(event);
    }

    fn verifying(&self, progress: checkpoint::Progress) -> ControlFlow<()> {
        let WatchedEvent { event, observe } = &mut *self.watched();
        observe(&event.verifying(progress));
        unless(self.cancelled)
    }

    fn note(&self, step: &RestoreStep<'_>) {
        let WatchedEvent { event, observe } = &mut *self.watched();
        event.count(step);
        observe(event);
    }

    fn told(&self, event: &RestoreEvent) {
        (self.watched().observe)(event);
    }
}
