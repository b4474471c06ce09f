//! Fills of pools that the daemon has under way, each with the flag that ends it: a request that
//! changes the pool sets it, and the daemon's end. A fill that begins meanwhile is ended at once.
//!
//! Threads share this; `tests/tests/interleavings.rs` tries all orders in which they can come, with
//! other types in the place of `super::sync`.

use std::collections::HashMap;

use super::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

/// The fills of all pools.
#[derive(Clone, Debug, Default)]
pub(super) struct Fills(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    under_way: HashMap<String, Arc<AtomicBool>>,
    /// How many requests change a pool now.
    changing: HashMap<String, usize>,
    /// The daemon ends.
    is_over: bool,
}

impl Fills {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the fill of a pool that a request is about to change, and keeps new ones off until the
    /// result is dropped.
    pub(super) fn interrupt(&self, pool: &str) -> Interruption {
        let mut state = self.state();
        *state.changing.entry(pool.to_owned()).or_default() += 1;
        if let Some(cancelled) = state.under_way.get(pool) {
            cancelled.store(true, Ordering::Relaxed);
        }
        Interruption {
            fills: self.clone(),
            pool: pool.to_owned(),
        }
    }

    /// Ends all fills, for good.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.is_over = true;
        for cancelled in state.under_way.values() {
            cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// A fill begins, which ends when the flag is set.
    pub(super) fn begin(&self, pool: &str) -> Arc<AtomicBool> {
        let mut state = self.state();
        let is_unwanted = state.is_over || state.changing.contains_key(pool);
        let cancelled = Arc::new(AtomicBool::new(is_unwanted));
        state
            .under_way
            .insert(pool.to_owned(), Arc::clone(&cancelled));
        cancelled
    }

    /// It is over.
    pub(super) fn done(&self, pool: &str) {
        self.state().under_way.remove(pool);
    }
}

/// A change of a pool, which is not filled meanwhile.
#[derive(Debug)]
pub(super) struct Interruption {
    fills: Fills,
    pool: String,
}

impl Drop for Interruption {
    fn drop(&mut self) {
        let mut state = self.fills.state();
        let left = state.changing.get_mut(&self.pool).map(|count| {
            *count -= 1;
            *count
        });
        if left == Some(0) {
            state.changing.remove(&self.pool);
        }
    }
}
